"""DICOM's greyscale transformations from stored levels to pixels (PS3.4 N.2), computed once for each level.

Sections are of the DICOM standard, PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.prepare import Pixels

Levels = NDArray[Any]  # unsigned integers
Table = NDArray[np.float64]  # one value for each level
LUMINANCE = (0.299, 0.587, 0.114)
_BLACK, _WHITE = 1 / 255, 254 / 255  # what 8 bits show as black, and as white
_HIDDEN = 0.5  # share of the image that a VOI may make black or white (docs/log.md)
_SATURATED = 0.25  # share from which it is mentioned: at 40% the AUROC is up to 0.08 lower (docs/log.md)
_FAINT = 0.2  # the least contrast that a VOI may leave: between the first and the 99th percentile
_SEEN, _FEW = 0.05, 256  # a smaller share of the image, or fewer pixels, that are neither black nor white say nothing


@dataclass(frozen=True, slots=True)
class LookUp:
    """A table of values (C.11.1.1, C.11.2.1.1, C.7.6.3.1.5)."""

    first: int  # the value of the first entry; lower values take the first entry, values beyond the last take the last
    entries: Table  # (N,), from 0 to 2**bits - 1
    bits: int  # the depth of the entries

    def __call__(self, values: Table) -> Table:
        """Look values up."""
        table: Table = self.entries[np.clip(np.rint(values - self.first), 0, len(self.entries) - 1).astype(int)]
        return table

    def scale(self, values: Table) -> Table:
        """Look values up, scaled by the range of the entries to [0, 1]."""
        table: Table = self(values) / (2**self.bits - 1)
        return table


@dataclass(frozen=True, slots=True)
class Transformations:
    """How to display the levels, according to the file."""

    modality: LookUp | None = None  # replaces slope and intercept (C.11.1)
    slope: float = 1.0  # of the levels' rescaling
    intercept: float = 0.0  # of the levels' rescaling
    voi: LookUp | None = None  # replaces the window (C.11.2)
    window: tuple[float, float] | None = None  # its centre and width
    function: str = "LINEAR"  # of the window: LINEAR, LINEAR_EXACT or SIGMOID
    inverted: bool = False  # the lowest output is white: MONOCHROME1
    padding: tuple[int, int] | None = None  # first and last of the levels that are not part of the image (C.7.5.1.1.2)
    palette: tuple[LookUp, ...] = ()  # red, green and blue of each level; replaces all but the padding


def render(levels: Levels, lowest: int, bits: int, image: Transformations, warnings: list[str] | None = None) -> Pixels:
    """Render an image for display, as `render_and_judge` does, which also has the arguments."""
    return render_and_judge(levels, lowest, bits, image, warnings)[0]


def render_and_judge(
    levels: Levels, lowest: int, bits: int, image: Transformations, warnings: list[str] | None = None
) -> tuple[Pixels, bool]:
    """Render an image for display: modality LUT, VOI LUT, then inversion; and say whether its VOI is usable.

    The VOI's output range becomes [0, 1]. Without a VOI, levels of up to 8 bits keep their range, as in a PNG; deeper
    ones are stretched from the lowest to the highest that occurs. So they are where the VOI hides most of the image
    (docs/log.md). Padding becomes 0, whatever the polarity.

    Args:
        levels: unsigned (H, W), below 2**bits.
        lowest: the stored value of level 0: 0, or -2**(bits - 1) if values are signed.
        bits: at most 16.
        image: what to apply.
        warnings: what is unusual is added here.

    Returns:
        float32 (H, W) in [0, 1]; and false where the VOI hides so much that the full range was used instead.
    """
    usable = True
    table = _build_table(levels, lowest, bits, image)
    if (image.voi or image.window) and not image.palette:
        plain = replace(image, voi=None, window=None)
        full = _build_table(levels, lowest, bits, plain)
        fault, usable = _find_voi_fault(levels, table, full)
        if fault and warnings is not None:
            name = "VOI LUT" if image.voi else "window"
            done = "it was used" if usable else "so the full range of grey levels was used"
            warnings.append(f"the {name} of the file {fault}{'; ' if usable else ', '}{done}")
        table = table if usable else full
    pixels = np.empty(levels.shape, np.float32)
    for part in _blocks(levels.size):
        np.take(table, levels.reshape(-1)[part], out=pixels.reshape(-1)[part], mode="clip")
    return pixels, usable


def measure_range(levels: Levels, lowest: int, bits: int, image: Transformations) -> tuple[float, float]:
    """The values, after the modality LUT, that are black and white where there is no VOI; see `render_and_judge`."""
    stored, padding = _list_levels(lowest, bits, image)
    used = _find_range(levels, padding) if bits > 8 else np.ones_like(padding)
    values = _to_values(stored, image)[used]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _find_voi_fault(levels: Levels, table: Pixels, full: Pixels) -> tuple[str, bool]:
    """Say what is wrong with a VOI that hides much of the image, and whether to use it; empty if nothing is.

    What is black or white in the full range too, such as collimated borders, does not count.
    """
    down, right = (max(1, side // 256) for side in levels.shape)
    sample = levels[::down, ::right].reshape(-1)
    shown, whole = np.take(table, sample, mode="clip"), np.take(full, sample, mode="clip")
    visible = (whole > _BLACK) & (whole < _WHITE)
    if visible.sum() < max(_SEEN * sample.size, _FEW):
        return "", True
    hidden = float(np.mean((shown <= _BLACK) | (shown >= _WHITE), where=visible))
    if hidden > _HIDDEN:
        return f"makes {hidden:.0%} of the image black or white", False
    low, high = np.percentile(shown[visible], [1, 99])
    before, after = np.percentile(whole[visible], [1, 99])
    if high - low < _FAINT and after - before > high - low:
        return f"leaves {high - low:.0%} of the range from black to white", False
    if hidden >= _SATURATED:
        return f"saturates {hidden:.0%} of the image", True
    return "", True


def compute_luminance(colours: Levels, bits: int) -> Pixels:
    """Luminance of RGB levels (H, W, 3) with that many bits: float32 (H, W) in [0, 1]."""
    pixels = np.zeros(colours.shape[:2], np.float32)
    rows = max(1, 2**18 // max(1, colours.shape[1]))
    for top in range(0, len(colours), rows):  # a strip at a time, which bounds the memory
        strip = slice(top, top + rows)
        for sample, weight in enumerate(LUMINANCE):
            pixels[strip] += np.multiply(
                colours[strip, :, sample], np.float32(weight / (2**bits - 1)), dtype=np.float32
            )
    return np.clip(pixels, 0, 1, out=pixels)


def _build_table(levels: Levels, lowest: int, bits: int, image: Transformations) -> Pixels:
    """The pixel value of each level."""
    stored, padding = _list_levels(lowest, bits, image)
    with np.errstate(all="ignore"):  # a file may say anything
        if image.palette:
            hues = [hue.scale(stored) for hue in image.palette]
            shown = np.tensordot(np.array(LUMINANCE), np.array(hues), 1)
        else:
            values = _to_values(stored, image)
            if image.voi:
                shown = image.voi.scale(values)
            elif image.window:
                shown = _apply_window(values, *image.window, image.function)
            else:
                shown = _stretch(values, _find_range(levels, padding) if bits > 8 else np.ones_like(padding))
            if image.inverted:
                shown = 1 - shown
    if not np.isfinite(shown).all():
        raise ValueError("its rescaling or window is not finite")
    return np.clip(np.where(padding, 0, shown), 0, 1).astype(np.float32)


def _list_levels(lowest: int, bits: int, image: Transformations) -> tuple[Table, NDArray[np.bool_]]:
    """The stored value of each level, and whether it is padding."""
    stored = np.arange(lowest, lowest + 2**bits, dtype=np.float64)
    first, last = image.padding or (1, 0)
    return stored, (stored >= first) & (stored <= last)


def _to_values(stored: Table, image: Transformations) -> Table:
    return image.modality(stored) if image.modality else stored * image.slope + image.intercept


def _apply_window(values: Table, centre: float, width: float, function: str) -> Table:
    if function == "SIGMOID":  # C.11.2.1.3.1
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function != "LINEAR_EXACT" and width >= 1:  # C.11.2.1.2.1; narrower ones are exact (C.11.2.1.3.2)
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return np.where(values > centre, 1.0, 0.0)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _stretch(values: Table, used: NDArray[np.bool_]) -> Table:
    low, high = (values[used].min(), values[used].max()) if used.any() else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _find_range(levels: Levels, padding: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the levels that an image's range is computed from: its lowest to its highest, without padding."""
    used = np.zeros_like(padding)
    if padding.any():
        for part in _blocks(levels.size):
            used[levels.reshape(-1)[part]] = True
    else:
        used[levels.min() : int(levels.max()) + 1] = True
    return used & ~padding


def _blocks(size: int) -> Iterator[slice]:
    """Yield blocks: indexing copies its indices as 64 bits, and those of a block fit the processor's cache."""
    return (slice(start, start + 65536) for start in range(0, size, 65536))
