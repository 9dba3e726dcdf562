"""Predicts images of many requests together, in threads, never on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from pneumoscope.images.read import ImageBytes
from pneumoscope.server.inference.decoding import Decoded
from pneumoscope.server.messages.predictions import PredictionMessage, PredictionQuery
from pneumoscope.server.problems import RequestError, too_busy
from pneumoscope.server.storage.audit import SERVICE, Actor

Answer: TypeAlias = PredictionMessage | RequestError
T = TypeVar("T")
_WORKERS = 2  # while one batch is in the network, another one gets its decisions
P = TypeVar("P")  # the result of the network for an image


class Job(NamedTuple):
    """An uploaded image, what to return for it, the decoded image once it is there, and who sent it.

    `mark` says when it came, if erasures since then count (see `storage.erasure.find_mark`). `trace` is the span of its
    request.
    """

    image: ImageBytes
    query: PredictionQuery
    decoded: Decoded | None = None
    actor: Actor = SERVICE
    mark: int | None = None
    trace: object = None


class InlineExecutor(Executor):
    """Runs everything at once in the thread that calls it, for work that is too short for a separate thread."""

    def submit(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """Run a function now."""
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as problem:
            future.set_exception(problem)
        return future


@dataclass
class _Batch(Generic[P]):
    """Images that are computed together, and their results once they are there."""

    images: list[tuple[Job, asyncio.Future[Answer]]]
    found: Sequence[P] | None = None


class Batcher(Generic[P]):
    """Gathers the images of many callers into batches; batches are computed while those before them are stored.

    Images are stored in the order in which they came; those of one caller keep their order.

    Args:
        decode: makes an image ready for the network, or says why it cannot be read.
        compute: predicts a batch, in a thread; what it raises is raised to all callers of the batch.
        finish: stores all waiting predictions, in another thread, and gives the answers; it may raise in the same way.
        batch_size: images that are best computed together.
        wait: seconds that an image waits for others at most, and only while another batch is computed.
        capacity: images that may be in progress.
        observe: called with the size of each batch and the seconds that computing it took.
    """

    def __init__(
        self,
        decode: Callable[[ImageBytes, bool], Awaitable[Decoded]],
        compute: Callable[[Sequence[Job]], Sequence[P]],
        finish: Callable[[Sequence[tuple[Job, P]]], list[Answer]],
        batch_size: int,
        wait: float,
        capacity: int,
        observe: Callable[[int, float], None],
    ) -> None:
        self.in_progress = 0
        self._decode, self._compute, self._finish, self._observe = decode, compute, finish, observe
        self._batch_size, self._wait, self._capacity = batch_size, wait, capacity
        self._queue: deque[tuple[Job, asyncio.Future[Answer]]] = deque()
        self._batches: deque[_Batch[P]] = deque()  # that are not stored yet, in their order
        self._arrived, self._computed = asyncio.Event(), asyncio.Event()
        self._gathering, self._processing = asyncio.Lock(), 0
        self._threads = [ThreadPoolExecutor(_WORKERS, "predict"), ThreadPoolExecutor(1, "store")]
        self._workers: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Start; to be called on the event loop."""
        self._workers = [asyncio.create_task(self._predict_batches()) for _ in range(_WORKERS)]
        self._workers.append(asyncio.create_task(self._store_batches()))

    async def close(self) -> None:
        """Stop; accepted images are answered by then, because the server waits for its requests."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether images that are accepted will be processed."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    async def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Process images, in their order: either all are accepted or none.

        Raises:
            RequestError: 429, too many are in progress.
        """
        if self.in_progress + len(jobs) > self._capacity:
            raise too_busy(f"{self.in_progress} images are in progress, and at most {self._capacity} are accepted.")
        self.in_progress += len(jobs)
        try:
            if len(jobs) == 1:
                return [await _settle(self._enter(jobs[0], await self._try_decode(jobs[0])))]
            decoding = [asyncio.create_task(self._try_decode(job)) for job in jobs]
            try:
                entered = [self._enter(job, await task) for job, task in zip(jobs, decoding, strict=True)]
            finally:
                for task in decoding:
                    task.cancel()
            return await asyncio.gather(*map(_settle, entered))
        finally:
            self.in_progress -= len(jobs)

    async def _try_decode(self, job: Job) -> Decoded | RequestError:
        try:
            return await self._decode(job.image, job.query.picture)
        except RequestError as problem:
            return problem

    def _enter(self, job: Job, decoded: Decoded | RequestError) -> asyncio.Future[Answer] | RequestError:
        if isinstance(decoded, RequestError):
            return decoded
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((job._replace(decoded=decoded), future))
        self._arrived.set()
        return future

    async def _gather(self) -> _Batch[P]:
        """Gather the next batch; one worker gathers at a time."""
        loop = asyncio.get_running_loop()
        async with self._gathering:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            end = loop.time() + self._wait
            while len(self._queue) < self._batch_size and self._processing and (left := end - loop.time()) > 0:
                self._arrived.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), left)
            batch = _Batch[P]([self._queue.popleft() for _ in range(min(len(self._queue), self._batch_size))])
            self._batches.append(batch)
            return batch

    async def _predict_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            start = loop.time()
            self._processing += 1
            try:
                jobs = [job for job, _ in batch.images]
                batch.found = await loop.run_in_executor(self._threads[0], self._compute, jobs)
                self._observe(len(jobs), loop.time() - start)
            except Exception as problem:  # goes to those who asked; the next batch may do better
                _refuse([future for _, future in batch.images], problem)
                batch.images, batch.found = [], []
            finally:
                self._processing -= 1
            self._computed.set()

    async def _store_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._computed.wait()
            self._computed.clear()
            done: list[tuple[Job, P, asyncio.Future[Answer]]] = []
            while self._batches and (found := self._batches[0].found) is not None:
                batch = self._batches.popleft()
                done += [(job, each, future) for (job, future), each in zip(batch.images, found, strict=True)]
            if not done:
                continue
            try:
                pairs = [(job, each) for job, each, _ in done]
                answers = await loop.run_in_executor(self._threads[1], self._finish, pairs)
            except Exception as problem:
                _refuse([future for _, _, future in done], problem)
                continue
            for (_, _, future), answer in zip(done, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


async def _settle(entered: asyncio.Future[Answer] | RequestError) -> Answer:
    return entered if isinstance(entered, RequestError) else await entered


def _refuse(futures: Sequence[asyncio.Future[Answer]], problem: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(problem)
