"""What a model decides by as plain numbers, for programs that run an exported network without this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decisions
from pneumoscope.decisions.groups import Group
from pneumoscope.decisions.prediction_sets import find_cutoffs


def describe_rules(decisions: Decisions, labels: Sequence[str]) -> dict[str, Any]:
    """Describe how the logits of these classes become a decision; docs/guide/export.md uses it.

    Returns:
        `formula`, `slope`, `intercept` and `knots` of the calibration, offsets included: `intercept` is one number for
        two classes, and one for each of more. `threshold` of the positive class; None for more than two. `thresholds`
        of more than two, in the order of the labels: the class that reaches the largest multiple of its own is
        predicted. `cutoffs`: the probability from which on each class is in the prediction set, in the order of the
        labels; None without prediction sets. `groups`: the first that an image fits decides, by `ages` (youngest and
        oldest in years) and `views`, where they are not empty; one whose age or view is unknown fits no group that
        states these. Its logit is multiplied by the group's `slope`, then its `intercept` is added, before everything
        else; `cutoffs` replace those above, and `ood_factor` multiplies the graph's OOD score.
    """
    fitted, sets = decisions.calibration, decisions.prediction_sets
    offset = fitted.offset or (0.0,) * len(labels)
    return {
        "formula": _describe_formula(fitted, len(labels)),
        "slope": fitted.slope,
        "intercept": fitted.intercept + offset[1] - offset[0] if len(labels) == 2 else list(offset),
        "knots": [list(knot) for knot in fitted.knots],
        "threshold": None if decisions.threshold is None else decisions.threshold.value,
        "thresholds": None if decisions.threshold else list(decisions.class_thresholds or [0.5] * len(labels)),
        "cutoffs": None if sets is None else find_cutoffs(sets, labels).tolist(),
        "groups": [_describe_group(group, decisions, labels) for group in decisions.groups],
    }


def find_uncertain_range(
    decisions: Decisions, labels: Sequence[str], group: str | None = None
) -> tuple[float, float] | None:
    """Find the probabilities between which images of a group, or of none, are `uncertain`.

    Below the first the decision is the negative class, above the second the positive one: there, threshold and
    prediction set name the same class, and no other.

    Returns:
        Probabilities of the positive class; None for more than two classes, or without prediction sets.
    """
    own = decisions.for_group(next((each for each in decisions.groups if each.name == group), None))
    if own.prediction_sets is None or own.threshold is None:
        return None
    negative, positive = find_cutoffs(own.prediction_sets, labels).tolist()
    ends = (own.threshold.value, positive, 1 - negative)
    return min(ends), max(ends)


def _describe_group(group: Group, decisions: Decisions, labels: Sequence[str]) -> dict[str, Any]:
    own = decisions.for_group(group)
    return {
        "name": group.name,
        "ages": list(group.scope.ages or ()),
        "views": list(group.scope.views),
        "slope": group.slope,
        "intercept": group.intercept,
        "cutoffs": None if own.prediction_sets is None else find_cutoffs(own.prediction_sets, labels).tolist(),
        "ood_factor": 1.0 if decisions.ood is None or own.ood is None else decisions.ood.limit / own.ood.limit,
    }


def _describe_formula(fitted: Calibration, classes: int) -> str:
    if fitted.method == "isotonic":
        return "probability of the positive class = straight lines between the knots (logit, probability)"
    if classes == 2:
        return "probability of the positive class = 1 / (1 + exp(-(slope * logit + intercept)))"
    return "probabilities = softmax(slope * logits + intercept)"
