"""Images as PNGs for a browser, which can show them at any window, and simulated examples."""

from __future__ import annotations

import io
from functools import cache

import numpy as np

from pneumoscope.images.prepare import Pixels

_LONGER_SIDE = 2048  # pixels, at most
# Seeds of simulated images, and whether they show pneumonia.
EXAMPLES = ((11, False), (12, True), (13, True), (14, False), (15, True), (16, False))


def render_picture(pixels: Pixels) -> bytes:
    """Draw an image as a PNG: 8-bit grey where that keeps all its levels, else 16 bits in red (high) and green (low).

    A browser gives a page no more than 8 bits per channel, and a narrow window needs more.

    Args:
        pixels: float32 (H, W) in [0, 1].
    """
    from PIL import Image

    height, width = pixels.shape
    image = Image.fromarray(pixels)
    if max(height, width) > _LONGER_SIDE:
        scale = _LONGER_SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    levels = np.clip(np.asarray(image, np.float32), 0, 1)
    grey = np.rint(levels * 255)
    stream = io.BytesIO()
    if np.abs(levels * 255 - grey).max(initial=0) < 0.002:
        picture = Image.fromarray(grey.astype(np.uint8))
    else:
        deep = np.rint(levels * 65535).astype(np.uint16)
        picture = Image.fromarray(np.dstack([deep >> 8, deep & 255, np.zeros_like(deep)]).astype(np.uint8))
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


@cache
def render_example(number: int) -> bytes:
    """Draw a simulated image of `EXAMPLES` as a PNG."""
    from PIL import Image

    from pneumoscope.datasets.phantoms import draw_phantom

    seed, pneumonia = EXAMPLES[number]
    image = draw_phantom(seed, pneumonia=pneumonia, size=768)
    stream = io.BytesIO()
    Image.fromarray(np.rint(image.pixels * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
