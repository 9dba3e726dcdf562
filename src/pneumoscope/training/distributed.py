"""Training in several processes, which `torchrun` starts: who does which share, and how the shares come together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pneumoscope.errors import PneumoscopeError, UsageError

if TYPE_CHECKING:
    from datetime import timedelta

    from numpy.typing import NDArray
    from torch import nn
    from torch._C._distributed_c10d import ProcessGroup, Store

    from pneumoscope.training.settings import Settings

Item = TypeVar("Item")
Items = TypeVar("Items", bound="Sequence[Any] | NDArray[Any]")

# Others wait while the first process checks data or evaluates. If a process dies, its connections break, and the others
# stop waiting; if a machine loses its power or network, they do not.
_PATIENCE = 12 * 3600  # seconds
_MEETING = 900  # seconds until all processes must have started
_meetings = itertools.count()  # of this process with the others: every training of a program is one
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """The processes that train together. A single one is the first of one: its share is everything."""

    rank: int = 0  # the number of this process
    size: int = 1  # how many there are
    gpus: ProcessGroup | None = None  # connects their GPUs, if each has one of its own
    launch: str = ""  # names this training of a call of `torchrun`, also if it is started again after a failure

    @property
    def leads(self) -> bool:
        """Whether this is the first process: only it reads the dataset, writes the run and shows anything."""
        return self.rank == 0

    def share(self, items: Items) -> Items:
        """The items that this process works on."""
        return items[self.rank :: self.size]  # type: ignore[return-value]

    def gather(self, own: Sequence[Item]) -> list[Item]:
        """What all processes made of their shares, in the order of the items."""
        if self.size == 1:
            return list(own)
        import torch.distributed as dist

        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(own))
        gathered: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            gathered[rank :: self.size] = part
        return gathered

    def once(self, make: Callable[[], Item]) -> Item:
        """Call a function in the first process, and give its result in all of them."""
        if not self.leads:
            result: Item = self.hear()
            return result
        result = make()
        self.tell(result)
        return result

    def tell(self, message: Any) -> None:
        """Tell the other processes, of which each must `hear`; only for the first one."""
        if self.size > 1:
            import torch.distributed as dist

            dist.broadcast_object_list([message])

    def hear(self) -> Any:
        """Wait for what the first process will `tell`."""
        import torch.distributed as dist

        messages = [None]
        dist.broadcast_object_list(messages)
        return messages[0]

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def wrap(self, model: nn.Module) -> nn.Module:
        """A model with the same weights whose gradients are the means over all processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        on_gpu = next(model.parameters()).is_cuda
        return DistributedDataParallel(model, process_group=self.gpus if on_gpu else None, static_graph=True)


ALONE = Processes()


def find_rank() -> int:
    """The number of this process among those that `torchrun` started; 0 without it."""
    return int(os.environ["RANK"]) if _is_one_of_several() else 0


def _is_one_of_several() -> bool:
    return all(os.environ.get(name) for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def refuse_several(command: str) -> None:
    """Refuse a command that several processes would only do several times; only the first one says so.

    Raises:
        UsageError: `torchrun` started several processes.
    """
    if _is_one_of_several():
        if find_rank():
            raise SystemExit(UsageError.exit_code)
        raise UsageError(f"`{command}` runs in one process, and only `train` in several. Start it without `torchrun`.")


def check_processes(processes: Processes, settings: Settings, backbone: nn.Module) -> None:
    """Refuse settings that several processes cannot train with.

    Raises:
        UsageError: each process needs an image of each batch, and batch norms that learn need whole batches.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    n, optimisation, network = processes.size, settings.optimisation, settings.network
    if optimisation.batch_size < n:
        raise UsageError(
            f"a batch of {optimisation.batch_size} is too small for {n} processes: each needs at least one image. "
            f"Choose {n} or more, or start fewer processes.",
            "batch_size",
        )
    learns = network.train_backbone and not network.freeze_batchnorm
    if n > 1 and learns and any(isinstance(each, _BatchNorm) for each in backbone.modules()):
        raise UsageError(
            f"the batch norms of {network.backbone} learn from whole batches, but each of {n} processes sees only "
            "a part. Pass `freeze_batchnorm=True`, or train in one process.",
            "freeze_batchnorm",
        )


@contextmanager
def join() -> Iterator[Processes]:
    """Meet the other processes that `torchrun` started; without it, this one is alone.

    If one fails, all end: the first that fails raises its error, and the others exit silently with its code.

    Raises:
        PneumoscopeError: the others cannot be reached, or one of them was killed.
    """
    if not _is_one_of_several():
        yield ALONE
        return
    from datetime import timedelta

    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    patience = timedelta(seconds=_PATIENCE)
    try:
        base, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=_MEETING)))
        # What was written before remains there, also when `torchrun` starts all processes again (torch 2.15).
        meeting = next(_meetings)
        store = PrefixStore(f"pneumoscope {os.environ.get('TORCHELASTIC_RESTART_COUNT')} {meeting}", base)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError, OSError) as problem:
        raise PneumoscopeError(
            f"The {os.environ['WORLD_SIZE']} processes that torchrun started could not meet at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {problem}"
        ) from None
    try:
        yield _describe(rank, size, meeting, patience)
    except BaseException as problem:
        _end_together(problem, store, rank)
        raise
    dist.barrier()  # the last message has arrived
    dist.destroy_process_group()


def _describe(rank: int, size: int, meeting: int, patience: timedelta) -> Processes:
    import socket

    import torch
    import torch.distributed as dist

    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    own: list[bool | None] = [None] * size
    dist.all_gather_object(own, local < count)
    if local < count:
        torch.cuda.set_device(local)
    connected = all(own) and dist.is_nccl_available()  # not on Windows
    gpus: Any = dist.new_group(backend="nccl", timeout=patience) if connected else None
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    launch = f"{job} {socket.gethostname()} {os.getppid()} {_find_start(os.getppid())} {meeting}" if job else ""
    return Processes(rank, size, gpus, launch)


def _find_start(process: int) -> str:
    """When a process began, in ticks since the start of the machine; empty where this cannot be read."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _end_together(problem: BaseException, store: Store, rank: int) -> None:
    """Return if this process is the first that failed; else exit.

    Raises:
        PneumoscopeError: another process was killed, so that it could not say why.
    """
    code = problem.exit_code if isinstance(problem, PneumoscopeError) else 1
    if isinstance(problem, KeyboardInterrupt):
        code = 130
    own = f"{rank} {code}"
    with suppress(RuntimeError):  # the store may be gone, too
        first = store.compare_set("pneumoscope failure", "", own).decode()
        if first != own:
            raise SystemExit(int(first.split()[1]))
    if isinstance(problem, RuntimeError) and _lost_connection(problem):
        raise PneumoscopeError(
            "Another process of this training has ended, or cannot be reached. Start all of them again with "
            "`resume=True`."
        ) from problem


def _lost_connection(problem: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(problem, dist.DistError) or "gloo" in str(problem)
