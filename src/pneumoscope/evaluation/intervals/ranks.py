"""Which of several models are distinguished on the same images, and the places that each may have.

All pairs are compared at once: a pair differs where its difference, in standard errors of the paired bootstrap by
patient, exceeds the 95th percentile of the largest such deviation of any pair (max T, as Tukey's range test). A model's
place lies between one more than the number of models that are better, and the number that are not worse: simultaneous
intervals of ranks (Al Mohamad, Goeman & van Zwet, Biometrical Journal 2022). The percentiles of bootstrapped ranks
would be too narrow, and wrong where models are equally good (Xie, Singh & Zhang, JASA 2009).
"""

from __future__ import annotations

import numpy as np

from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, Bools, Floats, Ints


def find_better(values: Floats, drawn: Floats, confidence: float = CONFIDENCE) -> Bools:
    """Find which models are better than which.

    Args:
        values: (M,) of a metric; higher is better.
        drawn: (M, B) the same in each resample; the same images in each column.
        confidence: that no pair of equally good models is distinguished.

    Returns:
        (M, M), whether the row's model is better than the column's.
    """
    gaps = values[:, None] - values
    errors = np.zeros_like(gaps)
    largest = np.zeros(drawn.shape[1])
    for i in range(len(values)):
        moved = drawn[i] - drawn  # (M, B)
        errors[i] = moved.std(axis=1)
        varying = errors[i] > 1e-12
        deviations = np.abs(moved[varying] - gaps[i, varying, None]) / errors[i, varying, None]
        largest = np.maximum(largest, deviations.max(axis=0, initial=0))
    limit = float(np.quantile(largest, confidence)) if drawn.shape[1] else np.inf
    better: Bools = gaps > np.maximum(limit * errors, 1e-12)
    return better


def find_places(better: Bools) -> tuple[Ints, Ints]:
    """The best and the worst place (M,) of each model."""
    return 1 + better.sum(axis=0), len(better) - better.sum(axis=1)


def find_ties(better: Bools) -> list[tuple[int, int]]:
    """The longest runs of models, first and last index, of which no pair is distinguished; models are in order."""
    apart = better | better.T
    runs: list[tuple[int, int]] = []
    for first in range(len(better)):
        last = first
        while last + 1 < len(better) and not apart[first : last + 1, last + 1].any():
            last += 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
