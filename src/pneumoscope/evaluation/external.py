"""Measures predictions that another program made: tables of probabilities, joined with labels by the images' names."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import quote
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.left_out import describe_unusable
from pneumoscope.datasets.prediction_tables import read_prediction_table
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions import calibration
from pneumoscope.decisions import threshold as thresholds
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decisions
from pneumoscope.decisions.prior_shift import check_prevalence
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.evaluate import Measured, Plan, make_rows, write_measured
from pneumoscope.evaluation.external_calibration import (
    SMALLEST,
    calibrate,
    describe_certain,
    find_harm,
    index_classes,
)
from pneumoscope.evaluation.external_tables import Choices, Joined, find_positive, join, read_joined
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.pairing import Predictions, read_predictions
from pneumoscope.evaluation.prevalence import adjust_evaluation
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities
from pneumoscope.text import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class External:
    """What was measured of another program's predictions, and how."""

    measured: Measured
    rule: str  # by which the threshold was chosen, where it was
    fitted: Calibration | None  # on all images that calibrate; None without calibration
    facts: dict[str, str] = field(default_factory=dict)  # what a reader must know of it


def measure_external(
    predictions: Path,
    truth: Path | None,
    choices: Choices,
    plan: Plan,
    naming: Naming = Naming(),
    patient_pattern: str | None = None,
    out: Path | None = None,
) -> External:
    """Join predictions with labels, and measure them.

    Args:
        predictions: a table with a probability for each image.
        truth: labels: a table, or a folder of classes; None where `predictions` holds them.
        choices: columns, positive class, threshold and calibration.
        plan: what to measure; `split` may be empty.
        naming: what columns and classes of the labels are called.
        patient_pattern: regular expression that finds the patient in the path of a file.
        out: an existing folder to write to, see `measure`; None writes nothing.

    Raises:
        DataError, UsageError: a table cannot be read or joined, or an option does not fit.
    """
    if plan.prevalence is not None and not choices.calibrate:
        raise UsageError(
            "needs `calibrate`: nobody knows which prevalence the probabilities of another program hold for, so "
            "they cannot be adjusted.", "prevalence",
        )  # fmt: skip
    joined = read_joined(predictions, truth, choices, naming, patient_pattern)
    check_prevalence(plan.prevalence, joined.classes)
    errors = joined.list_errors()
    split = plan.split or _choose_split(joined.samples, errors)
    chosen = [i for i, sample in enumerate(joined.samples) if split in ("all", sample.split)]
    if not chosen:
        found = ", ".join(sorted({str(sample.split or "no split") for sample in joined.samples}))
        raise UsageError(f"no split {split!r}; the labels have {found}. Use `all` for all.", "split")
    usable = [i for i in chosen if errors[i] is None]
    if not usable:
        raise DataError(_describe_nothing(joined, chosen, errors))
    val = [i for i, each in enumerate(joined.samples) if each.split == "val" and errors[i] is None]
    val = [] if split in ("val", "all") else val
    probabilities, before, fitted, facts = calibrate(joined, usable, val, choices, plan.seed)
    if fitted is not None:
        logging.getLogger("pneumoscope").info("%s", calibration.describe_fit(fitted))
    cut, rule = _choose_threshold(joined, usable, val, probabilities, choices)
    made = _make_predictions(joined, probabilities, cut, errors)
    notes = [*joined.notes, *describe_unusable(
        [joined.samples[i] for i in chosen], [errors[i] for i in chosen], "without a usable prediction"
    ), *_find_doubts(joined, usable, cut, choices), *find_harm(joined, usable, before, probabilities)]  # fmt: skip
    for note in notes:
        logging.getLogger("pneumoscope").warning("%s", note)
    measured = _measure(joined, chosen, made, cut, before, replace(plan, split=split), notes)
    if plan.prevalence is not None and fitted is not None:
        measured = _adjust(measured, Decisions(fitted, Threshold(cut, rule or "0.5")), plan.prevalence)
    if out is not None:
        rows = make_rows([made[i] for i in chosen], joined.classes, out)
        if before is not None:
            rows = [row | _name_raw(raw, joined.classes) for row, raw in zip(rows, before[chosen], strict=True)]
        write_measured(out, measured, plan.excel, rows)
    return External(measured, rule, fitted, facts)


def _measure(
    joined: Joined,
    chosen: Sequence[int],
    made: Sequence[Prediction],
    cut: float,
    before: Floats | None,
    plan: Plan,
    notes: Sequence[str],
) -> Measured:
    """Measure the chosen images that have a prediction; `before` are probabilities (N, C) without calibration."""
    usable = [i for i in chosen if made[i].error is None]
    readable, samples = [made[i] for i in usable], [joined.samples[i] for i in usable]
    labels = index_labels(readable, joined.classes)

    def evaluate(probabilities: Floats) -> Evaluation:
        return evaluate_predictions(
            labels, probabilities, classes=joined.classes, split=plan.split, threshold=cut,
            patients=[each.patient for each in readable], resamples=plan.resamples, seed=plan.seed,
        )  # fmt: skip

    evaluation = evaluate(stack_probabilities(readable))
    raw, uncalibrated = None, {}
    if before is not None:
        raw = before[usable][:, 1] if len(joined.classes) == 2 else before[usable]
        metrics = evaluate(raw).metrics
        uncalibrated = {name: metrics[name] for name in ("brier", "ece")}
    subgroups = measure_subgroups(readable, evaluation, [sample.metadata for sample in samples], plan.subgroups)
    evaluation = replace(evaluation, notes=tuple(notes), uncalibrated=uncalibrated, subgroups=tuple(subgroups))
    errors = [(str(each.path), each.error) for each in (made[i] for i in chosen) if each.error is not None]
    return Measured(evaluation, readable, samples, errors, uncalibrated=raw)


def _adjust(measured: Measured, decisions: Decisions, prevalence: float) -> Measured:
    """Add metrics at another prevalence than the one that the calibrated probabilities hold for."""
    predictions, evaluation = measured.predictions, measured.evaluation
    positive = np.clip(stack_probabilities(predictions), SMALLEST, 1 - SMALLEST)
    adjusted = adjust_evaluation(
        evaluation, decisions, index_labels(predictions, evaluation.classes),
        np.log(np.stack([1 - positive, positive], axis=1)), prevalence, [each.patient for each in predictions],
    )  # fmt: skip
    return replace(measured, evaluation=replace(evaluation, adjusted=adjusted))


def _choose_split(samples: Sequence[Sample], errors: Sequence[str | None]) -> str:
    """Test, if there is one; else the only split that has predictions, or all images."""
    present = {sample.split for sample in samples}
    if "test" in present:
        return "test"
    predicted = {sample.split for sample, error in zip(samples, errors, strict=True) if error is None}
    only = next(iter(predicted)) if len(predicted) == 1 else None
    if only is None and len(present) > 1:
        raise DataError("the labels have no test split. Choose one, or `all`.", "split")
    return only or next(iter(present)) or "all"


def _describe_nothing(joined: Joined, chosen: Sequence[int], errors: Sequence[str | None]) -> str:
    first = chosen[0]
    return (
        f"{joined.table.table.name}: none of the {len(chosen)} images has a usable prediction. The first, "
        f"{joined.samples[first].path}: {errors[first]}."
    )


def _choose_threshold(
    joined: Joined, usable: Sequence[int], val: Sequence[int], probabilities: Floats, choices: Choices
) -> tuple[float, str]:
    """The threshold, and the rule by which it was chosen."""
    given = choices.threshold
    if joined.positive is None:
        if given is not None:
            raise UsageError("there are more than two classes, and one threshold decides between two.", "threshold")
        return 0.5, ""
    if given is not None:
        rule = thresholds.parse_rule(str(given))
        if rule.kind in ("fixed", "cost"):
            return thresholds.fit(str(given), [], []).value, str(given)
        if not val:
            raise UsageError(
                f"{quote(str(given))} must be chosen on other images than those that are measured, or it looks better "
                "than it is. Give labels and predictions with a split val too, or a number.", "threshold",
            )  # fmt: skip
        return thresholds.fit(str(given), index_classes(joined, val), probabilities[list(val), 1]).value, str(given)
    labels = joined.table.predicted
    if labels is None or choices.calibrate:
        return 0.5, ""
    rows = [joined.rows[i] for i in usable]
    named = [(labels[row], float(probabilities[i, 1])) for i, row in zip(usable, rows, strict=True) if row is not None]
    return infer_threshold(named, joined.positive, joined.table.table.name), ""


def infer_threshold(named: Sequence[tuple[str | None, float]], positive: str, place: str) -> float:
    """The threshold that predicted labels follow: 0.5 if that is one, else half-way between the labels' probabilities.

    Raises:
        DataError: there is none.
    """
    lowest = min((p for label, p in named if label == positive), default=1.0)
    highest = max((p for label, p in named if label not in (positive, None)), default=0.0)
    if not highest < lowest:
        wrong = sum(label != positive and p >= lowest for label, p in named)
        raise DataError(
            f"{place}: the predicted labels do not follow from one threshold: {counted(wrong, 'image')} with another "
            f"label {'has' if wrong == 1 else 'have'} a probability of {positive} of {lowest:.4g} or more, as images "
            f"labelled {positive} have. Give the probability at or above which an image is {positive} as `threshold`."
        )
    return 0.5 if highest < 0.5 <= lowest else float(highest + lowest) / 2


def _make_predictions(
    joined: Joined, probabilities: Floats, cut: float, errors: Sequence[str | None]
) -> list[Prediction]:
    made = []
    for sample, row, error in zip(joined.samples, probabilities, errors, strict=True):
        common: dict[str, Any] = {"path": sample.path, "label": sample.label, "patient": sample.patient}
        if sample.tags is not None:
            common |= {"age": sample.tags.age, "sex": sample.tags.sex, "view": sample.tags.view}
        if error is not None:
            made.append(Prediction(**common, error=error))
            continue
        best = int(row[1] >= cut) if joined.positive else int(row.argmax())
        label, named = joined.classes[best], dict(zip(joined.classes, row.tolist(), strict=True))
        shown = float(row[1] if joined.positive else row[best])
        made.append(
            Prediction(
                **common, predicted_label=label, probability=shown, probabilities=named, prediction_set=(label,),
                decision=label,
            )
        )  # fmt: skip
    return made


def _find_doubts(joined: Joined, usable: Sequence[int], cut: float, choices: Choices) -> list[str]:
    """Say why metrics may mislead."""
    rows = [row for i in usable if (row := joined.rows[i]) is not None]
    table, doubts = joined.table, []
    if set(np.unique(table.probabilities[rows])) <= {0.0, 1.0}:
        doubts.append(
            "All probabilities are 0 or 1: these are labels. AUROC, calibration and curves say little about them."
        )
    elif certain := describe_certain(joined, usable, choices):
        doubts.append(certain)
    if table.predicted is not None:
        shares = table.probabilities[rows]
        best = shares[:, 1] >= cut if joined.positive else shares.argmax(1)
        differing = sum(
            label is not None and label != joined.classes[int(place)]
            for label, place in zip([table.predicted[row] for row in rows], best, strict=True)
        )
        if differing:
            by = f"the threshold {cut:.3g}" if joined.positive else "the likeliest class"
            doubts.append(
                f"The metrics use {by}, by which the labels of {counted(differing, 'image')} differ from the table's."
            )
        elif choices.calibrate:
            doubts.append("Predicted labels come from the calibrated probabilities, not from the table.")
    labels = Counter(str(joined.samples[i].label) for i in usable)
    if missing := [name for name in joined.classes if not labels[name]]:
        doubts.append(f"No image of the class {' or '.join(missing)} has a prediction.")
    return doubts


def _name_raw(row: Floats, classes: Sequence[str]) -> dict[str, Any]:
    """The probabilities of an image before calibration, as columns."""
    values = [None if np.isnan(value) else float(value) for value in row]
    if len(classes) == 2:
        return {"uncalibrated_probability": values[1]}
    return {f"uncalibrated_probability_{name}": value for name, value in zip(classes, values, strict=True)}


def read_all(runs: Sequence[str | Path], truth: Sequence[Sample] | None, choices: Choices) -> list[Predictions]:
    """Read what runs predicted, and tables of another program's predictions for the same images.

    Args:
        runs: folders of runs or evaluations, and tables.
        truth: labelled images, for tables; by default those of the first folder.
        choices: how to read tables, and the positive class.

    Raises:
        UsageError: there are tables, and neither a folder nor `truth`; or `truth` without a table.
        DataError: something cannot be read or joined.
    """
    folders = {run: read_predictions(Path(run)) for run in runs if not Path(run).is_file()}
    if folders.keys() == set(runs):
        if truth is not None:
            raise UsageError("no effect, because runs hold their labels. Leave it out.", "truth")
        return [folders[run] for run in runs]
    if truth is not None:
        classes, positive = find_positive(truth, choices.positive)
        known = [Prediction(path=each.path, label=each.label, patient=each.patient) for each in truth]
    elif folders:
        first = next(iter(folders.values()))
        classes, positive, known = first.classes, first.positive, list(first.rows)
    else:
        raise UsageError("tables of predictions need the true labels: a table, or a folder of classes.", "truth")
    return [
        folders[run] if run in folders else _read_table(Path(run), known, classes, positive, choices) for run in runs
    ]


def _read_table(
    path: Path, known: Sequence[Prediction], classes: tuple[str, ...], positive: str | None, choices: Choices
) -> Predictions:
    """What a table predicts for known images; its own predicted labels are kept, else 0.5 decides between two."""
    table = read_prediction_table(path, classes, positive, choices.columns)
    samples = [Sample(each.path or Path(), each.label, each.patient) for each in known]
    rows, notes = join(table, samples, Path())
    for note in notes:
        logging.getLogger("pneumoscope").warning("%s", note)
    joined = Joined(samples, rows, table, classes, positive, notes)
    made = _make_predictions(joined, joined.stack(), 0.5, joined.list_errors())
    labels = [None if row is None or table.predicted is None else table.predicted[row] for row in rows]
    made = [
        replace(each, sha256=image.sha256, predicted_label=label or each.predicted_label)
        for each, image, label in zip(made, known, labels, strict=True)
    ]
    cut = math.nan if positive is None or any(labels) else 0.5
    return Predictions(path, classes, positive, cut, tuple(made), by_name=True)
