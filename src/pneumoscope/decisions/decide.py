"""Logits become probabilities, probabilities become decisions: what a model has learnt from its validation images.

Everything is worked out on logarithms of class shares, (N, C): a probability of nearly 1 can then be restated for
another prevalence without having been rounded to 1 before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import UsageError
from pneumoscope.models.model_folder import Calibration, Conformal, Model

Floats = NDArray[np.float64]

UNCERTAIN, NEITHER, OUT_OF_DISTRIBUTION = "uncertain", "neither", "out_of_distribution"


def calibrate(logits: ArrayLike, calibration: Calibration) -> Floats:
    """Turn logits into the logarithms of the classes' probabilities.

    Args:
        logits: (N, 1), the positive class's of two, or (N, C).
        calibration: as fitted; `Calibration()` leaves the sigmoid or softmax alone.

    Returns:
        (N, 2) or (N, C), never above 0.
    """
    z = np.asarray(logits, np.float64)
    if calibration.method == "isotonic":
        positive = np.interp(z[:, 0], *np.transpose(calibration.knots))
        with np.errstate(divide="ignore"):
            log_shares: Floats = np.log(np.stack([1 - positive, positive], axis=1))
        return log_shares
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), calibration.slope * z + calibration.intercept])
    else:
        z = calibration.slope * z
    return normalise(z + np.array(calibration.offset) if calibration.offset else z)


def restate(log_shares: Floats, stated: Sequence[float], wanted: Sequence[float]) -> Floats:
    """Restate probabilities for other shares of the classes (Elkan 2001, theorem 2; Saerens et al. 2002, eq. 2.4).

    Right as far as images of a class look the same wherever they come from, and only how many there are differs.

    Args:
        log_shares: (N, C) logarithms of probabilities.
        stated: (C,) shares they were stated for.
        wanted: (C,) shares to state them for.
    """
    with np.errstate(divide="ignore"):
        return normalise(log_shares + np.log(wanted) - np.log(stated))


def check_decisions(model: Model, weight: NDArray[np.float32], bias: NDArray[np.float32], width: int) -> None:
    """Check that a model's parts fit each other, as far as its description alone does not tell.

    Raises:
        ValueError: saying what does not.
    """
    if len(set(model.labels)) < len(model.labels):
        raise ValueError(f"labels twice: {', '.join(model.labels)}")
    outputs = 1 if len(model.labels) == 2 else len(model.labels)
    if weight.shape != (outputs, width) or bias.shape != (outputs,):
        raise ValueError(f"the head is {weight.shape} and {bias.shape}, not ({outputs}, {width}) and ({outputs},)")
    if model.calibration.method == "isotonic" and (outputs > 1 or not model.calibration.knots):
        raise ValueError("isotonic calibration without knots")
    if len(model.calibration.offset) not in (0, len(model.labels)):
        raise ValueError("an offset for other classes")
    if len(model.calibration.shares) not in (0, len(model.labels)):
        raise ValueError("shares of other classes")
    if outputs == 1 and "decision" not in model.thresholds:
        raise ValueError("no threshold")
    if model.ood is not None and not any(model.ood.distances.values()):
        raise ValueError("a OOD detector without distances")
    try:
        parse_rule(model.threshold_rule)
    except UsageError:
        raise ValueError(f"the rule {model.threshold_rule!r} of its threshold") from None


def require_shares(model: Model, prevalence: float | None, adapt: bool = False) -> None:
    """Refuse a prevalence, or its estimation, that a model can't be asked for.

    Raises:
        UsageError: no share, more than two classes, or a model that does not know its own prevalence.
    """
    if prevalence is None and not adapt:
        return
    asked = "--adapt-prior" if prevalence is None else f"--prevalence {prevalence}"
    if prevalence is not None and not 0 < prevalence < 1:
        raise UsageError(f"{asked}: a share lies between 0 and 1.")
    if prevalence is not None and len(model.labels) > 2:
        raise UsageError(f"{asked}: only two classes have a prevalence; this model has {len(model.labels)}.")
    if not model.calibration.shares:
        raise UsageError(f"{asked}: this model is of an older version and does not know its own; train it anew.")


def move_threshold(model: Model, prevalence: float) -> float:
    """The threshold of two classes for probabilities restated for another prevalence.

    An operating point (`youden`, `sensitivity>=0.95` and so on) moves along, so that calls stay the same. A number that
    was meant as a probability, or follows from costs, stays, and calls change.
    """
    threshold = model.thresholds["decision"]
    if not parse_rule(model.threshold_rule).moves:
        return threshold
    negative, positive = model.calibration.shares
    hit, miss = threshold * prevalence / positive, (1 - threshold) * (1 - prevalence) / negative
    return hit / (hit + miss)


def normalise(log_shares: Floats) -> Floats:
    """Subtract what makes each row's exponentials sum to 1."""
    top = log_shares.max(axis=1, keepdims=True)
    shifted = log_shares - top
    normal: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen.

    Attributes:
        kind: `youden` and `f1` maximise, `likelihood` is where an image is as likely under either class, `sensitivity`
            and `specificity` are to be reached, `cost` says how many false alarms a miss is worth, `fixed` is the
            threshold itself.
        value: the goal, the ratio or the threshold.
    """

    kind: Literal["youden", "likelihood", "f1", "sensitivity", "specificity", "cost", "fixed"]
    value: float = math.nan

    @property
    def moves(self) -> bool:
        """Whether it is an operating point, which follows the probabilities to another prevalence."""
        return self.kind not in ("cost", "fixed")


def parse_rule(text: str) -> Rule:
    """Read `youden`, `likelihood`, `f1`, `sensitivity>=0.95`, `specificity>=0.95`, `cost=5` or a number.

    Raises:
        UsageError: none of these.
    """
    plain = text.replace(" ", "").lower()
    if plain == "youden":
        return Rule("youden")
    if plain == "likelihood":
        return Rule("likelihood")
    if plain == "f1":
        return Rule("f1")
    kind, separator, number = plain.replace(">=", "=").partition("=")
    try:
        value = float(number if separator else plain)
    except ValueError:
        value = math.nan
    if not separator and 0 <= value <= 1:
        return Rule("fixed", value)
    if separator and kind == "sensitivity" and 0 < value <= 1:
        return Rule("sensitivity", value)
    if separator and kind == "specificity" and 0 < value <= 1:
        return Rule("specificity", value)
    if separator and kind == "cost" and 0 < value < math.inf:
        return Rule("cost", value)
    raise UsageError(
        f"--threshold {text}: no such rule. There are likelihood, youden, f1, 'sensitivity>=0.95', "
        "'specificity>=0.95', cost=5 (a miss is as bad as five false alarms), or a number from 0 to 1. "
        "Quote what has > in it."
    )


def find_limits(conformal: Conformal, labels: Sequence[str], alpha: float) -> Floats:
    """For each class the probability that it needs to be in a prediction set (C,).

    The k-th smallest of the class's n scores with k = floor(rate * (n + 1)); with k = 0 there are too few images for
    that rate, and the class is always in. Then an image of the class is missed with at most that probability, whatever
    the model, if it is drawn as the validation images were (Vovk 2012).
    """
    limits = []
    for label in labels:
        scores = conformal.scores.get(label, ())
        k = math.floor(alpha * (len(scores) + 1) + 1e-9)
        limits.append(scores[k - 1] if k else 0.0)
    return np.array(limits)


def decide(prediction_set: Sequence[str], predicted_label: str, ood: bool) -> str:
    """A label where all agree, else what one has to know.

    Args:
        prediction_set: the classes that the image may belong to.
        predicted_label: what the threshold (or the highest probability) alone says.
        ood: whether the image is unlike those trained on.

    Returns:
        `ood`; `neither` for an empty set; `uncertain` where the set has several labels, or one that the threshold
        contradicts; else the label.
    """
    if ood:
        return OUT_OF_DISTRIBUTION
    if not prediction_set:
        return NEITHER
    return predicted_label if tuple(prediction_set) == (predicted_label,) else UNCERTAIN
