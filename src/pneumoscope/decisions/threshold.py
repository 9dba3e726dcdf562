"""Probability to predicted label: the threshold of two classes, or of each of more; never fitted on test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Fraction, quote
from pneumoscope.errors import DataError, UsageError

Kind: TypeAlias = Literal["youden", "likelihood", "f1", "sensitivity", "specificity", "cost", "fixed"]


@dataclass(frozen=True)
class Threshold:
    """The threshold of two classes."""

    value: Fraction = 0.5  # an image is labelled positive from this probability on
    rule: str = "0.5"  # how it was chosen; see `parse_rule`

    @property
    def follows_prevalence(self) -> bool:
        """Whether it is an operating point, which moves with the probabilities to another prevalence.

        A number meant as a probability, or one that follows from costs, stays.
        """
        return parse_rule(self.rule).kind not in ("cost", "fixed")

    def check(self) -> None:
        """Check that the value is what the rule says, where it says it.

        Raises:
            UsageError: not a valid rule.
            ValueError: another value.
        """
        rule = parse_rule(self.rule)
        stated = {"fixed": rule.value, "cost": 1 / (1 + rule.value)}.get(rule.kind, self.value)
        if abs(self.value - stated) > 1e-6:
            raise ValueError(f"the threshold is {self.value:g}, but its rule says {quote(self.rule)}")


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen."""

    # `youden` and `f1` are maximised, `likelihood` is where an image is as likely under either class, `sensitivity`
    # and `specificity` are to be reached, `cost` weighs a miss against false alarms, `fixed` is the threshold itself
    kind: Kind
    value: float = math.nan  # the goal, the cost ratio or the threshold


def parse_rule(text: str) -> Rule:
    """Read `youden`, `likelihood`, `f1`, `sensitivity>=0.95`, `specificity>=0.95`, `cost=5` or a number.

    Raises:
        UsageError: none of these.
    """
    plain = text.replace(" ", "").lower()
    for name in ("youden", "likelihood", "f1"):
        if plain == name:
            return Rule(name)
    kind, separator, number = plain.replace(">=", "=").partition("=")
    try:
        value = float(number if separator else plain)
    except ValueError:
        value = math.nan
    if not separator and 0 <= value <= 1:
        return Rule("fixed", value)
    for goal in ("sensitivity", "specificity"):
        if separator and kind == goal and 0 < value <= 1:
            return Rule(goal, value)
    if separator and kind == "cost" and 0 < value < math.inf:
        return Rule("cost", value)
    raise UsageError(
        f"{quote(text)} is not a valid rule. Use likelihood, youden, f1, 'sensitivity>=0.95', "
        "'specificity>=0.95', cost=5 (a miss is as bad as five false alarms), or a number from 0 to 1. Quote a rule "
        "that contains >.",
        "threshold",
    )


def require_number(threshold: float | str) -> float:
    """A threshold that must be a number, as there are no labels by which a rule could choose it.

    Raises:
        UsageError: a rule, or something else.
    """
    try:
        return float(threshold)
    except ValueError:
        wrong = UsageError(f"must be a number, found {quote(threshold)}.", "threshold")
    try:
        parse_rule(str(threshold))
    except UsageError:
        raise wrong from None
    raise UsageError(
        f"must be a number here, found the rule {quote(threshold)}, which needs labelled images. Train with the rule, "
        "or apply it with `pneumoscope evaluate DATA --threshold RULE --out NEW`, and give the number that it chooses.",
        "threshold",
    )


def fit(rule: str, labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> Threshold:
    """Choose the threshold of two classes by a rule.

    `youden` maximises sensitivity + specificity (Youden 1950), `f1` maximises F1; `sensitivity>=0.95` takes the best
    specificity among the thresholds that reach it on these images, `specificity>=0.95` the best sensitivity.
    `likelihood` is where an image is as likely under either class, by a logistic curve through all images with equal
    weight of the classes: it aims at the same point as Youden's index but depends less on the few images near it.
    `cost=R`, where a miss is as bad as R false alarms, is 1 / (1 + R) for any images (Elkan 2001, eq. 2), and a
    number is itself. Rules that count images take the middle between two images' probabilities, and among equally good
    thresholds the one in the widest gap.

    Args:
        rule: one of these.
        labels: (N,) of 0 and 1.
        probabilities: (N,) of class 1, calibrated.
        weights: (N,) how much each image counts.

    Raises:
        UsageError: not a valid rule.
        DataError: images of one class only.
    """
    goal = parse_rule(rule)
    if goal.kind == "fixed":
        return Threshold(goal.value, rule)
    if goal.kind == "cost":
        return Threshold(1 / (1 + goal.value), rule)
    y, p = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if len(np.unique(y)) < 2:
        raise DataError(f"The rule {rule} needs images of both classes. Give the threshold as a number.")
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    value = _find_equal_likelihood(y, p, w) if goal.kind == "likelihood" else _find_best(goal, y, p, w)
    return Threshold(value, rule)


def apply(probabilities: ArrayLike, threshold: Threshold) -> NDArray[np.bool_]:
    """Whether each of (N,) probabilities reaches the threshold."""
    return np.asarray(probabilities, np.float64) >= threshold.value


def fit_by_class(rule: str, class_fractions: Sequence[float]) -> tuple[float, ...]:
    """Choose the thresholds of more than two classes, for `apply_by_class`.

    With `likelihood` they are the class fractions. The predicted label is then the class under which the image is most
    likely, whatever the classes' shares: with calibrated probabilities, no other rule has a better mean sensitivity
    (balanced accuracy). More accuracy at the shares of training comes from 0.5, which predicts the likeliest class.

    Args:
        rule: `likelihood` or 0.5.
        class_fractions: (C,) for which the probabilities hold.

    Returns:
        (C,), or none for the likeliest class.

    Raises:
        UsageError: another rule.
    """
    goal = parse_rule(rule)
    if goal.kind == "likelihood":
        return tuple(class_fractions)
    if goal != Rule("fixed", 0.5):
        raise UsageError(
            f"{quote(rule)} is for two classes; there are {len(class_fractions)}. Use likelihood (the same weight for "
            "each class) or 0.5 (the likeliest class).",
            "threshold",
        )
    return ()


def apply_by_class(probabilities: ArrayLike, thresholds: ArrayLike) -> NDArray[np.int64]:
    """The class that reaches the largest multiple of its threshold, (N,), by probabilities (N, C).

    One number for all classes gives the likeliest.
    """
    largest: NDArray[np.int64] = (np.asarray(probabilities, np.float64) / np.asarray(thresholds, np.float64)).argmax(1)
    return largest


def _find_best(goal: Rule, y: NDArray[np.int64], p: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    """The threshold that serves a rule best, half-way between two images' probabilities."""
    from sklearn.metrics import roc_curve

    fpr, sensitivity, cuts = roc_curve(y, p, sample_weight=w, drop_intermediate=False)
    specificity = 1 - fpr
    # A cut includes all images from its own probability on: the threshold lies between it and the next lower one.
    above = np.minimum(cuts, 1.0)
    below = np.append(cuts[1:], 0.0)
    if goal.kind == "youden":
        benefit = sensitivity + specificity
    elif goal.kind == "f1":
        hits, false_alarms = sensitivity * w[y == 1].sum(), (1 - specificity) * w[y == 0].sum()
        benefit = 2 * hits / (hits + false_alarms + w[y == 1].sum())
    else:
        reached, other = (sensitivity, specificity) if goal.kind == "sensitivity" else (specificity, sensitivity)
        benefit = np.where(reached >= goal.value - 1e-12, other, -1.0)
    if p.max() >= 1:
        benefit[0] = -np.inf  # no threshold in [0, 1] lies above a probability of 1
    if benefit.max() < 0:
        return 1.0  # too many negatives have a probability of 1: label as few positive as possible
    best = np.flatnonzero(benefit >= benefit.max() - 1e-12)
    widest = best[np.argmax((above - below)[best])]
    return float((above[widest] + below[widest]) / 2)


def _find_equal_likelihood(y: NDArray[np.int64], p: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    """Find where a logistic curve through the images' logits, with equal weight for both classes, passes one half."""
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    weights = w / np.bincount(y, w)[y] * len(y) / 2
    curve = LogisticRegression().fit(logit(np.clip(p, 1e-9, 1 - 1e-9))[:, None], y, sample_weight=weights)
    slope = curve.coef_[0, 0]
    return float(expit(-curve.intercept_[0] / slope)) if slope else 0.5  # equal probabilities tell nothing
