"""Stored levels become pixels: DICOM's greyscale transformations (PS3.4 N.2), worked out once for each level.

Sections cited are those of the DICOM standard, PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.prepare import Pixels

Levels = NDArray[Any]  # unsigned integers
Table = NDArray[np.float64]  # one value for each level
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class LookUp:
    """A table of values (C.11.1.1, C.11.2.1.1, C.7.6.3.1.5).

    Attributes:
        first: the value that the first entry is for; those below take it too, those beyond the last take the last.
        entries: (N,), from 0 to 2**bits - 1.
        bits: the depth of the entries.
    """

    first: int
    entries: Table
    bits: int

    def __call__(self, values: Table) -> Table:
        """Look values up."""
        table: Table = self.entries[np.clip(np.rint(values - self.first), 0, len(self.entries) - 1).astype(int)]
        return table

    def share(self, values: Table) -> Table:
        """Look values up as shares of the entries' range, in [0, 1]."""
        table: Table = self(values) / (2**self.bits - 1)
        return table


@dataclass(frozen=True, slots=True)
class Transformations:
    """What an image's maker says of its levels.

    Attributes:
        modality: takes the place of slope and intercept (C.11.1).
        slope: of the levels' rescaling.
        intercept: of the levels' rescaling.
        voi: takes the place of the window (C.11.2).
        window: its centre and width.
        function: of the window: LINEAR, LINEAR_EXACT or SIGMOID.
        inverted: the lowest output is white: MONOCHROME1.
        padding: the first and last level that are no part of the image (C.7.5.1.1.2).
        palette: red, green and blue of each level; takes the place of all but the padding.
    """

    modality: LookUp | None = None
    slope: float = 1.0
    intercept: float = 0.0
    voi: LookUp | None = None
    window: tuple[float, float] | None = None
    function: str = "LINEAR"
    inverted: bool = False
    padding: tuple[int, int] | None = None
    palette: tuple[LookUp, ...] = ()


def render(levels: Levels, lowest: int, bits: int, image: Transformations) -> Pixels:
    """Show an image as its maker means it to be seen: modality LUT, VOI LUT, then inversion.

    The VOI's output range becomes [0, 1]. Without a VOI, levels of up to 8 bits keep their range, as they do in a PNG;
    deeper ones are spread from the lowest to the highest that occurs. Padding becomes 0, whatever the polarity.

    Args:
        levels: unsigned (H, W), below 2**bits.
        lowest: the stored value of level 0: 0, or -2**(bits - 1) where values are signed.
        bits: at most 16.
        image: what to apply.

    Returns:
        float32 (H, W) in [0, 1].
    """
    table = _table(levels, lowest, bits, image)
    pixels = np.empty(levels.shape, np.float32)
    for part in _blocks(levels.size):
        np.take(table, levels.reshape(-1)[part], out=pixels.reshape(-1)[part], mode="clip")
    return pixels


def luminance(colours: Levels, bits: int) -> Pixels:
    """RGB levels (H, W, 3) of so many bits become float32 (H, W) in [0, 1]."""
    pixels = np.zeros(colours.shape[:2], np.float32)
    for sample, weight in enumerate(LUMINANCE):
        pixels += np.multiply(colours[..., sample], np.float32(weight / (2**bits - 1)), dtype=np.float32)
    return np.clip(pixels, 0, 1, out=pixels)


def _table(levels: Levels, lowest: int, bits: int, image: Transformations) -> Pixels:
    """What each level becomes."""
    stored = np.arange(lowest, lowest + 2**bits, dtype=np.float64)
    first, last = image.padding or (1, 0)
    padding = (stored >= first) & (stored <= last)
    with np.errstate(all="ignore"):  # a file may say anything
        if image.palette:
            hues = [hue.share(stored) for hue in image.palette]
            shown = np.tensordot(np.array(LUMINANCE), np.array(hues), 1)
        else:
            values = image.modality(stored) if image.modality else stored * image.slope + image.intercept
            if image.voi:
                shown = image.voi.share(values)
            elif image.window:
                shown = _window(values, *image.window, image.function)
            else:
                shown = _spread(values, _occurring(levels, padding) if bits > 8 else np.ones_like(padding))
            if image.inverted:
                shown = 1 - shown
    if not np.isfinite(shown).all():
        raise ValueError("a rescaling or a window that leads nowhere")
    return np.clip(np.where(padding, 0, shown), 0, 1).astype(np.float32)


def _window(values: Table, centre: float, width: float, function: str) -> Table:
    if function == "SIGMOID":  # C.11.2.1.3.1
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function != "LINEAR_EXACT" and width >= 1:  # C.11.2.1.2.1; narrower ones are meant to be exact (C.11.2.1.3.2)
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return np.where(values > centre, 1.0, 0.0)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _spread(values: Table, counted: NDArray[np.bool_]) -> Table:
    low, high = (values[counted].min(), values[counted].max()) if counted.any() else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _occurring(levels: Levels, padding: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which levels an image's range is taken from: those between its lowest and highest that isn't padding."""
    found = np.zeros_like(padding)
    if padding.any():
        for part in _blocks(levels.size):
            found[levels.reshape(-1)[part]] = True
    else:
        found[levels.min() : int(levels.max()) + 1] = True
    return found & ~padding


def _blocks(size: int) -> Iterator[slice]:
    """Indexing widens its indices to 64 bits: block by block, they stay in the processor's cache."""
    return (slice(start, start + 65536) for start in range(0, size, 65536))
