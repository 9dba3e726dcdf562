"""From which probability on an image is called positive; chosen on validation images, never on test images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.decisions.decide import parse_rule
from pneumoscope.evaluation.metrics import check_predictions, roc_curve


def choose_threshold(rule: str, labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Choose the threshold of two classes by a stated rule.

    `youden` maximises sensitivity + specificity (Youden 1950), `f1` maximises F1; `sensitivity>=0.95` takes the best
    specificity among thresholds that reach it on these images, `specificity>=0.95` the best sensitivity. `likelihood` is
    where an image is as likely under either class, by a logistic curve through all images with classes of equal weight:
    what Youden's index seeks, but less at the mercy of the few images that lie there. `cost=R`, a miss being as bad as R
    false alarms, is 1 / (1 + R) whatever the images (Elkan 2001, eq. 2), and a number is itself. The rules that count
    images take the middle between two images' probabilities; among equally good thresholds the one in the widest gap.

    Args:
        rule: one of these.
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1, calibrated.
        weights: (N,) how much each image counts.

    Raises:
        UsageError: no such rule.
        DataError: labels or probabilities that cannot be used.
    """
    goal = parse_rule(rule)
    if goal.kind == "fixed":
        return goal.value
    if goal.kind == "cost":
        return 1 / (1 + goal.value)
    y, p = check_predictions(labels, probabilities)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if goal.kind == "likelihood":
        return _find_even_odds(y, p, w)
    fpr, tpr, cuts = roc_curve(y, p, w[None])
    specificity, sensitivity = 1 - fpr[0], tpr[0]
    # A cut takes in all images from its own probability on: the threshold lies between it and the next lower one.
    above = np.minimum(cuts, 1.0)
    below = np.append(cuts[1:], 0.0)
    if goal.kind == "youden":
        worth = sensitivity + specificity
    elif goal.kind == "f1":
        hits, alarms = sensitivity * w[y == 1].sum(), (1 - specificity) * w[y == 0].sum()
        worth = 2 * hits / (hits + alarms + w[y == 1].sum())
    else:
        reached, other = (sensitivity, specificity) if goal.kind == "sensitivity" else (specificity, sensitivity)
        worth = np.where(reached >= goal.value - 1e-12, other, -1.0)
    if p.max() >= 1:
        worth[0] = -np.inf  # no threshold in [0, 1] lies above a probability of 1
    if worth.max() < 0:
        return 1.0  # too many negatives have a probability of 1: as few calls as there can be
    best = np.flatnonzero(worth >= worth.max() - 1e-12)
    widest = best[np.argmax((above - below)[best])]
    return float((above[widest] + below[widest]) / 2)


def _find_even_odds(y: NDArray[np.int64], p: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    """Where a logistic curve through the images' logits, with both classes of equal weight, passes one half."""
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    weights = w / np.bincount(y, w)[y] * len(y) / 2
    curve = LogisticRegression().fit(logit(np.clip(p, 1e-9, 1 - 1e-9))[:, None], y, sample_weight=weights)
    slope = curve.coef_[0, 0]
    return float(expit(-curve.intercept_[0] / slope)) if slope else 0.5  # equal probabilities tell nothing
