"""Resampling patients: bootstrap weights, a mean's bootstrap-t interval, the jackknife, and bands around curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.evaluation.intervals.many_images import MANY, influence_errors
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, UNDEFINED, Bounds, Floats, Ints, wilson_interval
from pneumoscope.evaluation.metrics import measure

CHUNK = 1 << 20  # weights held at once: bounds the memory and fits the processor's cache
STEP = 1e-3  # of a patient's weight, in derivatives
JACKKNIFE_GROUPS = 2000  # of patients at most: more are slow and add no precision


def resample(clusters: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw clusters (N,), numbered from 0 without a gap, with replacement (Field & Welsh 2007), B resamples by chunks.

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


def loss_moments(losses: Floats, clusters: Ints) -> Floats:
    """Moments by patient (K, 5) for `bootstrap_t_interval`: sum and number of losses, and their products."""
    sums, sizes = np.bincount(clusters, losses), np.bincount(clusters).astype(np.float64)
    moments: Floats = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2], axis=1)
    return moments


def bootstrap_t_interval(totals: Floats, drawn: Floats, patients: int, confidence: float) -> Bounds:
    """The bootstrap-t interval (Efron 1981; Hall 1988) of a mean of losses >= 0, on the log scale.

    Each resample is measured by its own standard error. Where a few large losses dominate, a resample without them has
    both too low a mean and too low an error, and the distribution of t accounts for it.

    Args:
        totals: (5,) `loss_moments`, summed over the patients.
        drawn: (B, 5) the same over the patients of each resample.
        patients: their number.
        confidence: in (0, 1).
    """

    def log_mean(moments: Floats) -> tuple[Floats, Floats]:
        """The logarithm of the mean, and its standard error."""
        mean = np.maximum(moments[:, 0] / moments[:, 1], 1e-300)
        spread = np.maximum(moments[:, 2] - 2 * mean * moments[:, 3] + mean**2 * moments[:, 4], 0)
        return np.log(mean), np.sqrt(spread * patients / max(patients - 1, 1)) / moments[:, 1] / mean

    (centre,), (error,) = log_mean(totals[None])
    if patients < 2 or not error > 1e-12:
        return UNDEFINED
    centres, errors = log_mean(drawn)
    # A resample of equal losses, or of none, has no error of its own and may lie anywhere.
    t = np.clip((centres - centre) / np.maximum(errors, error / 10), -10, 10)
    reach = np.quantile(t, [(1 + confidence) / 2, (1 - confidence) / 2]) * error
    low, high = np.exp(centre - reach).tolist()
    return low, high


def jackknife_errors(
    labels: ArrayLike, probabilities: ArrayLike, clusters: Ints, *, threshold: ArrayLike = 0.5
) -> dict[str, float]:
    """Estimate each metric's standard error by the infinitesimal jackknife over patients (Jaeckel 1972).

    Returns:
        Errors by metric, for many images without `brier` and `ece`; nan where undefined or with only one patient.
    """
    if len(clusters) > MANY:
        return influence_errors(labels, probabilities, clusters, threshold=threshold)
    return jackknife(lambda weights: measure(labels, probabilities, threshold=threshold, weights=weights), clusters)


def jackknife(statistics: Callable[[Floats], Mapping[str, Floats]], clusters: Ints) -> dict[str, float]:
    """Standard errors by the infinitesimal jackknife over patients, of statistics (b,) by name for weights (b, N)."""
    count = min(int(clusters.max()) + 1, JACKKNIFE_GROUPS)
    # Images come sorted by class, so patients are grouped at random; otherwise all groups would have the same mix.
    clusters = np.random.default_rng(0).permutation(int(clusters.max()) + 1)[clusters]
    rows = max(1, CHUNK // len(clusters))
    chunks = [np.arange(start, min(start + rows, count))[:, None] for start in range(0, count, rows)]
    values = [statistics(1 - STEP * (clusters % count == left_out)) for left_out in chunks]
    errors = {}
    for name in values[0]:
        slopes = np.concatenate([value[name] for value in values]) / STEP
        errors[name] = float(count / np.sqrt(count - 1) * slopes.std()) if count > 1 else math.nan
    return errors


def confidence_band(
    trace: Callable[[Floats], Sequence[Floats]],
    trials: Floats,
    clusters: Ints,
    resamples: int,
    seed: int,
    counts: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Wilson's interval at each point of a curve, with the number of trials that the bootstrap's variance implies.

    Percentile intervals would have no width where no resample contains an error. The intervals hold
    point by point, not for the whole curve at once.

    Args:
        trace: turns weights (B, N) into curves (K,) in [0, 1], one a row; none where it is undefined.
        trials: (K,) at most.
        clusters: (N,) from `cluster_by_patient`.
        resamples: number of resamples.
        seed: fixes them.
        counts: (G, N) for many images, from `condense`, where N counts kinds of images; `clusters` is not used.

    Returns:
        Lower and upper ends (K,); nan without a curve or resamples.
    """
    if counts is None:
        drawn = [curve for weights in resample(clusters, resamples, seed) for curve in trace(weights)]
        curve = next(iter(trace(np.ones((1, len(clusters))))), None)
    else:
        groups = np.arange(len(counts))
        drawn = [curve for weights in resample(groups, resamples, seed) for curve in trace(weights @ counts)]
        curve = next(iter(trace(counts.sum(axis=0, keepdims=True))), None)
    if curve is None or not drawn:
        return np.full(len(trials), np.nan), np.full(len(trials), np.nan)
    # Between two points a curve may be all but 1. No share of that many trials is, except 1 itself, and the variance of
    # resamples that do contain an error would imply less than one trial.
    spread = np.maximum(curve * (1 - curve), np.maximum(trials - 1, 0) / np.maximum(trials, 1) ** 2)
    variance = np.var(drawn, axis=0)
    sizes = np.minimum(trials, np.divide(spread, variance, out=trials.copy(), where=(variance > 0) & (spread > 0)))
    low, high = np.array([wilson_interval(v, size, CONFIDENCE) for v, size in zip(curve, sizes, strict=True)]).T
    return low, high
