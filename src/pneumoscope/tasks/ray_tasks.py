"""Functions run as tasks of a Ray cluster, again if their process or machine dies.

This module knows nothing of what the functions do. A function that a task calls must be one of a module, and finds the
same working directory as on this machine, if its machine has it.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from pneumoscope import __version__
from pneumoscope.errors import PneumoscopeError, ServiceError, UsageError
from pneumoscope.tasks.engine import check_ray, open_ray
from pneumoscope.text import shorten

Value = TypeVar("Value")
On: TypeAlias = Literal["local", "ray"]  # this machine alone, or the machines of a Ray cluster

ATTEMPTS = 5  # for each task: one whose worker always dies must not be tried for ever


@dataclass(frozen=True)
class Pool:
    """Where tasks run, and how many at a time.

    Attributes:
        address: of the Ray cluster, `HOST:PORT` or `auto`; by default `$RAY_ADDRESS`, else one on this machine.
        count: tasks at a time at most; by default as many as the cluster has cores for.
        cpus: cores that each task computes with.
    """

    address: str | None = None
    count: int | None = None
    cpus: int = 1


def choose_pool(on: On, address: str | None, workers: int | None, cpus_per_worker: int | None) -> Pool | None:
    """The pool that options describe; None for this machine alone.

    Raises:
        UsageError: an option has no effect on this machine alone.
        MissingExtraError: Ray is not installed.
    """
    if on == "ray":
        check_ray()
        return Pool(address, workers, cpus_per_worker or 1)
    for name, value in (("address", address), ("cpus_per_worker", cpus_per_worker)):
        if value is not None:
            raise UsageError("has no effect without `on='ray'`.", name)
    return None


@dataclass(frozen=True)
class Handed(Generic[Value]):
    """A value that the machines get once, for all tasks."""

    id: str
    reference: tuple[Any, ...] = field(compare=False)  # in a tuple: Ray would fetch a bare one for each task

    def get(self) -> Value:
        """The value; each process fetches it once."""
        value: Value = _fetch(self)
        return value


@functools.lru_cache(maxsize=2)
def _fetch(handed: Handed[Any]) -> Any:
    import ray

    return ray.get(handed.reference[0])


@dataclass(frozen=True)
class _Call:
    """A function with its arguments, and what its process must be like."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    folder: str
    cpus: int


@dataclass(frozen=True)
class _Running:
    """A task that runs."""

    key: Any
    call: _Call
    attempt: int


@contextmanager
def open_tasks(pool: Pool, gpus: int = 0) -> Iterator[RayTasks]:
    """Use the Ray cluster of a pool, or start one on this machine; at the end, what still runs is ended.

    Args:
        pool: where, and how many tasks at a time.
        gpus: that each task needs.

    Raises:
        ServiceError: the cluster cannot be used, or has no machine with so many cores or GPUs.
    """
    with open_ray(pool.address) as ray:
        tasks = RayTasks(ray, pool, gpus)
        try:
            yield tasks
        finally:
            tasks.cancel()


def count_slots(ray: Any, cpus: int, gpus: int = 0) -> int:
    """How many tasks with so many cores and GPUs can run at a time.

    Raises:
        ServiceError: no machine is large enough; Ray itself would wait forever.
    """
    machines = [each["Resources"] for each in ray.nodes() if each["Alive"]]
    if gpus and not any(each.get("GPU", 0) >= gpus for each in machines):
        raise ServiceError("no machine of the cluster has a GPU. Choose another `device`.")
    slots = sum(
        min(int(each.get("CPU", 0)) // cpus, int(each.get("GPU", 0)) // gpus if gpus else 2**31) for each in machines
    )
    if slots < 1:
        with_gpu = " beside a GPU" if gpus else ""
        raise ServiceError(f"no machine of the cluster has {cpus} cores{with_gpu}. Lower `cpus_per_worker`.")
    return slots


class RayTasks:
    """Tasks on an open cluster.

    Attributes:
        slots: how many run at a time.
    """

    def __init__(self, ray: Any, pool: Pool, gpus: int) -> None:
        self.slots = min(pool.count or 2**31, count_slots(ray, pool.cpus, gpus))
        self._ray, self._cpus, self._folder = ray, pool.cpus, str(Path.cwd())
        # Whoever waits for a task also starts it again: Ray itself does so for ever where memory is short.
        options = {"num_cpus": pool.cpus, "num_gpus": gpus or None, "max_retries": 0}
        self._remote = ray.remote(**options)(_call)
        self._running: dict[Any, _Running] = {}

    @property
    def count(self) -> int:
        """How many tasks were submitted and not yet given back."""
        return len(self._running)

    def share(self, value: Value) -> Handed[Value]:
        """Hand a value to the machines of the cluster."""
        reference = self._ray.put(value)
        return Handed(reference.hex(), (reference,))

    def check(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on each machine that runs tasks.

        Raises:
            PneumoscopeError: the first that it raises there.
            ServiceError, UsageError: a machine lacks pneumoscope, or has another version.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        machines = [each for each in self._ray.nodes() if each["Alive"] and each["Resources"].get("CPU")]
        call = _Call(function, arguments, self._folder, self._cpus)
        calls = []
        for each in machines:
            place = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
            remote = self._ray.remote(num_cpus=0, max_retries=2, scheduling_strategy=place)
            calls.append(remote(_check).remote(__version__, call))
        for each, reference in zip(machines, calls, strict=True):
            try:
                problem = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as failure:
                raise ServiceError(
                    f"{each['NodeManagerHostname']}: pneumoscope cannot be used there "
                    f"({shorten(str(failure.cause), 200)}). Install the same version on all machines."
                ) from None
            except self._ray.exceptions.RayError:  # the machine has gone
                continue
            if problem is not None:
                raise problem

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function as a task; `wait` gives the key with its result."""
        self._start(_Running(key, _Call(function, arguments, self._folder, self._cpus), 1))

    def run(self, function: Callable[..., Any], calls: Sequence[Sequence[Any]]) -> Iterator[int]:
        """Run a function with each of these arguments, and yield their numbers as they end.

        Raises:
            PneumoscopeError: the first that the function raises.
        """
        waiting = list(enumerate(calls))[::-1]
        while waiting or self._running:
            while waiting and self.count < self.slots:
                number, arguments = waiting.pop()
                self.submit(number, function, *arguments)
            for number, result in self.wait():
                if isinstance(result, PneumoscopeError):
                    raise result
                yield number

    def wait(self, seconds: float | None = None) -> list[tuple[Any, Any]]:
        """Wait until a task ends, or for so many seconds; give the keys and results of those that have ended.

        The result is an error of ours where the function raised one.

        Raises:
            ServiceError: the worker of a task died again and again.
        """
        ended, _ = self._ray.wait(list(self._running), timeout=seconds)
        done = []
        for reference in ended:
            task = self._running.pop(reference)
            try:
                done.append((task.key, self._ray.get(reference)))
            except self._ray.exceptions.RayTaskError as problem:
                raise problem.cause or problem from None
            except self._ray.exceptions.RayError as problem:
                self._start_again(task, problem)
        return done

    def cancel(self) -> None:
        """End all tasks that still run."""
        for reference in self._running:
            with suppress(Exception):  # the cluster may have gone
                self._ray.cancel(reference, force=True)
        self._running.clear()

    def _start(self, task: _Running) -> None:
        self._running[self._remote.remote(task.call)] = task

    def _start_again(self, task: _Running, problem: Exception) -> None:
        if task.attempt == ATTEMPTS:
            raise ServiceError(
                f"a worker died {ATTEMPTS} times ({shorten(str(problem), 200)}). Perhaps memory is short: lower "
                "`workers`. Continue with `resume=True`."
            ) from None
        self._start(_Running(task.key, task.call, task.attempt + 1))


def _check(version: str, call: _Call) -> PneumoscopeError | None:
    if version != __version__:
        return UsageError(
            f"{platform.node()} has pneumoscope {__version__}, and this machine has {version}. Install one version "
            "everywhere."
        )
    found = _call(call)
    return found if isinstance(found, PneumoscopeError) else None


def _call(call: _Call) -> Any:
    """Call a function on a worker; an error of ours is its result, because Ray would wrap it in a stack trace."""
    with suppress(OSError):
        os.chdir(call.folder)
    _limit_threads(call.cpus)
    try:
        return call.function(*call.arguments)
    except PneumoscopeError as problem:
        return problem


def _limit_threads(count: int) -> None:
    """Compute with so many threads: tasks on one machine share its cores."""
    os.environ["OMP_NUM_THREADS"] = str(count)  # for the engines
    with suppress(ImportError):
        import torch

        torch.set_num_threads(count)
