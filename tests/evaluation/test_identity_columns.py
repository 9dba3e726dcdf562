"""Columns that say whose image it is lie in tables of results, and nothing takes them for anything else."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom
from PIL import Image

from pneumoscope import compare, evaluate, evaluate_predictions, grade
from pneumoscope.cli import main as cli
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions as measure
from pneumoscope.evaluation.subgroups import measure_subgroups
from pneumoscope.inference.prediction import Prediction
from pneumoscope.training.train import Run

USUAL = [
    "path", "label", "probability", "predicted_label", "prediction_set", "ood_score", "decision", "warnings", "error",
    "patient", "sha256",
]  # fmt: skip
ADDED = ["age", "sex", "view", "laterality", "date", "accession_number", "study_uid", "series_uid", "sop_uid"]
CLASSES = ("NORMAL", "PNEUMONIA")


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture
def scans(images: Path, tmp_path: Path) -> Path:
    """The test images as DICOM files: two studies, two accession numbers, two days, and one PNG among them."""
    folder = tmp_path / "scans"
    for i, path in enumerate(sorted((images / "test").rglob("*.png"))):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        if i == 0:
            shutil.copy(path, folder / path.parent.name)
            continue
        header: dict[str, Any] = {
            "PatientID": f"P{i}", "PatientSex": "FM"[i % 2], "PatientAge": f"{i + 1:03}Y",
            "StudyDate": f"2024010{i % 2 + 1}", "AccessionNumber": f"{i % 2}",
            "StudyInstanceUID": f"1.{i % 2 + 1}", "SOPInstanceUID": f"1.2.{i}",
        }  # fmt: skip
        levels = np.asarray(Image.open(path).convert("L"))
        (folder / path.parent.name / f"{i}.dcm").write_bytes(dicom(levels, 8, **header))
    return folder


@pytest.fixture
def predicted(run: Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `pneumoscope predict` writes of them."""
    out = tmp_path / "predicted.csv"
    line = ["pneumoscope", "predict", str(scans), "--model", str(run.model), "--no-ood", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    return out


def test_only_results_of_dicom_files_get_the_columns(run: Run, scans: Path, images: Path, tmp_path: Path) -> None:
    for source, out in ((scans, tmp_path / "dicom"), (images, tmp_path / "png")):
        evaluate(source, run.model, out=out, resamples=5, split="all")
    plain, known = read(tmp_path / "png" / "predictions.csv"), read(tmp_path / "dicom" / "predictions.csv")
    assert list(plain[0]) == list(read(run.folder / "predictions.csv")[0]) == USUAL
    assert list(known[0]) == [*USUAL, *ADDED]
    by_suffix = {Path(row["path"]).suffix: row for row in known}
    assert [by_suffix[".png"][name] for name in ADDED] == [""] * len(ADDED)
    assert by_suffix[".dcm"]["patient"].startswith("P")  # as it is: splits and intervals need it
    assert by_suffix[".dcm"]["sop_uid"].startswith("1.2.")
    assert {row["sha256"] for row in known} == {row["sha256"] for row in known if len(row["sha256"]) == 12}


def test_predictions_are_measured_against_labels(run: Run, scans: Path, predicted: Path, tmp_path: Path) -> None:
    own = evaluate(scans, run.model, resamples=5)
    found = evaluate_predictions(predicted, scans, resamples=5)
    assert found.n == own.n
    assert found.metrics["auroc"].value == own.metrics["auroc"].value
    assert {part.kind for part in found.subgroups}.isdisjoint(ADDED)
    evaluate(scans, run.model, out=tmp_path / "own", resamples=5)
    compared = compare([tmp_path / "own", predicted], resamples=5)
    assert compared.n == own.n
    graded = grade(scans, [predicted], resamples=5)
    assert len(graded.ranked) == 1
    assert not graded.not_ranked


def test_a_table_of_results_is_measured_by_itself_and_read_as_a_dataset(
    run: Run, scans: Path, predicted: Path, tmp_path: Path
) -> None:
    evaluate(scans, run.model, out=tmp_path / "own", resamples=5)
    for table in (tmp_path / "own" / "predictions.csv", add_labels(predicted)):
        found = evaluate_predictions(table, resamples=5)
        kinds = {part.kind for part in found.subgroups}
        assert "Sex" in kinds
        assert kinds.isdisjoint([*ADDED, "sha256"])
        samples = read_samples(table)
        patients = {row["patient"] for row in read(table) if row["patient"]}
        assert {sample.patient for sample in samples} - {None} == patients
        assert {sample.label for sample in samples} == set(CLASSES)
        again = evaluate(table, run.model, resamples=5, split="all")
        assert {part.kind for part in again.subgroups}.isdisjoint({*ADDED} - {"laterality", "date"})


def add_labels(table: Path) -> Path:
    """The same table with the labels that its folders tell."""
    rows = read(table)
    out = table.with_name("labelled.csv")
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": Path(row["path"]).parent.name} for row in rows)
    return out


def divide(metadata: list[Mapping[str, str]], wanted: str | None = None) -> set[str]:
    """The kinds of subgroups of images with these columns."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, len(metadata))
    shares = rng.random(len(metadata))
    predictions = [
        Prediction(label=CLASSES[label], probabilities={"NORMAL": 1 - p, "PNEUMONIA": p})
        for label, p in zip(labels.tolist(), shares.tolist(), strict=True)
    ]
    evaluation = measure(labels, shares, classes=CLASSES, resamples=5)
    return {part.kind for part in measure_subgroups(predictions, evaluation, metadata, wanted)}


@pytest.mark.parametrize(
    "name",
    ["study_uid", "StudyInstanceUID", "SOP Instance UID", "seriesinstanceuid", "uid", "frame_of_reference_uid",
     "accession_number", "AccessionNumber", "Accession No.", "accession"],
)  # fmt: skip
def test_what_identifies_studies_divides_no_images(name: str) -> None:
    metadata: list[Mapping[str, str]] = [{name: f"1.2.{i % 3}", "site": "AB"[i % 2]} for i in range(60)]
    assert divide(metadata) == {"site"}
    assert divide([{name: str(i % 3), "site": "AB"[i % 2]} for i in range(60)]) == {"site"}
    with pytest.raises(UsageError, match="3 different identifiers"):
        divide(metadata, name)


def test_words_that_end_alike_divide_images() -> None:
    assert divide([{"pleural_fluid": "01"[i % 2], "Liquid": "ab"[i % 2]} for i in range(60)]) == {
        "pleural_fluid", "Liquid",
    }  # fmt: skip


def test_a_thousand_days_divide_no_images() -> None:
    days = np.arange("2020-01-01", "2022-09-27", dtype="datetime64[D]")
    assert divide([{"date": str(day), "site": "AB"[i % 2]} for i, day in enumerate(days)]) == {"site"}
