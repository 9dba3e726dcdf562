"""Two models on the same images: a metric's difference, its interval, and the p value of no difference.

Images are paired, so whatever makes an image hard for both models cancels out. Patients are kept together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.evaluation.intervals.delong import auroc_covariance, find_placements
from pneumoscope.evaluation.intervals.many_images import MANY, join_patients
from pneumoscope.evaluation.intervals.proportions import (
    CONFIDENCE,
    Bools,
    Bounds,
    Floats,
    Ints,
    logit_interval,
    perfect_auroc_interval,
    t_quantile,
    t_tails,
)
from pneumoscope.evaluation.metrics import measure

TINY = 1e-12  # a smaller standard error comes from rounding
EXACT_STEPS = 3 * 10**8  # additions, at most, of an exact test: some seconds


@dataclass(frozen=True)
class Difference:
    """A metric of two models, and its difference; nan where undefined."""

    first: float = math.nan  # the first model's value
    other: float = math.nan  # the other model's value
    value: float = math.nan  # other minus first
    low: float = math.nan  # lower end of the difference's interval
    high: float = math.nan  # its upper end
    p: float = math.nan  # two-sided p value of no difference
    adjusted: float = math.nan  # p after Holm's correction for the number of models compared with the first
    bootstrap: Bounds | None = None  # the interval by a plain bootstrap of patients, for comparison
    exact: bool | None = None  # whether p of a rate is exact or an approximation; None for other metrics


def compare_rates(first: Bools, other: Bools, clusters: Ints, *, resamples: int = 2000, seed: int = 0) -> Difference:
    """Compare two shares of correct labels (N,) on the same images.

    The interval is Tango's, with the sample size divided by the patients' design effect; the plain bootstrap covers too
    little where models differ on few images. The p value is that of `mcnemar`.
    """
    if not len(first):
        return Difference()
    gain = other.astype(np.int64) - first
    effect = _design_effect(gain, clusters)
    wins, losses = float((gain > 0).sum() / effect), float((gain < 0).sum() / effect)
    low, high = tango_interval(wins, losses, len(gain) / effect)
    p, exact = mcnemar(gain, clusters)
    rates = float(first.mean()), float(other.mean())
    drawn = _resample_means(gain, clusters, resamples, seed)
    return Difference(*rates, rates[1] - rates[0], low, high, p, p, _percentiles(drawn), exact)


def compare_means(first: Floats, other: Floats, clusters: Ints, *, resamples: int = 2000, seed: int = 0) -> Difference:
    """Compare the means of two values (N,) measured on each image, such as squared errors.

    Interval and p value are those of a paired t test whose standard error accounts for patients (Williams, Biometrics
    2000). In simulations it covers better than percentile and studentised bootstraps.
    """
    gain = other - first
    value = float(gain.mean())
    patients = len(np.unique(clusters))
    error = math.sqrt(_cluster_variance(gain, clusters))
    means = float(first.mean()), float(other.mean())
    if not error > TINY:
        return _without_spread(*means)
    half = t_quantile(CONFIDENCE, patients - 1) * error
    p = t_tails(value / error, patients - 1)
    drawn = _resample_means(gain, clusters, resamples, seed)
    return Difference(*means, value, value - half, value + half, p, p, _percentiles(drawn))


def compare_aurocs(labels: Ints, probabilities: Floats, clusters: Ints) -> Difference:
    """Compare the AUROCs of two models, probabilities (2, N), on the same images.

    The p value is that of DeLong et al. (1988) by patient. A normal interval covers too little where areas are near 1,
    so the intervals of both areas, on the logit scale and with Student's t for the patients of the smaller class, are
    combined with DeLong's correlation as in Zou & Donner (MOVER: Stat Med 2008).
    """
    return _compare_areas(*auroc_covariance(labels, probabilities, clusters), _count_fewest_patients(labels, clusters))


def compare_macro_auroc(
    labels: Ints, probabilities: Floats, clusters: Ints, *, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Compare the mean one-vs-rest AUROC of two models, probabilities (2, N, C), as `compare_aurocs` does.

    An image adds to the mean what it adds to each class's area on average (DeLong's placements), and the spread of that
    between patients gives the covariance.
    """
    present = np.unique(labels)
    areas, added = np.full((2, len(present)), np.nan), np.zeros((2, len(labels)))
    if len(present) > 1:
        for i, label in enumerate(present):
            positive = labels == label
            placements = find_placements(positive, probabilities[:, :, label])
            areas[:, i] = placements[:, positive].mean(1)
            added += (placements - areas[:, [i]]) / np.where(positive, positive.sum(), (~positive).sum())
    patients = len(np.unique(clusters))
    sums = np.array([_sum_by_cluster(row, clusters)[0] for row in added]) / len(present)
    covariance = patients / max(1, patients - 1) * sums @ sums.T
    difference = _compare_areas(areas.mean(1), covariance, _count_fewest_patients(labels, clusters))
    if len(labels) > MANY:  # the bootstrap, for comparison, would take hours
        return difference
    draws = [
        np.subtract(*(measure(labels, p, weights=weights)["auroc"] for p in probabilities[::-1]))
        for weights in resample(clusters, resamples, seed)
    ]
    drawn = np.concatenate(draws)
    drawn = drawn[np.isfinite(drawn)]
    return replace(difference, bootstrap=_percentiles(drawn)) if len(drawn) else difference


def mcnemar(gain: ArrayLike, clusters: ArrayLike) -> tuple[float, bool]:
    """Compute the two-sided p value for equally likely wins and losses, by exchanging models patient by patient.

    All exchanges that make the sum at least as uneven are counted. With one image per patient this is McNemar's exact
    test, a binomial one, however many images there are. Where many patients differ by several images, counting would
    take too long; the sum is then taken to be normally distributed, with a correction for continuity.

    Args:
        gain: (N,) 1 where only the other model was correct, -1 where only the first was, else 0.
        clusters: (N,) numbers of the patients.

    Returns:
        The p value, and whether it is exact.
    """
    from scipy.stats import binom

    sums = np.bincount(np.asarray(clusters), weights=np.asarray(gain)).round().astype(np.int64)
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    uneven = abs(int(sums.sum()))
    if uneven == 0:
        return 1.0, True
    most = int(counts.argmax())  # patients who differ by the most usual number of images
    others = np.repeat(np.delete(sizes, most), np.delete(counts, most))
    if len(others) * int(others.sum()) > EXACT_STEPS:
        spread = math.sqrt(2 * int((sums**2).sum()))
        return math.erfc(max(uneven - 1, 0) / spread), False  # totals are 2 apart
    likelihood = np.ones(1)  # of each total of the others, from -T to T in steps of 1
    for size in others:
        likelihood = np.pad(likelihood / 2, (0, 2 * size)) + np.pad(likelihood / 2, (2 * size, 0))
    size, count = int(sizes[most]), int(counts[most])
    totals = np.arange(len(likelihood)) - len(likelihood) // 2
    wins = np.ceil(((uneven - totals) / size + count) / 2)  # that the most usual patients must add, at least
    return min(1.0, 2 * float(likelihood @ binom.sf(wins - 1, count, 0.5))), True


def tango_interval(wins: float, losses: float, n: float, confidence: float = CONFIDENCE) -> Bounds:
    """Tango's score interval of a difference of paired rates (Stat Med 17:891-908, 1998).

    Args:
        wins: images that only the other model labelled correctly; effective numbers need not be whole.
        losses: images that only the first model labelled correctly.
        n: all images.
        confidence: in (0, 1).
    """
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def score(difference: float) -> float:
        """The score statistic, with the likeliest share of losses at this difference."""
        b = -wins - losses + (2 * n - wins + losses) * difference
        share = (math.sqrt(max(0.0, b * b + 8 * n * losses * difference * (1 - difference))) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        excess = wins - losses - n * difference
        if variance > 1e-300:
            return excess / math.sqrt(variance)
        return math.copysign(math.inf, excess) if excess else 0.0

    middle, edge = (wins - losses) / n, 1 - 1e-12

    def solve(start: float, target: float) -> float:
        def bounded(difference: float) -> float:
            return max(-1e9, min(1e9, score(difference))) - target

        if bounded(start) * bounded(middle) > 0:
            return math.copysign(1.0, start)
        return float(brentq(bounded, start, middle, xtol=1e-10))

    return solve(-edge, z), solve(edge, -z)


def adjust_holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand J Stat 1979) of p values for their number; nan stays nan."""
    adjusted = [math.nan] * len(p)
    defined = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    highest = 0.0
    for rank, (value, i) in enumerate(defined):
        highest = max(highest, min(1.0, (len(defined) - rank) * value))
        adjusted[i] = highest
    return adjusted


def _compare_areas(aurocs: Floats, covariance: Floats, patients: int) -> Difference:
    """Compare two areas by MOVER, with their covariance (2, 2) and the number of patients of the smallest class."""
    first, other = aurocs.tolist()
    (variance_first, shared), (_, variance_other) = covariance.tolist()
    variance = variance_first + variance_other - 2 * shared
    if math.isnan(first) or math.isnan(variance) or patients < 2:
        return Difference(first, other, other - first)
    varies = variance > TINY**2
    if not varies and not {first, other} & {0.0, 1.0}:
        return _without_spread(first, other)
    low_first, high_first = _auroc_interval(first, variance_first, patients)
    low_other, high_other = _auroc_interval(other, variance_other, patients)
    product = variance_first * variance_other
    correlation = max(-1.0, min(1.0, shared / math.sqrt(product))) if product > 0 else 0.0

    def combine(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    value = other - first
    below, above = combine(other - low_other, high_first - first), combine(high_other - other, first - low_first)
    p = 1.0 if value == 0 else math.nan
    if varies:
        p = 2 * NormalDist().cdf(-abs(value) / math.sqrt(variance))
    return Difference(first, other, value, value - below, value + above, p, p)


def _auroc_interval(area: float, variance: float, patients: int) -> Bounds:
    """The interval of one AUROC on the logit scale; an area of 0 or 1, which has no spread, is bounded exactly."""
    if area in (0.0, 1.0):
        low, high = perfect_auroc_interval(patients, CONFIDENCE)
        return (low, high) if area else (1 - high, 1 - low)
    return logit_interval(area, math.sqrt(variance), CONFIDENCE, patients - 1) if variance > 0 else (area, area)


def _count_fewest_patients(labels: Ints, clusters: Ints) -> int:
    """Patients of the class that has the fewest, among the classes present."""
    return min(len(np.unique(clusters[labels == label])) for label in np.unique(labels))


def _without_spread(first: float, other: float) -> Difference:
    """The difference where all images agree, so that chance cannot be estimated."""
    p = 1.0 if first == other else math.nan
    return Difference(first, other, other - first, p=p, adjusted=p)


def _sum_by_cluster(values: NDArray[Any], clusters: Ints) -> tuple[Floats, Floats]:
    """Sums and counts (K,) of the clusters that have an image."""
    counts = np.bincount(clusters).astype(np.float64)
    sums = np.bincount(clusters, weights=values).astype(np.float64)
    return sums[counts > 0], counts[counts > 0]


def _cluster_variance(values: NDArray[Any], clusters: Ints) -> float:
    """The variance of a mean by patient (Williams, Biometrics 2000); nan with only one patient."""
    sums, counts = _sum_by_cluster(values, clusters)
    if len(sums) < 2:
        return math.nan
    spread = ((sums - values.mean() * counts) ** 2).sum()
    return float(len(sums) / (len(sums) - 1) * spread / len(values) ** 2)


def _design_effect(values: NDArray[Any], clusters: Ints) -> float:
    """How many of the patients' images count as much as one independent image; at least 1."""
    counts = np.unique(clusters, return_counts=True)[1]
    if counts.max() == 1:
        return 1.0
    plain = float(values.var()) / len(values)
    if plain == 0 or len(counts) < 2:
        return len(values) / len(counts)  # the resemblance within patients is unknown: assume the most
    return min(max(1.0, _cluster_variance(values, clusters) / plain), float(counts.max()))


def _resample_means(values: NDArray[Any], clusters: Ints, resamples: int, seed: int) -> Floats:
    """Means (B,) of bootstrap resamples of patients."""
    if len(clusters) > MANY:
        clusters = join_patients(clusters, seed)
    sums, counts = _sum_by_cluster(values, clusters)
    draws = resample(np.arange(len(sums)), resamples, seed)
    return np.concatenate([weights @ sums / (weights @ counts) for weights in draws])


def _percentiles(drawn: Floats) -> Bounds:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high
