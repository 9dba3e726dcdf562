"""What an image looks like at a glance: whether it is inverted, turned, burnt out or faint."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.resize import Grey

THUMBNAIL = 64  # side of what is looked at
_SIDE = 16
# The mean of 150 simulated normal images, left half, 0 to ff: a frontal image, coarsely. By it, none of 5,216 real
# images is inverted or sideways (docs/log.md).
_TEMPLATE = """
    0304060d1c3c5b6a 0a16273f5b6f818c 2c4c62777d717e96 577e7e7b685e75a2
    6589847053506ca9 5a817e5f4c5072b4 4c767252454e78bd 406a61443e4e80c4
    3960543c3c5598d0 355a4d3c4065a8d5 3154473a4976b2d7 2d4c403a547fb4d9
    2b483e42668db5da 2a4e5b7899b1c2db 2c61849dadbac4da 25577889949da4b6
"""
# How much better another orientation fits: at most 0.16 for 5,216 upright real images. All inverted images exceed it,
# 99.9% of those turned by 90°, and two of three turned by 180°.
TURNED = 0.17
UNLIKE = 0.2  # correlation; real images have 0.27 at least
_LIKE = 0.4  # to be called inverted it must look like a chest: 97% of adults and 99% of children do (docs/log.md)
FAINT = 0.1  # between the first and the 99th percentile; real images have 0.19 at least
BURNT = 0.1  # share of white inside; none of 5,216 real images has more


def find_faults(image: Grey) -> tuple[str, ...]:
    """Warn of an image (H, W) that is probably inverted, burnt out or faint; the limits are those of the audit."""
    grey = sample_grey(image)
    shares = np.bincount(grey.reshape(-1), minlength=256).cumsum() / grey.size
    low, high = np.searchsorted(shares, [0.01, 0.99]) / 255
    if high - low < FAINT:
        return (f"hardly any contrast: grey levels {low:.2f} to {high:.2f}",)
    thumbnail = shrink(grey)[None]
    faults = []
    fits = correlate_orientations(thumbnail)[0]
    if fits[0] <= -max(_LIKE, *abs(fits)):  # it fits an inverted frontal image better than any other
        faults.append("probably inverted (air is bright); if so, read it with `invert=True`")
    if (white := float(measure_burnt(thumbnail)[0])) > BURNT:
        faults.append(f"burnt out: {white:.0%} of the image is white")
    return tuple(faults)


def sample_grey(image: Grey) -> NDArray[np.uint8]:
    """The pixels (H, W) as bytes; of a large image only some, 256 to 511 a side."""
    down, right = (max(1, side // 256) for side in image.shape)
    some = image[::down, ::right]
    return np.ascontiguousarray(some) if some.dtype == np.uint8 else np.rint(some * 255).astype(np.uint8)


def shrink(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Squash an image to a thumbnail, antialiased."""
    from PIL import Image

    return np.asarray(Image.fromarray(grey).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def measure_burnt(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The share of white in each of N thumbnails, (N,); a white frame is not burnt out."""
    return np.asarray(np.mean(thumbnails[:, 6:-6, 6:-6] >= 254, axis=(1, 2)))


def correlate_orientations(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Correlate images with a frontal image in four orientations.

    Args:
        thumbnails: uint8 (N, 64, 64).

    Returns:
        (N, 4): with the template turned by 0, 90, 180 and 270 degrees counter-clockwise; negative where inverted.
    """
    step = THUMBNAIL // _SIDE
    coarse = thumbnails.reshape(-1, _SIDE, step, _SIDE, step).mean((2, 4), dtype=np.float64)
    return np.asarray(_standardise(coarse) @ _turned_templates().T)


@cache
def _turned_templates() -> NDArray[np.float64]:
    half = np.frombuffer(bytes.fromhex(_TEMPLATE), np.uint8).reshape(_SIDE, _SIDE // 2)
    upright = np.hstack([half, half[:, ::-1]]).astype(np.float64)
    return _standardise(np.stack([np.rot90(upright, turns) for turns in range(4)]))


def _standardise(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(length > 0, length, 1))
