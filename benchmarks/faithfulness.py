"""Do maps point where the evidence is: against masks of the truth, and by taking the evidence away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def points_inside(map_: Array, mask: Mask, tolerance: float = 0.0) -> bool:
    """Whether the strongest evidence lies inside the mask, or near it: the pointing game of Zhang et al. (2018).

    Args:
        map_: float (H, W); nan where the network saw nothing.
        mask: bool (H, W), not empty.
        tolerance: pixels from the mask that still count; a map of coarse cells is no more precise than one of them.
    """
    peak = np.unravel_index(int(np.nanargmax(map_)), map_.shape)
    offsets = np.argwhere(mask) - np.array(peak)
    return bool(np.hypot(*offsets.T).min() <= tolerance)


def share_inside(map_: Array, mask: Mask) -> float:
    """The share of the positive evidence that lies inside the mask; nan where there is none.

    Args:
        map_: float (H, W); nan where the network saw nothing.
        mask: bool (H, W).
    """
    evidence = np.clip(np.nan_to_num(map_), 0, None).astype(np.float64)
    return float(evidence[mask].sum() / evidence.sum()) if evidence.any() else float("nan")


def delete_evidence(inputs: Array, base: Array, map_: Array, steps: int) -> Array:
    """Replace an image by a base, strongest evidence first: "deletion" (Petsiuk et al. 2018, "RISE", section 3.4).

    With image and base exchanged it is their "insertion".

    Args:
        inputs: (3, S, S), the image.
        base: (3, S, S), what replaces it, such as a blurred image.
        map_: (S, S), the evidence.
        steps: number of steps, each with an equal share of the pixels.

    Returns:
        (steps + 1, 3, S, S), from the image to the base.
    """
    ranks = np.empty(map_.size, np.intp)
    ranks[np.argsort(-map_, axis=None, kind="stable")] = np.arange(map_.size)
    replaced = ranks.reshape(map_.shape) < np.arange(steps + 1)[:, None, None] * map_.size / steps
    return np.where(replaced[:, None], base, inputs)
