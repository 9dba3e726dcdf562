"""Is a classifier worth using? Its net benefit against treating everybody and nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals import group, resample
from pneumoscope.evaluation.metrics import checked

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold; treating nobody has none.

    Attributes:
        thresholds: (K,) in (0, 1).
        model: (K,) of calling positive from the threshold on.
        everybody: (K,) of calling all positive.
        low, high: (K,) bootstrap limits of `model`.
    """

    thresholds: Floats
    model: Floats
    everybody: Floats
    low: Floats
    high: Floats


def decision_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    thresholds: ArrayLike | None = None,
    patients: Sequence[str | None] | None = None,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> DecisionCurve:
    """Weigh true positives against false ones: TP/n - FP/n * t/(1 - t) (Vickers & Elkin 2006).

    Who acts from a probability of t on, states by it that a missed positive is worth (1 - t)/t false alarms. Net
    benefit counts in true positives an image.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        thresholds: (K,) in (0, 1); by default 0.01, 0.02 to 0.99.
        patients: (N,) for the band, which draws whole patients.
        resamples: bootstrap resamples behind the band.
        confidence: probability that the band is to hold at each threshold.
        seed: the same seed gives the same band.

    Raises:
        DataError: labels or probabilities that cannot be used.
        UsageError: a threshold of 0 or less, or 1 or more.
    """
    y, p = checked(labels, probabilities)
    if p.ndim != 1:
        raise DataError("net benefit is of two classes: give the positive one's probability")
    at = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if not ((at > 0) & (at < 1)).all():
        raise UsageError(f"thresholds must lie between 0 and 1; they go from {at.min():g} to {at.max():g}")
    odds = at / (1 - at)
    worth = np.where(y == 1, 1.0, -odds[:, None])  # (K, N): what calling an image positive brings
    brings = np.where(p >= at[:, None], worth, 0.0).T
    weights = resample(group(patients, len(y)), resamples, seed)
    drawn = np.concatenate([some @ brings / some.sum(1, keepdims=True) for some in weights])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return DecisionCurve(at, brings.mean(0), worth.mean(1), low, high)
