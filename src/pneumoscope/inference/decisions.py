"""Logits become probabilities, probabilities become decisions: what a bundle has learnt from its validation films.

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
from pneumoscope.models.bundle import Bundle, Calibration, Conformal

Floats = NDArray[np.float64]

UNCERTAIN, NEITHER, FOREIGN = "uncertain", "neither", "foreign"


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

    Right as far as films of a class look the same wherever they come from, and only how many there are differs.

    Args:
        log_shares: (N, C) logarithms of probabilities.
        stated: (C,) shares they were stated for.
        wanted: (C,) shares to state them for.
    """
    with np.errstate(divide="ignore"):
        return normalise(log_shares + np.log(wanted) - np.log(stated))


def check_decisions(bundle: Bundle, weight: NDArray[np.float32], bias: NDArray[np.float32], width: int) -> None:
    """Check that a bundle's parts fit each other, as far as its description alone does not tell.

    Raises:
        ValueError: saying what does not.
    """
    if len(set(bundle.labels)) < len(bundle.labels):
        raise ValueError(f"labels twice: {', '.join(bundle.labels)}")
    outputs = 1 if len(bundle.labels) == 2 else len(bundle.labels)
    if weight.shape != (outputs, width) or bias.shape != (outputs,):
        raise ValueError(f"the head is {weight.shape} and {bias.shape}, not ({outputs}, {width}) and ({outputs},)")
    if bundle.calibration.method == "isotonic" and (outputs > 1 or not bundle.calibration.knots):
        raise ValueError("isotonic calibration without knots")
    if len(bundle.calibration.offset) not in (0, len(bundle.labels)):
        raise ValueError("an offset for other classes")
    if len(bundle.calibration.shares) not in (0, len(bundle.labels)):
        raise ValueError("shares of other classes")
    if outputs == 1 and "decision" not in bundle.thresholds:
        raise ValueError("no threshold")
    if bundle.novelty is not None and not any(bundle.novelty.distances.values()):
        raise ValueError("a novelty guard without distances")
    try:
        parse_rule(bundle.threshold_rule)
    except UsageError:
        raise ValueError(f"the rule {bundle.threshold_rule!r} of its threshold") from None


def require_shares(bundle: Bundle, prevalence: float | None, adapt: bool = False) -> None:
    """Refuse a prevalence, or its estimation, that a bundle can't be asked for.

    Raises:
        UsageError: no share, more than two classes, or a bundle that does not know its own prevalence.
    """
    if prevalence is None and not adapt:
        return
    asked = "--adapt-prior" if prevalence is None else f"--prevalence {prevalence}"
    if prevalence is not None and not 0 < prevalence < 1:
        raise UsageError(f"{asked}: a share lies between 0 and 1.")
    if prevalence is not None and len(bundle.labels) > 2:
        raise UsageError(f"{asked}: only two classes have a prevalence; this bundle has {len(bundle.labels)}.")
    if not bundle.calibration.shares:
        raise UsageError(f"{asked}: this bundle is of an older version and does not know its own; train it anew.")


def move_threshold(bundle: Bundle, prevalence: float) -> float:
    """The threshold of two classes for probabilities restated for another prevalence.

    An operating point (`youden`, `sensitivity>=0.95` and so on) moves along, so that calls stay the same. A number that
    was meant as a probability, or follows from costs, stays, and calls change.
    """
    threshold = bundle.thresholds["decision"]
    if not parse_rule(bundle.threshold_rule).moves:
        return threshold
    negative, positive = bundle.calibration.shares
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
        kind: `youden` and `f1` maximise, `likelihood` is where a film is as likely under either class, `sensitivity`
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


def find_limits(conformal: Conformal, labels: Sequence[str], error_rate: float) -> Floats:
    """For each class the probability that it needs to be in a label set (C,).

    The k-th smallest of the class's n scores with k = floor(rate * (n + 1)); with k = 0 there are too few films for
    that rate, and the class is always in. Then a film of the class is missed with at most that probability, whatever
    the model, if it is drawn as the validation films were (Vovk 2012).
    """
    limits = []
    for label in labels:
        scores = conformal.scores.get(label, ())
        k = math.floor(error_rate * (len(scores) + 1) + 1e-9)
        limits.append(scores[k - 1] if k else 0.0)
    return np.array(limits)


def decide(label_set: Sequence[str], call: str, foreign: bool) -> str:
    """A label where all agree, else what one has to know.

    Args:
        label_set: the classes that the film may belong to.
        call: what the threshold (or the highest probability) alone says.
        foreign: whether the film is unlike those trained on.

    Returns:
        `foreign`; `neither` for an empty set; `uncertain` where the set has several labels, or one that the threshold
        contradicts; else the label.
    """
    if foreign:
        return FOREIGN
    if not label_set:
        return NEITHER
    return call if tuple(label_set) == (call,) else UNCERTAIN
