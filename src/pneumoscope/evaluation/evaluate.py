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

from pneumoscope.datasets.samples import Sample, fingerprint_samples, read_samples
from pneumoscope.datasets.splitting import find_shared_patients
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation import intervals
from pneumoscope.evaluation.cases import to_case
from pneumoscope.evaluation.conformal import find_broken_promises, summarise_decisions
from pneumoscope.evaluation.environment import describe_environment
from pneumoscope.evaluation.gallery import draw_explained
from pneumoscope.evaluation.prevalence import estimate_prevalence, estimate_shares, restate_evaluation
from pneumoscope.evaluation.report import Policy, Record, ReportFinding, write_report
from pneumoscope.evaluation.results import Evaluation, Interval, Restated
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.images.reading import Reading
from pneumoscope.inference.decisions import FOREIGN, calibrate, move_threshold, require_shares, restate
from pneumoscope.inference.features import FeatureCache
from pneumoscope.inference.predictions import SHORT, to_measured_row
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.bundle import Bundle
from pneumoscope.outputs import claim_folder, format_rows, write_text

OUTPUTS = ("predictions.csv", "metrics.json", "plots", "report.html")  # the first is written first


def evaluate(
    bundle: str | Path,
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
    error_rate: float | None = None,
    false_alarms: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
    cache: FeatureCache | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a trained bundle on labelled radiographs and write `metrics.json`, `predictions.csv` and `report.html`.

    Args:
        bundle: a bundle, or a run that holds one.
        data: a folder of classes, or a table.
        out: the folder to write.
        split: which split to take; by default `test` where there is one, else everything.
        patient_pattern: regular expression that finds the patient in a file name.
        reading: how to read films of which a table says nothing.
        device: `auto`, `cpu` or `cuda`.
        prevalence: measure besides as if the positive class had this share, with probabilities restated for it.
        adapt_prior: estimate the classes' shares from the films without their labels, and measure besides with
            probabilities restated for them.
        threshold: the positive class is called from this probability on, instead of the bundle's.
        error_rate: of label sets, instead of the bundle's.
        false_alarms: of the novelty guard, instead of the bundle's.
        resamples: bootstrap resamples behind each interval.
        seed: fixes them.
        cache: keeps features between calls.
        overwrite: whether an earlier evaluation in `out` may go.
        progress: called with the number of images done.

    Raises:
        BundleError: the bundle cannot be used.
        DataError: no such split, labels that the bundle does not know, or no readable image.
        UsageError: `out` exists, or an option that this bundle can't be asked for.
    """
    if adapt_prior and prevalence is not None:
        raise UsageError("--adapt-prior estimates the prevalence that --prevalence gives: leave one out.")
    predictor = load(bundle, device, cache, threshold=threshold, error_rate=error_rate, false_alarms=false_alarms)
    require_shares(predictor.bundle, prevalence, adapt_prior)
    samples = read_samples(Path(data), patient_pattern, reading)
    present = {sample.split for sample in samples if sample.split}
    chosen = split or ("test" if "test" in present else "all")
    if chosen != "all":
        samples = [sample for sample in samples if sample.split == chosen]
        if not samples:
            found = f"It has {', '.join(sorted(present))}" if present else "It has no splits"
            raise DataError(f"{data}: no split {chosen!r}. {found}; --split all takes everything.")
    labels = predictor.bundle.labels
    unknown = [sample for sample in samples if sample.label not in labels]
    if unknown:
        raise DataError(
            f"{unknown[0].path}: its label {unknown[0].label!r} ({len(unknown)} such images) is none that the "
            f"bundle knows ({', '.join(labels)}). Rename the class, or take a bundle trained on it."
        )
    if prevalence is not None and len({sample.label for sample in samples}) < 2:
        raise DataError("--prevalence: to measure for another one takes films of both classes; there are films of one.")
    claim_folder(Path(out), OUTPUTS, overwrite)
    facts = {
        "Model": f"{predictor.bundle.backbone}, {predictor.bundle.training.get('recipe')} recipe",
        "Bundle": str(bundle),
        "Training fingerprint": str(predictor.bundle.data.get("fingerprint", "not known")),
        "Data": str(data),
        "Command": shlex.join(
            ["pneumoscope", "evaluate", str(bundle), str(data), "--out", "NEW_FOLDER", "--split", chosen]
            + ["--seed", str(seed), "--resamples", str(resamples)]
            + (["--patient-pattern", patient_pattern] if patient_pattern else [])
            + ["--invert"] * reading.invert
            + ["--allow-modality"] * reading.any_modality
            + ["--adapt-prior"] * adapt_prior
            + _options({"prevalence": prevalence, "threshold": threshold})
            + _options({"error-rate": error_rate, "false-alarms": false_alarms})
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
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict labelled samples and write all that can be said of the predictions into `out`.

    Raises:
        DataError: none of the images could be read.
    """
    bundle = predictor.bundle
    predictions = predictor.predict(samples, progress)
    rows = [to_measured_row(one, bundle.labels, sample) for one, sample in zip(predictions, samples, strict=True)]
    write_text(out / "predictions.csv", "".join(format_rows(rows)))
    read = [(one, sample) for one, sample in zip(predictions, samples, strict=True) if one.probabilities is not None]
    if not read:
        raise DataError(f"None of the {len(samples)} images could be read; {out / 'predictions.csv'} says why.")
    found: list[str] = []
    seen = set(bundle.data.get("seen", ()))
    if known := sum(one.digest[:SHORT] in seen for one, _ in read):
        found.append(f"{known} of these images were used in training: the figures are too good.")
    if shared := find_shared_patients([sample for _, sample in read]):
        found.append(f"{len(shared)} patients are in more than one split: {', '.join(list(shared)[:10])}.")
    labels = np.array([bundle.labels.index(str(sample.label)) for _, sample in read])
    patients = [sample.patient for _, sample in read]
    log_shares = calibrate([one.logits for one, _ in read], bundle.calibration)

    def measured(shares: NDArray[np.float64], threshold: float) -> Evaluation:
        return intervals.evaluate(
            labels,
            shares[:, 1] if shares.shape[1] == 2 else shares,
            classes=bundle.labels,
            positive=bundle.positive,
            split=split,
            threshold=threshold,
            patients=patients,
            resamples=resamples,
            seed=seed,
        )

    evaluation = measured(np.exp(log_shares), predictor.threshold)
    uncalibrated: Mapping[str, Interval] = {}
    if bundle.calibration.method != "none":
        before = measured(
            np.exp(calibrate([one.logits for one, _ in read], bundle.calibration.without_fit())), predictor.threshold
        )
        uncalibrated = {name: before.metrics[name] for name in ("brier", "ece")}
    restated = None
    if prevalence is not None:
        restated = restate_evaluation(evaluation, bundle, labels, log_shares, prevalence, patients)
    elif adapt_prior:
        ordinary = np.array([one.decision != FOREIGN for one, _ in read])
        restated = _adapt(bundle, log_shares, ordinary, patients, measured)
        if (share := restated.prevalence) and not share.low <= evaluation.prevalence <= share.high:
            found.append(_describe_miss(bundle, evaluation, share))
    decisions = summarise_decisions(
        [str(sample.label) for _, sample in read],
        [str(one.decision) for one, _ in read],
        [one.label_set for one, _ in read],
        bundle.labels,
    )
    if bundle.conformal is None:  # every call is its own label set, which promises nothing
        decisions = {key: value for key, value in decisions.items() if key not in ("coverage", "set_size")}
    found += _find_mismatches(bundle, evaluation)
    found += find_broken_promises(decisions, bundle, predictor.error_rate, predictor.false_alarms)
    for note in found:
        logging.getLogger("pneumoscope").warning("%s", note)
    notes = [*notes, *found]
    cases = [to_case(one, sample, bundle) for one, sample in read]
    evaluation = dataclasses.replace(
        evaluation,
        decisions=decisions,
        uncalibrated=uncalibrated,
        restated=restated,
        notes=tuple(notes),
        seen=known,
        subgroups=tuple(measure_subgroups(cases, evaluation)),
    )
    write_text(out / "metrics.json", json.dumps(evaluation.to_json(), indent=2) + "\n")
    fingerprint = fingerprint_samples([sample for _, sample in read], [one.digest for one, _ in read])
    write_report(
        out,
        evaluation,
        cases,
        title="Chest radiograph classifier: " + " or ".join(bundle.labels),
        policy=Policy(
            bundle.threshold_rule,
            bundle.calibration.method,
            bundle.calibration.films,
            predictor.error_rate,
            bundle.training.get("settings", {}).get("views", 0),
        ),
        record=Record(
            history=history,
            findings=findings,
            notes=notes,
            errors=[(str(one.path), one.error) for one in predictions if one.error],
            facts={**facts, "Test fingerprint": fingerprint},
            environment=describe_environment(),
        ),
        draw=lambda i: draw_explained(predictor, read[i][1], bundle.positive or read[i][0].call),
    )
    return evaluation


def _find_mismatches(bundle: Bundle, evaluation: Evaluation) -> list[str]:
    """Say where probabilities are stated for quite another prevalence than these films have."""
    if bundle.positive is None or not bundle.calibration.shares or not 0 < evaluation.prevalence < 1:
        return []
    stated, found = bundle.calibration.shares[1], evaluation.prevalence
    if 0.5 < stated / (1 - stated) * (1 - found) / found < 2:
        return []
    return [
        f"Probabilities are stated for {stated:.1%} {bundle.positive}; {found:.1%} of these films are so. Brier score "
        "and calibration error suffer from that, and PPV and NPV are those of these films. --prevalence "
        f"{stated:.3g} measures as if {bundle.positive} were as {'rare' if stated < found else 'common'} as stated."
    ]


def _adapt(
    bundle: Bundle,
    log_shares: NDArray[np.float64],
    ordinary: NDArray[np.bool_],
    patients: Sequence[str | None],
    measured: Callable[[NDArray[np.float64], float], Evaluation],
) -> Restated:
    """Estimate the classes' shares without looking at labels, restate for them and measure."""
    stated = bundle.calibration.shares
    asked = log_shares[ordinary] if ordinary.any() else log_shares  # foreign films are of neither class
    wanted = estimate_shares(asked, stated)
    interval, threshold = None, bundle.thresholds["decision"]
    if len(bundle.labels) == 2:
        of = [patient for patient, plain in zip(patients, ordinary, strict=True) if plain or not ordinary.any()]
        interval = estimate_prevalence(asked, stated, patients=of)
        threshold = move_threshold(bundle, interval.value)
    evaluation = measured(np.exp(restate(log_shares, stated, wanted.tolist())), threshold)
    shares = dict(zip(bundle.labels, wanted.tolist(), strict=True))
    return Restated(shares, interval, estimated=True, threshold=threshold, metrics=evaluation.metrics)


def _describe_miss(bundle: Bundle, evaluation: Evaluation, share: Interval) -> str:
    return (
        f"The prevalence estimated without labels, {share.value:.3f} ({share.low:.3f} to {share.high:.3f}), misses the "
        f"truth, {evaluation.prevalence:.3f}: {bundle.positive} or its absence looks otherwise in these films than in "
        "those of validation. Do not adapt to such films."
    )


def _options(values: Mapping[str, float | None]) -> list[str]:
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
