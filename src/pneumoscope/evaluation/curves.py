"""Curves of a classifier over all thresholds, with pointwise confidence bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals.bootstrap import confidence_band
from pneumoscope.evaluation.intervals.many_images import MANY, condense
from pneumoscope.evaluation.intervals.proportions import (
    CONFIDENCE,
    Bools,
    Bounds,
    Floats,
    Ints,
    effective_count,
    rate_interval,
    t_quantile,
)
from pneumoscope.evaluation.metrics import check_predictions, check_two_classes, roc_curve

Patients: TypeAlias = Sequence[str | None] | None

# Thresholds of the operating points. Calibrated probabilities crowd at both ends, and clinics choose thresholds there.
_TAIL = np.arange(1, 10) / 1000
GRID = np.concatenate([_TAIL, np.arange(1, 100) / 100, 1 - _TAIL[::-1]]).round(3)
LISTED = (0.1, 0.25, 0.5, 0.75, 0.9)  # thresholds of a printed table


def roc_band(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients = None, *, resamples: int = 500, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Find the band around an ROC curve, by `confidence_band`.

    Returns:
        False-positive rates (101,), and lower and upper ends of the sensitivity at each; nan with one class only.
    """
    y, p = check_predictions(labels, probabilities)
    clusters, grid = cluster_by_patient(patients, len(y)), np.linspace(0, 1, 101)
    trials = np.full(len(grid), effective_count(clusters, y == 1))
    y, p, counts = _condense_many(y, p, clusters, seed)

    def trace(weights: Floats) -> list[Floats]:
        fpr, tpr, _ = roc_curve(y, p, weights)
        return [np.interp(grid, *rates) for rates in zip(fpr, tpr, strict=True) if np.isfinite(rates).all()]

    low, high = confidence_band(trace, trials, clusters, resamples, seed, counts)
    low[-1:] = high[-1:]  # where all are predicted positive, it is 1 by definition
    return grid, low, high


def precision_recall_band(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients = None, *, resamples: int = 500, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Find the band around a precision-recall curve, by `confidence_band`.

    The precision at a recall is that of the strictest threshold that reaches it, as in average precision.

    Returns:
        Recalls (101,), and lower and upper ends of the precision at each; nan without positives.
    """
    y, p = check_predictions(labels, probabilities)
    clusters, grid = cluster_by_patient(patients, len(y)), np.linspace(0, 1, 101)
    n = len(y)
    y, p, counts = _condense_many(y, p, clusters, seed)

    def trace(weights: Floats) -> list[tuple[Floats, Floats]]:
        """Precision, and the number of positive predictions it is a share of."""
        fpr, tpr, _ = roc_curve(y, p, weights)
        positive = weights @ y
        tp, fp = tpr * positive[:, None], np.nan_to_num(fpr) * (weights.sum(1) - positive)[:, None]
        traced = []
        for i in np.flatnonzero(positive > 0):
            reached = np.maximum(np.searchsorted(tpr[i], grid - 1e-9), np.argmax(tp[i] + fp[i] > 0))
            predicted = tp[i, reached] + fp[i, reached]
            traced.append((tp[i, reached] / predicted, predicted))
        return traced

    _, predicted = next(iter(trace(np.ones((1, n)) if counts is None else counts.sum(axis=0)[None])), (None, grid))
    trials = effective_count(clusters, np.ones(n, dtype=bool)) / n * predicted
    band = confidence_band(
        lambda weights: [curve for curve, _ in trace(weights)], trials, clusters, resamples, seed, counts
    )
    return grid, *band


def _condense_many(classes: Ints, scores: Floats, clusters: Ints, seed: int) -> tuple[Ints, Floats, Floats | None]:
    """The images as they are, or if there are many, from `condense`."""
    return condense(classes, scores, clusters, seed) if len(scores) > MANY else (classes, scores, None)


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold; that of treating nobody is 0."""

    thresholds: Floats  # (K,) in (0, 1)
    model: Floats  # (K,) net benefit of treating whom the model predicts positive
    everybody: Floats  # (K,) net benefit of treating all
    low: Floats  # (K,) interval of `model`
    high: Floats


def decision_curve(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients = None, *, thresholds: ArrayLike | None = None
) -> DecisionCurve:
    """Weigh true positives against false ones: TP/n - FP/n * t/(1 - t) (Vickers & Elkin 2006).

    To act from a probability of t on is to value a missed positive as (1 - t)/t false alarms. Net benefit counts true
    positives per image.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        patients: (N,), whose images count together in the band.
        thresholds: (K,) in (0, 1); by default 0.01, 0.02 to 0.99.

    Raises:
        DataError: unusable labels or probabilities.
        UsageError: a threshold outside (0, 1).
    """
    y, p = check_two_classes(labels, probabilities)
    at = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if not ((at > 0) & (at < 1)).all():
        raise UsageError(f"must lie between 0 and 1, found {at.min():g} to {at.max():g}.", "thresholds")
    odds = at / (1 - at)
    positives = int(y.sum())
    tp, fp = (np.array([np.count_nonzero(p[y == side] >= t) for t in at]) for side in (1, 0))
    model, everybody = ((right - odds * wrong) / len(y) for right, wrong in ((tp, fp), (positives, len(y) - positives)))
    clusters = cluster_by_patient(patients, len(y))
    bounds = [_net_benefit_interval(p >= t, y == 1, o, clusters) for t, o in zip(at, odds, strict=True)]
    low, high = np.array(bounds).T
    return DecisionCurve(at, model, everybody, low, high)


def _net_benefit_interval(predicted: Bools, truth: Bools, odds: float, clusters: Ints) -> Bounds:
    """The interval of TP/n - odds * FP/n, from those of two shares that exclude each other (MOVER: Newcombe 1998)."""
    tp, fp, among = predicted & truth, predicted & ~truth, np.ones_like(truth)
    a, b = tp.mean(), fp.mean()
    (low_a, high_a), (low_b, high_b) = (rate_interval(hits, among, clusters, CONFIDENCE) for hits in (tp, fp))
    correlation = -np.sqrt(a * b / ((1 - a) * (1 - b))) if a < 1 and b < 1 else 0.0

    def combine(first: float, second: float) -> float:
        return float(np.sqrt(first**2 + second**2 - 2 * correlation * first * second))

    value = a - odds * b
    below, above = combine(a - low_a, odds * (high_b - b)), combine(high_a - a, odds * (b - low_b))
    return float(value - below), float(value + above)


@dataclass(frozen=True)
class SelectiveCurve:
    """The risk-coverage curve (El-Yaniv & Wiener 2010), as accuracy."""

    coverage: Floats  # (K,) rising to 1: shares of the images answered, one for each distinct confidence
    accuracy: Floats  # (K,) share of correct labels among them
    area: float  # mean risk (1 - accuracy) over all coverages, AURC (Geifman & El-Yaniv 2017); lower is better
    grid: Floats  # (100,) coverages of the band
    low: Floats  # (100,) the band
    high: Floats


def confidence_of(probabilities: ArrayLike, threshold: ArrayLike = 0.5) -> Floats:
    """Compute the confidence of each predicted label, from 0 at the threshold to 1.

    For two classes, the threshold states the cost of a missed positive against a false alarm. The expected cost of a
    predicted label, relative to that at the threshold, is p / t below it and (1 - p) / (1 - t) from it on; Chow's rule
    (1970) refuses where it is highest. Confidence is 1 minus that. At t = 0.5 it orders images as the highest
    probability does, which serves for more classes; where each has a threshold, by the highest p / t, made to sum to 1.

    Args:
        probabilities: (N,) of the positive class, or (N, C).
        threshold: for two classes, in [0, 1]; for more (C,), as for `predict_classes`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim == 2:
        if np.ndim(threshold) == 0:
            return np.asarray(p.max(1))
        multiples = p / np.asarray(threshold)
        return np.asarray(multiples.max(1) / multiples.sum(1))
    threshold = float(np.asarray(threshold))
    with np.errstate(divide="ignore", invalid="ignore"):
        confidence = np.where(p >= threshold, (p - threshold) / (1 - threshold), (threshold - p) / threshold)
    return np.nan_to_num(confidence, nan=1.0)  # only a probability of 1 reaches a threshold of 1


def selective_curve(
    correct: ArrayLike, confidence: ArrayLike, patients: Patients = None, *, resamples: int = 500, seed: int = 0
) -> SelectiveCurve:
    """Trace how accuracy changes when the least confident labels are withheld.

    Images of equal confidence are answered together; between them the area assumes a random order.

    Args:
        correct: (N,) whether each predicted label is right.
        confidence: (N,) from `confidence_of`.
        patients: (N,), whose images count together in the band.
        resamples: bootstrap resamples behind the band.
        seed: the same seed gives the same band.

    Raises:
        DataError: no images, or different lengths.
    """
    hits, sure = np.asarray(correct, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    if not len(hits) or hits.shape != sure.shape or hits.ndim != 1:
        raise DataError(f"must be as many as the labels {hits.shape}, found {sure.shape}.", "confidence")
    grid = np.linspace(0.01, 1, 100)

    clusters = cluster_by_patient(patients, len(hits))
    right_kinds, sure_kinds, kinds = _condense_many(hits.astype(np.int64), sure, clusters, seed)

    def trace(weights: Floats) -> list[Floats]:
        cumulated = _cumulate_answers(right_kinds, sure_kinds, weights)
        curves = zip(*(np.insert(each, 0, 0, axis=1) for each in cumulated), strict=True)
        # Rounding must not lead beyond 0 and 1.
        return [
            np.clip(np.interp(grid * answered[-1], answered, right) / (grid * answered[-1]), 0, 1)
            for answered, right in curves
        ]

    trials = np.maximum(1, grid * effective_count(clusters, np.ones(len(hits), dtype=bool)))
    low, high = confidence_band(trace, trials, clusters, resamples, seed, kinds)
    (answered,), (right,) = _cumulate_answers(hits, sure, np.ones((1, len(hits))))
    ranks = np.arange(1, len(hits) + 1)
    expected = np.interp(ranks, np.insert(answered, 0, 0), np.insert(right, 0, 0))  # ties in random order
    area = float(np.mean(1 - expected / ranks))
    return SelectiveCurve(answered / len(hits), right / answered, area, grid, low, high)


def _cumulate_answers(hits: NDArray[Any], sure: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Images answered and correct (B, K), down to each distinct confidence."""
    order = np.argsort(-sure, kind="stable")
    last = np.append(np.flatnonzero(np.diff(sure[order])), len(order) - 1)  # of each run of ties
    return np.cumsum(weights[:, order], 1)[:, last], np.cumsum(weights[:, order] * hits[order], 1)[:, last]


@dataclass(frozen=True)
class OperatingPoints:
    """True and false positives at every threshold of a slider; `asdict` gives plain values for the page's script."""

    thresholds: tuple[float, ...]  # rising; one of them is the model's own
    tp: tuple[int, ...]  # positive images with at least that probability
    fp: tuple[int, ...]  # negative ones
    positives: int
    negatives: int
    start: int  # index of the model's threshold
    z: float  # standard normal deviate of the intervals' confidence


def count_points(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> OperatingPoints:
    """Count true and false positives at about 120 thresholds, so that the page's size is bounded.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        threshold: the model's own.

    Raises:
        DataError: unusable labels or probabilities.
    """
    y, p = check_predictions(labels, probabilities)
    thresholds = np.unique(np.append(GRID, threshold))
    positive, negative = np.sort(p[y == 1]), np.sort(p[y == 0])
    return OperatingPoints(
        thresholds=tuple(thresholds.tolist()),
        tp=tuple((len(positive) - np.searchsorted(positive, thresholds)).tolist()),
        fp=tuple((len(negative) - np.searchsorted(negative, thresholds)).tolist()),
        positives=len(positive),
        negatives=len(negative),
        start=int(np.flatnonzero(thresholds == threshold)[0]),
        z=t_quantile(CONFIDENCE),
    )


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Compute PPV and NPV by Bayes' theorem; nan where no image would be predicted as that class."""
    tp, fp = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    fn, tn = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    return tp / (tp + fp) if tp + fp else math.nan, tn / (tn + fn) if tn + fn else math.nan
