"""Corruptions as by other machines, scanners and archives, in steps from none to hardly readable."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

Change = Callable[[Image.Image, float], Image.Image]


@dataclass(frozen=True)
class Corruption:
    """A change of an image (8-bit grey, square) and the amounts to try; the first amount leaves the image unchanged."""

    change: Change
    amounts: Sequence[float]
    unit: str


def corruptions() -> dict[str, Corruption]:
    """All corruptions by name."""
    return {
        "brightness": Corruption(
            lambda image, by: _grey(image, lambda x: x + by), (0, -0.3, -0.15, 0.15, 0.3), "added"
        ),
        "contrast": Corruption(
            lambda image, by: _grey(image, lambda x: (x - x.mean()) * by + x.mean()), (1, 0.4, 0.7, 1.4, 2), "times"
        ),
        "gamma": Corruption(lambda image, by: _grey(image, lambda x: x**by), (1, 0.5, 0.75, 1.33, 2), "exponent"),
        "resolution": Corruption(_lower_resolution, (1, 0.75, 0.5, 0.33, 0.25), "share of the pixels a side"),
        "blur": Corruption(
            lambda image, by: image.filter(ImageFilter.GaussianBlur(by)),
            (0, 0.5, 1, 2, 3),
            "pixels, standard deviation",
        ),
        "JPEG": Corruption(_compress, (100, 50, 25, 10, 5), "quality"),
        "noise": Corruption(_add_noise, (0, 0.02, 0.04, 0.08, 0.12), "standard deviation"),
        "crop": Corruption(lambda image, by: _crop(image, by, by), (0, 0.05, 0.1, 0.15, 0.2), "of each side"),
        "padding": Corruption(_letterbox, (1, 0.9, 0.8, 0.7, 0.6), "height of the image, as a share"),
        "crop across": Corruption(
            lambda image, by: _crop(image, by, 0), (0, 0.05, 0.1, 0.15, 0.2), "of left and right"
        ),
        "crop down": Corruption(lambda image, by: _crop(image, 0, by), (0, 0.05, 0.1, 0.15, 0.2), "of top and bottom"),
        "rotation": Corruption(_rotate, (0, 3, 6, 10, 15), "degrees"),
    }


def _grey(image: Image.Image, change: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    pixels = np.asarray(image, np.float32) / 255
    return Image.fromarray(np.rint(np.clip(change(pixels), 0, 1) * 255).astype(np.uint8))


def _lower_resolution(image: Image.Image, share: float) -> Image.Image:
    small = [round(side * share) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX)


def _compress(image: Image.Image, quality: float) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=int(quality))
    return Image.open(content).convert("L")


def _add_noise(image: Image.Image, deviation: float) -> Image.Image:
    noise = np.random.default_rng(_number(image)).standard_normal(image.size[::-1])
    return _grey(image, lambda x: x + deviation * noise)


def _crop(image: Image.Image, across: float, down: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(width * across), round(height * down), round(width * (1 - across)), round(height * (1 - down)))
    )


def _letterbox(image: Image.Image, height: float) -> Image.Image:
    """Pad with black above and below, as for an image that is wider than high."""
    flat = image.resize((image.width, round(image.height * height)), Image.Resampling.BICUBIC)
    black = Image.new("L", image.size)
    black.paste(flat, (0, (image.height - flat.height) // 2))
    return black


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees if _number(image) % 2 else -degrees, Image.Resampling.BILINEAR)


def _number(image: Image.Image) -> int:
    """A number that depends on the image, so that noise and direction differ between images but not between calls."""
    return zlib.crc32(image.tobytes())
