"""Perceptual hashes, which hardly change when a radiograph is saved again, resized, brightened or cropped."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.prepare import Pixels

Vectors: TypeAlias = NDArray[np.float32]

SIDE = 48  # a window of 0.4 of the image still resolves 16 frequencies; with 32 pixels it does not
_SAMPLES = 8 * SIDE
_PADDING_RANGE = 0.03  # of grey levels in padding after JPEG compression


def hash_pixels(pixels: Pixels) -> Pixels:
    """Reduce a radiograph to the small picture that near-duplicates are found by; takes about a millisecond.

    It is not a bit string: chest images look alike, and the signs of a few frequencies cannot distinguish them.

    Args:
        pixels: float32 (H, W) in [0, 1].

    Returns:
        float32 (SIDE, SIDE) in [0, 1]: local means on a grid over the image without its padding.
    """
    from PIL import Image

    down, right = (max(1, side // _SAMPLES) for side in pixels.shape)  # means of 64 pixels suffice
    image = _unpad(_unpad(pixels[::down, ::right]).T).T
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def project_hashes(hashes: Vectors, windows: NDArray[np.float64], frequencies: int) -> Vectors:
    """Describe the content of a window of each image, so that a dot product measures how similar two are.

    The description is a cosine transform (as in pHash; Zauner, "Implementation and benchmarking of perceptual image
    hash functions", 2010) without its constant, each frequency weighted in proportion to itself: the coarse ones, dark
    lungs in a bright body, are nearly the same in all chest images.

    Args:
        hashes: float32 (N, SIDE, SIDE).
        windows: (N, 4) or (1, 4): top, bottom, left and right, from 0 to 1.
        frequencies: how many along each side.

    Returns:
        float32 (N, D) of length 1, or 0 if an image is blank.
    """
    down, right = (_cosines(windows[:, edge], windows[:, edge + 1], frequencies) for edge in (0, 2))
    number = np.hypot(*np.mgrid[:frequencies, :frequencies])
    weight = np.where(number < frequencies, number, 0).astype(np.float32)
    spectrum = (down @ hashes @ right.transpose(0, 2, 1) * weight)[:, weight > 0]
    length = np.linalg.norm(spectrum, axis=1, keepdims=True)
    unit: Vectors = np.divide(spectrum, length, out=np.zeros_like(spectrum), where=length > 1e-4)
    return unit


def _unpad(pixels: Pixels) -> Pixels:
    """Crop uniform rows, equally many at the top and the bottom: equal padding must not make images similar."""
    varied = np.flatnonzero(np.ptp(pixels, axis=1) > _PADDING_RANGE)
    if not len(varied):
        return pixels
    margin = min(varied[0], len(pixels) - 1 - varied[-1])
    return pixels[margin : len(pixels) - margin]


def _cosines(start: NDArray[np.float64], end: NDArray[np.float64], count: int) -> Vectors:
    """Cosines over a part of the grid, integrated over each pixel: (n, count, SIDE)."""
    start, end = start[:, None], end[:, None]
    angle = (np.pi * (np.clip(np.arange(SIDE + 1) / SIDE, start, end) - start) / (end - start))[:, None]
    number = np.arange(1, count)[:, None]
    integral = np.concatenate([angle, np.sqrt(2) * np.sin(number * angle) / number], axis=1) / np.pi
    return np.diff(integral, axis=2).astype(np.float32)
