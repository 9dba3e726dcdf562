"""What other thresholds would give: counts at each, and the rates and predictive values that follow from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.evaluation.metrics import checked

# Calibrated probabilities crowd at both ends, and clinics choose thresholds there.
_TAIL = np.arange(1, 10) / 1000
GRID = np.concatenate([_TAIL, np.arange(1, 100) / 100, 1 - _TAIL[::-1]]).round(3)
FEW = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class OperatingPoints:
    """True and false positives at every threshold of a slider.

    Attributes:
        thresholds: rising; one of them is the model's own.
        tp, fp: images of each class with at least that probability.
        positives, negatives: images of each class.
        start: index of the model's threshold.
        z: standard normal deviate of the intervals' confidence.
    """

    thresholds: tuple[float, ...]
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    positives: int
    negatives: int
    start: int
    z: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for the page's script."""
        return asdict(self)


def count_points(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, confidence: float = 0.95
) -> OperatingPoints:
    """Count at about 120 thresholds, exactly, so that the page's size does not grow with the images.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        threshold: the model's own.
        confidence: of the intervals.

    Raises:
        DataError: labels or probabilities that cannot be used.
    """
    y, p = checked(labels, probabilities)
    thresholds = np.unique(np.append(GRID, threshold))
    tp, fp = (count_from(p[y == label], thresholds) for label in (1, 0))
    return OperatingPoints(
        tuple(thresholds.tolist()), tuple(tp.tolist()), tuple(fp.tolist()), int((y == 1).sum()), int((y == 0).sum()),
        int(np.flatnonzero(thresholds == threshold)[0]), NormalDist().inv_cdf((1 + confidence) / 2),
    )  # fmt: skip


def count_from(probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many probabilities reach each threshold."""
    return np.asarray(len(probabilities) - np.searchsorted(np.sort(probabilities), thresholds, side="left"))


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """PPV and NPV by Bayes' theorem; nan where nothing is called so."""
    tp, fp = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    fn, tn = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    return tp / (tp + fp) if tp + fp else math.nan, tn / (tn + fn) if tn + fn else math.nan
