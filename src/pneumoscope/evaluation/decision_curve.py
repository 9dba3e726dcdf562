"""Is a classifier worth using? Its net benefit against treating everybody and nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals.proportions import rate_limits
from pneumoscope.evaluation.metrics import checked

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold; treating nobody has none.

    Attributes:
        thresholds: (K,) in (0, 1).
        model: (K,) of calling positive from the threshold on.
        everybody: (K,) of calling all positive.
        low, high: (K,) limits of `model`.
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
    confidence: float = 0.95,
) -> DecisionCurve:
    """Weigh true positives against false ones: TP/n - FP/n * t/(1 - t) (Vickers & Elkin 2006).

    Who acts from a probability of t on, states by it that a missed positive is worth (1 - t)/t false alarms. Net
    benefit counts in true positives an image.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        thresholds: (K,) in (0, 1); by default 0.01, 0.02 to 0.99.
        patients: (N,) for the band, whose images count together.
        confidence: probability that the band is to hold at each threshold.

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
    clusters, everything = cluster_by_patient(patients, len(y)), np.ones(len(y), dtype=bool)
    low, high = np.array(
        [
            _limit(p >= one, y == 1, weight, clusters, everything, confidence)
            for one, weight in zip(at, odds, strict=True)
        ]
    ).T
    return DecisionCurve(at, brings.mean(0), worth.mean(1), low, high)


def _limit(
    called: Bools, truth: Bools, weight: float, clusters: NDArray[np.int64], everything: Bools, confidence: float
) -> tuple[float, float]:
    """Limits of TP/n - weight * FP/n from Wilson's of both shares, which exclude each other (MOVER: Newcombe 1998)."""
    hit, alarm = called & truth, called & ~truth
    a, b = hit.mean(), alarm.mean()
    (low_a, high_a), (low_b, high_b) = (rate_limits(each, everything, clusters, confidence) for each in (hit, alarm))
    shared = -np.sqrt(a * b / ((1 - a) * (1 - b))) if a < 1 and b < 1 else 0.0

    def reach(first: float, second: float) -> float:
        return float(np.sqrt(first**2 + second**2 - 2 * shared * first * second))

    value = a - weight * b
    below, above = reach(a - low_a, weight * (high_b - b)), reach(high_a - a, weight * (b - low_b))
    return float(value - below), float(value + above)
