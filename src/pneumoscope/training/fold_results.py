"""What a cross-validation found: the predictions of all folds, measured together and fold by fold, and its report."""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pneumoscope.auditing.findings import Finding
from pneumoscope.config import Progress
from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.errors import DataError
from pneumoscope.evaluation.evaluate import Measured, Plan, make_rows, measure_predictions, write_measured
from pneumoscope.evaluation.out_of_fold import Folds, OutOfFold, measure_folds
from pneumoscope.files import write_rows, write_text
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Engine, Kind
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.reports.environment import describe_environment
from pneumoscope.reports.gallery import draw_explained
from pneumoscope.reports.pages import format_command
from pneumoscope.reports.report import Policy, Provenance, write_report
from pneumoscope.text import counted
from pneumoscope.training.data import Setup
from pneumoscope.training.folds import Division, Job, find_leak
from pneumoscope.training.record import load_remarks
from pneumoscope.training.remarks import format_audit, log_findings
from pneumoscope.training.run_folder import hush
from pneumoscope.training.settings import Settings

OUT_OF_FOLD = "out-of-fold"
TABLE, RESULT = "folds.csv", "crossval.json"


@dataclass(frozen=True, eq=False)
class Trained:
    """A cross-validation whose folds are trained."""

    folder: Path
    settings: Settings
    setup: Setup  # of the first fold
    division: Division
    jobs: Sequence[Job]
    cache: FeatureCache
    engine: Engine  # runs the pretrained backbone

    def load(self, place: tuple[int, int]) -> Predictor:
        """The model of a fold."""
        folder = next(job.folder for job in self.jobs if job.name == place)
        own: Kind | Engine = "auto" if self.setup.changes_backbone else self.engine
        return load(folder / "model", self.setup.device.type, self.cache, engine=own)


@dataclass(frozen=True, eq=False)
class Results:
    """The predictions of all folds."""

    predictions: Sequence[Prediction]  # M, by fold, those of unreadable images among them
    samples: Sequence[Sample]  # (M,)
    places: Sequence[tuple[int, int]]  # (M,) repeat and fold
    cuts: Mapping[tuple[int, int], float | tuple[float, ...]]  # the threshold or thresholds of each fold


def write_results(job: Trained, results: Results) -> tuple[Folds, Measured]:
    """Measure the predictions, and write them, their metrics and the report.

    Raises:
        DataError: no image could be read.
    """
    readable = [i for i, each in enumerate(results.predictions) if each.error is None]
    if not readable:
        raise DataError(f"None of the images has a prediction. The first: {results.predictions[0].error}")
    predictor = job.load(job.jobs[0].name)
    labels = predictor.model.labels
    measured, data = _measure(job, results, readable, predictor)
    findings = _find_findings(job)
    for note in measured.evaluation.notes:
        logging.getLogger("pneumoscope").warning("%s", note)
    log_findings(findings, job.settings.data.path)
    folds = measure_folds(data)
    rows = [
        row | {"repeat": place[0], "fold": place[1]}
        for row, place in zip(make_rows(results.predictions, labels, job.folder), results.places, strict=True)
    ]
    named = replace(measured, predictions=[results.predictions[i] for i in readable])
    write_measured(job.folder, named, job.settings.run.excel, rows)
    write_rows(job.folder / TABLE, folds.to_rows(), job.settings.run.excel)
    write_text(job.folder / RESULT, json.dumps(folds.to_json(), indent=2) + "\n")
    _write_page(job, measured, folds, [results.places[i] for i in readable], predictor, findings)
    return folds, measured


def predict_folds(job: Trained, progress: Progress) -> Results:
    """Predict each fold's test images with its model."""
    predictions: list[Prediction] = []
    tested: list[Sample] = []
    places: list[tuple[int, int]] = []
    cuts: dict[tuple[int, int], float | tuple[float, ...]] = {}
    for name, samples in job.division.folds.items():
        predictor, own = job.load(name), [sample for sample in samples if sample.split == "test"]
        with hush():
            predictions += predictor.predict(own, None)
        tested += own
        places += [name] * len(own)
        cuts[name] = predictor.cut
        progress("Test", len(cuts), len(job.division.folds))
    return Results(predictions, tested, places, cuts)


def _measure(
    job: Trained, results: Results, readable: Sequence[int], predictor: Predictor
) -> tuple[Measured, OutOfFold]:
    """Measure the predictions of all folds together."""
    predictions = [results.predictions[i] for i in readable]
    samples, places = [results.samples[i] for i in readable], [results.places[i] for i in readable]
    labels, classes = index_labels(predictions, predictor.model.labels), len(predictor.model.labels)
    cuts = np.array([np.broadcast_to(results.cuts[place], classes if classes > 2 else ()) for place in places])
    known, patients = {each.patient for each in predictions if each.patient}, [each.patient for each in predictions]
    if job.division.design.repeats > 1:  # the predictions of one image are alike, whether its patient is known or not
        patients = [each.patient or f"image {each.sha256}" for each in predictions]
    run = job.settings.run
    plan = Plan(OUT_OF_FOLD, resamples=run.resamples, seed=run.seed, patient_ids=run.patient_ids, excel=run.excel)
    alike = [replace(each, patient=patient) for each, patient in zip(predictions, patients, strict=True)]
    measured = measure_predictions(predictor, samples, alike, cuts, None, plan, notes=_find_notes(job))
    evaluation = replace(
        measured.evaluation,
        threshold=float(cuts.mean()) if classes == 2 else math.nan,
        patients=len(known) or None,
    )
    errors = [(str(each.path), each.error) for each in results.predictions if each.error is not None]
    measured = replace(measured, evaluation=evaluation, errors=errors)
    clusters = cluster_by_patient(patients, len(patients))
    return measured, OutOfFold(labels, stack_probabilities(predictions), cuts, places, clusters)


def _find_notes(job: Trained) -> list[str]:
    """What a reader must know: about the division, and what the folds' runs remark on their data and decisions."""
    remarks = [found for each in job.jobs if (found := load_remarks(each.folder))]
    notes = _unite([remark.notes for remark in remarks])
    if (repeats := job.division.design.repeats) > 1:
        notes.append(
            f"Each image is predicted {repeats} times, by models of different divisions; counts are of predictions. "
            "Intervals keep the predictions of a patient, or of an image without one, together."
        )
    if job.division.held_out:
        notes.append(f"{counted(len(job.division.held_out), 'image')} of the split test stayed out of all folds.")
    leak = find_leak(job.division)
    return [*notes, leak] if leak else notes


def _unite(notes: Sequence[Sequence[str]]) -> list[str]:
    """The notes of the folds, each kind once; numbers do not make another kind."""
    kinds: dict[str, list[str]] = {}
    for own in notes:
        for note in dict.fromkeys(own):
            kinds.setdefault(re.sub(r"\d+(\.\d+)?", "", note), []).append(note)
    return [
        found[0]
        if len(found) == len(notes) and len(set(found)) == 1
        else f"In {len(found)} of {counted(len(notes), 'fold')}{', such as' if len(set(found)) > 1 else ''}: {found[0]}"
        for found in kinds.values()
    ]


def _find_findings(job: Trained) -> Sequence[Finding]:
    """The findings of the audit, which was made with the first fold; for more, the whole dataset is audited."""
    remarks = load_remarks(job.jobs[0].folder)
    if remarks is None:
        return []
    command = format_audit(job.settings.data)
    return [replace(each, advice=command) if each.check == "audit" else each for each in remarks.findings]


def _write_page(
    job: Trained, measured: Measured, folds: Folds, places: Sequence[tuple[int, int]], predictor: Predictor,
    findings: Sequence[Finding],
) -> None:  # fmt: skip
    settings, model = job.settings, predictor.model
    load_fold = functools.lru_cache(maxsize=2)(job.load)

    def draw(i: int) -> str:
        label = model.positive or measured.predictions[i].predicted_label
        return draw_explained(load_fold(places[i]), measured.samples[i], label)

    write_report(
        job.folder,
        measured,
        title="Cross-validation: " + " or ".join(model.labels),
        policy=Policy(
            settings.decisions.threshold if model.positive else "",
            alpha=predictor.alpha,
            augmented=settings.decisions.augmented_copies,
        ),
        provenance=Provenance(
            findings=findings,
            notes=measured.evaluation.notes,
            facts={**_list_facts(job, model.backbone), "Fingerprint": measured.fingerprint},
            environment=describe_environment(),
            folds=folds,
        ),
        draw=draw,
        plot_formats=settings.run.plot_formats,
    )


def _list_facts(job: Trained, backbone: str) -> dict[str, str]:
    """List what a reader needs to understand and repeat the cross-validation."""
    design, settings, size = job.division.design, job.settings, job.setup.input
    repeats = f", {design.repeats} times" if design.repeats > 1 else ""
    command = format_command(
        "crossval", config=str(job.folder / "config.yaml"), folds=design.folds, repeats=design.repeats,
        include_test=design.include_test, out="NEW_FOLDER",
    )  # fmt: skip
    return {
        "Data": settings.data.path,
        "Division": f"{design.folds} folds by patient, stratified by class{repeats}",
        "Backbone": f"{backbone}, {'trained' if settings.network.train_backbone else 'frozen'}",
        "Input": f"{size.size} x {size.size}, {size.fit}",
        "Recipe": settings.run.recipe,
        "Seed": str(settings.run.seed),
        "Command": command,
    }
