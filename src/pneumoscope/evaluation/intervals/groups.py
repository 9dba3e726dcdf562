"""A metric of some images against the same metric of all others: difference, interval and p value, by patient.

The intervals of the two values, each right by itself, are combined by MOVER (Zou & Donner, Stat Med 2008; for two rates
Newcombe's hybrid score interval, Stat Med 1998). A patient may have images on both sides, which correlates them. The p
value belongs to the interval: 1 minus the confidence at which its end would lie at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.evaluation.intervals.delong import find_placements
from pneumoscope.evaluation.intervals.proportions import (
    CONFIDENCE,
    Bools,
    Bounds,
    Floats,
    Ints,
    effective_count,
    logit_interval,
    perfect_auroc_interval,
    rate_trials,
    wilson_interval,
)
from pneumoscope.evaluation.metrics import predict_classes
from pneumoscope.evaluation.results import GroupDifference

_SUREST = 1 - 1e-9  # confidence behind the smallest p value

_Side = tuple[
    float, Floats, Callable[[float], Bounds]
]  # a value, what each patient adds to it, intervals by confidence


def compare_with_rest(
    labels: Ints,
    probabilities: Floats,
    members: Bools,
    clusters: Ints,
    names: Sequence[str],
    *,
    threshold: ArrayLike = 0.5,
) -> dict[str, GroupDifference]:
    """Measure how metrics of some images differ from those of the others; metrics that either side lacks are left out.

    Args:
        labels: (N,) class indices.
        probabilities: (N,) of the positive class, or (N, C) with C > 2.
        members: (N,) the images in question.
        clusters: (N,) numbers of the patients, from `cluster_by_patient`.
        names: among `accuracy`, `sensitivity`, `specificity` and `auroc`; two of them are for two classes.
        threshold: as for `predict_classes`.
    """
    predicted = predict_classes(probabilities, threshold)
    correct = predicted == labels
    among = {"accuracy": np.ones_like(correct), "sensitivity": labels == 1, "specificity": labels == 0}
    found = {}
    for name in names:
        sides = [
            _measure_auroc(labels, probabilities, here, clusters)
            if name == "auroc"
            else _measure_rate(correct, among[name] & here, clusters)
            for here in (~members, members)
        ]
        rest, group = sides
        if rest is not None and group is not None:
            found[name] = _compare(rest, group)
    return found


def _measure_rate(hits: Bools, among: Bools, clusters: Ints) -> _Side | None:
    """A share of correct labels; None without images."""
    if not among.any():
        return None
    value, trials = rate_trials(hits, among, clusters)
    added = np.bincount(clusters, among * (hits - value)) / among.sum()
    return value, added, lambda confidence: wilson_interval(value, trials, confidence)


def _measure_auroc(labels: Ints, probabilities: Floats, here: Bools, clusters: Ints) -> _Side | None:
    """AUROC, of more than two classes the mean of each against the rest; None where a class is missing."""
    y, present = labels[here], np.unique(labels)
    if len(present) < 2 or len(np.unique(y)) < len(present):
        return None
    areas, added = [], np.zeros(len(labels))
    columns = [(1, probabilities)] if probabilities.ndim == 1 else [(each, probabilities[:, each]) for each in present]
    for label, scores in columns:
        positive = y == label
        placements = find_placements(positive, scores[here][None])[0]
        areas.append(float(placements[positive].mean()))
        added[here] += (placements - areas[-1]) / np.where(positive, positive.sum(), (~positive).sum()) / len(columns)
    value, sums = float(np.mean(areas)), np.bincount(clusters, added).astype(np.float64)
    sides = [here & (labels == label) for label in present]
    patients = len(np.unique(clusters[here]))
    error = math.sqrt(patients / max(1, patients - 1) * float((sums**2).sum()))
    degrees = min(effective_count(clusters, side) for side in sides) - 1
    fewest = min(len(np.unique(clusters[side])) for side in sides)

    def find_interval(confidence: float) -> Bounds:
        if value in (0.0, 1.0):
            low, high = perfect_auroc_interval(min(fewest, (patients + 1) // 2), confidence)
            return (low, high) if value else (1 - high, 1 - low)
        return logit_interval(value, error, confidence, degrees)

    return value, sums, find_interval


def _compare(rest: _Side, group: _Side) -> GroupDifference:
    (first, added_first, interval_first), (other, added_other, interval_other) = rest, group
    spread = math.sqrt(float((added_first**2).sum() * (added_other**2).sum()))
    correlation = float(added_first @ added_other) / spread if spread > 0 else 0.0
    value = other - first

    def combine(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    def find_bounds(confidence: float) -> Bounds:
        (low_first, high_first), (low, high) = interval_first(confidence), interval_other(confidence)
        return value - combine(other - low, high_first - first), value + combine(high - other, first - low_first)

    low, high = find_bounds(CONFIDENCE)
    if math.isnan(low) or math.isnan(high):
        return GroupDifference(value, math.nan, math.nan, first)
    p = _find_p(value, find_bounds)
    return GroupDifference(value, low, high, first, p, p)


def _find_p(value: float, find_bounds: Callable[[float], Bounds]) -> float:
    """1 minus the confidence at which the end of the interval lies at 0."""
    if value == 0:
        return 1.0
    from scipy.optimize import brentq

    def find_end(confidence: float) -> float:
        low, high = find_bounds(confidence)
        return low if value > 0 else -high

    if find_end(1e-9) <= 0:
        return 1.0
    if find_end(_SUREST) > 0:
        return 1 - _SUREST
    return 1 - float(brentq(find_end, 1e-9, _SUREST, xtol=1e-12))
