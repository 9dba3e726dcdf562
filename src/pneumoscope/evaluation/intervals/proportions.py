"""Intervals of shares, and of values that behave like shares.

The percentile bootstrap is too narrow where few images decide, such as a rate or an AUROC near 1. The methods here
cover the truth in `benchmarks/interval_coverage.py`. Patients are the unit: images of one patient resemble each other
and count for less than as many images of different patients.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bounds = tuple[float, float]  # lower and upper end of an interval

CONFIDENCE = 0.95  # of every interval, unless a function is given another
UNDEFINED: Bounds = (np.nan, np.nan)


def wilson_interval(value: float, size: float, confidence: float, degrees: float = np.inf) -> Bounds:
    """Wilson's score interval (1927) of a share.

    Args:
        value: the share, in [0, 1].
        size: number of trials; any number > 0 (Korn & Graubard 1998).
        confidence: in (0, 1).
        degrees: degrees of freedom of Student's t; infinite for the normal distribution.
    """
    if not size > 0 or not degrees > 0:
        return UNDEFINED
    z = t_quantile(confidence, degrees)
    centre = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(value * (1 - value) / size + (z / (2 * size)) ** 2) / (1 + z**2 / size)
    # Rounding must not exclude the value itself.
    return min(value, max(0.0, float(centre - half))), max(value, min(1.0, float(centre + half)))


def wilson_interval_from_error(
    value: float, error: float, confidence: float, degrees: float = np.inf, trials: float = np.nan
) -> Bounds:
    """Wilson's interval of a value in [0, 1], as if it were a share of as many trials as give its standard error.

    Args:
        value: in [0, 1].
        error: its standard error.
        confidence: in (0, 1).
        degrees: degrees of freedom behind the error.
        trials: number of trials at 0 and 1, where the standard error is 0.
    """
    if 0 < value < 1:
        return wilson_interval(value, value * (1 - value) / error**2 if error > 0 else np.nan, confidence, degrees)
    return wilson_interval(value, trials, confidence)


def logit_interval(value: float, error: float, confidence: float, degrees: float = np.inf) -> Bounds:
    """An interval symmetric on the scale log(v / (1 - v)), of a value in (0, 1) with its standard error."""
    if not 0 < value < 1 or not error > 0 or not degrees > 0:
        return UNDEFINED
    half = t_quantile(confidence, degrees) * error / (value * (1 - value))
    ends = np.log(value / (1 - value)) + np.array([-half, half])
    low, high = (1 / (1 + np.exp(-np.clip(ends, -700, 700)))).tolist()
    return low, high


def t_quantile(confidence: float, degrees: float = np.inf) -> float:
    """The two-sided quantile of Student's t; of the normal distribution for infinite degrees of freedom."""
    if np.isinf(degrees):
        return NormalDist().inv_cdf((1 + confidence) / 2)
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def t_tails(value: float, degrees: float) -> float:
    """The chance that Student's t is at least as far from 0 as a value."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(value)))


def rate_interval(hits: Bools, among: Bools, clusters: Ints, confidence: float) -> Bounds:
    """Wilson's interval of a rate, its number of images divided by the design effect of the patients.

    The design effect is the variance by patient over that of independent images, at least 1. Few rare outcomes say
    little about it, so it is drawn towards that of patients whose images all agree, with the weight of one outcome.

    Args:
        hits: (N,) which images count for the rate; only those in `among` do.
        among: (N,) the images that the rate is a share of.
        clusters: (N,) numbers of the patients.
        confidence: in (0, 1).
    """
    return wilson_interval(*rate_trials(hits, among, clusters), confidence) if among.any() else UNDEFINED


def rate_trials(hits: Bools, among: Bools, clusters: Ints) -> tuple[float, float]:
    """A rate, and of how many independent images it would be as certain (see `rate_interval`), of at least one."""
    trials = int(among.sum())
    sizes = np.bincount(clusters[among])
    present = sizes > 0
    sizes, hits_by_patient = sizes[present], np.bincount(clusters[among], hits[among])[present]
    value = float(hits_by_patient.sum() / trials)
    rare = min(hits_by_patient.sum(), trials - hits_by_patient.sum())
    largest = float((sizes**2).sum() / trials)  # the design effect where all images of a patient agree
    effect = 0.0
    if rare and len(sizes) > 1:
        change = (hits_by_patient - value * sizes) / (trials - sizes)  # of the rate, without the patient
        variance = (len(sizes) - 1) / len(sizes) * float((change**2).sum())
        effect = max(1.0, variance / (value * (1 - value) / trials))
    if len(sizes) == trials:
        effect = largest = 1.0
    return value, float(trials * (rare + 1) / (rare * effect + largest))


def perfect_auroc_interval(pairs: int, confidence: float) -> Bounds:
    """The exact interval of an AUROC of 1 (Clopper & Pearson 1934).

    The probability that `pairs` independent pairs are all in the right order is AUROC**pairs.
    """
    return (((1 - confidence) / 2) ** (1 / pairs), 1.0) if pairs else UNDEFINED


def effective_count(clusters: Ints, among: Bools) -> float:
    """The effective number of patients: how many with equally many images would be worth as much (Kish 1965).

    Args:
        clusters: (N,) numbers of the patients.
        among: (N,) the images; 0 without any.
    """
    sizes = np.bincount(clusters[among])
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0
