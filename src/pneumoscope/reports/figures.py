"""The plots of a report, each with what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.cases import Case, stack_uncalibrated
from pneumoscope.evaluation.curves import confidence_of, decision_curve, selective_curve
from pneumoscope.evaluation.metrics import measure
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.reports import plots

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """One plot: `told` is what a reader who can't see it needs, `title` and `caption` what all do."""

    name: str
    title: str
    svg: str
    told: str
    caption: str


def draw_figures(
    evaluation: Evaluation, cases: Sequence[Case], labels: Ints, probabilities: Floats, calibration: str = ""
) -> dict[str, Figure]:
    """Draw all that these cases can fill, by name.

    Args:
        evaluation: of these cases.
        cases: (N,) what the classifier said.
        labels: (N,) their classes.
        probabilities: (N,) or (N, C), as in the cases.
        calibration: what the method is called, for the caption.
    """
    two = evaluation.positive is not None
    patients = [case.patient for case in cases]
    given = patients if any(patients) else None
    figures = [
        _draw_confusion(evaluation),
        *_draw_curves(evaluation, labels, probabilities, given),
        Figure(
            "probabilities", "Spread", plots.histogram(evaluation, labels, probabilities),
            "Histogram of the probabilities.",
            "Of the probabilities, by true class. Dashed: the threshold." if two
            else "Of the highest probability, by whether the call was right.",
        ),
        _draw_reliability(evaluation, labels, probabilities, stack_uncalibrated(cases), calibration),
        _draw_selection(evaluation, cases, probabilities, given),
    ]  # fmt: skip
    if two and 0 < evaluation.prevalence < 1:
        figures.append(_draw_benefit(evaluation, labels, probabilities, given))
    return {figure.name: figure for figure in figures}


def draw_learning(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the losses of training."""
    return Figure(
        "learning", "Learning curve", plots.learning(history), f"Loss over {len(history)} epochs.",
        "Dot: the lowest validation loss, whose weights are the model. Vertical line: the next phase.",
    )  # fmt: skip


def find_standing(cases: Sequence[Case]) -> tuple[float, float] | None:
    """Return the share that the decisions answer and the accuracy among it; None where they answer all or nothing."""
    answered = [case for case in cases if case.answered]
    if not answered or len(answered) == len(cases):
        return None
    return len(answered) / len(cases), float(np.mean([case.decision == case.label for case in answered]))


def _draw_confusion(evaluation: Evaluation) -> Figure:
    counts = plots.matrix(evaluation)
    told = "; ".join(
        f"{truth} called {decision}: {counts[i, j]}"
        for i, truth in enumerate(evaluation.classes)
        for j, decision in enumerate(evaluation.classes)
    )
    return Figure(
        "confusion", "Confusion matrix", plots.confusion_matrix(evaluation), f"Confusion matrix. {told}.",
        "A row is a true class; shade and percentage are shares of the row.",
    )  # fmt: skip


def _draw_curves(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, patients: Sequence[str | None] | None
) -> list[Figure]:
    two = evaluation.positive is not None
    band = " Band: {level}, {by}." if plots.has_band(evaluation, patients) else ""
    of_each = "" if two else " One curve a class, against all others."
    point = " Dot: the threshold in use." if two else ""
    level = _level(evaluation)
    return [
        Figure(
            "roc", "ROC curve", plots.roc(evaluation, labels, probabilities, patients),
            f"ROC curve, AUROC {_value(evaluation, 'auroc')}.",
            f"{band.format(level=level, by='rate by rate')}{of_each}{point} Thin line: chance.".strip(),
        ),
        Figure(
            "precision-recall", "Precision and recall",
            plots.precision_recall(evaluation, labels, probabilities, patients),
            f"Precision-recall curve, average precision {_value(evaluation, 'average_precision')}.",
            f"{band.format(level=level, by='recall by recall')}{of_each}{point}"
            f"{' Thin line: chance, which is the prevalence.' if two else ''}",
        ),
    ]  # fmt: skip


def _draw_reliability(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, before: Floats | None, calibration: str
) -> Figure:
    changed = before is not None and not np.allclose(before, probabilities)
    if before is not None and changed:
        threshold = evaluation.threshold if evaluation.positive else 0.5
        raw = measure(labels, before, threshold=threshold)
        by = f" by {calibration}" if calibration else ""
        moved = (
            f" Calibration{by} took the calibration error from {raw['ece'][0]:.3f} to {_value(evaluation, 'ece')} and "
            f"the Brier score from {raw['brier'][0]:.3f} to {_value(evaluation, 'brier')} on these images."
        )
    else:
        moved = ""
    return Figure(
        "reliability", "Reliability", plots.reliability(evaluation, labels, probabilities, before if changed else None),
        f"Reliability diagram, calibration error {_value(evaluation, 'ece')}.",
        f"On the line, probability and observed share agree.{moved} Larger dots hold more images; bars are "
        f"{_level(evaluation)} intervals that leave patients aside.",
    )  # fmt: skip


def _draw_selection(
    evaluation: Evaluation, cases: Sequence[Case], probabilities: Floats, patients: Sequence[str | None] | None
) -> Figure:
    threshold = evaluation.threshold if evaluation.positive else 0.5
    curve = selective_curve(
        [case.predicted_label == case.label for case in cases], confidence_of(probabilities, threshold), patients=patients,
        level=evaluation.confidence, seed=evaluation.seed,
    )  # fmt: skip
    standing = find_standing(cases)
    mark = " Diamond: the decisions, which leave out the uncertain and the ood." if standing else ""
    return Figure(
        "risk-coverage", "Risk and coverage", plots.risk_coverage(curve, standing),
        f"Risk-coverage curve, area {curve.area:.3f}.",
        f"Accuracy if only the surest calls are answered. Mean risk over all shares (AURC): "
        f"{curve.area:.3f}.{mark} Thin line: all answered. Band: {_level(evaluation)}.",
    )  # fmt: skip


def _draw_benefit(
    evaluation: Evaluation, labels: Ints, probabilities: Floats, patients: Sequence[str | None] | None
) -> Figure:
    curve = decision_curve(labels, probabilities, patients=patients, confidence=evaluation.confidence)
    best = np.flatnonzero(curve.model > np.maximum(curve.everybody, 0))
    said = f"from {curve.thresholds[best[0]]:.2f} to {curve.thresholds[best[-1]]:.2f}" if len(best) else "nowhere"
    gaps = len(best) and len(best) < best[-1] - best[0] + 1
    return Figure(
        "decision-curve", "Decision curve", plots.net_benefit(evaluation, curve),
        f"Decision curve: the model is worth more than calling all or none positive {said}.",
        f"Net benefit (true positives an image, less false alarms at the threshold’s odds) is above both "
        f"calling all {evaluation.positive} and calling none so {'in most places ' if gaps else ''}{said}. It is that "
        f"of a clinic with this prevalence. Band: {_level(evaluation)}.",
    )  # fmt: skip


def _level(evaluation: Evaluation) -> str:
    return f"{100 * evaluation.confidence:g}\u00a0%"


def _value(evaluation: Evaluation, name: str) -> str:
    value = evaluation.metrics[name].value
    return "–" if np.isnan(value) else f"{value:.3f}"
