"""Colour and transparency of a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def lay_on_black(picture: Image.Image) -> Image.Image:
    """Return the picture as `L`, `RGB` or `YCbCr`, with transparency replaced by black."""
    if picture.has_transparency_data:
        from PIL import Image

        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    if picture.mode == "1":
        return picture.convert("L")
    return picture if picture.mode in ("L", "RGB", "YCbCr") else picture.convert("RGB")


def measure_colour(picture: Image.Image) -> float:
    """Mean range of red, green and blue, 0 to 1, over at most 256 x 256 of the pixels."""
    from PIL import Image

    if picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16"):
        return 0.0
    width, height = (min(side, 256) for side in picture.size)
    sample = picture.resize((width, height), Image.Resampling.NEAREST)
    channels = [np.asarray(each) for each in lay_on_black(sample).convert("RGB").split()]  # much faster than together
    return float(np.mean(np.ptp(channels, axis=0))) / 255
