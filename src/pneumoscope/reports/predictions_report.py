"""`pneumoscope.evaluate_predictions`: measure what another program predicted, and write what `evaluate` writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pneumoscope.config import Count, Seed, checked
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.prediction_tables import PredictionColumns, Scale
from pneumoscope.errors import ImageError, MissingExtraError, require_extra
from pneumoscope.evaluation.evaluate import Measured, Plan
from pneumoscope.evaluation.external import External, measure_external
from pneumoscope.evaluation.external_tables import Choices
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.files import claim_folder, lock_folder, write_text
from pneumoscope.inference.prediction import SHORT
from pneumoscope.reports.environment import describe_environment
from pneumoscope.reports.evaluation_report import OUTPUTS
from pneumoscope.reports.figures import parse_formats
from pneumoscope.reports.gallery import LARGEST
from pneumoscope.reports.pages import format_command
from pneumoscope.reports.pictures import draw_thumbnail
from pneumoscope.reports.report import Policy, Provenance, write_report

CALIBRATION = "calibration.json"
_SIDE = 320  # pixels of a picture


@checked
def evaluate_predictions(
    predictions: str | Path,
    truth: str | Path | None = None,
    out: str | Path | None = None,
    *,
    id_column: str | None = None, probability_column: str | None = None, predicted_column: str | None = None,
    scale: Scale = "probability", positive: str | None = None,
    split: str | None = None, patient_pattern: str | None = None,
    naming: Naming = Naming(),
    threshold: float | str | None = None,
    calibrate: bool = False, prevalence: float | None = None,
    subgroups: str | None = None,
    resamples: Count = 2000, seed: Seed = 0, plot_formats: str = "svg",
    patient_ids: bool = False, excel: bool = False, overwrite: bool = False,
) -> Evaluation:  # fmt: skip
    """Measure predictions that any program wrote into a table, with all metrics, intervals, subgroups and the report.

    Images are joined by path, file name or id. What is missing, doubled or not a number is counted in the notes.

    Args:
        predictions: CSV or Parquet, with a probability for each image; of more than two classes, one for each class.
        truth: the labels: a table, or a folder of classes; None where `predictions` holds them.
        out: folder for what `evaluate` writes, with `calibrate` also for `calibration.json`; None writes nothing.
        id_column: column of `predictions` with the path, name or id of the image.
        probability_column: column with the probability of the positive class, or `CLASS=COLUMN,CLASS=COLUMN`.
        predicted_column: column with the predicted label.
        scale: of the numbers: `probability`, `percent`, or `logit` (without sigmoid or softmax).
        positive: the positive of two classes, if it is not PNEUMONIA, 1, true or positive.
        split: `train`, `val`, `test` or `all`; by default `test`, or the only split, or all images.
        patient_pattern: regular expression that finds the patient in the path of a file.
        naming: what columns and classes of the labels are called.
        threshold: for the positive class; or a rule that chooses it on the split val of `truth`. By default the one
            that the predicted labels in the table follow, else 0.5.
        calibrate: calibrate the probabilities, on the split val of `truth`, or without one by cross-validation in 5
            folds by patient, so that each probability comes from other patients.
        prevalence: also measure as if the positive class had this share, adjusting probabilities; needs `calibrate`.
        subgroups: what to divide the images by, such as `sex,age,sex*age`; by default by everything that is known.
        resamples: bootstrap resamples behind each interval.
        seed: fixes them, and the folds.
        plot_formats: formats of the files in `plots`, such as `svg,pdf,png`.
        patient_ids: whether metrics and report may name patients; `predictions.csv` always does.
        excel: whether CSV files begin with a byte order mark, which Excel needs to read UTF-8.
        overwrite: whether to replace an earlier evaluation in `out`.

    Raises:
        DataError, UsageError: the tables or an option cannot be used, or `out` exists.
    """
    parse_formats(plot_formats)
    plan = Plan(split or "", prevalence, False, resamples, seed, patient_ids, excel, subgroups)
    columns = PredictionColumns(id_column, probability_column, predicted_column, scale)
    choices = Choices(columns, positive, threshold, calibrate)
    tables = Path(predictions), None if truth is None else Path(truth)
    if out is None:
        return measure_external(*tables, choices, plan, naming, patient_pattern).measured.evaluation
    with lock_folder(Path(out)):
        claim_folder(Path(out), (*OUTPUTS, CALIBRATION), overwrite)
        found = measure_external(*tables, choices, plan, naming, patient_pattern, Path(out))
        options = {"patient_pattern": patient_pattern, **naming.to_options()}
        _write_report(Path(out), found, _list_facts(*tables, choices, plan, options), plot_formats)
    return found.measured.evaluation


def _write_report(folder: Path, found: External, facts: dict[str, str], plot_formats: str) -> None:
    measured = found.measured
    if found.fitted is not None:
        write_text(folder / CALIBRATION, json.dumps(asdict(found.fitted), indent=2) + "\n")
    pictures = any(sample.path.is_file() for sample in measured.samples)
    write_report(
        folder,
        measured,
        title=f"Predictions of another program: {' or '.join(measured.evaluation.classes)}",
        policy=Policy(found.rule),
        provenance=Provenance(
            notes=measured.evaluation.notes, facts=facts | found.facts, environment=describe_environment()
        ),
        draw=(lambda i: _draw(measured, i)) if pictures else None,
        explained=False,
        plot_formats=plot_formats,
    )


def _draw(measured: Measured, i: int) -> str:
    try:
        return draw_thumbnail(measured.samples[i], _SIDE, LARGEST)
    except (ImageError, MissingExtraError):
        return ""


def _list_facts(
    predictions: Path, truth: Path | None, choices: Choices, plan: Plan, options: dict[str, Any]
) -> dict[str, str]:
    """List what a reader needs to understand and repeat an evaluation."""
    require_extra("evaluate")
    given = {
        "predictions": str(predictions), "truth": None if truth is None else str(truth), "out": "NEW_FOLDER",
        **asdict(choices.columns), **asdict(choices), **asdict(plan), **options, "columns": None,
    }  # fmt: skip
    usual = (("scale", "probability"), ("split", ""))
    command = format_command(
        "evaluate", **{name: None if (name, each) in usual else each for name, each in given.items()}
    )
    facts = {"Predictions": _name(predictions)}
    if truth is not None:
        facts["Labels"] = _name(truth)
    return {**facts, "Command": command}


def _name(path: Path) -> str:
    if not path.is_file():
        return str(path)
    return f"{path} (SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:SHORT]})"
