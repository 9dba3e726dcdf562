"""Predicts images of many requests together, in threads, never on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from pneumoscope.images.read import ImageBytes
from pneumoscope.server.inference.decoding import Decoded
from pneumoscope.server.messages.predictions import PredictionMessage, PredictionQuery
from pneumoscope.server.problems import RequestError, too_busy
from pneumoscope.server.storage.audit import SERVICE, Actor

Answer: TypeAlias = PredictionMessage | RequestError
_WORKERS = 2  # one batch is stored while another is computed


class Job(NamedTuple):
    """An uploaded image, what to return for it, the decoded image as soon as it is there, and who sent it."""

    image: ImageBytes
    query: PredictionQuery
    decoded: Decoded | None = None
    actor: Actor = SERVICE


class Batcher:
    """Gathers the images of many callers into batches.

    Args:
        decode: makes an image ready for the network, or says why it cannot be read.
        process: answers a batch, in a thread; what it raises is raised to all callers of the batch.
        batch_size: images that are best processed together.
        wait: seconds that an image waits for others at most, and only while another batch is processed.
        capacity: images that may be in progress.
        observe: called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        decode: Callable[[ImageBytes, bool], Awaitable[Decoded]],
        process: Callable[[Sequence[Job]], list[Answer]],
        batch_size: int,
        wait: float,
        capacity: int,
        observe: Callable[[int, float], None],
    ) -> None:
        self.in_progress = 0
        self._decode, self._process, self._observe = decode, process, observe
        self._batch_size, self._wait, self._capacity = batch_size, wait, capacity
        self._queue: deque[tuple[Job, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()
        self._gathering = asyncio.Lock()
        self._processing = 0
        self._threads = ThreadPoolExecutor(_WORKERS, "predict")
        self._workers: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Start; to be called on the event loop."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(_WORKERS)]

    async def close(self) -> None:
        """Stop; accepted images are answered by then, because the server waits for its requests."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown(cancel_futures=True)

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
            return await asyncio.gather(*map(self._answer, jobs))
        finally:
            self.in_progress -= len(jobs)

    async def _answer(self, job: Job) -> Answer:
        try:
            decoded = await self._decode(job.image, job.query.picture)
        except RequestError as problem:
            return problem
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((job._replace(decoded=decoded), future))
        self._arrived.set()
        return await future

    async def _gather(self) -> list[tuple[Job, asyncio.Future[Answer]]]:
        """Gather the next batch; one worker gathers at a time."""
        loop = asyncio.get_running_loop()
        async with self._gathering:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._queue.popleft()]
            end = loop.time() + self._wait
            while True:
                while self._queue and len(batch) < self._batch_size:
                    batch.append(self._queue.popleft())
                left = end - loop.time()
                if self._queue or len(batch) == self._batch_size or not self._processing or left <= 0:
                    return batch
                self._arrived.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), left)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            start = loop.time()
            self._processing += 1
            try:
                answers = await loop.run_in_executor(self._threads, self._process, [job for job, _ in batch])
            except Exception as problem:  # goes to those who asked; the next batch may do better
                for _, future in batch:
                    if not future.done():
                        future.set_exception(problem)
                continue
            finally:
                self._processing -= 1
            self._observe(len(batch), loop.time() - start)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
