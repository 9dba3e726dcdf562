"""Perceptual hashes, which hardly change when a radiograph is saved again, resized, brightened or cropped."""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.prepare import Pixels
from pneumoscope.images.resize import Grey, to_float

Vectors: TypeAlias = NDArray[np.float32]

SIDE = 48  # a window of 0.4 of the image still resolves 16 frequencies; with 32 pixels it does not
_SAMPLES = 8 * SIDE
_BLOCK = 1024  # images whose content is described at once: bounds the memory
_PADDING_RANGE = 0.03  # of grey levels in padding after JPEG compression


def hash_pixels(grey: Grey) -> Pixels:
    """Reduce a radiograph (H, W) to the small picture that near-duplicates are found by; takes about a millisecond.

    It is not a bit string: chest images look alike, and the signs of a few frequencies cannot distinguish them.

    Returns:
        float32 (SIDE, SIDE) in [0, 1]: local means on a grid over the image without its padding.
    """
    from PIL import Image

    down, right = (max(1, side // _SAMPLES) for side in grey.shape)  # means of 64 pixels suffice
    image = _unpad(_unpad(to_float(grey[::down, ::right])).T).T
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def project_hashes(hashes: NDArray[np.floating], windows: NDArray[np.float64], frequencies: int) -> Vectors:
    """Describe the content of a window of each image, so that a dot product measures how similar two are.

    The description is a cosine transform (as in pHash; Zauner, "Implementation and benchmarking of perceptual image
    hash functions", 2010) without its constant, each frequency weighted in proportion to itself: the coarse ones, dark
    lungs in a bright body, are nearly the same in all chest images.

    Args:
        hashes: float16 or float32 (N, SIDE, SIDE); converted a block at a time.
        windows: (N, 4) or (1, 4): top, bottom, left and right, from 0 to 1.
        frequencies: how many along each side.

    Returns:
        float32 (N, D) of length 1, or 0 if an image is blank.
    """
    down, right = (compute_cosines(windows[:, edge], windows[:, edge + 1], frequencies) for edge in (0, 2))
    units = np.empty((len(hashes), len(_weigh(frequencies)[0])), np.float32)
    for start in range(0, len(hashes), _BLOCK):
        block = slice(start, start + _BLOCK)
        rows, columns = (each if len(each) == 1 else each[block] for each in (down, right))
        units[block] = scale_spectrum(rows @ hashes[block].astype(np.float32) @ columns.transpose(0, 2, 1))
    return units


def compute_cosines(start: NDArray[np.float64], end: NDArray[np.float64], count: int) -> Vectors:
    """Cosines from `start` to `end` (n,) of the grid, from 0 to 1, integrated over each pixel: (n, count, SIDE)."""
    start, end = start[:, None], end[:, None]
    angle = np.pi * (np.clip(np.arange(SIDE + 1) / SIDE, start, end) - start) / (end - start)
    cosines = np.empty((len(start), count, SIDE), np.float32)
    cosines[:, 0] = np.diff(angle) / np.pi
    # The sines of multiples of an angle follow from the two before, which takes a tenth of the time.
    before, sine, twice = np.zeros_like(angle), np.sin(angle), 2 * np.cos(angle)
    for number in range(1, count):
        cosines[:, number] = np.diff(sine) * (np.sqrt(2) / number / np.pi)
        before, sine = sine, twice * sine - before
    return cosines


def scale_spectrum(spectrum: Vectors) -> Vectors:
    """Weigh the frequencies of a spectrum (N, F, F), drop the highest, and scale to length 1 or 0: (N, D)."""
    kept, weight = _weigh(spectrum.shape[-1])
    vectors = spectrum.reshape(len(spectrum), -1)[:, kept] * weight
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-4)
    return unit


@cache
def _weigh(frequencies: int) -> tuple[NDArray[np.intp], Vectors]:
    """The places of the frequencies that are kept, and their weights."""
    number = np.hypot(*np.mgrid[:frequencies, :frequencies]).ravel()
    kept = np.flatnonzero((number > 0) & (number < frequencies))
    return kept, number[kept].astype(np.float32)


def _unpad(pixels: Pixels) -> Pixels:
    """Crop uniform rows, equally many at the top and the bottom: equal padding must not make images similar."""
    varied = np.flatnonzero(np.ptp(pixels, axis=1) > _PADDING_RANGE)
    if not len(varied):
        return pixels
    margin = min(varied[0], len(pixels) - 1 - varied[-1])
    return pixels[margin : len(pixels) - margin]
