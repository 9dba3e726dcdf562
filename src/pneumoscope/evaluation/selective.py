"""Saying nothing where one is not sure: accuracy among the answered against the share answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals.bootstrap import band_limits, resample
from pneumoscope.evaluation.intervals.proportions import effective_count

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SelectiveCurve:
    """The risk-coverage curve (El-Yaniv & Wiener 2010), drawn as accuracy.

    Attributes:
        coverage: (K,) rising to 1: shares answered, one for each distinct confidence.
        accuracy: (K,) share of right calls among them.
        area: mean risk (1 - accuracy) over all coverages, AURC (Geifman & El-Yaniv 2017); lower is better.
        grid: (100,) coverages of the band.
        low, high: (100,) its limits.
    """

    coverage: Floats
    accuracy: Floats
    area: float
    grid: Floats
    low: Floats
    high: Floats


def confidence_of(probabilities: ArrayLike, threshold: float = 0.5) -> Floats:
    """Say how sure each call is, from 0 at the threshold to 1.

    The threshold of two classes states what a missed positive costs against a false alarm; a call's expected cost,
    relative to that of the most doubtful image, is p / t below the threshold and (1 - p) / (1 - t) from it on, and
    Chow's rule (1970) refuses where it is highest. Confidence is what is left to 1. At t = 0.5 this orders images as
    the highest probability does, which is taken for more classes.

    Args:
        probabilities: (N,) of the positive class, or (N, C).
        threshold: of two classes, in [0, 1].
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim == 2:
        return np.asarray(p.max(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        sure = np.where(p >= threshold, (p - threshold) / (1 - threshold), (threshold - p) / threshold)
    return np.nan_to_num(sure, nan=1.0)  # a threshold of 1 is reached by nothing but 1


def selective_curve(
    right: ArrayLike,
    confidence: ArrayLike,
    *,
    patients: Sequence[str | None] | None = None,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> SelectiveCurve:
    """Trace how accuracy changes when the least confident calls are withheld.

    Equal confidences are answered together; between them the area takes an order drawn at random. Limits are Wilson's,
    of as many images as would have the bootstrap's variance: percentiles end where no resample can make a mistake.

    Args:
        right: (N,) whether each call is right.
        confidence: (N,) how sure each is.
        patients: (N,) for the band, which draws whole patients.
        resamples: bootstrap resamples behind the band.
        level: probability that the band is to hold at each coverage.
        seed: the same seed gives the same band.

    Raises:
        DataError: nothing to measure, or lengths that differ.
    """
    hits, sure = np.asarray(right, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    if not len(hits) or hits.shape != sure.shape or hits.ndim != 1:
        raise DataError(f"{hits.shape} calls need as many confidences; these are {sure.shape}")
    order = np.argsort(-sure, kind="stable")
    last = np.append(np.flatnonzero(np.diff(sure[order])), len(order) - 1)
    counts = last + 1.0
    won = np.cumsum(hits[order])[last]
    ranks = np.arange(1, len(hits) + 1)
    expected = np.interp(ranks, np.insert(counts, 0, 0), np.insert(won, 0, 0))  # in a tie hits come evenly
    grid = np.linspace(0.01, 1, 100)
    heights = []
    for weights in resample(cluster_by_patient(patients, len(hits)), resamples, seed):
        answered = np.cumsum(weights[:, order], 1)[:, last]
        winning = np.cumsum(weights[:, order] * hits[order], 1)[:, last]
        for drawn, gained in zip(answered, winning, strict=True):
            at = grid * drawn[-1]
            heights.append(np.interp(at, np.insert(drawn, 0, 0), np.insert(gained, 0, 0)) / at)
    clusters = cluster_by_patient(patients, len(hits))
    most = np.maximum(1, grid * effective_count(clusters, np.ones(len(hits), dtype=bool)))
    at = grid * len(hits)
    curve = np.interp(at, np.insert(counts, 0, 0), np.insert(won, 0, 0)) / at
    low, high = band_limits([np.clip(curve, 0, 1)], heights, most, level)
    return SelectiveCurve(
        counts / len(hits), won / counts, float(np.mean(1 - expected / ranks)), grid, low, high
    )  # fmt: skip
