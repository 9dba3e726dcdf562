"""Turns pixels into network input, in the same way for training, prediction and every export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from pneumoscope.config import checked
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.resize import Box, Grey, Interpolation, resize

Pixels: TypeAlias = NDArray[np.float32]
_Level: TypeAlias = Annotated[float, Interval(ge=-1e6, le=1e6)]
_Scale: TypeAlias = Annotated[float, Interval(ge=1e-6, le=1e6)]
Triple: TypeAlias = tuple[_Level, _Level, _Level]
PositiveTriple: TypeAlias = tuple[_Scale, _Scale, _Scale]


@dataclass(frozen=True)
class InputSpec:
    """What a network takes as input: chosen for training, stored in the model.

    Attributes:
        size: side S of the square input, in pixels.
        fit: `crop`: shorter side to S, then the centre; `pad`: the whole image, letterboxed in black; `squash`: both
            sides to S.
        interpolation: resampling filter; always antialiased.
        mean: subtracted from each of the three equal channels.
        std: divides each channel afterwards.

    Raises:
        UsageError: a mean or a standard deviation that is not finite, or that no image has.
    """

    size: Annotated[int, Interval(ge=32, le=2048)] = 224
    fit: Literal["crop", "pad", "squash"] = "crop"
    interpolation: Interpolation = "bilinear"
    mean: Triple = (0.485, 0.456, 0.406)
    std: PositiveTriple = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        values = (*zip(self.mean, [-1e6] * 3, strict=True), *zip(self.std, [1e-6] * 3, strict=True))
        if not all(lowest <= value <= 1e6 for value, lowest in values):  # false for NaN
            raise UsageError(f"`mean` {self.mean} and `std` {self.std}: no image has such values.")

    @property
    def min_side(self) -> int:
        """Shorter side, in pixels, that a JPEG decoded at reduced scale must keep.

        Probabilities then change by at most 0.005; at 4 times the size, they would change by up to 0.013
        (benchmarks/reduced_scale.py).
        """
        return 6 * self.size


@checked
def prepare(pixels: Pixels, spec: InputSpec, augment: Callable[[Pixels], Pixels] | None = None) -> Pixels:
    """Turn a radiograph into network input; there is no other preprocessing.

    Args:
        pixels: float32 (H, W) in [0, 1].
        spec: size, fit and normalisation.
        augment: a random change for training, applied to the fitted (S, S) image before normalisation.

    Returns:
        float32 (3, S, S).

    Raises:
        DataError: the pixels are not like those of `read_pixels`. Their range is not guessed, because a wrong guess
            would scale them wrongly.
    """
    if pixels.ndim != 2 or pixels.dtype != np.float32 or not (pixels.size and 0 <= pixels.min() <= pixels.max() <= 1):
        raise DataError(
            "Pixels must be float32 (H, W) in [0, 1], as `read_pixels` returns them; "
            f"found {pixels.dtype} {pixels.shape}"
            f"{f' in [{pixels.min()}, {pixels.max()}]' if pixels.size and pixels.dtype.kind in 'biuf' else ''}."
        )
    return prepare_grey(pixels, spec, augment)


def prepare_grey(grey: Grey, spec: InputSpec, augment: Callable[[Pixels], Pixels] | None = None) -> Pixels:
    """Do what `prepare` does, with an image that `read_radiograph` has read, so its range is known."""
    image = fit(grey, spec)
    if augment is not None:
        image = augment(image)
    mean = np.asarray(spec.mean, np.float32)[:, None, None]
    std = np.asarray(spec.std, np.float32)[:, None, None]
    return (image[None] - mean) / std


def fit(grey: Grey, spec: InputSpec) -> Pixels:
    """Resize and crop, pad or squash a radiograph (H, W) to (S, S), in [0, 1].

    `crop` follows torchvision's `Resize(S)` and `CenterCrop(S)`, rounding included.
    """
    size = spec.size
    if spec.fit == "crop":  # resizes only what is kept: all of a long strip would fill the memory
        height, width = grey.shape
        box = None if (height, width) == (size, size) else find_box((height, width), spec)
        return resize(grey, (size, size), spec.interpolation, box)
    if spec.fit == "squash":
        return resize(grey, (size, size), spec.interpolation)
    sides = _padded_sides(grey.shape, size)
    image = resize(grey, sides, spec.interpolation)
    square = np.zeros((size, size), np.float32)
    top, left = ((size - side) // 2 for side in sides)
    square[top : top + sides[0], left : left + sides[1]] = image
    return square


def find_box(shape: tuple[int, int], spec: InputSpec) -> Box:
    """Find the box of an image that `fit` turns into the network's square input.

    Args:
        shape: height and width of the image.
        spec: size and fit.

    Returns:
        Left, top, right and bottom, in pixels from the upper left corner: the centre of the first pixel is at
        (0.5, 0.5). With `crop` the box lies inside the image, with `pad` it reaches beyond.
    """
    size, edges = spec.size, []
    for side, padded in zip(shape, _padded_sides(shape, size), strict=True):
        # The side's length after resizing, and where the square starts along it.
        whole, start = size, 0
        if spec.fit == "pad":
            whole, start = padded, -((size - padded) // 2)
        elif spec.fit == "crop":
            whole = size * side // min(shape)
            start = round((whole - size) / 2)
        edges.append((start * side / whole, (start + size) * side / whole))
    (top, bottom), (left, right) = edges
    return left, top, right, bottom


def _padded_sides(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width of a whole image in a square of that size."""
    height, width = (max(1, round(size * side / max(shape))) for side in shape)
    return height, width
