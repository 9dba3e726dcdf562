"""Which parts of a film speak for a class: maps in logits whose mean, with the bias, is the network's logit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import UsageError
from pneumoscope.images.preparing import Box, InputSpec, Pixels, find_box, prepare
from pneumoscope.images.reading import read_radiograph
from pneumoscope.inference.engines import Array
from pneumoscope.inference.features import Source
from pneumoscope.inference.predictor import Predictor

Method: TypeAlias = Literal["auto", "cam"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where on a film the evidence for a class lies.

    Attributes:
        path: the file, or None where its content was given.
        label: the class explained.
        method: how the map was made.
        logit: the class's logit; of two classes, the other one's is its negative.
        bias: what of it belongs to no place.
        cells: float32 (h, w), in logits: positive where the film speaks for the class. mean(cells) + bias = logit.
        box: left, top, right and bottom of what the network saw, in pixels of the film.
        shape: height and width of the film, as the file has it.
        pixels: float32 in [0, 1], the film as it was read: of a large JPEG at a reduced scale.
    """

    path: Path | None
    label: str
    method: str
    logit: float
    bias: float
    cells: Array
    box: Box
    shape: tuple[int, int]
    pixels: Pixels

    def map(self, shape: tuple[int, int] | None = None) -> Array:
        """The cells on the film, interpolated between their middles; nan where the network saw nothing.

        Args:
            shape: of the map; the film's own by default, another one gives the same map at another scale.

        Returns:
            float32 (H, W), in logits.
        """
        height, width = shape or self.shape
        left, top, right, bottom = self.box
        rows, fraction_y, seen_y = _locate(height, self.shape[0], top, bottom, len(self.cells))
        columns, fraction_x, seen_x = _locate(width, self.shape[1], left, right, self.cells.shape[1])
        lower, upper = (self.cells[index] for index in rows)
        tall = lower + (upper - lower) * fraction_y[:, None]
        before, after = (tall[:, index] for index in columns)
        found: Array = before + (after - before) * fraction_x
        found[~seen_y], found[:, ~seen_x] = np.nan, np.nan
        return found


def explain(
    predictor: Predictor, source: Source | str, label: str | None = None, method: Method = "auto"
) -> Explanation:
    """Say where on a film the evidence for a class lies.

    The network ends in a global average and one linear layer, so that its class-activation map (Zhou et al. 2016,
    "Learning Deep Features for Discriminative Localization", section 2) is an exact sum and needs no gradient.

    Args:
        predictor: the classifier.
        source: a path, a file's content, or a sample.
        label: the class to explain; by default the positive one of two, the likeliest of more.
        method: `cam`: the class-activation map.

    Raises:
        ImageError: the file cannot be read.
        UsageError: the classifier has no such class.
    """
    spec = predictor.bundle.input
    sample = (
        source if isinstance(source, Sample) else Sample(Path()) if isinstance(source, bytes) else Sample(Path(source))
    )
    content = source if isinstance(source, bytes) else sample.path
    film = read_radiograph(content, reading=sample.reading, enough=spec.enough)
    found = predictor.engine.run(prepare(film.pixels, spec)[None], maps=True)
    assert found.maps is not None
    logits = predictor.weight.astype(np.float64) @ found.features[0] + predictor.bias
    row, sign, name = _find_output(predictor.bundle.labels, label, logits)
    weight, bias = sign * predictor.weight[row], sign * float(predictor.bias[row])
    cells = np.tensordot(weight.astype(np.float64), found.maps[0], 1).astype(np.float32)
    return Explanation(
        None if isinstance(source, bytes) else sample.path,
        name,
        "cam",
        sign * float(logits[row]),
        bias,
        cells,
        _on_film(film.pixels.shape, film.size, spec),
        film.size,
        film.pixels,
    )


def _find_output(labels: tuple[str, ...], label: str | None, logits: Array) -> tuple[int, int, str]:
    """The head's output for a class, its sign there, and the class's name."""
    if label is not None and label not in labels:
        raise UsageError(f"--label {label}: no such class. This classifier knows {', '.join(labels)}.")
    if len(labels) == 2:
        index = labels.index(label) if label is not None else 1
        return 0, 2 * index - 1, labels[index]
    index = labels.index(label) if label is not None else int(logits.argmax())
    return index, 1, labels[index]


def _on_film(read: tuple[int, ...], own: tuple[int, int], spec: InputSpec) -> Box:
    """The box that the network sees, in pixels of the film's own size, of which `read` may be a reduced scale."""
    height, width = read
    left, top, right, bottom = find_box((height, width), spec)
    across, down = own[1] / width, own[0] / height
    return left * across, top * down, right * across, bottom * down


def _locate(side: int, own: int, start: float, end: float, cells: int) -> tuple[tuple[Array, Array], Array, Array]:
    """For each pixel of a side: the cells before and after it, how far between them it lies, and whether it was seen."""
    middles = (np.arange(side) + 0.5) * own / side
    place = np.clip((middles - start) / (end - start) * cells - 0.5, 0, cells - 1)
    before = np.floor(place).astype(np.intp)
    return (
        (before, np.minimum(before + 1, cells - 1)),
        (place - before).astype(np.float32),
        (middles >= start) & (middles <= end),
    )
