"""A classifier and labelled radiographs become metrics, predictions and a report."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.datasets.samples import Sample, read_samples
from pneumoscope.datasets.splitting import find_shared_patients
from pneumoscope.errors import DataError
from pneumoscope.evaluation import intervals
from pneumoscope.evaluation.intervals import Evaluation
from pneumoscope.evaluation.report import write_report
from pneumoscope.images.reading import Reading
from pneumoscope.inference.features import FeatureCache
from pneumoscope.inference.predictions import to_row
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.outputs import claim_folder, format_rows, write_text

SHORT = 12  # hex digits that name a file's content in a bundle
OUTPUTS = ("metrics.json", "predictions.csv", "plots", "report.html")


def evaluate(
    bundle: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    device: str = "auto",
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
        resamples: bootstrap resamples behind each interval.
        seed: fixes them.
        cache: keeps features between calls.
        overwrite: whether an earlier evaluation in `out` may go.
        progress: called with the number of images done.

    Raises:
        BundleError: the bundle cannot be used.
        DataError: no such split, labels that the bundle does not know, or no readable image.
        UsageError: `out` exists.
    """
    predictor = load(bundle, device, cache)
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
    claim_folder(Path(out), OUTPUTS, overwrite)
    facts = {
        "Model": f"{predictor.bundle.backbone}, {predictor.bundle.training.get('recipe')} recipe",
        "Bundle": str(bundle),
        "Data": str(data),
        "Command": shlex.join(
            ["pneumoscope", "evaluate", str(bundle), str(data), "--out", "NEW_FOLDER", "--split", chosen]
            + ["--seed", str(seed), "--resamples", str(resamples)]
            + (["--patient-pattern", patient_pattern] if patient_pattern else [])
            + ["--invert"] * reading.invert
            + ["--allow-modality"] * reading.any_modality
        ),
    }
    return assess(
        predictor, samples, Path(out), split=chosen, facts=facts, resamples=resamples, seed=seed, progress=progress
    )


def assess(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path,
    *,
    split: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    history: Sequence[Mapping[str, Any]] = (),
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
    rows = [to_row(one, bundle.labels, sample.label) for one, sample in zip(predictions, samples, strict=True)]
    write_text(out / "predictions.csv", "".join(format_rows(rows)))
    read = [(one, sample) for one, sample in zip(predictions, samples, strict=True) if one.probabilities is not None]
    if not read:
        raise DataError(f"None of the {len(samples)} images could be read; {out / 'predictions.csv'} says why.")
    seen = set(bundle.data.get("seen", ()))
    if known := sum(one.digest[:SHORT] in seen for one, _ in read):
        notes = [*notes, f"{known} of these images were used in training: the figures are too good."]
        logging.getLogger("pneumoscope").warning("%s", notes[-1])
    if shared := find_shared_patients([sample for _, sample in read]):
        notes = [*notes, f"{len(shared)} patients are in more than one split: {', '.join(list(shared)[:10])}."]
    labels = [bundle.labels.index(str(sample.label)) for _, sample in read]
    shares = np.array([[(one.probabilities or {})[name] for name in bundle.labels] for one, _ in read])
    probabilities = shares[:, 1] if len(bundle.labels) == 2 else shares
    patients = [sample.patient for _, sample in read]
    evaluation = intervals.evaluate(
        labels,
        probabilities,
        classes=bundle.labels,
        positive=bundle.positive,
        split=split,
        threshold=bundle.thresholds["decision"],
        patients=patients,
        resamples=resamples,
        seed=seed,
    )
    write_text(out / "metrics.json", json.dumps(evaluation.to_json(), indent=2) + "\n")
    write_report(
        out,
        evaluation,
        title="Chest radiograph classifier: " + " or ".join(bundle.labels),
        labels=labels,
        probabilities=probabilities,
        paths=[sample.path.as_posix() for _, sample in read],
        patients=patients,
        history=history,
        facts=facts,
        notes=notes,
        errors=[(str(one.path), one.error) for one in predictions if one.error],
    )
    return evaluation
