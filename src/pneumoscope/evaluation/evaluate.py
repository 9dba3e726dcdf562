"""A classifier and labelled radiographs become metrics, predictions and a report."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress
from pneumoscope.datasets.samples import Sample, fingerprint_samples, read_samples
from pneumoscope.datasets.splits import find_shared_patients
from pneumoscope.decisions import calibration, prior_shift
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.cases import to_case
from pneumoscope.evaluation.decision_summary import find_broken_promises, summarise_decisions
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.prevalence import adjust_evaluation, estimate_prevalence
from pneumoscope.evaluation.results import Adjusted, Evaluation, Interval
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.files import claim_folder, format_rows, write_text
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.prediction import SHORT
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.model_folder import Model
from pneumoscope.reports.environment import describe_environment
from pneumoscope.reports.gallery import draw_explained
from pneumoscope.reports.report import Policy, Record, ReportFinding, write_report

OUTPUTS = ("predictions.csv", "metrics.json", "plots", "report.html")  # the first is written first


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    device: str = "auto",
    prevalence: float | None = None,
    adapt_prior: bool = False,
    threshold: float | None = None,
    alpha: float | None = None,
    false_alarms: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
    cache: FeatureCache | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a trained model on labelled radiographs and write `metrics.json`, `predictions.csv` and `report.html`.

    Args:
        model: a model, or a run that holds one.
        data: a folder of classes, or a table.
        out: the folder to write.
        split: which split to take; by default `test` where there is one, else everything.
        patient_pattern: regular expression that finds the patient in a file name.
        reading: how to read images of which a table says nothing.
        device: `auto`, `cpu` or `cuda`.
        prevalence: measure besides as if the positive class had this share, with probabilities adjusted for it.
        adapt_prior: estimate the classes' shares from the images without their labels, and measure besides with
            probabilities adjusted for them.
        threshold: the positive class is called from this probability on, instead of the model's.
        alpha: of prediction sets, instead of the model's.
        false_alarms: of the OOD detector, instead of the model's.
        resamples: bootstrap resamples behind each interval.
        seed: fixes them.
        cache: keeps features between calls.
        overwrite: whether an earlier evaluation in `out` may go.
        progress: called with the number of images done.

    Raises:
        ModelError: the model cannot be used.
        DataError: no such split, labels that the model does not know, or no readable image.
        UsageError: `out` exists, or an option that this model can't be asked for.
    """
    if adapt_prior and prevalence is not None:
        raise UsageError("--adapt-prior estimates the prevalence that --prevalence gives: leave one out.")
    predictor = load(model, device, cache, threshold=threshold, alpha=alpha, false_alarms=false_alarms)
    prior_shift.check_prevalence(prevalence, predictor.model.labels)
    samples = read_samples(Path(data), patient_pattern, reading)
    present = {sample.split for sample in samples if sample.split}
    chosen = split or ("test" if "test" in present else "all")
    if chosen != "all":
        samples = [sample for sample in samples if sample.split == chosen]
        if not samples:
            found = f"It has {', '.join(sorted(present))}" if present else "It has no splits"
            raise DataError(f"{data}: no split {chosen!r}. {found}; --split all takes everything.")
    labels = predictor.model.labels
    unknown = [sample for sample in samples if sample.label not in labels]
    if unknown:
        raise DataError(
            f"{unknown[0].path}: its label {unknown[0].label!r} ({len(unknown)} such images) is none that the "
            f"model knows ({', '.join(labels)}). Rename the class, or take a model trained on it."
        )
    if prevalence is not None and len({sample.label for sample in samples}) < 2:
        raise DataError(
            "--prevalence: to measure for another one takes images of both classes; there are images of one."
        )
    claim_folder(Path(out), OUTPUTS, overwrite)
    facts = {
        "Network": f"{predictor.model.backbone}, {predictor.model.training.get('recipe')} recipe",
        "Model": str(model),
        "Training fingerprint": str(predictor.model.data.get("fingerprint", "not known")),
        "Data": str(data),
        "Command": shlex.join(
            ["pneumoscope", "evaluate", str(data), "--model", str(model), "--out", "NEW_FOLDER", "--split", chosen]
            + ["--seed", str(seed), "--resamples", str(resamples)]
            + (["--patient-pattern", patient_pattern] if patient_pattern else [])
            + ["--invert"] * reading.invert
            + ["--any-modality"] * reading.any_modality
            + ["--adapt-prior"] * adapt_prior
            + _options({"prevalence": prevalence, "threshold": threshold})
            + _options({"alpha": alpha, "false-alarms": false_alarms})
        ),
    }
    return assess(
        predictor,
        samples,
        Path(out),
        split=chosen,
        facts=facts,
        prevalence=prevalence,
        adapt_prior=adapt_prior,
        resamples=resamples,
        seed=seed,
        progress=progress,
    )


def assess(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path,
    *,
    split: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    findings: Sequence[ReportFinding] = (),
    history: Sequence[Mapping[str, Any]] = (),
    prevalence: float | None = None,
    adapt_prior: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict labelled samples and write all that can be said of the predictions into `out`.

    Raises:
        DataError: none of the images could be read.
    """
    model = predictor.model
    predictions = predictor.predict(samples, progress)
    rows = [
        one.to_row(model.labels, sample.label, raw=True) | {"patient": sample.patient, "sha256": one.sha256[:SHORT]}
        for one, sample in zip(predictions, samples, strict=True)
    ]
    write_text(out / "predictions.csv", "".join(format_rows(rows)))
    read = [(one, sample) for one, sample in zip(predictions, samples, strict=True) if one.probabilities is not None]
    if not read:
        raise DataError(f"None of the {len(samples)} images could be read; {out / 'predictions.csv'} says why.")
    found: list[str] = []
    seen = set(model.data.get("seen", ()))
    if known := sum(one.sha256[:SHORT] in seen for one, _ in read):
        found.append(f"{known} of these images were used in training: the figures are too good.")
    if shared := find_shared_patients([sample for _, sample in read]):
        found.append(f"{len(shared)} patients are in more than one split: {', '.join(list(shared)[:10])}.")
    labels = np.array([model.labels.index(str(sample.label)) for _, sample in read])
    patients = [sample.patient for _, sample in read]
    log_shares = calibration.apply([one.logits for one, _ in read], predictor.decisions.calibration)

    def measured(shares: NDArray[np.float64], threshold: float) -> Evaluation:
        return evaluate_predictions(
            labels,
            shares[:, 1] if shares.shape[1] == 2 else shares,
            classes=model.labels,
            positive=model.positive,
            split=split,
            threshold=threshold,
            patients=patients,
            resamples=resamples,
            seed=seed,
        )

    evaluation = measured(np.exp(log_shares), predictor.threshold)
    uncalibrated: Mapping[str, Interval] = {}
    if predictor.decisions.calibration.method != "none":
        before = measured(
            np.exp(calibration.apply([one.logits for one, _ in read], predictor.decisions.calibration.without_fit())),
            predictor.threshold,
        )
        uncalibrated = {name: before.metrics[name] for name in ("brier", "ece")}
    adjusted = None
    if prevalence is not None:
        adjusted = adjust_evaluation(evaluation, predictor.decisions, labels, log_shares, prevalence, patients)
    elif adapt_prior:
        ordinary = np.array([one.decision != OUT_OF_DISTRIBUTION for one, _ in read])
        adjusted = _adapt(predictor, log_shares, ordinary, patients, measured)
        if (share := adjusted.prevalence) and not share.low <= evaluation.prevalence <= share.high:
            found.append(_describe_miss(model, evaluation, share))
    decisions = summarise_decisions(
        [str(sample.label) for _, sample in read],
        [str(one.decision) for one, _ in read],
        [one.prediction_set for one, _ in read],
        model.labels,
    )
    if predictor.decisions.prediction_sets is None:  # every call is its own prediction set, which promises nothing
        decisions = {key: value for key, value in decisions.items() if key not in ("coverage", "set_size")}
    found += _find_mismatches(model, predictor.decisions, evaluation)
    found += find_broken_promises(decisions, predictor.decisions, predictor.decider.detector is not None)
    for note in found:
        logging.getLogger("pneumoscope").warning("%s", note)
    notes = [*notes, *found]
    cases = [to_case(one, sample, predictor.decisions) for one, sample in read]
    evaluation = dataclasses.replace(
        evaluation,
        decisions=decisions,
        uncalibrated=uncalibrated,
        adjusted=adjusted,
        notes=tuple(notes),
        seen=known,
        subgroups=tuple(measure_subgroups(cases, evaluation)),
    )
    write_text(out / "metrics.json", json.dumps(evaluation.to_json(), indent=2) + "\n")
    fingerprint = fingerprint_samples([sample for _, sample in read], [one.sha256 for one, _ in read])
    write_report(
        out,
        evaluation,
        cases,
        title="Chest radiograph classifier: " + " or ".join(model.labels),
        policy=Policy(
            predictor.decisions.threshold.rule if predictor.decisions.threshold else "",
            predictor.decisions.calibration.method,
            predictor.decisions.calibration.images,
            predictor.alpha,
            model.training.get("settings", {}).get("augmented_copies", 0),
        ),
        record=Record(
            history=history,
            findings=findings,
            notes=notes,
            errors=[(str(one.path), one.error) for one in predictions if one.error],
            facts={**facts, "Test fingerprint": fingerprint},
            environment=describe_environment(),
        ),
        draw=lambda i: draw_explained(predictor, read[i][1], model.positive or read[i][0].predicted_label),
    )
    return evaluation


def _find_mismatches(model: Model, decisions: Decisions, evaluation: Evaluation) -> list[str]:
    """Say where probabilities are stated for quite another prevalence than these images have."""
    if model.positive is None or not 0 < evaluation.prevalence < 1:
        return []
    stated, found = decisions.calibration.class_fractions[1], evaluation.prevalence
    if 0.5 < stated / (1 - stated) * (1 - found) / found < 2:
        return []
    return [
        f"Probabilities are stated for {stated:.1%} {model.positive}; {found:.1%} of these images are so. Brier score "
        "and calibration error suffer from that, and PPV and NPV are those of these images. --prevalence "
        f"{stated:.3g} measures as if {model.positive} were as {'rare' if stated < found else 'common'} as stated."
    ]


def _adapt(
    predictor: Predictor,
    log_shares: NDArray[np.float64],
    ordinary: NDArray[np.bool_],
    patients: Sequence[str | None],
    measured: Callable[[NDArray[np.float64], float], Evaluation],
) -> Adjusted:
    """Estimate the classes' shares without looking at labels, restate for them and measure."""
    decisions, model = predictor.decisions, predictor.model
    stated = decisions.calibration.class_fractions
    asked = log_shares[ordinary] if ordinary.any() else log_shares  # out-of-distribution images are of neither class
    wanted = prior_shift.fit(asked, stated)
    interval, threshold = None, 0.5
    if decisions.threshold is not None:
        of = [patient for patient, plain in zip(patients, ordinary, strict=True) if plain or not ordinary.any()]
        interval = estimate_prevalence(asked, stated, patients=of)
        threshold = prior_shift.adjust_threshold(decisions.threshold, stated, interval.value).value
    evaluation = measured(np.exp(prior_shift.apply(log_shares, stated, wanted.tolist())), threshold)
    shares = dict(zip(model.labels, wanted.tolist(), strict=True))
    return Adjusted(shares, interval, estimated=True, threshold=threshold, metrics=evaluation.metrics)


def _describe_miss(model: Model, evaluation: Evaluation, share: Interval) -> str:
    return (
        f"The prevalence estimated without labels, {share.value:.3f} ({share.low:.3f} to {share.high:.3f}), misses the "
        f"truth, {evaluation.prevalence:.3f}: {model.positive} or its absence looks otherwise in these images than in "
        "those of validation. Do not adapt to such images."
    )


def _options(values: Mapping[str, float | None]) -> list[str]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
