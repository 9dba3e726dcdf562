"""Confidence limits of single figures: rates, areas, means of losses and calibration errors.

The percentile bootstrap is too narrow where few images decide (a rate near 1, an AUROC near 1, a Brier score made by
three bad images), and it is wrong for a calibration error, to which resampling adds noise of its own. Each figure here
gets the method that covered its truth in `benchmarks/interval_coverage.py`. Patients are the unit throughout: images of
one patient resemble each other, and count for less than as many images of different patients.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Limits = tuple[float, float]

NONE: Limits = (np.nan, np.nan)
STEPS = 12  # of each bisection: to 1/4096 of the range searched
CELLS = 1 << 24  # simulated labels held at once


def score_limits(value: float, size: float, confidence: float, degrees: float = np.inf) -> Limits:
    """Limits of Wilson (1927) for a share in [0, 1] from `size` trials, any number > 0 (Korn & Graubard 1998)."""
    if not size > 0 or not degrees > 0:
        return NONE
    z = quantile(confidence, degrees)
    centre = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z * np.sqrt(value * (1 - value) / size + (z / (2 * size)) ** 2) / (1 + z**2 / size)
    return min(value, max(0.0, float(centre - reach))), max(value, min(1.0, float(centre + reach)))  # despite rounding


def share_limits(
    value: float, error: float, confidence: float, degrees: float = np.inf, trials: float = np.nan
) -> Limits:
    """Wilson's limits for a figure in [0, 1] with error s: a share of as many trials as would have that error.

    Args:
        value: the figure.
        error: its standard error.
        confidence: in (0, 1).
        degrees: of freedom behind the error.
        trials: to be taken at 0 and at 1, where the error says nothing.
    """
    if 0 < value < 1:
        return score_limits(value, value * (1 - value) / error**2 if error > 0 else np.nan, confidence, degrees)
    return score_limits(value, trials, confidence)


def logit_limits(value: float, error: float, confidence: float, degrees: float = np.inf) -> Limits:
    """Symmetric limits on the scale log(v / (1 - v)), for a value in (0, 1) with its standard error."""
    if not 0 < value < 1 or not error > 0 or not degrees > 0:
        return NONE
    reach = quantile(confidence, degrees) * error / (value * (1 - value))
    ends = np.log(value / (1 - value)) + np.array([-reach, reach])
    low, high = (1 / (1 + np.exp(-np.clip(ends, -700, 700)))).tolist()
    return low, high


def quantile(confidence: float, degrees: float = np.inf) -> float:
    """The two-sided quantile of Student's t, or of the normal distribution without a number of degrees of freedom."""
    if np.isinf(degrees):
        return NormalDist().inv_cdf((1 + confidence) / 2)
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))


def rate_limits(hit: Bools, among: Bools, clusters: Ints, confidence: float) -> Limits:
    """Wilson's limits for the share of hits among some images, whose number is divided by the patients' design effect.

    The design effect is the variance by patient over that of independent images, 1 at least. Few rare outcomes say
    little about it, so it is drawn towards that of patients whose images are all alike, with the weight of one.

    Args:
        hit: (N,) which images count for the rate; only those in `among` do.
        among: (N,) the images it is a share of.
        clusters: (N,) numbers of the patients.
        confidence: in (0, 1).
    """
    trials = int(among.sum())
    if not trials:
        return NONE
    _, group = np.unique(clusters[among], return_inverse=True)
    sizes, hits = np.bincount(group), np.bincount(group, hit[among])
    value = float(hits.sum() / trials)
    rare = min(hits.sum(), trials - hits.sum())
    alike = float((sizes**2).sum() / trials)
    effect = 0.0
    if rare and len(sizes) > 1:
        spread = (hits - value * sizes) / (trials - sizes)  # what the rate changes by without the patient
        variance = (len(sizes) - 1) / len(sizes) * float((spread**2).sum())
        effect = max(1.0, variance / (value * (1 - value) / trials))
    if len(sizes) == trials:
        effect = alike = 1.0
    return score_limits(value, trials * (rare + 1) / (rare * effect + alike), confidence)


def perfect_limits(pairs: int, confidence: float) -> Limits:
    """Exact limits of an AUROC of 1: so many separate pairs have the chance AUROC**pairs to be all in order."""
    return (((1 - confidence) / 2) ** (1 / pairs), 1.0) if pairs else NONE


def effective_count(clusters: Ints, among: Bools) -> float:
    """How many patients of equal size say as much as the patients of these images (Kish 1965); 0 without images."""
    sizes = np.bincount(clusters[among])
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def moments(losses: Floats, clusters: Ints) -> Floats:
    """What `mean_limits` has to know of each patient (K, 5): the losses' sum and their number, and their products."""
    sums, sizes = np.bincount(clusters, losses), np.bincount(clusters).astype(np.float64)
    columns: Floats = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2], axis=1)
    return columns


def mean_limits(totals: Floats, drawn: Floats, count: int, confidence: float) -> Limits:
    """Bootstrap-t limits (Efron 1981; Hall 1988) of a mean of losses >= 0, on the scale of its logarithm.

    Each resample is measured by its own standard error: where a few large losses decide, a sample that happens to lack
    them has both too low a mean and too low an error, and the distribution of t knows it.

    Args:
        totals: (5,) `moments` added up over the patients.
        drawn: (B, 5) the same over the patients of each resample.
        count: number of patients.
        confidence: in (0, 1).
    """

    def logarithm(total: Floats) -> tuple[Floats, Floats]:
        """The logarithm of the mean, and its standard error."""
        mean = np.maximum(total[:, 0] / total[:, 1], 1e-300)
        spread = np.maximum(total[:, 2] - 2 * mean * total[:, 3] + mean**2 * total[:, 4], 0)
        return np.log(mean), np.sqrt(spread * count / max(count - 1, 1)) / total[:, 1] / mean

    (centre,), (error,) = logarithm(totals[None])
    if count < 2 or not error > 1e-12:
        return NONE
    centres, errors = logarithm(drawn)
    # a resample of equal losses, or of none, has no error of its own and may lie anywhere
    t = np.clip((centres - centre) / np.maximum(errors, error / 10), -10, 10)
    reach = np.quantile(t, [(1 + confidence) / 2, (1 - confidence) / 2]) * error
    low, high = np.exp(centre - reach).tolist()
    return low, high


def calibration_limits(
    right: Bools, stated: Floats, bins: Ints, clusters: Ints, shares: Floats, confidence: float, seed: int
) -> Limits:
    """Limits of a binned calibration error: the true errors under which the one seen would not surprise.

    Labels are drawn anew, from the stated probabilities for an error of 0 (consistency resampling, Bröcker & Smith
    2007), from shifted ones for others. Each bin's gap is then the one seen, moved towards 0 or away from it by as much
    of it and of its standard error as gives the total; small gaps, mostly noise, vanish first. The labels of a
    patient's images are drawn as much alike as the residuals are. Nothing lies below 0, so near it an error too large
    may have all of the chance to miss, as in Feldman & Cousins (1998): the lower limit is 0 unless a test of that
    level finds the model miscalibrated.

    Args:
        right: (N,) whether what was stated came true.
        stated: (N,) its probability.
        bins: (N,) the bins of `stated`, from 0.
        clusters: (N,) numbers of the patients, from 0 without a gap.
        shares: (B, bins) how images spread over the bins in B resamples of the patients.
        confidence: in (0, 1).
        seed: fixes the labels drawn.
    """
    n, count = len(stated), shares.shape[1]
    order = np.argsort(bins, kind="stable")
    right, stated, bins, clusters = right[order], stated[order], bins[order], clusters[order]
    filled, starts = np.unique(bins, return_index=True)

    def total(values: Floats) -> Floats:
        return np.bincount(bins, values, count) / n

    share, gap = total(np.ones(n)), total(right - stated)
    seen = float(np.abs(gap).sum())
    shift = np.divide(gap, share, out=np.zeros(count), where=share > 0)
    fitted = np.clip(stated + shift[bins], 0, 1)
    error = np.sqrt(total(stated * (1 - stated)) / n)
    if not (error.any() or (fitted * (1 - fitted)).any()):
        return NONE
    unit = error + np.abs(gap)
    shares = shares[: max(100, CELLS // n)]
    drawn = draw_uniform(right - fitted, np.sqrt(fitted * (1 - fitted)), clusters, len(shares), seed)

    def simulate(move: float) -> tuple[float, Floats]:
        """The true error, and those seen (B,), when the gaps are so many units nearer to 0."""
        gaps = np.sign(gap) * np.maximum(np.abs(gap) - move * unit, 0)
        shifted = np.divide(gaps, share, out=np.zeros(count), where=share > 0)
        labels = drawn < np.clip(stated + shifted[bins], 0, 1)
        gaps_seen = shifted * (shares - share)
        gaps_seen[:, filled] += np.add.reduceat(labels, starts, axis=1, dtype=np.int32) / n - total(stated)[filled]
        return float(np.abs(gaps).sum()), np.abs(gaps_seen).sum(1)

    miss = 1 - confidence
    calibrated = simulate(1.0)[1]  # a unit is more than any gap

    def above(true: float) -> float:
        """The chance that an error too large may have: all of it at 0, half from two standard errors on."""
        return miss * (1 - min(1.0, true / (2 * max(float(calibrated.std()), 1e-12))) / 2)

    def search(inner: float, outer: float, upper: bool) -> float:
        """The true error at the border between moves that explain what was seen and moves that don't."""
        for _ in range(STEPS):
            middle = (inner + outer) / 2
            true, errors = simulate(middle)
            explained = (
                (errors <= seen).mean() >= miss - above(true) if upper else (errors >= seen).mean() >= above(true)
            )
            inner, outer = (middle, outer) if explained else (inner, middle)
        return simulate((inner + outer) / 2)[0]

    low = 0.0 if (calibrated >= seen).mean() >= miss else search(0.0, 1.0, upper=False)
    high = search(0.0, -10.0, upper=True)
    return min(low, seen), min(1.0, max(high, seen))


def draw_uniform(residuals: Floats, spreads: Floats, clusters: Ints, rows: int, seed: int) -> Floats:
    """Uniform numbers (rows, N) that are correlated within a patient as its residuals are, by a Gaussian copula."""
    rng = np.random.default_rng([seed, 1])
    n = len(clusters)
    if len(np.unique(clusters)) == n:
        return rng.random((rows, n))
    from scipy.special import ndtr

    pairs = (np.bincount(clusters, part) ** 2 - np.bincount(clusters, part**2) for part in (residuals, spreads))
    products, most = (float(part.sum()) for part in pairs)
    alike = np.sin(np.pi / 2 * np.clip(products / most, 0, 1)) if most > 0 else 0.0
    common = rng.standard_normal((rows, int(clusters.max()) + 1))[:, clusters]
    uniform: Floats = ndtr(np.sqrt(alike) * common + np.sqrt(1 - alike) * rng.standard_normal((rows, n)))
    return uniform
