"""Labels and probabilities become figures: every metric at once, for many weightings of the same images.

A bootstrap resample is nothing but a count for each image, so each metric takes a matrix of weights, one row a
resample, and the images are sorted once for all of them. What is undefined (0/0) is nan, never 0 and never a warning:
no PPV without a positive call, no AUROC without both classes, no MCC while truth or calls know just one class
(scikit-learn says 0 there).

With more than two classes the decision is the class of the highest probability; F1, sensitivity, specificity, PPV,
NPV, AUROC and average precision are one-vs-rest and averaged over the classes where they are defined ("macro").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS: tuple[str, ...] = (
    "accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "auroc",
    "average_precision",
    "mcc",
    "brier",
    "ece",
)
NAMES = {
    "accuracy": "Accuracy", "f1": "F1", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "ppv": "PPV", "npv": "NPV", "mcc": "MCC", "auroc": "AUROC", "average_precision": "Average precision",
    "brier": "Brier score", "ece": "Calibration error",
}  # fmt: skip
BINS = 10


def measure(
    labels: ArrayLike, probabilities: ArrayLike, *, threshold: float = 0.5, weights: ArrayLike | None = None
) -> dict[str, Floats]:
    """Compute every metric of `METRICS`, once for each row of weights.

    `mcc` is Matthews' coefficient, for more classes R_K (Gorodkin 2004). `brier` is the mean squared difference, in
    [0, 1] for two classes and summed over the classes, in [0, 2], for more. `ece` is the expected calibration error
    over 10 bins of equal width (Naeini et al. 2015): of the positive class's probability for two classes, of the
    highest probability (Guo et al. 2017) for more.

    Args:
        labels: (N,) class indices; 1 is the positive one of two classes.
        probabilities: (N,) of the positive class, or (N, C) with C > 2 and rows that sum to 1.
        threshold: two classes: positive from this probability on.
        weights: (B, N), not negative; None counts each image once.

    Returns:
        For each metric an array (B,); nan where it is undefined.

    Raises:
        DataError: nothing to measure, lengths that differ, labels or probabilities out of range.
    """
    y, p = checked(labels, probabilities)
    w = np.ones((1, len(y))) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.ndim != 2 or w.shape[1] != len(y) or not (w >= 0).all() or not np.isfinite(w).all():
        raise DataError(f"weights must be finite, not negative and (B, {len(y)}); they are {w.shape}")
    classes = 2 if p.ndim == 1 else p.shape[1]
    decided = decide(p, threshold)
    truth, called = np.eye(classes)[y], np.eye(classes)[decided]
    if p.ndim == 1:
        squared, confidence, correct = (y - p) ** 2, p, y == 1
    else:
        squared, confidence, correct = ((truth - p) ** 2).sum(1), p.max(1), decided == y
    gaps = np.eye(BINS)[find_bins(confidence)] * (correct - confidence)[:, None]

    columns = (
        truth, called, truth * called, 1 - truth, 1 - called, (1 - truth) * (1 - called), squared[:, None], gaps
    )  # fmt: skip
    edges = np.cumsum([column.shape[1] for column in columns])[:-1]
    positive, call, hit, negative, spared, rejected, error, gap = np.split(w @ np.hstack(columns), edges, axis=1)
    total = w.sum(1)

    def mean(by_class: Floats) -> Floats:
        """(B, C) to (B,), leaving out the classes where there is nothing."""
        return _ratio(np.nansum(by_class, axis=1), np.isfinite(by_class).sum(1))

    def overall(by_class: Floats) -> Floats:
        return by_class[:, 1] if classes == 2 else mean(by_class)

    if p.ndim == 1:
        auroc, average_precision = _ranking(y == 1, p, w)
    else:
        ranks = np.array([_ranking(y == i, p[:, i], w) for i in range(classes)])  # (C, 2, B)
        auroc, average_precision = mean(ranks[:, 0].T), mean(ranks[:, 1].T)
    values = (
        _ratio(hit.sum(1), total),
        overall(_ratio(2 * hit, positive + call)),
        overall(_ratio(hit, positive)),
        overall(_ratio(rejected, negative)),
        overall(_ratio(hit, call)),
        overall(_ratio(rejected, spared)),
        auroc,
        average_precision,
        _matthews(positive, call, hit),
        _ratio(error[:, 0], total),
        _ratio(np.abs(gap).sum(1), total),
    )
    return dict(zip(METRICS, values, strict=True))


def confusion(labels: ArrayLike, probabilities: ArrayLike, *, threshold: float = 0.5) -> dict[str, Any]:
    """Count decisions against labels.

    Returns:
        `{"tp", "fp", "tn", "fn"}` for two classes; for more `{"matrix"}`, nested lists (C, C) with a row for each
        true class and a column for each decision.
    """
    y, p = checked(labels, probabilities)
    classes = 2 if p.ndim == 1 else p.shape[1]
    matrix = np.bincount(y * classes + decide(p, threshold), minlength=classes**2).reshape(classes, classes).tolist()
    if classes > 2:
        return {"matrix": matrix}
    (tn, fp), (fn, tp) = matrix
    return {"tp": tp, "fp": fp, "tn": tn, "fn": fn}


def decide(probabilities: Floats, threshold: float = 0.5) -> Ints:
    """Turn probabilities into class indices: positive from the threshold on, or the highest of more than two."""
    if probabilities.ndim == 1:
        return (probabilities >= threshold).astype(np.int64)
    highest: Ints = probabilities.argmax(1)
    return highest


def roc_curve(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """Trace the receiver operating characteristic of two classes, one point for each distinct probability.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1.
        weights: (B, N); with it the rates are (B, K).

    Returns:
        False-positive rates, true-positive rates and thresholds (K,), from the strictest (infinite) down. A rate is
        nan where its class is absent.
    """
    y, p = _two_classes(labels, probabilities)
    w = np.ones((1, len(y))) if weights is None else np.asarray(weights, dtype=np.float64)
    scores, fps, tps = _cumulate(y, p, w)
    fpr, tpr = (_ratio(np.insert(counts, 0, 0, axis=1), counts[:, -1:]) for counts in (fps, tps))
    thresholds = np.insert(scores, 0, np.inf)
    return (fpr, tpr, thresholds) if weights is not None else (fpr[0], tpr[0], thresholds)


def precision_recall_curve(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Trace precision against recall for two classes, in scikit-learn's order.

    Returns:
        Precision and recall (K + 1,), ending at 1 and 0, and the K rising thresholds. Recall is nan without positives.
    """
    y, p = _two_classes(labels, probabilities)
    scores, fps, tps = _cumulate(y, p, np.ones((1, len(y))))
    precision, recall = _ratio(tps, tps + fps)[0, ::-1], _ratio(tps, tps[:, -1:])[0, ::-1]
    return np.append(precision, 1.0), np.append(recall, 0.0), scores[::-1]


def reliability_curve(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats, Ints]:
    """Compare stated with observed frequencies in the bins behind `ece`.

    Returns:
        For each bin with images in it: mean probability, share that was right, number of images. Right means positive
        for two classes and equal to the decision for more, where the probability is the highest one.
    """
    y, p = checked(labels, probabilities)
    stated, right = (p, y == 1) if p.ndim == 1 else (p.max(1), p.argmax(1) == y)
    bins = find_bins(stated)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    predicted, observed = (np.bincount(bins, v, BINS)[filled] / counts[filled] for v in (stated, right))
    return predicted, observed, counts[filled]


def find_bins(probabilities: Floats) -> Ints:
    """Bins (0, 0.1], (0.1, 0.2], … with 0 in the first, as in Guo et al. and scikit-learn."""
    bins: Ints = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)
    return bins


def checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """Return labels (N,) and probabilities (N,) or (N, C > 2) as arrays that can be relied upon.

    Raises:
        DataError: they cannot; the message says why.
    """
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if y.size == 0:
        raise DataError("there are no labelled images to measure")
    if y.ndim != 1 or y.dtype.kind not in "iub":
        raise DataError(f"labels must be a row of class indices; they are {y.dtype} {y.shape}")
    if p.ndim not in (1, 2) or len(p) != len(y):
        raise DataError(f"{len(y)} labels need as many probabilities; these are {p.shape}")
    if p.ndim == 2 and p.shape[1] < 3:
        raise DataError(f"give two classes as the positive one's probability, shape ({len(y)},); these are {p.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("probabilities must lie in [0, 1]; some don't, or are nan")
    if p.ndim == 2 and (np.abs(p.sum(1) - 1) > 1e-3).any():
        raise DataError("each image's class probabilities must sum to 1; some don't")
    classes = 2 if p.ndim == 1 else p.shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"labels must be 0 to {classes - 1}; they go from {y.min()} to {y.max()}")
    return y.astype(np.int64), p


def _two_classes(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    y, p = checked(labels, probabilities)
    if p.ndim == 2:
        raise DataError("a curve is of one class: give its probabilities, and labels 1 for it and 0 for the rest")
    return y, p


def _ratio(over: NDArray[Any], under: NDArray[Any]) -> Floats:
    """Divide, with nan for 0/0."""
    quotient: Floats = np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0)
    return quotient


def _cumulate(positive: NDArray[Any], score: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Distinct scores (K,), falling, and the false and true positives (B, K) from each of them up."""
    order = np.argsort(-score, kind="stable")
    ranked, is_positive, w = score[order], positive[order], weights[:, order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of ties
    return ranked[last], np.cumsum(w * (1 - is_positive), 1)[:, last], np.cumsum(w * is_positive, 1)[:, last]


def _ranking(positive: NDArray[Any], score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """AUROC by trapezoids, so that ties count half, and average precision as a step function; (B,) each."""
    _, fps, tps = _cumulate(positive, score, weights)
    gained = np.diff(tps, prepend=0)
    area = (np.diff(fps, prepend=0) * (tps - gained / 2)).sum(1)
    steps = np.nansum(gained * _ratio(tps, tps + fps), axis=1)  # nan: only images of weight 0 so far
    return _ratio(area, fps[:, -1] * tps[:, -1]), _ratio(steps, tps[:, -1])


def _matthews(positive: Floats, call: Floats, hit: Floats) -> Floats:
    """R_K of Gorodkin (2004), which is Matthews' coefficient for two classes; from (B, C) to (B,)."""
    total = positive.sum(1)
    covariance = hit.sum(1) * total - (positive * call).sum(1)
    spread = (total**2 - (positive**2).sum(1)) * (total**2 - (call**2).sum(1))
    defined = ((positive > 0).sum(1) > 1) & ((call > 0).sum(1) > 1)  # rounding may leave `spread` just off 0
    return _ratio(covariance, np.where(defined, np.sqrt(np.maximum(spread, 0)), 0))
