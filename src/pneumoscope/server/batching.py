"""Predicts images of many requests together, in threads, never on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from pneumoscope.images.read import ImageBytes
from pneumoscope.server.messages import PredictionMessage, PredictionQuery
from pneumoscope.server.problems import RequestError, too_busy

Answer: TypeAlias = PredictionMessage | RequestError
_WORKERS = 2  # one batch is read while another is computed
_PICTURED = 2  # images of a batch that keeps their pixels, each of which may be 400 MB


class Job(NamedTuple):
    """An uploaded image, and what to return for it."""

    image: ImageBytes
    query: PredictionQuery


class Batcher:
    """Gathers the images of many callers into batches.

    Args:
        process: answers a batch, in a thread; what it raises is raised to all callers of the batch.
        batch_size: images that are best processed together.
        wait: seconds that an image waits for others at most, and only while another batch is processed.
        capacity: images that may be in progress.
        observe: called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Job]], list[Answer]],
        batch_size: int,
        wait: float,
        capacity: int,
        observe: Callable[[int, float], None],
    ) -> None:
        self.in_progress = 0
        self._process, self._observe = process, observe
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
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in jobs]
        for future in futures:
            future.add_done_callback(self._release)
        self.in_progress += len(jobs)
        self._queue.extend(zip(jobs, futures, strict=True))
        self._arrived.set()
        return await asyncio.gather(*futures)

    def _release(self, _: object) -> None:
        self.in_progress -= 1

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
                while self._queue and self._fits(batch):
                    batch.append(self._queue.popleft())
                left = end - loop.time()
                if self._queue or len(batch) == self._batch_size or not self._processing or left <= 0:
                    return batch
                self._arrived.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), left)

    def _fits(self, batch: Sequence[tuple[Job, object]]) -> bool:
        pictured = any(job.query.picture for job, _ in (*batch, self._queue[0]))
        return len(batch) < (_PICTURED if pictured else self._batch_size)

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
