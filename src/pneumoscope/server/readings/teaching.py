"""Images of known truth to learn with: simulated ones, or one's own."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError
from pneumoscope.images.read import ImageBytes, read_bytes

Source: TypeAlias = Literal["simulated", "own"]
SIMULATED = 24
_SEED = 2024  # of the order of simulated cases
_FIRST = 5_000  # seed of the first simulated image


class TeachingCases:
    """The cases of a service.

    Args:
        data: a folder for each class, or a table; None: simulated images.
        labels: the model's classes, of which each case has one.

    Raises:
        DataError: see `read_samples`; or a case has another class.
        UsageError: see `read_samples`.
    """

    def __init__(self, data: Path | None, labels: tuple[str, ...]) -> None:
        self.source: Source = "simulated" if data is None else "own"
        self._samples: list[Sample] = []
        rng = np.random.default_rng(_SEED)  # so that the order does not reveal the truth
        if data is not None:
            self._samples = [each for each in read_samples(data) if each.label is not None]
            if strange := sorted({str(each.label) for each in self._samples} - set(labels)):
                raise DataError(
                    f"{data}: the class {strange[0]} is not one of the model's ({', '.join(labels)}). Rename it.",
                    "cases",
                )
            self._samples = [self._samples[i] for i in rng.permutation(len(self._samples))]
            self.truths = [str(each.label) for each in self._samples]
        elif len(labels) == 2:
            self.truths = [labels[i % 2] for i in rng.permutation(SIMULATED)]
        else:
            self.truths = []
        self._labels = labels

    def read(self, number: int) -> ImageBytes:
        """The image of a case, under a name that does not reveal its class.

        Raises:
            ImageError: the file cannot be read.
        """
        if self._samples:
            sample = self._samples[number]
            return ImageBytes(read_bytes(sample.path), f"case {number + 1}", sample.reading)
        return ImageBytes(_draw(number, self.truths[number] == self._labels[1]), f"case {number + 1}")


@lru_cache(SIMULATED)
def _draw(number: int, pneumonia: bool) -> bytes:
    from PIL import Image

    from pneumoscope.datasets.phantoms import draw_phantom

    image = draw_phantom(_FIRST + number, pneumonia=pneumonia, size=768)
    stream = io.BytesIO()
    Image.fromarray(np.rint(image.pixels * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
