"""Random changes of a radiograph for training, such as another position, exposure or machine would make."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from pneumoscope.images.prepare import Pixels

GEOMETRY = ("rotate", "shift", "zoom", "stretch", "crop")


@dataclass(frozen=True)
class Augmentation:
    """The largest change of each kind; every amount is drawn uniformly between minus and plus its value.

    What cannot be negative (blur, noise, sharpening, compression, a crop at one edge) is then left out, so in half of
    the draws, each on its own: the network still sees many images without it.

    Attributes:
        flip: probability of a left-right flip.
        rotate: degrees.
        shift: share of the side.
        zoom: share of the scale.
        stretch: logarithm of the change of width against height.
        brightness: added to the pixels, which are in [0, 1].
        contrast: share, around the mean of the image.
        gamma: logarithm of the exponent.
        blur: share of the resolution that is lost.
        noise: standard deviation of Gaussian noise; pixels are in [0, 1].
        sharpen: how many times the difference from the blurred image (1 pixel) is added.
        crop: share of the side that is cut off at each edge; the rest is enlarged to the full size.
        compress: share of the JPEG quality that is lost; the result has 8 bits.
    """

    flip: float = 0.5
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    stretch: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    sharpen: float = 0.0
    crop: float = 0.0
    compress: float = 0.0


def augment(image: Pixels, augmentation: Augmentation, rng: np.random.Generator, flip: bool) -> Pixels:
    """Change a fitted image at random.

    Args:
        image: float32 (S, S) in [0, 1].
        augmentation: the largest changes.
        rng: the source of every random choice.
        flip: whether to flip it (drawn by the caller, as where features are cached).

    Returns:
        float32 (S, S) in [0, 1].
    """
    a = augmentation
    drawn, grain = rng.uniform(-1, 1, 16).astype(np.float32), int(rng.integers(2**32))
    rotate, shift_x, shift_y, zoom, brightness, contrast, gamma, stretch, blur, noise, sharpen, compress, *edges = drawn
    if any(getattr(a, name) for name in GEOMETRY):
        left, right, top, bottom = (a.crop * max(0, edge) for edge in edges)
        scale = 1 + a.zoom * zoom
        ratio = np.exp(a.stretch * stretch / 2)
        image = _move(
            image,
            np.deg2rad(a.rotate * rotate),
            (scale * ratio / (1 - left - right), scale / ratio / (1 - top - bottom)),
            (a.shift * shift_x, a.shift * shift_y),
            ((left - right) / 2, (top - bottom) / 2),
        )
    if a.blur and blur > 0:
        image = _blur(image, 1 - a.blur * blur)
    if a.sharpen and sharpen > 0:
        image = _sharpen(image, a.sharpen * sharpen)
    if a.gamma:
        image = image ** np.exp(a.gamma * gamma)
    if a.contrast or a.brightness:
        mean = image.mean()
        image = (image - mean) * (1 + a.contrast * contrast) + mean + a.brightness * brightness
    if a.noise and noise > 0:
        image = image + a.noise * noise * np.random.default_rng(grain).standard_normal(image.shape, np.float32)
    image = np.clip(image, 0.0, 1.0)
    if a.compress and compress > 0:
        image = _compress(image, round(100 * (1 - a.compress * compress)))
    return image[:, ::-1] if flip else image


def _move(
    image: Pixels, angle: float, zoom: tuple[float, float], shift: tuple[float, float], middle: tuple[float, float]
) -> Pixels:
    """Zoom about a point (`middle`, from the centre), rotate, move the point to the centre, then shift; fill in black.

    Zoom and shares of the side are along width and height.
    """
    from PIL import Image

    size = image.shape[0]
    centre = size / 2
    cos, sin = np.cos(angle), np.sin(angle)
    xx, xy, yx, yy = cos / zoom[0], sin / zoom[0], -sin / zoom[1], cos / zoom[1]
    x, y = (centre + part * size for part in shift)
    x0, y0 = (centre + part * size for part in middle)
    matrix = (xx, xy, x0 - xx * x - xy * y, yx, yy, y0 - yx * x - yy * y)
    moved = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, tuple(float(value) for value in matrix), Image.Resampling.BILINEAR
    )
    return np.asarray(moved, np.float32)


def _blur(image: Pixels, share: float) -> Pixels:
    """Reduce the resolution to a share of it."""
    from PIL import Image

    size = image.shape[0]
    small = max(8, round(size * share))
    if small >= size:
        return image
    coarse = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR), np.float32)


def _sharpen(image: Pixels, amount: float) -> Pixels:
    """Add `amount` times the difference from the image blurred by a Gaussian of one pixel."""
    from scipy import ndimage

    sharp: Pixels = np.clip(image + amount * (image - ndimage.gaussian_filter(image, 1.0)), 0.0, 1.0)
    return sharp


def _compress(image: Pixels, quality: int) -> Pixels:
    """Save as JPEG and read it back."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(file, "JPEG", quality=max(1, quality))
    return np.asarray(Image.open(file), np.float32) / np.float32(255)
