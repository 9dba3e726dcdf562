"""Images of many requests become batches: decoded in threads, computed together, never on the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.images.prepare import prepare
from pneumoscope.images.read import Reading, read_radiograph
from pneumoscope.inference.explain import Evidence, find_evidence
from pneumoscope.inference.features import Extract
from pneumoscope.inference.overlays import render_heatmap
from pneumoscope.server.problems import too_busy
from pneumoscope.server.routes import render_view

if TYPE_CHECKING:
    from pneumoscope.inference.prediction import Prediction
    from pneumoscope.inference.predictor import Predictor


@dataclass(frozen=True)
class Order:
    """What is wanted of one image.

    Attributes:
        content: of the file.
        name: of the file, for messages.
        reading: departures from the usual.
        heatmap: where the evidence lies, as a PNG.
        view: the image itself, as a PNG for a browser.
    """

    content: bytes
    name: str = "image"
    reading: Reading = Reading()
    heatmap: bool = False
    view: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """What became of one image.

    Attributes:
        order: what was wanted.
        prediction: what the classifier says, with the content's digest.
        shape: height and width of the image.
        format: of the file.
        patient: PatientID, where the file is DICOM and says it.
        evidence: where it lies, if that was wanted and the image is not ood.
        heatmap: the same as a PNG.
        view: the image as a PNG.
        frames: that the file has; the first is read.
        number: what the batch's `keep` gave for it.
    """

    order: Order
    prediction: Prediction
    shape: tuple[int, int]
    format: str
    patient: str | None = None
    evidence: Evidence | None = None
    heatmap: bytes | None = None
    view: bytes | None = None
    frames: int = 1
    number: str = ""


@dataclass(frozen=True, eq=False)
class _Image:
    order: Order
    extract: Extract
    view: bytes | None
    frames: int


class Batcher:
    """Reads images for many callers at once.

    An image waits for others only while some are being decoded, and no longer than `wait`: alone it is answered at once.

    Args:
        predictor: the classifier.
        wait: seconds.
        capacity: images that may be under way.
        keep: called with a batch's results, in the computing thread; gives a number for each. What it raises is raised
            to all callers of the batch.
        observe: called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        predictor: Predictor,
        wait: float = 0.005,
        capacity: int = 256,
        keep: Callable[[Sequence[Result]], Sequence[str]] | None = None,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self.predictor = predictor
        self.under_way = 0
        self._wait = wait
        self._capacity = capacity
        self._keep = keep
        self._observe = observe
        self._decoding = 0
        self._waiting: asyncio.Queue[tuple[_Image, asyncio.Future[Result]]] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._decoders = ThreadPoolExecutor(
            min(4, max(2, (os.cpu_count() or 2) // 2)), "decode"
        )  # each may take 900 MB
        self._computer = ThreadPoolExecutor(1, "compute")
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin, and run the network once, so that the first image is answered as fast as all others."""
        spec = self.predictor.model.input
        blank = np.zeros((1, 3, spec.size, spec.size), np.float32)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._computer, lambda: self.predictor.engine.run(blank, maps=True))
        self._task = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """End; images that were taken are answered by then, as the server waits for its requests."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._decoders.shutdown(cancel_futures=True)
        self._computer.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether images that are taken will be computed."""
        return self._task is not None and not self._task.done()

    async def read(self, orders: Sequence[Order]) -> list[Result | BaseException]:
        """Read images: there is room for all, or none is taken.

        Returns:
            For each its result, or why there is none: an `ImageError`, a `MissingExtraError` where what reads it is
            not installed, or what `keep` raised.

        Raises:
            RequestError: 429, there is no room for them.
        """
        if self.under_way + len(orders) > self._capacity:
            raise too_busy(f"{self.under_way} images are being read, and no more than {self._capacity} are taken.")
        self.under_way += len(orders)
        tasks = [asyncio.create_task(self._read(order)) for order in orders]
        for task in tasks:
            task.add_done_callback(self._release)  # also of a task that never began
        return await asyncio.gather(*tasks, return_exceptions=True)

    def _release(self, _: object) -> None:
        self.under_way -= 1

    async def _read(self, order: Order) -> Result:
        loop = asyncio.get_running_loop()
        self._decoding += 1
        try:
            image = await loop.run_in_executor(self._decoders, self._decode, order)
        finally:
            self._decoding -= 1
            self._changed.set()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.put_nowait((image, future))
        return await future

    def _decode(self, order: Order) -> _Image:
        spec = self.predictor.model.input
        image = read_radiograph(order.content, order.name, order.reading, spec.min_side)
        return _Image(
            order=order,
            extract=Extract(
                order.content,
                sha256=hashlib.sha256(order.content).hexdigest(),
                inputs=prepare(image.pixels, spec),
                tags=image.tags,
                size=image.size,
                format=image.format,
                read_size=image.pixels.shape,
            ),
            view=render_view(image.pixels) if order.view else None,
            frames=image.tags.frames if image.tags else 1,
        )

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            end = loop.time() + self._wait
            while len(batch) < self.predictor.engine.batch_size:
                if not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                    continue
                left = end - loop.time()
                if left <= 0 or not self._decoding:
                    break
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
            begun = loop.time()
            try:
                results = await loop.run_in_executor(self._computer, self._compute, [image for image, _ in batch])
            except Exception as problem:  # goes to those who asked; the next batch may do better
                for _, future in batch:
                    if not future.done():
                        future.set_exception(problem)
                continue
            if self._observe is not None:
                self._observe(len(batch), loop.time() - begun)
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _compute(self, images: Sequence[_Image]) -> list[Result]:
        mapped = any(image.order.heatmap for image in images)
        inputs = np.stack([image.extract.inputs for image in images if image.extract.inputs is not None])
        found = self.predictor.engine.run(inputs, maps=mapped)
        results = []
        for i, image in enumerate(images):
            extract = image.extract
            extract.features, extract.intermediate = found.features[i : i + 1], found.intermediate[i]
            prediction = self.predictor.decide(extract)
            evidence = None
            if image.order.heatmap and found.maps is not None and prediction.decision != OUT_OF_DISTRIBUTION:
                extract.map = found.maps[i]
                evidence = find_evidence(self.predictor, extract, None, "cam")
            results.append(
                Result(
                    image.order,
                    prediction,
                    extract.size or (0, 0),
                    extract.format or "",
                    prediction.patient,
                    evidence,
                    None if evidence is None else render_heatmap(evidence),
                    image.view,
                    image.frames,
                )
            )
        if self._keep is None:
            return results
        return [replace(result, number=one) for result, one in zip(results, self._keep(results), strict=True)]
