"""Cross-validation measured fold by fold: each fold's metrics, and their mean with an interval by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.intervals.bootstrap import jackknife
from pneumoscope.evaluation.intervals.proportions import (
    CONFIDENCE,
    UNDEFINED,
    Bounds,
    Floats,
    Ints,
    effective_count,
    logit_interval,
    perfect_auroc_interval,
    wilson_interval_from_error,
)
from pneumoscope.evaluation.metrics import METRICS, measure
from pneumoscope.evaluation.results import without_nan

# The calibration error of few images is too high: only that of all images together means something.
AVERAGED = tuple(name for name in METRICS if name != "ece")
METHOD = (
    "Means over the folds, with intervals from influence functions by patient (LeDell et al. 2015), corrected for the "
    "few patients of each fold: on the logit scale for AUROC, average precision and Brier score, else Wilson's. A "
    "patient whose images are predicted in several repeats counts once."
)


@dataclass(frozen=True)
class Fold:
    """The metrics of one fold's model on the images that it did not learn from."""

    repeat: int  # from 1 on
    fold: int  # from 1 on
    n: int  # images that it was tested on
    threshold: float  # chosen on its own validation images; nan for more than two classes
    metrics: Mapping[str, float]  # by name


@dataclass(frozen=True)
class MeanOverFolds:
    """A metric's mean over the folds, its interval, and the standard deviation between the folds."""

    value: float
    low: float
    high: float
    sd: float  # of the folds' values: how much one fold says, not how certain the mean is


@dataclass(frozen=True)
class Folds:
    """What cross-validation found, fold by fold."""

    folds: tuple[Fold, ...]  # of all repeats
    means: Mapping[str, MeanOverFolds]  # by metric
    repeats: int
    method: str = METHOD

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each fold, with its metrics; undefined values are None."""
        return [
            without_nan({"repeat": each.repeat, "fold": each.fold, "n": each.n, "threshold": each.threshold})
            | without_nan(each.metrics)
            for each in self.folds
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; undefined ones are None."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """M predictions of images by models that did not learn from their patients."""

    labels: Ints  # (M,) class indices
    probabilities: Floats  # (M,) of the positive class, or (M, C) with C > 2
    thresholds: Floats  # (M,) or (M, C), by which each image was labelled
    places: Sequence[tuple[int, int]]  # (M,) repeat and fold, from 1 on
    clusters: Ints  # (M,) numbers of the patients; the predictions of one image are in one cluster


def measure_folds(data: OutOfFold) -> Folds:
    """Measure each fold, and average over the folds of all repeats.

    Models of different folds may have different scales, so an AUROC within folds, averaged, can differ from that of all
    images together. The intervals hold for the average performance of the models that were trained on these folds.
    """
    two = data.probabilities.ndim == 1
    names = sorted(set(data.places))
    parts = [np.array([place == name for place in data.places]) for name in names]

    def measure_part(part: NDArray[np.bool_], weights: Floats | None = None) -> dict[str, Floats]:
        return measure(
            data.labels[part],
            data.probabilities[part],
            threshold=data.thresholds[part],
            weights=None if weights is None else weights[:, part],
        )

    def average(weights: Floats) -> dict[str, Floats]:
        found = [measure_part(part, weights) for part in parts]
        return {name: np.mean([each[name] for each in found], axis=0) for name in AVERAGED}

    errors = jackknife(average, data.clusters)
    values = [{name: float(value[0]) for name, value in measure_part(part).items()} for part in parts]
    folds = tuple(
        Fold(
            *name,
            n=int(part.sum()),
            threshold=float(data.thresholds[part][0]) if two else math.nan,
            metrics={metric: found[metric] for metric in AVERAGED},
        )
        for name, part, found in zip(names, parts, values, strict=True)
    )
    means = {}
    for metric in AVERAGED:
        over = np.array([each.metrics[metric] for each in folds])
        error = errors[metric] * _correct(metric, data, parts)
        low, high = _find_interval(metric, float(over.mean()), error, data)
        means[metric] = MeanOverFolds(float(over.mean()), low, high, float(over.std(ddof=1)))
    return Folds(folds, means, len({repeat for repeat, _ in names}))


def _correct(metric: str, data: OutOfFold, parts: Sequence[NDArray[np.bool_]]) -> float:
    """What a standard error is to be multiplied by, as a fold's metric is fitted to its own few patients.

    As with the variance of a sample, n patients leave n - 1 degrees of freedom; of metrics that depend on both classes,
    those of the rarer one.
    """
    every = np.ones_like(data.labels, bool)
    classes = [data.labels == label for label in np.unique(data.labels)]
    if metric in ("accuracy", "brier"):
        sides = [every]
    elif metric in ("sensitivity", "specificity") and data.probabilities.ndim == 1:
        sides = [data.labels == (metric == "sensitivity")]
    else:
        sides = classes
    counts = [min(len(np.unique(data.clusters[part & side])) for side in sides) for part in parts]
    return float(np.sqrt(np.mean([max(n, 2) / (max(n, 2) - 1) for n in counts])))


def _find_interval(metric: str, value: float, error: float, data: OutOfFold) -> Bounds:
    if math.isnan(value) or math.isnan(error):
        return UNDEFINED
    sides = [data.labels == label for label in np.unique(data.labels)]
    fewest = min(len(np.unique(data.clusters[side])) for side in sides)
    folds = len({fold for _, fold in data.places})
    degrees = max(1.0, min(effective_count(data.clusters, side) for side in sides) - folds)
    if metric in ("auroc", "average_precision"):
        if value == 1:
            return perfect_auroc_interval(fewest, CONFIDENCE)
        return logit_interval(value, error, CONFIDENCE, degrees)
    if metric == "brier":
        most = 1 if data.probabilities.ndim == 1 else 2
        low, high = logit_interval(value / most, error / most, CONFIDENCE, degrees)
        return most * low, most * high
    trials = int(data.clusters.max()) + 1 if metric == "accuracy" else fewest
    if metric == "mcc":
        low, high = wilson_interval_from_error((1 + value) / 2, error / 2, CONFIDENCE, degrees, trials)
        return 2 * low - 1, 2 * high - 1
    return wilson_interval_from_error(value, error, CONFIDENCE, degrees, trials)
