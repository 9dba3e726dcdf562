"""Images as PNGs that hold all their levels, with what a viewer needs to show them, and simulated examples."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.images.dicom_display import Display, Grey
from pneumoscope.images.greyscale import Levels, LookUp, measure_range
from pneumoscope.images.prepare import Pixels
from pneumoscope.images.read import ImageBytes, read_pixels

if TYPE_CHECKING:
    from pneumoscope.inference.features import Extract

KEYWORD = "pneumoscope"  # of the PNG's text (iTXt), which is JSON
_MOST = 10_000_000  # pixels of a picture; larger images are reduced, each 2 x 2, or 3 x 3, pixels to their mean
_STRIP = 2**20  # pixels converted at a time
# Seeds of simulated images, and whether they show pneumonia.
EXAMPLES = ((11, False), (12, True), (13, True), (14, False), (15, True), (16, False))


def render_picture(extract: Extract, image: ImageBytes) -> bytes:
    """Draw an image as a grey PNG of its stored levels, in 8 or 16 bits.

    The PNG's text says how to display the levels: rescaling, windows, polarity, padding, spacing and so on. No window
    is applied. Browsers decode PNGs to 8 bits, so the page decodes them by itself (`page/picture.js`).

    Args:
        extract: with its pixels.
        image: what it was made of.

    Raises:
        ValueError: there are no pixels.
    """
    if extract.pixels is None:
        raise ValueError("an image without its pixels")
    display = extract.display or Display()
    invert = image.reading.invert
    if display.grey is not None:
        levels = display.grey.levels
        facts = _describe_grey(display.grey, display, invert)
    else:
        pixels = extract.pixels
        if extract.format == "JPEG" and pixels.shape != extract.size:  # it was read at a reduced scale
            pixels = read_pixels(image.content, image.name, image.reading)
        levels, bits = _to_levels(pixels, invert)
        facts = {"lowest": 0, "bits": bits, "full": [0, 2**bits - 1], "inverted": invert}
    facts |= {
        "spacing": asdict(display.spacing) if display.spacing else None,
        "aspect": display.aspect,
        "kvp": display.kvp,
        "orientation": display.orientation,
    }
    reduced, factor = _reduce(levels)
    return _write_png(reduced, facts | {"reduced": factor})


def _describe_grey(grey: Grey, display: Display, invert: bool) -> dict[str, Any]:
    stored, image = grey.stored, grey.transformations
    start = "full" if not grey.usable else "voi" if image.voi else "window" if image.window else "full"
    return {
        "lowest": stored.lowest,
        "bits": stored.bits,
        "slope": image.slope,
        "intercept": image.intercept,
        "modality": _describe_table(image.modality),
        "voi": _describe_table(image.voi, display.voi_name),
        "windows": [asdict(window) for window in display.windows],
        "function": image.function,
        "full": measure_range(stored.levels, stored.lowest, stored.bits, image),
        "start": start,
        "inverted": image.inverted != invert,
        "padding": image.padding,
    }


def _describe_table(table: LookUp | None, name: str = "") -> dict[str, Any] | None:
    if table is None:
        return None
    return {"first": table.first, "bits": table.bits, "entries": table.entries.astype(int).tolist(), "name": name}


def _to_levels(pixels: Pixels, invert: bool) -> tuple[Levels, int]:
    """The levels of an image that is not DICOM, and their depth: 8 bits where that keeps all of them, else 16."""
    height = len(pixels)
    rows = max(1, _STRIP // max(1, pixels.shape[1]))
    strips = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]  # which bounds the memory

    def scale(strip: slice, most: int) -> Pixels:
        levels = np.clip(pixels[strip], 0, 1) * np.float32(most)
        return most - levels if invert else levels

    bits = 8
    for strip in strips:
        levels = scale(strip, 255)
        if np.abs(levels - np.rint(levels)).max(initial=0) >= 0.002:
            bits = 16
            break
    found = np.empty(pixels.shape, np.uint8 if bits == 8 else np.uint16)
    for strip in strips:
        found[strip] = np.rint(scale(strip, 2**bits - 1))
    return found, bits


def _reduce(levels: Levels) -> tuple[Levels, int]:
    """Reduce an image to at most `_MOST` pixels; and how many of its rows became one."""
    height, width = levels.shape
    factor = 1
    while -(-height // factor) * -(-width // factor) > _MOST:
        factor += 1
    if factor == 1:
        return levels, 1
    padded = np.pad(levels, ((0, -height % factor), (0, -width % factor)), "edge")
    total = np.zeros((padded.shape[0] // factor, padded.shape[1] // factor), np.uint32)
    for row in range(factor):
        for column in range(factor):
            total += padded[row::factor, column::factor]
    return ((total + factor**2 // 2) // factor**2).astype(levels.dtype), factor


def _write_png(levels: Levels, facts: dict[str, Any]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt(KEYWORD, json.dumps(facts, allow_nan=False), zip=True)
    shallow = int(levels.max(initial=0)) < 256
    stream = io.BytesIO()
    picture = Image.fromarray(levels.astype(np.uint8 if shallow else np.uint16))
    picture.save(stream, "PNG", compress_level=1, pnginfo=text)
    return stream.getvalue()


@cache
def render_example(number: int, size: int = 768) -> bytes:
    """Draw a simulated image of `EXAMPLES` as a PNG."""
    from PIL import Image

    from pneumoscope.datasets.phantoms import draw_phantom

    seed, pneumonia = EXAMPLES[number]
    image = draw_phantom(seed, pneumonia=pneumonia, size=size)
    stream = io.BytesIO()
    Image.fromarray(np.rint(image.pixels * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
