"""Whose image it is rides on predictions into every output, and patients are pseudonyms unless they are asked for."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dicom_files import dicom, image

from pneumoscope.datasets.pseudonyms import KEY_FILE
from pneumoscope.datasets.reading import find_images
from pneumoscope.datasets.samples import Sample, merge_tags
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import Tags
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.formats import Style, write_predictions
from pneumoscope.inference.prediction import IDENTITY
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.training.train import Run

HEADER: dict[str, Any] = {
    "PatientID": "0815", "PatientAge": "045Y", "PatientSex": "F", "ViewPosition": "PA", "ImageLaterality": "U",
    "StudyDate": "20240229", "AccessionNumber": "A-007", "StudyInstanceUID": "1.2.840.1",
    "SeriesInstanceUID": "1.2.840.2", "SOPInstanceUID": "1.2.840.3",
}  # fmt: skip
KNOWN = {
    "patient": "0815", "age": 45.0, "sex": "F", "view": "PA", "laterality": "U", "date": "2024-02-29",
    "accession_number": "A-007", "study_uid": "1.2.840.1", "series_uid": "1.2.840.2", "sop_uid": "1.2.840.3",
}  # fmt: skip
PSEUDONYM = re.compile("[0-9a-f]{16}")
Write = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def predictor(run: Run) -> Predictor:
    return load(run.folder, ood=False)


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """A DICOM file, an image that nobody knows, one whose name tells the patient, and one that is damaged."""
    folder = tmp_path / "scans"
    folder.mkdir()
    picture = next((images / "test" / "NORMAL").iterdir())
    (folder / "a.dcm").write_bytes(dicom(image(64, 64), **HEADER))
    shutil.copy(picture, folder / "b.png")
    shutil.copy(picture, folder / "person23_virus_1.png")
    (folder / "z.dcm").write_bytes(b"\0" * 128 + b"DICM")
    return folder


@pytest.fixture
def write(predictor: Predictor, tmp_path: Path) -> Write:
    """Predict images, and read the rows back as they are in a form."""

    def write(form: str, *paths: Path, patient_ids: bool = False) -> list[dict[str, Any]]:
        out = tmp_path / f"rows.{form}"
        write_predictions(predictor, find_images(paths), form, out, style=Style(patient_ids=patient_ids))
        if form == "parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(out)
            kinds = {name: str(table.schema.field(name).type) for name in IDENTITY}
            assert kinds == dict.fromkeys(IDENTITY, "string") | {"age": "double"}
            return list(table.to_pylist())
        text = out.read_text(encoding="utf-8")
        if form == "csv":
            return list(csv.DictReader(io.StringIO(text)))
        return list(json.loads(text)) if form == "json" else [json.loads(line) for line in text.splitlines()]

    return write


def pick(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says about the source, with None where a cell is empty."""
    return {name: row[name] or None for name in IDENTITY}


def test_a_header_is_on_the_prediction_with_and_without_a_cache(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(image(64, 64), **HEADER))
    with FeatureCache(tmp_path / "features.sqlite") as cache:
        predictor = load(run.folder, cache=cache)
        for _ in range(2):
            (prediction,) = predictor.predict(path)
            assert prediction.identity == KNOWN
    (anonymous,) = predictor.predict(dicom(image(64, 64), PatientID="", SOPInstanceUID="1.2", StudyInstanceUID=None))
    assert (anonymous.patient, anonymous.study_uid, anonymous.date) == (None, None, None)


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_every_form_says_whose_image_it_is(form: str, write: Write, folder: Path) -> None:
    rows = write(form, folder)
    assert [list(row)[-len(IDENTITY) :] for row in rows] == [list(IDENTITY)] * 4
    known, unknown, named, damaged = map(pick, rows)
    assert PSEUDONYM.fullmatch(known["patient"])
    if form == "csv":
        known["age"] = float(known["age"])
    assert known == KNOWN | {"patient": known["patient"]}
    assert unknown == damaged == dict.fromkeys(IDENTITY)
    assert PSEUDONYM.fullmatch(named["patient"])
    assert named == dict.fromkeys(IDENTITY) | {"patient": named["patient"]}
    again = [row["patient"] for row in write(form, folder)]
    assert again == [row["patient"] for row in rows]
    told = [row["patient"] or None for row in write(form, folder, patient_ids=True)]
    assert told == ["0815", None, "virus-person23", None]


def test_a_table_of_patients_counts_before_headers_and_names(write: Write, folder: Path) -> None:
    table = folder / "scans.csv"
    table.write_text("path,patient\na.dcm,p1\nb.png,p1\nperson23_virus_1.png,\n")
    rows = write("json", table)
    assert rows[0]["patient"] == rows[1]["patient"]
    assert rows[2]["patient"] is None
    assert [row["patient"] for row in write("json", table, patient_ids=True)] == ["p1", "p1", None]
    table.write_text("path\na.dcm\nperson23_virus_1.png\n")
    assert [row["patient"] for row in write("json", table, patient_ids=True)] == ["0815", "virus-person23"]


def test_a_name_never_replaces_the_patient_of_a_header(write: Write, folder: Path) -> None:
    for name in ("person5_virus_9.dcm", "person6_virus_9.dcm"):
        patient: dict[str, Any] = {"PatientID": ""} if name.startswith("person6") else {}
        (folder / name).write_bytes(dicom(image(64, 64), **{**HEADER, **patient}))
    rows = write("json", folder / "person5_virus_9.dcm", folder / "person6_virus_9.dcm", patient_ids=True)
    assert [row["patient"] for row in rows] == ["0815", None]


def test_the_terminal_names_no_patient_and_needs_no_key(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_FILE, "/proc/no/key")
    stream = io.StringIO()
    write_predictions(predictor, find_images([folder]), "table", stream)
    assert "0815" not in stream.getvalue()
    assert len(write_predictions(predictor, find_images([folder / "b.png"]), "csv", tmp_path / "b.csv")) == 0
    with pytest.raises(UsageError, match=r"/proc/no/key: .*cannot be written.*`patient_ids=True`"):
        write_predictions(predictor, find_images([folder]), "csv", tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
    write_predictions(predictor, find_images([folder]), "csv", tmp_path / "a.csv", style=Style(patient_ids=True))


def test_a_header_counts_before_a_table() -> None:
    header = Tags(accession="A", date=None, laterality="L", instance="1")
    known = Tags(accession="B", date="2024-01-01", laterality="R", instance="2", series="3")
    merged = merge_tags(header, known)
    assert merged == Tags(accession="A", date="2024-01-01", laterality="L", instance="1", series="3")
    assert merge_tags(None, known) == known


def test_real_files_keep_their_identity(real_data: Path, write: Write) -> None:
    if not (real_data / "dicom").is_dir():
        pytest.skip("no real DICOM files")
    rows = write("json", real_data / "dicom")
    named = write("json", real_data / "dicom", patient_ids=True)
    assert len(rows) == 24
    assert {row["date"] for row in rows} == {"1901-01-01"}
    assert {row["accession_number"] for row in rows} == {None}
    for row, other in zip(rows, named, strict=True):
        assert PSEUDONYM.fullmatch(row["patient"])
        assert (other["patient"], row["view"]) == (Path(row["path"]).stem, other["view"])
        assert 0 < row["age"] < 100
        assert all(row[name].startswith("1.2.276.") for name in ("study_uid", "series_uid", "sop_uid"))
    assert len({row["patient"] for row in rows}) == len({row["sop_uid"] for row in rows}) == 24


def test_names_of_viewers_are_no_patients(write: Write, folder: Path) -> None:
    picture = (folder / "b.png").read_bytes()
    (folder / "person23_virus_1.png").unlink()  # beside which they would be those of Kermany
    for patient in ("x", "y"):
        (folder / patient).mkdir()
        (folder / patient / "IM-0001-0001.png").write_bytes(picture)
    rows = {row["path"]: row["patient"] for row in write("json", folder, patient_ids=True)}
    assert {patient for path, patient in rows.items() if "IM-" in path} == {None}


def test_a_path_that_is_no_text_has_a_row(write: Write, folder: Path) -> None:
    path = os.fsdecode(os.fsencode(folder) + b"/person9_virus_3\xff.png")
    shutil.copy(folder / "b.png", path)
    (row,) = write("csv", Path(path))
    assert "\\xff" in row["path"] + row["error"]
    assert PSEUDONYM.fullmatch(row["patient"])


def test_samples_of_one_s_own_are_taken_as_they_are(predictor: Predictor, folder: Path) -> None:
    (prediction,) = predictor.run([Sample(folder / "a.dcm", patient="mine")])
    assert (prediction.patient, prediction.accession_number) == ("mine", "A-007")
