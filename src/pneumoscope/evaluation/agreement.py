"""How far readers agree beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals by patient.

All are for classes without an order. 1 is perfect agreement, 0 what chance alone gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals.bootstrap import resample
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, Floats, Ints, wilson_interval

_FEWEST = 10  # patients, below which percentiles of resamples say too little


@dataclass(frozen=True)
class Agreement:
    """A coefficient of agreement.

    Attributes:
        value: None where it is undefined, as where all ratings are of one class.
        low: the lower end of its 95% interval; None where there is none.
        high: the upper end.
        images: how many it is of.
        agreed: the share of pairs of ratings of one image that are equal, not corrected for chance.
    """

    value: float | None
    low: float | None
    high: float | None
    images: int
    agreed: float | None


def measure_cohen_kappa(
    first: Sequence[str | None], second: Sequence[str | None], patients: Sequence[Hashable] | None = None,
    *, resamples: int = 1000, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Cohen's kappa (1960) of two readers.

    The interval is that between the percentiles of resampled patients, of whom there must be ten. Where all ratings are
    equal it has no width, so Wilson's lower end of the share of equal ratings, with one trial a patient, is put in its
    place.

    Args:
        first: (N,) classes by one reader; images with None, as in `second`, do not count.
        second: (N,) classes by the other.
        patients: (N,) whose images they are; by default each is of another patient.
        resamples: of the bootstrap.
        seed: fixes them.

    Raises:
        UsageError: the lengths differ.
    """
    if len(first) != len(second):
        raise UsageError(f"{len(first)} ratings by one reader, {len(second)} by the other.", "second")
    return _measure(list(zip(first, second, strict=True)), patients, _kappa, 2, resamples, seed)


def measure_fleiss_kappa(
    ratings: Sequence[Sequence[str | None]], patients: Sequence[Hashable] | None = None,
    *, resamples: int = 1000, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Fleiss' kappa (1971) of images that have equally many ratings each; interval: see `measure_cohen_kappa`.

    Args:
        ratings: (N, R) classes by image; the readers need not be the same. Images with None do not count.
        patients: (N,) whose images they are; by default each is of another patient.
        resamples: of the bootstrap.
        seed: fixes them.

    Raises:
        UsageError: the lengths differ.
    """
    most = max(map(len, ratings), default=0)
    return _measure(ratings, patients, _fleiss, max(most, 2), resamples, seed)


def measure_krippendorff_alpha(
    ratings: Sequence[Sequence[str | None]], patients: Sequence[Hashable] | None = None,
    *, resamples: int = 1000, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Krippendorff's alpha (2004, nominal) of images with any number of ratings; interval: see `measure_cohen_kappa`.

    Args:
        ratings: (N, R) classes by image; None where a reader has not read it. One rating alone does not count.
        patients: (N,) whose images they are; by default each is of another patient.
        resamples: of the bootstrap.
        seed: fixes them.

    Raises:
        UsageError: the lengths differ.
    """
    return _measure(ratings, patients, _alpha, 2, resamples, seed)


def _measure(
    ratings: Sequence[Sequence[str | None]],
    patients: Sequence[Hashable] | None,
    statistic: Callable[[Ints, Floats], Floats],
    least: int,
    resamples: int,
    seed: int,
) -> Agreement:
    if len({len(row) for row in ratings}) > 1 or (patients is not None and len(patients) != len(ratings)):
        raise UsageError("Every image needs one place for each reader, and one patient.", "ratings")
    if resamples < 1:
        raise UsageError(f"at least 1 is needed, found {resamples}.", "resamples")
    owners: Sequence[Hashable] = range(len(ratings)) if patients is None else patients
    kept = [i for i, row in enumerate(ratings) if sum(each is not None for each in row) >= least]
    if not kept:
        return Agreement(None, None, None, 0, None)
    classes = {name: i for i, name in enumerate(sorted({str(x) for i in kept for x in ratings[i] if x is not None}))}
    table = np.array([[-1 if x is None else classes[x] for x in ratings[i]] for i in kept], dtype=np.int64)
    numbers: dict[Hashable, int] = {}
    clusters = np.array([numbers.setdefault(owners[i], len(numbers)) for i in kept], dtype=np.int64)
    value = float(statistic(table, np.ones((1, len(kept))))[0])
    agreed = float(np.mean(_share_equal(table)))
    if math.isnan(value):
        return Agreement(None, None, None, len(kept), agreed)
    low = high = math.nan
    if agreed == 1:
        by_chance = _find_chance(table)
        worst = wilson_interval(1.0, len(numbers), CONFIDENCE)[0]
        low, high = (worst - by_chance) / (1 - by_chance), 1.0
    elif len(numbers) >= _FEWEST:
        drawn = np.concatenate([statistic(table, weights) for weights in resample(clusters, resamples, seed)])
        drawn = drawn[~np.isnan(drawn)]
        if len(drawn):
            low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Agreement(value, _or_none(low), _or_none(high), len(kept), agreed)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _count(table: Ints) -> Floats:
    """How many ratings of each class an image has: (N, C)."""
    counts: Floats = (table[:, :, None] == np.arange(table.max() + 1)).sum(axis=1).astype(np.float64)
    return counts


def _share_equal(table: Ints) -> Floats:
    counts = _count(table)
    total = counts.sum(axis=1)
    shares: Floats = (counts * (counts - 1)).sum(axis=1) / (total * (total - 1))
    return shares


def _find_chance(table: Ints) -> float:
    totals = _count(table).sum(axis=0)
    return float(((totals / totals.sum()) ** 2).sum())


def _scale(observed: Floats, expected: Floats) -> Floats:
    """Agreement beyond chance; nan where chance alone gives all of it."""
    rest = 1 - expected
    scaled: Floats = np.divide(observed - expected, rest, out=np.full_like(rest, np.nan), where=rest > 1e-12)
    return scaled


def _kappa(table: Ints, weights: Floats) -> Floats:
    total = weights.sum(axis=1)
    classes = np.arange(table.max() + 1)
    first, second = (weights @ (table[:, [i]] == classes).astype(np.float64) / total[:, None] for i in range(2))
    observed = weights @ (table[:, 0] == table[:, 1]).astype(np.float64) / total
    return _scale(observed, (first * second).sum(axis=1))


def _fleiss(table: Ints, weights: Floats) -> Floats:
    total = weights.sum(axis=1)
    shares = weights @ _count(table) / (total * table.shape[1])[:, None]
    return _scale(weights @ _share_equal(table) / total, (shares**2).sum(axis=1))


def _alpha(table: Ints, weights: Floats) -> Floats:
    counts = _count(table)
    totals = weights @ counts
    n = totals.sum(axis=1)
    observed = weights @ (_share_equal(table) * counts.sum(axis=1)) / n
    expected = (totals * (totals - 1)).sum(axis=1) / (n * (n - 1))
    return _scale(observed, expected)
