"""Methods for very many images, which replace resampling, so that intervals take seconds and little memory.

Standard errors come from influence functions: how a metric changes with the weight of each image (Hampel 1974), summed
by patient. This is the infinitesimal jackknife for all patients at once. Resamples draw groups of patients that are
joined at random, because sums of groups vary as those of patients do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.evaluation.intervals.delong import find_placements
from pneumoscope.evaluation.intervals.proportions import Bools, Floats, Ints
from pneumoscope.evaluation.metrics import check_predictions, measure, predict_classes

MANY = 10_000  # images above which these methods are used
GROUPS = 20_000  # of patients: the standard error of a variance that is estimated from them is 1%
STEP = 1e-3  # change of an image's weight, for derivatives
LEVELS = 1000  # values to which the scores of each class are rounded, for bands around curves
BAND_GROUPS = 2000  # of patients, for such bands


def join_patients(clusters: Ints, seed: int, groups: int = GROUPS) -> Ints:
    """Join patients (N,) at random into at most `groups` groups, numbered from 0 without a gap."""
    count = int(clusters.max()) + 1
    if count <= groups:
        return clusters
    joined: Ints = (np.random.default_rng([seed, 2]).permutation(count) % groups)[clusters]
    return joined


def influence_errors(
    labels: ArrayLike, probabilities: ArrayLike, clusters: Ints, *, threshold: ArrayLike = 0.5
) -> dict[str, float]:
    """Standard errors of all metrics but `brier` and `ece`; nan where a metric is undefined or there is one patient."""
    y, p = check_predictions(labels, probabilities)
    rates, cells = _rate_influences(y, p, np.asarray(threshold, np.float64))
    errors = {name: _sum_errors(slopes[cells], clusters) for name, slopes in rates.items()}
    classes = [(y == 1, p)] if p.ndim == 1 else [(y == i, p[:, i]) for i in range(p.shape[1])]
    ranked = [_ranking_influences(positive, score) for positive, score in classes if 0 < positive.sum() < len(y)]
    for i, name in enumerate(("auroc", "average_precision")):
        errors[name] = _sum_errors(np.mean([each[i] for each in ranked], axis=0), clusters) if ranked else np.nan
    return errors


def _sum_errors(influences: Floats, clusters: Ints) -> float:
    sums = np.bincount(clusters, influences)
    count = len(sums)
    return float(np.sqrt(count / (count - 1) * ((sums - sums.mean()) ** 2).sum())) if count > 1 else np.nan


def _rate_influences(y: Ints, p: Floats, threshold: Floats) -> tuple[dict[str, Floats], Ints]:
    """How metrics that count predicted classes change with an image, by cell of the confusion matrix; their cells.

    These metrics treat all images of a cell alike, so one image stands for them, with their number as its weight.
    """
    classes = 2 if p.ndim == 1 else p.shape[1]
    _, first, cells, counts = np.unique(
        y * classes + predict_classes(p, threshold), return_index=True, return_inverse=True, return_counts=True
    )
    cut = threshold[first] if threshold.ndim == p.ndim and len(threshold) == len(y) else threshold
    steps = STEP * np.eye(len(counts))
    above, below = (measure(y[first], p[first], threshold=cut, weights=counts + step) for step in (steps, -steps))
    names = ("accuracy", "f1", "sensitivity", "specificity", "ppv", "npv", "mcc")
    return {name: (above[name] - below[name]) / (2 * STEP) for name in names}, cells


def _ranking_influences(positive: Bools, score: Floats) -> tuple[Floats, Floats]:
    """How AUROC and average precision change with each image, (N,) each."""
    placements = find_placements(positive, score[None])[0]
    auroc = (placements - placements[positive].mean()) / np.where(positive, positive.sum(), (~positive).sum())
    levels, level = np.unique(-score, return_inverse=True)
    gained = np.bincount(level, positive, len(levels))
    tp, fp = np.cumsum(gained), np.cumsum(np.bincount(level, ~positive, len(levels)))
    precision = tp / (tp + fp)
    average = float((gained * precision).sum() / tp[-1])
    # A further image changes the precision at its own score and at all lower ones.
    below = [np.cumsum((gained * counts / (tp + fp) ** 2)[::-1])[::-1] for counts in (fp, tp)]
    change = np.where(positive, precision[level] + below[0][level] - average, -below[1][level])
    return auroc, change / tp[-1]


def condense(classes: Ints, scores: Floats, clusters: Ints, seed: int) -> tuple[Ints, Floats, Floats]:
    """Round the scores of many images for the band around a curve, and count them by group of patients.

    Args:
        classes: (N,) 0 or 1.
        scores: (N,).
        clusters: (N,) from `cluster_by_patient`.
        seed: fixes the groups.

    Returns:
        Class and score of M kinds of images, (M,) each, and how many of each every group has, (G, M).
    """
    shares = np.linspace(0, 1, LEVELS)
    edges = np.unique(np.concatenate([
        np.quantile(scores[classes == side], shares, method="lower") for side in (0, 1) if (classes == side).any()
    ]))  # fmt: skip
    level = np.searchsorted(edges, scores, side="right") - 1
    middle = np.bincount(level, scores, len(edges)) / np.maximum(np.bincount(level, minlength=len(edges)), 1)
    groups = join_patients(clusters, seed, BAND_GROUPS)
    kinds = 2 * len(edges)
    cells = groups * kinds + 2 * level + classes
    counts = np.bincount(cells, minlength=(int(groups.max()) + 1) * kinds).reshape(-1, kinds).astype(np.float64)
    return np.tile([0, 1], len(edges)), np.repeat(middle, 2), counts
