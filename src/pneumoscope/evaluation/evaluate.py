"""Measures a classifier on labelled radiographs; writes predictions.csv and metrics.json."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import Progress
from pneumoscope.datasets.left_out import describe_unusable
from pneumoscope.datasets.samples import Sample, fingerprint_samples
from pneumoscope.datasets.sources import describe_overlap, recognise_sources
from pneumoscope.datasets.splits import find_shared_patients
from pneumoscope.decisions import calibration, groups, prior_shift
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions
from pneumoscope.errors import DataError
from pneumoscope.evaluation.curves import confidence_of
from pneumoscope.evaluation.decision_summary import find_broken_promises, summarise_decisions
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.metrics import check_predictions
from pneumoscope.evaluation.prevalence import adjust_evaluation, estimate_prevalence
from pneumoscope.evaluation.results import Adjusted, Evaluation, Interval
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.files import path_in_file, write_rows, write_text
from pneumoscope.inference.prediction import SHORT, Prediction, count_warnings, index_labels, stack_probabilities
from pneumoscope.inference.predictor import Predictor
from pneumoscope.models.lineage import name_earlier_sources
from pneumoscope.text import counted

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What to measure, and what to write of it."""

    split: str = "test"  # name of what is measured
    # measure also as if the positive class had this share, with probabilities adjusted to it
    prevalence: float | None = None
    # estimate the classes' shares without labels, and measure also with probabilities adjusted to them
    adapt_prior: bool = False
    resamples: int = 2000  # bootstrap resamples behind each interval
    seed: int = 0  # fixes them
    patient_ids: bool = False  # whether metrics and report may name patients
    excel: bool = False  # whether predictions.csv begins with a byte order mark
    subgroups: str | None = None  # what to divide the images by, see `measure_subgroups`; None: everything known


@dataclass(frozen=True)
class Measured:
    """An evaluation with the images behind it."""

    evaluation: Evaluation  # metrics of the N images that could be read
    predictions: Sequence[Prediction]  # (N,) with their true labels
    samples: Sequence[Sample] = ()  # (N,) where they come from
    errors: Sequence[tuple[str, str]] = ()  # path and reason of each file that could not be read
    fingerprint: str = ""  # of the images' content and labels
    # probabilities before calibration, in the form of `probabilities`; None without calibration
    uncalibrated: Floats | None = None

    @cached_property
    def _data(self) -> tuple[NDArray[np.int64], Floats]:
        if len(self.predictions) != self.evaluation.n:
            raise DataError(
                f"an evaluation of {self.evaluation.n} images came with {len(self.predictions)} predictions"
            )
        labels = index_labels(self.predictions, self.evaluation.classes)
        return check_predictions(labels, stack_probabilities(self.predictions))

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class indices.

        Raises:
            DataError: predictions that do not fit the evaluation.
        """
        return self._data[0]

    @property
    def probabilities(self) -> Floats:
        """(N,) of the positive class if there are two, or (N, C)."""
        return self._data[1]

    @property
    def patients(self) -> Sequence[str | None] | None:
        """(N,) patients, or None where none is known."""
        patients = [prediction.patient for prediction in self.predictions]
        return patients if any(patients) else None

    @property
    def cut(self) -> float | tuple[float, ...]:
        """The evaluation's threshold or thresholds, as metrics need them."""
        return self.evaluation.cut


def measure(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path | None = None,
    plan: Plan = Plan(),
    *,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Measured:
    """Predict labelled images and measure how good the predictions are.

    Args:
        predictor: the classifier.
        samples: images with labels that it knows.
        out: folder for `predictions.csv`, `errors.csv` and `metrics.json`; None writes nothing.
        plan: what to measure.
        notes: warnings to add to those of the evaluation.
        progress: called with the number of images done.

    Raises:
        DataError: none of the images could be read.
    """
    predictions = predictor.predict(samples, progress)
    if out is not None:
        write_rows(out / "predictions.csv", make_rows(predictions, predictor.model.labels, out), plan.excel)
    readable = [prediction for prediction in predictions if prediction.error is None]
    if not readable:
        where = "" if out is None else f"; {out / 'predictions.csv'} says why"
        raise DataError(f"None of the {len(samples)} images has a prediction{where}. The first: {predictions[0].error}")
    chosen = [sample for sample, prediction in zip(samples, predictions, strict=True) if prediction.error is None]
    evaluation, uncalibrated = _measure_metrics(predictor, readable, plan)
    own = describe_unusable(samples, [prediction.error for prediction in predictions], "without a prediction")
    own += _find_warnings(predictor, evaluation, chosen, plan.patient_ids)
    own += _find_broken_promises(predictor, readable)
    own += _find_contradictions(readable)
    for note in own:
        logging.getLogger("pneumoscope").warning("%s", note)
    own += count_warnings([prediction.warnings for prediction in predictions])  # which `predict` logged
    subgroups = tuple(measure_subgroups(readable, evaluation, [sample.metadata for sample in chosen], plan.subgroups))
    evaluation = dataclasses.replace(evaluation, notes=(*notes, *own), subgroups=subgroups)
    if out is not None:
        write_errors(out / "errors.csv", readable, predictor.model.labels, evaluation.cut, plan.excel)
        write_text(out / "metrics.json", json.dumps(evaluation.to_json(), indent=2) + "\n")
    return Measured(
        evaluation,
        readable,
        chosen,
        [(str(prediction.path), prediction.error) for prediction in predictions if prediction.error is not None],
        fingerprint_samples(chosen, [prediction.sha256 for prediction in readable]),
        uncalibrated,
    )


def measure_predictions(
    predictor: Predictor,
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    thresholds: ArrayLike,
    out: Path | None = None,
    plan: Plan = Plan(),
    *,
    notes: Sequence[str] = (),
) -> Measured:
    """Measure predictions that were made otherwise, such as those of cross-validation, and write what `measure` writes.

    Args:
        predictor: a classifier of the same classes.
        samples: N images with labels that it knows.
        predictions: (N,), all with probabilities.
        thresholds: two classes: (N,), from which probability on each image was labelled positive; more: one of each.
        out: folder for `predictions.csv`, `errors.csv` and `metrics.json`; None writes nothing.
        plan: what to measure; nothing is adjusted to a prevalence.
        notes: warnings for the evaluation.
    """
    labels = index_labels(predictions, predictor.model.labels)
    evaluation = evaluate_predictions(
        labels, stack_probabilities(predictions), classes=predictor.model.labels, split=plan.split,
        threshold=thresholds, patients=[each.patient for each in predictions], resamples=plan.resamples, seed=plan.seed,
    )  # fmt: skip
    evaluation = dataclasses.replace(
        evaluation,
        threshold=predictor.threshold if predictor.model.positive else math.nan,
        decisions=_summarise(predictor, predictions),
        notes=tuple(notes),
        subgroups=tuple(
            measure_subgroups(predictions, evaluation, [each.metadata for each in samples], plan.subgroups)
        ),
    )
    fingerprint = fingerprint_samples(samples, [each.sha256 for each in predictions])
    measured = Measured(evaluation, predictions, samples, (), fingerprint)
    if out is not None:
        write_measured(out, measured, plan.excel)
    return measured


def write_measured(out: Path, measured: Measured, excel: bool = False, rows: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write `predictions.csv` (with these rows, if given), `errors.csv` and `metrics.json` into a folder."""
    labels = measured.evaluation.classes
    write_rows(out / "predictions.csv", rows or make_rows(measured.predictions, labels, out), excel)
    write_errors(out / "errors.csv", measured.predictions, labels, measured.cut, excel)
    write_text(out / "metrics.json", json.dumps(measured.evaluation.to_json(), indent=2) + "\n")


def rank_errors(predictions: Sequence[Prediction], threshold: ArrayLike) -> list[int]:
    """The indices of the predictions whose predicted label is wrong, the most confident first.

    Args:
        predictions: N predictions, all with probabilities and a true label.
        threshold: as for `confidence_of`.
    """
    confidence = confidence_of(stack_probabilities(predictions), threshold)
    errors = [i for i, each in enumerate(predictions) if each.predicted_label != each.label]
    return sorted(errors, key=lambda i: -confidence[i])


def make_rows(predictions: Sequence[Prediction], labels: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """The rows of `predictions.csv` and `errors.csv`.

    They have a column `group` if any image belongs to one, and say whose images they are if any has a DICOM header.
    """
    grouped, identified = any(each.group for each in predictions), any(each.has_header for each in predictions)
    return [
        each.to_row(labels, raw=True, grouped=grouped)
        | {"path": path_in_file(each.path or Path(), out), "patient": each.patient, "sha256": each.sha256[:SHORT]}
        | (each.identity if identified else {})
        for each in predictions
    ]


def write_errors(
    path: Path, readable: Sequence[Prediction], labels: Sequence[str], threshold: ArrayLike, excel: bool
) -> None:
    """Write the rows of `predictions.csv` whose predicted label is wrong, the most confident first."""
    errors = [readable[i] for i in rank_errors(readable, threshold)]
    rows = [{"path": row.pop("path"), "label": row.pop("label"), "predicted_label": row.pop("predicted_label"), **row}
            for row in make_rows(errors or readable[:1], labels, path.parent)]  # fmt: skip
    write_rows(path, rows if errors else [], excel, list(rows[0]))


def _measure_metrics(
    predictor: Predictor, readable: Sequence[Prediction], plan: Plan
) -> tuple[Evaluation, Floats | None]:
    """Metrics with intervals: calibrated, uncalibrated and adjusted; decisions; images known from training.

    Also returns the uncalibrated probabilities, if there are others.
    """
    model, fitted = predictor.model, predictor.decisions.calibration
    labels = index_labels(readable, model.labels)
    patients = [prediction.patient for prediction in readable]

    def evaluate(log_shares: Floats, threshold: ArrayLike) -> Evaluation:
        return evaluate_predictions(
            labels, _to_shares(log_shares), classes=model.labels, split=plan.split, threshold=threshold,
            patients=patients, resamples=plan.resamples, seed=plan.seed,
        )  # fmt: skip

    logits = [prediction.logits for prediction in readable]
    log_shares = calibration.apply(logits, fitted)
    evaluation = evaluate(log_shares, predictor.cut)
    before, uncalibrated = None, {}
    by_name = {group.name: group for group in predictor.decisions.groups}
    if fitted.method != "none" or any(group.moves_logits for group in by_name.values()):
        network = [groups.restore(np.array(each.logits), by_name.get(each.group or "")) for each in readable]
        raw = calibration.apply(network, fitted.without_fit())
        before, metrics = _to_shares(raw), evaluate(raw, predictor.cut).metrics
        uncalibrated = {name: metrics[name] for name in ("brier", "ece")}
    adjusted = None
    if plan.prevalence is not None:
        adjusted = adjust_evaluation(evaluation, predictor.decisions, labels, log_shares, plan.prevalence, patients)
    elif plan.adapt_prior:
        shares, prevalence, cut = _estimate_prior(predictor.decisions, log_shares, readable)
        metrics = evaluate(prior_shift.apply(log_shares, fitted.class_fractions, shares), cut).metrics
        by_class = dict(zip(model.labels, shares, strict=True))
        threshold = math.nan if isinstance(cut, tuple) else cut
        adjusted = Adjusted(by_class, prevalence, estimated=True, threshold=threshold, metrics=metrics)
    known = set(model.data.get("seen", ()))
    seen = sum(prediction.sha256[:SHORT] in known for prediction in readable)
    evaluation = dataclasses.replace(
        evaluation,
        decisions=_summarise(predictor, readable),
        uncalibrated=uncalibrated,
        adjusted=adjusted,
        seen=seen,
    )
    return evaluation, before


def _summarise(predictor: Predictor, readable: Sequence[Prediction]) -> dict[str, Any]:
    decisions = summarise_decisions(
        [str(prediction.label) for prediction in readable],
        [str(prediction.decision) for prediction in readable],
        [prediction.prediction_set for prediction in readable],
        predictor.model.labels,
    )
    if predictor.decisions.prediction_sets is None:  # a predicted label as its own set guarantees nothing
        del decisions["coverage"], decisions["set_size"]
    return decisions


def _to_shares(log_probabilities: Floats) -> Floats:
    """Probabilities as the metrics need them: (N,) of the positive class, or (N, C) with C > 2."""
    shares: Floats = np.exp(log_probabilities)
    return shares[:, 1] if shares.shape[1] == 2 else shares


def _estimate_prior(
    decisions: Decisions, log_shares: Floats, readable: Sequence[Prediction]
) -> tuple[list[float], Interval | None, float | tuple[float, ...]]:
    """Return the classes' shares, estimated without labels; for two, the prevalence; and the threshold(s)."""
    inside = np.array([prediction.decision != OUT_OF_DISTRIBUTION for prediction in readable])
    chosen = inside if inside.any() else ~inside  # images out of distribution belong to no class
    trained = decisions.calibration.class_fractions
    estimate = np.maximum(prior_shift.fit(log_shares[chosen], trained), 1e-4)  # at 0 the class would be impossible
    shares = (estimate / estimate.sum()).tolist()
    if decisions.threshold is None:
        moved = np.array(decisions.class_thresholds) * shares / trained if decisions.class_thresholds else ()
        return shares, None, tuple(moved) or 0.5
    patients = [prediction.patient for prediction, take in zip(readable, chosen, strict=True) if take]
    prevalence = estimate_prevalence(log_shares[chosen], trained, patients=patients)
    return shares, prevalence, prior_shift.adjust_threshold(decisions.threshold, trained, shares[1]).value


def _find_contradictions(predictions: Sequence[Prediction]) -> list[str]:
    """Say which images have the same content and different labels, so that at least one label is wrong."""
    firsts: dict[str, Prediction] = {}
    pairs = [
        (first, each) for each in predictions if (first := firsts.setdefault(each.sha256, each)).label != each.label
    ]
    if not pairs:
        return []
    first, other = pairs[0]
    return [
        f"{counted(len(pairs), 'image')} {'is' if len(pairs) == 1 else 'are'} identical to an image with another "
        f"label, so one of the labels is wrong: {first.path} ({first.label}) and {other.path} ({other.label})."
    ]


def _find_warnings(
    predictor: Predictor, evaluation: Evaluation, samples: Sequence[Sample], patient_ids: bool
) -> list[str]:
    """Say why these metrics may mislead."""
    model, decisions = predictor.model, predictor.decisions
    warnings = []
    if evaluation.seen:
        warnings.append(f"{evaluation.seen} of these images were used in training: the metrics are too optimistic.")
    learned = (*model.data.get("sources", ()), *name_earlier_sources(model.lineage))
    if overlap := describe_overlap(recognise_sources(samples), learned):
        warnings.append(overlap)
    if shared := find_shared_patients(samples):
        names = ", ".join(list(shared)[:10]) + (", …" if len(shared) > 10 else "")
        some = f": {names}." if patient_ids else ". `patient_ids=True` names them."
        warnings.append(f"{len(shared)} patient{'s are' if len(shared) > 1 else ' is'} in more than one split{some}")
    adjusted, prevalence = evaluation.adjusted, evaluation.prevalence
    estimate = adjusted.prevalence if adjusted is not None and adjusted.estimated else None
    if estimate is not None and not estimate.low <= prevalence <= estimate.high:
        warnings.append(
            f"The prevalence estimated without labels, {estimate.value:.3f} ({estimate.low:.3f} to "
            f"{estimate.high:.3f}), differs from the true one, {prevalence:.3f}: the classes look different in these "
            "images than in the validation images. Do not adapt to images like these."
        )
    if model.positive is not None and 0 < prevalence < 1:
        trained = decisions.calibration.class_fractions[1]
        if not 0.5 < trained / (1 - trained) * (1 - prevalence) / prevalence < 2:
            warnings.append(
                f"The probabilities hold for a prevalence of {trained:.1%}, but {prevalence:.1%} of these images are "
                f"{model.positive}. This affects the Brier score, calibration error, PPV and NPV. Set the prevalence "
                f"to {trained:.3g} to measure as if {model.positive} were as common as the model expects."
            )
    return warnings


def _find_broken_promises(predictor: Predictor, readable: Sequence[Prediction]) -> list[str]:
    """Say which prediction sets and OOD limits do not hold for the images that they decide on: all, or a group's."""
    decisions, notes = predictor.decisions, list[str]()
    with_sets = {group.name for group in decisions.groups if group.prediction_sets}
    with_limit = {group.name for group in decisions.groups if group.ood}
    for group in (None, *decisions.groups):
        name, own = group and group.name, decisions.for_group(group)
        for part, names in (
            (dataclasses.replace(own, ood=None), with_sets),
            (dataclasses.replace(own, prediction_sets=None), with_limit),
        ):
            members = [each for each in readable if (each.group if each.group in names else None) == name]
            if members:
                summary = _summarise(predictor, members)
                found = find_broken_promises(summary, part, predictor.decider.detector is not None)
                notes += [f"Group {name}: {note}" if name else note for note in found]
    return notes
