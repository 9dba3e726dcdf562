"""What a model decides by as plain numbers, for programs that run an exported network without this package."""

from __future__ import annotations

from typing import Any

from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.decisions.prediction_sets import find_cutoffs
from pneumoscope.models.model_folder import Model


def describe_rules(model: Model) -> dict[str, Any]:
    """Describe how logits become a decision; docs/guide/export.md uses it.

    Returns:
        `formula`, `slope`, `intercept`, `offset` and `knots` of the calibration; `threshold` of the positive class,
        None for more than two; `thresholds` of more than two, in the order of the labels: the class that reaches the
        largest multiple of its own is predicted; `cutoffs`, the probabilities from which on each class is in the
        prediction set, in the order of the labels; None without prediction sets.

    Raises:
        ModelError: the decisions are damaged.
    """
    decisions = read_decisions(model)
    fitted, sets = decisions.calibration, decisions.prediction_sets
    return {
        "formula": _describe_formula(fitted, len(model.labels)),
        "slope": fitted.slope,
        "intercept": fitted.intercept,
        "offset": list(fitted.offset or [0.0] * len(model.labels)),
        "knots": [list(knot) for knot in fitted.knots],
        "threshold": None if decisions.threshold is None else decisions.threshold.value,
        "thresholds": None if decisions.threshold else list(decisions.class_thresholds or [0.5] * len(model.labels)),
        "cutoffs": None if sets is None else find_cutoffs(sets, model.labels).tolist(),
    }


def _describe_formula(fitted: Calibration, classes: int) -> str:
    if fitted.method == "isotonic":
        return "probability of the positive class = straight lines between the knots (logit, probability)"
    scaled = "[0, slope * logit + intercept]" if classes == 2 else "slope * logits"
    return f"probabilities = softmax({scaled} + offset)"
