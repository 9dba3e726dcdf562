"""The covariance of areas under ROC curves, without resampling.

DeLong, DeLong & Clarke-Pearson (Biometrics 1988) see the area as a mean over pairs. Each image adds its placement
among the images of the other class, and the spread of the placements gives the variance. Obuchowski (Biometrics 1997)
sums placements by patient, since images of one patient resemble each other. Placements come from midranks (Sun & Xu
2014), so memory does not grow with the number of pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError

Floats = NDArray[np.float64]


def auroc_covariance(labels: ArrayLike, scores: ArrayLike, clusters: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Measure the AUROCs of several models on the same images, and their covariance.

    The variance of the difference of two is `c[0, 0] + c[1, 1] - 2 * c[0, 1]`.

    Args:
        labels: (N,) of 0 and 1.
        scores: (M, N), a row for each model; higher means class 1; ties count half.
        clusters: (N,) numbers of the patients; None if each image is of another patient.

    Returns:
        AUROCs (M,), nan without both classes, and their covariance (M, M), nan where a class has fewer than two
        patients.

    Raises:
        DataError: the shapes do not fit, a label is not 0 or 1, or a score is nan.
    """
    y, x = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    groups = np.arange(y.size) if clusters is None else np.asarray(clusters)
    if y.ndim != 1 or not y.size or x.ndim != 2 or x.shape[1:] != y.shape or groups.shape != y.shape:
        given = f"{y.shape}, {x.shape} and {groups.shape}"
        raise DataError(f"labels, scores and clusters must have the shapes (N,), (M, N) and (N,), found {given}.")
    if not np.isin(y, (0, 1)).all() or np.isnan(x).any():
        raise DataError("labels must be 0 or 1, and scores must not be nan.")
    positive = y == 1
    models, counts = len(x), (int((~positive).sum()), int(positive.sum()))
    if 0 in counts:
        return np.full(models, np.nan), np.full((models, models), np.nan)
    placements = find_placements(positive, x)
    aurocs: Floats = placements[:, positive].mean(1)
    patients, patient = np.unique(groups, return_inverse=True)
    sums = np.zeros((2, models, len(patients)))  # what each patient's negatives and positives add
    covariance = np.zeros((models, models))
    for side in (0, 1):
        here = positive == side
        present = len(np.unique(patient[here]))
        for model in range(models):
            sums[side, model] = np.bincount(patient[here], placements[model, here] - aurocs[model], len(patients))
        if present < 2:
            return aurocs, np.full_like(covariance, np.nan)
        covariance += present / (present - 1) / counts[side] ** 2 * sums[side] @ sums[side].T
    across = len(patients) / (len(patients) - 1) / (counts[0] * counts[1]) * sums[0] @ sums[1].T
    covariance = covariance + across + across.T
    np.fill_diagonal(covariance, np.maximum(np.diag(covariance), 0))  # rounding may leave it below 0
    return aurocs, covariance


def find_placements(positive: NDArray[np.bool_], scores: Floats) -> Floats:
    """For each image, find the share of the other class that it is correctly ranked against, ties half; (M, N)."""
    among_all = _rank(scores)
    placements: Floats = np.empty_like(among_all)
    for here in (positive, ~positive):
        others = len(positive) - here.sum()
        placements[:, here] = (among_all[:, here] - _rank(scores[:, here])) / others
    placements[:, ~positive] = 1 - placements[:, ~positive]
    return placements


def _rank(scores: Floats) -> Floats:
    """Midranks in each row, like those of `scipy.stats.rankdata`, which is slow to import."""
    ranks = np.empty(scores.shape)
    for row, values in zip(ranks, scores, strict=True):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        row[:] = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks
