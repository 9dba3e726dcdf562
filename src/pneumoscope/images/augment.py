"""Random changes of a radiograph for training, such as another position, exposure or machine would cause."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

from annotated_doc import Doc
from annotated_types import Ge, Interval

if TYPE_CHECKING:  # the settings of training are built from `Augmentation`, and `train --help` must not load NumPy
    import numpy as np

    from pneumoscope.images.prepare import Pixels

GEOMETRY = ("rotate", "shift", "zoom", "stretch", "crop")
Amount: TypeAlias = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Augmentation:
    """The largest change of each kind; every amount is drawn uniformly between minus and plus its value.

    Some changes cannot be negative: blur, noise, sharpening, compression, and the crop at each edge. Each of these is
    left out when its amount is negative, so in half of the draws: the network still sees many images without it.
    """

    flip: Annotated[float, Interval(ge=0, le=1), Doc("Probability of a left-right flip.")] = 0.5
    rotate: Annotated[Amount, Doc("Rotation, in degrees.")] = 0.0
    shift: Annotated[Amount, Doc("Shift, as a share of the side.")] = 0.0
    zoom: Annotated[float, Interval(ge=0, lt=1), Doc("Change of scale, as a share.")] = 0.0
    stretch: Annotated[Amount, Doc("Change of the ratio of width to height, as a logarithm.")] = 0.0
    crop: Annotated[float, Interval(ge=0, lt=0.5), Doc("Crop at each edge, as a share of the side.")] = 0.0
    full_crop_from: Annotated[
        int, Ge(0), Doc("With fewer training images than this, the crop is smaller in proportion.")
    ] = 0
    brightness: Annotated[Amount, Doc("Change of brightness, as a share of the range.")] = 0.0
    contrast: Annotated[float, Interval(ge=0, lt=1), Doc("Change of contrast around the mean, as a share.")] = 0.0
    gamma: Annotated[Amount, Doc("Gamma, as the logarithm of the exponent.")] = 0.0
    blur: Annotated[float, Interval(ge=0, lt=1), Doc("Loss of resolution, as a share.")] = 0.0
    noise: Annotated[Amount, Doc("Gaussian noise: its standard deviation as a share of the range.")] = 0.0
    sharpen: Annotated[Amount, Doc("Sharpening: how many times the fine detail is added.")] = 0.0
    compress: Annotated[float, Interval(ge=0, lt=1), Doc("JPEG compression: loss of quality, as a share.")] = 0.0

    def scale_crop(self, images: int) -> Augmentation:
        """The augmentation to use with this number of training images: `full_crop_from` applied to `crop`."""
        return dataclasses.replace(self, crop=self.crop * min(1, images / max(self.full_crop_from, 1)))

    def halve_geometry(self) -> Augmentation:
        """The same augmentation with half of every geometric amount."""
        return dataclasses.replace(self, **{name: getattr(self, name) / 2 for name in GEOMETRY})


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
    import numpy as np

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

    Zoom and shares of the side have one value for width and one for height.
    """
    import numpy as np
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
    import numpy as np
    from PIL import Image

    size = image.shape[0]
    small = max(8, round(size * share))
    if small >= size:
        return image
    coarse = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR), np.float32)


def _sharpen(image: Pixels, amount: float) -> Pixels:
    """Add `amount` times the difference from the image blurred by a Gaussian of one pixel."""
    import numpy as np
    from scipy import ndimage

    sharp: Pixels = np.clip(image + amount * (image - ndimage.gaussian_filter(image, 1.0)), 0.0, 1.0)
    return sharp


def _compress(image: Pixels, quality: int) -> Pixels:
    """Save as JPEG and read it back."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(file, "JPEG", quality=max(1, quality))
    return np.asarray(Image.open(file), np.float32) / np.float32(255)
