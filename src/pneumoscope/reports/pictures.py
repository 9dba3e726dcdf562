"""Thumbnails of radiographs, embedded in a page."""

from __future__ import annotations

import base64
import io

import numpy as np

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.read import read_radiograph

_QUALITIES = (80, 50, 20, 1)


def draw_thumbnail(sample: Sample, side: int, largest: int) -> str:
    """Draw an image as a data URI (WebP).

    Args:
        sample: the image, and how it is read.
        side: pixels of the longer side.
        largest: maximum size in bytes; the quality is lowered until the picture fits.

    Raises:
        ImageError: the image cannot be read.
    """
    from PIL import Image

    pixels = read_radiograph(sample.path, reading=sample.reading, min_side=side).pixels
    step = max(1, min(pixels.shape) // (4 * side))  # of a large image every so many pixels are enough
    picture = Image.fromarray(np.rint(pixels[::step, ::step] * 255).astype(np.uint8))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=2)
        content = file.getvalue()
        if len(content) <= largest:
            break
    return to_uri(content, "webp")


def to_uri(content: bytes, kind: str) -> str:
    """A picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
