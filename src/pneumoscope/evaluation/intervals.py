"""Metrics with intervals, by a bootstrap that draws patients, not images.

Images of one patient resemble each other: to resample them one by one pretends to more evidence than there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.metrics import checked, confusion, decide, measure, roc_curve

Floats = NDArray[np.float64]

CHUNK = 1 << 20  # weights held at once: bounds the memory, and keeps what is worked on near the processor


@dataclass(frozen=True)
class Interval:
    """A value and its limits; nan where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Restated:
    """The same films judged for other shares of the classes.

    Attributes:
        shares: of the classes, by name.
        prevalence: the positive class's of two; limits where it was estimated.
        estimated: from the films, without their labels; then `metrics` are of the films as they are. Else the shares
            were given, and `metrics` are of films weighted by them.
        threshold: on the restated probabilities.
        metrics: with their limits.
    """

    shares: Mapping[str, float]
    prevalence: Interval | None
    estimated: bool
    threshold: float
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class Evaluation:
    """What one model did on one split.

    `patients` is how many distinct ones are known, None if none is. `positive`, and `prevalence` and `threshold` other
    than nan, are for two classes only. `shares` are the classes' shares of the images. `decisions` count what was
    decided and how often label sets held the truth (`conformal.summarise_decisions`); `uncalibrated` are Brier score
    and calibration error as they would be without calibration; `restated` is there where it was asked for.
    """

    split: str
    n: int
    patients: int | None
    classes: tuple[str, ...]
    positive: str | None
    prevalence: float
    shares: Mapping[str, float]
    threshold: float
    metrics: Mapping[str, Interval]
    confusion: Mapping[str, Any]
    resamples: int
    confidence: float
    seed: int
    decisions: Mapping[str, Any] = field(default_factory=dict)
    uncalibrated: Mapping[str, Interval] = field(default_factory=dict)
    restated: Restated | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of metrics.json; what is undefined is None, as JSON has no nan."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    classes: Sequence[str],
    positive: str | None,
    split: str = "test",
    threshold: float = 0.5,
    patients: Sequence[str | None] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Measure every metric and its bootstrap interval (Efron & Tibshirani 1993), drawing whole patients.

    Limits are percentiles of the resamples in which the metric is defined, with two exceptions. Resampling adds its
    own noise to a calibration error, so the limits of `ece` are the percentiles reflected at the value (the "basic"
    bootstrap). And where no resample differs, as after a test without a mistake, the bootstrap knows nothing: rates
    and F1 get the exact limits of Clopper & Pearson (1934), the others none (nan).

    Args:
        labels: (N,) indices into `classes`.
        probabilities: (N,) of the positive class, or (N, C) with C > 2.
        classes: the names; the positive one is the second of two.
        positive: the positive class's name; None for more than two classes.
        split: name of what is measured.
        threshold: two classes: positive from this probability on.
        patients: (N,); an image whose patient is None or "" counts as a patient of its own.
        resamples: number of bootstrap resamples.
        confidence: probability that an interval is to cover the truth with, in (0, 1).
        seed: the same seed gives the same intervals.

    Raises:
        DataError: labels, probabilities or patients that cannot be used.
        UsageError: classes, resamples or confidence that cannot be meant.
    """
    y, p = checked(labels, probabilities)
    two = p.ndim == 1
    count = 2 if two else p.shape[1]
    if len(classes) != count or len(set(classes)) != count or (two and positive != classes[1]):
        raise UsageError(
            f"classes {tuple(classes)} with positive {positive!r} do not fit probabilities {p.shape}: "
            "name each class once, of two the positive one second"
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise UsageError(f"resamples must be 1 or more and confidence in (0, 1); they are {resamples}, {confidence}")
    clusters = group(patients, len(y))
    draws = [measure(y, p, threshold=threshold, weights=weights) for weights in resample(clusters, resamples, seed)]
    metrics = {}
    for name, values in measure(y, p, threshold=threshold).items():
        drawn = np.concatenate([draw[name] for draw in draws])
        metrics[name] = _interval(name, float(values[0]), drawn[np.isfinite(drawn)], confidence)
    if two:
        metrics |= _exact(metrics, y == 1, decide(p, threshold) == 1, clusters, confidence)
    shares = (np.bincount(y, minlength=len(classes)) / len(y)).tolist()
    return Evaluation(
        split=split,
        n=len(y),
        patients=len({patient for patient in patients or () if patient}) or None,
        classes=tuple(classes),
        positive=positive if two else None,
        prevalence=shares[1] if two else math.nan,
        shares=dict(zip(classes, shares, strict=True)),
        threshold=threshold if two else math.nan,
        metrics=metrics,
        confusion=confusion(y, p, threshold=threshold),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def group(patients: Sequence[str | None] | None, n: int) -> NDArray[np.int64]:
    """Number the clusters of n images (N,), in order of appearance; without a patient an image is its own cluster.

    Raises:
        DataError: as many patients as images are needed.
    """
    if patients is not None and len(patients) != n:
        raise DataError(f"{n} images need as many patients; there are {len(patients)}")
    numbers: dict[str | int, int] = {}
    keys = range(n) if patients is None else [patient or i for i, patient in enumerate(patients)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def resample(clusters: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """Draw clusters with replacement (Field & Welsh 2007), a chunk of resamples at a time.

    Args:
        clusters: (N,) from `group`, numbered from 0 without a gap.
        resamples: how many, B.
        seed: the same seed gives the same draws.

    Yields:
        Weights (b, N), B rows in all: how often the image's cluster was drawn.
    """
    rng = np.random.default_rng(seed)
    count = int(clusters.max()) + 1
    rows = max(1, CHUNK // len(clusters))
    for start in range(0, resamples, rows):
        b = min(rows, resamples - start)
        drawn = rng.integers(count, size=(b, count)) + count * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * count).reshape(b, count)[:, clusters].astype(np.float64)


def roc_band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    patients: Sequence[str | None] | None = None,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats]:
    """Return false-positive rates (101,) and the bootstrap limits of sensitivity at each; nan with one class only."""
    y, p = checked(labels, probabilities)
    grid = np.linspace(0, 1, 101)
    heights = []
    for weights in resample(group(patients, len(y)), resamples, seed):
        fpr, tpr, _ = roc_curve(y, p, weights)
        heights += [np.interp(grid, *rates) for rates in zip(fpr, tpr, strict=True) if np.isfinite(rates).all()]
    if not heights:
        return grid, np.full_like(grid, np.nan), np.full_like(grid, np.nan)
    low, high = np.quantile(heights, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return grid, low, high


def precision_recall_band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    patients: Sequence[str | None] | None = None,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats]:
    """Return recalls (101,) and the bootstrap limits of precision at each; nan without positives.

    Precision at a recall is that of the strictest threshold which reaches it, as average precision has it.
    """
    y, p = checked(labels, probabilities)
    grid = np.linspace(0, 1, 101)
    heights = []
    for weights in resample(group(patients, len(y)), resamples, seed):
        fpr, tpr, _ = roc_curve(y, p, weights)
        positive = weights @ y
        hits, alarms = tpr * positive[:, None], np.nan_to_num(fpr) * (weights.sum(1) - positive)[:, None]
        for i in np.flatnonzero(positive > 0):
            reached = np.maximum(np.searchsorted(tpr[i], grid - 1e-9), np.argmax(hits[i] + alarms[i] > 0))
            heights.append(hits[i, reached] / (hits[i, reached] + alarms[i, reached]))
    if not heights:
        return grid, np.full_like(grid, np.nan), np.full_like(grid, np.nan)
    low, high = np.quantile(heights, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return grid, low, high


def _interval(name: str, value: float, drawn: Floats, confidence: float) -> Interval:
    if math.isnan(value) or not len(drawn) or np.ptp(drawn) < 1e-12:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    if name == "ece":
        low, high = max(0.0, 2 * value - high), min(1.0, 2 * value - low)
    return Interval(value, min(low, value), max(high, value))  # a bias of the bootstrap must not exclude the value


def _exact(
    metrics: Mapping[str, Interval],
    truth: NDArray[np.bool_],
    called: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    confidence: float,
) -> dict[str, Interval]:
    """Clopper-Pearson limits for rates of exactly 0 or 1, with patients for trials.

    F1 is 2J / (1 + J), where J, the share of hits among all images positive or called so, is a rate.
    """
    trials = {
        "accuracy": np.ones_like(truth), "f1": truth | called, "sensitivity": truth, "specificity": ~truth,
        "ppv": called, "npv": ~called,
    }  # fmt: skip
    exact = {}
    for name, among in trials.items():
        value = metrics[name].value
        if value in (0.0, 1.0) and math.isnan(metrics[name].low):
            low = ((1 - confidence) / 2) ** (1 / len(np.unique(clusters[among])))
            low, high = (low, 1.0) if value else (0.0, 1 - low)
            if name == "f1":
                low, high = 2 * low / (1 + low), 2 * high / (1 + high)
            exact[name] = Interval(value, low, high)
    return exact


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
