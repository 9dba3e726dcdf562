"""Random views of a radiograph for training: what another day, hand and machine would have changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pneumoscope.images.preparing import Pixels


@dataclass(frozen=True)
class Augmentation:
    """How far a random view may be from its film; every amount is drawn uniformly in plus or minus its value.

    Attributes:
        flip: probability of a left-right flip.
        rotate: degrees.
        shift: share of the side.
        zoom: share of the scale.
        brightness: added, of the range 0 to 1.
        contrast: share, around the film's mean.
        gamma: logarithm of the exponent.
    """

    flip: float = 0.5
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0


def augment(film: Pixels, augmentation: Augmentation, rng: np.random.Generator, flip: bool) -> Pixels:
    """Draw one random view of a fitted film.

    Args:
        film: float32 (S, S) in [0, 1].
        augmentation: the amounts.
        rng: the source of every random choice.
        flip: whether this view is flipped (drawn by the caller, as it is where features are cached).

    Returns:
        float32 (S, S) in [0, 1].
    """
    a = augmentation
    rotate, shift_x, shift_y, zoom, brightness, contrast, gamma = rng.uniform(-1, 1, 7).astype(np.float32)
    if a.rotate or a.shift or a.zoom:
        film = _move(film, np.deg2rad(a.rotate * rotate), 1 + a.zoom * zoom, a.shift * shift_x, a.shift * shift_y)
    if a.gamma:
        film = film ** np.exp(a.gamma * gamma)
    if a.contrast or a.brightness:
        mean = film.mean()
        film = (film - mean) * (1 + a.contrast * contrast) + mean + a.brightness * brightness
    film = np.clip(film, 0.0, 1.0)
    return film[:, ::-1] if flip else film


def _move(film: Pixels, angle: float, zoom: float, shift_x: float, shift_y: float) -> Pixels:
    """Rotate and zoom about the centre, then shift; what comes from outside is black."""
    from PIL import Image

    size = film.shape[0]
    centre = size / 2
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    x, y = centre + shift_x * size, centre + shift_y * size
    matrix = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
    moved = Image.fromarray(film).transform(
        (size, size), Image.Transform.AFFINE, tuple(float(value) for value in matrix), Image.Resampling.BILINEAR
    )
    return np.asarray(moved, np.float32)
