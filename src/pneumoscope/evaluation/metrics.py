"""Computes every metric at once, for many weightings of the same images.

A bootstrap resample is a count for each image. So each metric takes a matrix of weights, one row a resample, and the
images are sorted once for all rows. An undefined metric (0/0) is nan, never 0 and never a warning: no PPV without a
positive prediction, no AUROC without both classes, no MCC where labels or predictions hold only one class (scikit-learn
returns 0 there).

With more than two classes, the predicted class is the one with the highest probability, or with the largest multiple of
its threshold where each class has one; F1, sensitivity, specificity, PPV, NPV, AUROC and average precision are
one-vs-rest and averaged over the classes where they are defined ("macro").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.decisions.threshold import apply_by_class
from pneumoscope.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMES = {
    "accuracy": "Accuracy", "f1": "F1", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "ppv": "PPV", "npv": "NPV", "auroc": "AUROC", "average_precision": "Average precision", "mcc": "MCC",
    "brier": "Brier score", "ece": "Calibration error",
}  # fmt: skip
METRICS = tuple(NAMES)
BINS = 10


def measure(
    labels: ArrayLike, probabilities: ArrayLike, *, threshold: ArrayLike = 0.5, weights: ArrayLike | None = None
) -> dict[str, Floats]:
    """Compute every metric of `METRICS`, once for each row of weights.

    `mcc` is Matthews' coefficient, for more classes R_K (Gorodkin 2004). `brier` is the mean squared difference, in
    [0, 1] for two classes, and summed over the classes, in [0, 2], for more. `ece` is the expected calibration error
    over 10 bins of equal width (Naeini et al. 2015): of the positive class's probability for two classes, of the
    highest probability (Guo et al. 2017) for more.

    Args:
        labels: (N,) class indices; if there are two classes, 1 is the positive one.
        probabilities: (N,) of the positive class, or (N, C) with C > 2 and rows that sum to 1.
        threshold: two classes: positive from this probability on; more: (C,), as for `predict_classes`.
        weights: (B, N), not negative; None counts each image once.

    Returns:
        For each metric an array (B,); nan where it is undefined.

    Raises:
        DataError: no images, different lengths, or values out of range.
    """
    y, p = check_predictions(labels, probabilities)
    w = _check_weights(weights, len(y))
    two = p.ndim == 1
    n_classes = 2 if two else p.shape[1]
    classes = predict_classes(p, threshold)
    truth, predicted = np.eye(n_classes)[y], np.eye(n_classes)[classes]
    squared = (y - p) ** 2 if two else ((truth - p) ** 2).sum(1)
    stated, correct = (p, y == 1) if two else (p.max(1), p.argmax(1) == y)
    gaps = np.eye(BINS)[find_bins(stated)] * (correct - stated)[:, None]
    positives, chosen, tp, negatives, rejected, tn, error, gap = _sum_weighted(
        w, truth, predicted, truth * predicted, 1 - truth, 1 - predicted, (1 - truth) * (1 - predicted),
        squared[:, None], gaps,
    )  # fmt: skip
    total = w.sum(1)

    def average(by_class: Floats) -> Floats:
        return by_class[:, 1] if two else _mean_defined(by_class)

    rankings = np.array([_rank(y == i, p if two else p[:, i], w) for i in ([1] if two else range(n_classes))])
    auroc, average_precision = (_mean_defined(rankings[:, i].T) for i in (0, 1))
    return {
        "accuracy": _divide(tp.sum(1), total),
        "f1": average(_divide(2 * tp, positives + chosen)),
        "sensitivity": average(_divide(tp, positives)),
        "specificity": average(_divide(tn, negatives)),
        "ppv": average(_divide(tp, chosen)),
        "npv": average(_divide(tn, rejected)),
        "auroc": auroc,
        "average_precision": average_precision,
        "mcc": _matthews(positives, chosen, tp),
        "brier": _divide(error[:, 0], total),
        "ece": _divide(np.abs(gap).sum(1), total),
    }


def confusion(labels: ArrayLike, probabilities: ArrayLike, *, threshold: ArrayLike = 0.5) -> dict[str, Any]:
    """Count predicted classes against labels.

    Returns:
        `{"tp", "fp", "tn", "fn"}` for two classes; for more `{"matrix"}`, nested lists (C, C) with a row for each
        true class and a column for each predicted class.
    """
    y, p = check_predictions(labels, probabilities)
    classes = 2 if p.ndim == 1 else p.shape[1]
    cells = y * classes + predict_classes(p, threshold)
    matrix = np.bincount(cells, minlength=classes**2).reshape(classes, classes).tolist()
    if classes > 2:
        return {"matrix": matrix}
    (tn, fp), (fn, tp) = matrix
    return {"tp": tp, "fp": fp, "tn": tn, "fn": fn}


def predict_classes(probabilities: Floats, threshold: ArrayLike = 0.5) -> Ints:
    """Turn probabilities into class indices.

    Args:
        probabilities: (N,) of the positive class, or (N, C) with C > 2.
        threshold: two classes: positive from this probability on; more: (C,) thresholds, of which the predicted class
            reaches the largest multiple, or one number for the likeliest class.
    """
    cut = np.asarray(threshold, np.float64)
    if probabilities.ndim == 1:
        return (probabilities >= cut).astype(np.int64)
    return apply_by_class(probabilities, cut)


def roc_curve(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """Trace the receiver operating characteristic for two classes, one point for each distinct probability.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        weights: (B, N); with it the rates are (B, K).

    Returns:
        False-positive rates, true-positive rates and thresholds (K,), from the strictest (infinite) down. A rate is
        nan where its class is absent.
    """
    y, p = check_two_classes(labels, probabilities)
    scores, fps, tps = _cumulate(y, p, _check_weights(weights, len(y)))
    fpr, tpr = (_divide(np.insert(counts, 0, 0, axis=1), counts[:, -1:]) for counts in (fps, tps))
    thresholds = np.insert(scores, 0, np.inf)
    return (fpr, tpr, thresholds) if weights is not None else (fpr[0], tpr[0], thresholds)


def precision_recall_curve(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Trace precision against recall for two classes, in scikit-learn's order.

    Returns:
        Precision and recall (K + 1,), ending at 1 and 0, and the K rising thresholds. Recall is nan without positives.
    """
    y, p = check_two_classes(labels, probabilities)
    scores, fps, tps = _cumulate(y, p, np.ones((1, len(y))))
    precision, recall = _divide(tps, tps + fps)[0, ::-1], _divide(tps, tps[:, -1:])[0, ::-1]
    return np.append(precision, 1.0), np.append(recall, 0.0), scores[::-1]


def reliability_curve(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats, Ints]:
    """Compare stated with observed frequencies in the bins of `ece`.

    Two classes: the positive class's probability against its frequency; more: the highest probability against accuracy.

    Returns:
        For each bin that holds images: mean probability, observed frequency, number of images.
    """
    y, p = check_predictions(labels, probabilities)
    stated, correct = (p, y == 1) if p.ndim == 1 else (p.max(1), p.argmax(1) == y)
    bins = find_bins(stated)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    predicted, observed = (np.bincount(bins, v, BINS)[filled] / counts[filled] for v in (stated, correct))
    return predicted, observed, counts[filled]


def find_bins(probabilities: Floats) -> Ints:
    """Bins (0, 0.1], (0.1, 0.2], … with 0 in the first, as in Guo et al. and scikit-learn."""
    bins: Ints = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)
    return bins


def check_predictions(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """Check labels (N,) and probabilities (N,), or (N, C > 2), and return them as arrays.

    Raises:
        DataError: there are none, their shapes do not fit, or values are out of range.
    """
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if y.size == 0:
        raise DataError("there are no labelled images to measure.", "labels")
    if y.ndim != 1 or y.dtype.kind not in "iub":
        raise DataError(f"must be class indices (N,), found {y.dtype} {y.shape}.", "labels")
    if p.ndim not in (1, 2) or len(p) != len(y):
        raise DataError(f"must be as many as the {len(y)} labels, found {p.shape}.", "probabilities")
    if p.ndim == 2 and p.shape[1] < 3:
        raise DataError(
            f"two classes need only those of the positive class, ({len(y)},), found {p.shape}.", "probabilities"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("must lie between 0 and 1; some do not, or are nan.", "probabilities")
    if p.ndim == 2 and (np.abs(p.sum(1) - 1) > 1e-3).any():
        raise DataError("must sum to 1 for each image; some do not.", "probabilities")
    classes = 2 if p.ndim == 1 else p.shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"must be 0 to {classes - 1}, found {y.min()} to {y.max()}.", "labels")
    return y.astype(np.int64), p


def check_two_classes(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """Check labels (N,) of 0 and 1 and probabilities (N,) of class 1, as `check_predictions` does.

    Raises:
        DataError: also for probabilities of more classes.
    """
    y, p = check_predictions(labels, probabilities)
    if p.ndim == 2:
        raise DataError(
            "a curve needs those of one class only, with label 1 for it and 0 for the rest.", "probabilities"
        )
    return y, p


def _check_weights(weights: ArrayLike | None, n: int) -> Floats:
    w = np.ones((1, n)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.ndim != 2 or w.shape[1] != n or not (w >= 0).all() or not np.isfinite(w).all():
        raise DataError(f"must be finite, not negative and of shape (B, {n}), found {w.shape}.", "weights")
    return w


def _sum_weighted(weights: Floats, *columns: NDArray[Any]) -> list[Floats]:
    """Sum each of some columns (N, K) with each row of weights: (B, K)."""
    edges = np.cumsum([column.shape[1] for column in columns])[:-1]
    return np.split(weights @ np.hstack(columns), edges, axis=1)


def _divide(over: NDArray[Any], under: NDArray[Any]) -> Floats:
    """Divide; 0/0 is nan."""
    quotient: Floats = np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0)
    return quotient


def _mean_defined(by_class: Floats) -> Floats:
    """The mean over the classes where a value is defined; from (B, C) to (B,)."""
    return _divide(np.nansum(by_class, axis=1), np.isfinite(by_class).sum(1))


def _cumulate(positive: NDArray[Any], score: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Distinct scores (K,), falling, and the false and true positives (B, K) at or above each of them."""
    order = np.argsort(-score, kind="stable")
    ranked, is_positive, w = score[order], positive[order], weights[:, order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of ties
    return ranked[last], np.cumsum(w * (1 - is_positive), 1)[:, last], np.cumsum(w * is_positive, 1)[:, last]


def _rank(positive: NDArray[Any], score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """AUROC by trapezoids, so that ties count half, and average precision as a step function; (B,) each."""
    _, fps, tps = _cumulate(positive, score, weights)
    gained = np.diff(tps, prepend=0)
    area = (np.diff(fps, prepend=0) * (tps - gained / 2)).sum(1)
    steps = np.nansum(gained * _divide(tps, tps + fps), axis=1)  # nan: only images of weight 0 so far
    return _divide(area, fps[:, -1] * tps[:, -1]), _divide(steps, tps[:, -1])


def _matthews(positives: Floats, chosen: Floats, tp: Floats) -> Floats:
    """R_K of Gorodkin (2004), which is Matthews' coefficient for two classes; from (B, C) to (B,)."""
    total = positives.sum(1)
    covariance = tp.sum(1) * total - (positives * chosen).sum(1)
    spread = (total**2 - (positives**2).sum(1)) * (total**2 - (chosen**2).sum(1))
    defined = ((positives > 0).sum(1) > 1) & ((chosen > 0).sum(1) > 1)  # rounding may leave `spread` just off 0
    return _divide(covariance, np.where(defined, np.sqrt(np.maximum(spread, 0)), 0))
