"""DICOM images in folders and tables: known by content, with the patient from the header."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom, image
from PIL import Image

from pneumoscope.datasets.reading import find_images, read_samples
from pneumoscope.datasets.samples import Sample, write_samples
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.images.read import Reading

LEVELS = image()


def place(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_dicom_is_recognised_by_content_and_patients_by_headers(tmp_path: Path) -> None:
    place(tmp_path, "A/1.2.840.113619.2.1", dicom(LEVELS, PatientID="P7", ViewPosition="PA", PatientAge="006M"))
    place(tmp_path, "A/IM000001", dicom(LEVELS, PatientID="P8", meta=False))
    place(tmp_path, "B/image.dcm", dicom(LEVELS, PatientID="P9", PatientSex="F"))
    place(tmp_path, "B/notes.txt", b"not an image at all")
    place(tmp_path, "B/DICOMDIR", dicom(LEVELS))
    place(tmp_path, "B/README", b"")
    samples = read_samples(tmp_path)
    assert [(s.path.name, s.label, s.patient) for s in samples] == [
        ("1.2.840.113619.2.1", "A", "P7"),
        ("IM000001", "A", "P8"),
        ("image.dcm", "B", "P9"),
    ]
    first, _, last = (sample.tags for sample in samples)
    assert first is not None
    assert (first.view, first.age) == ("PA", 0.5)
    assert last is not None
    assert last.sex == "F"
    assert [sample.path.name for sample in find_images([tmp_path])] == ["1.2.840.113619.2.1", "IM000001", "image.dcm"]


def test_images_with_unusual_names_are_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "A" / "scan.001", format="PNG")
    place(tmp_path, "B/scan.002", (tmp_path / "A" / "scan.001").read_bytes())
    assert [sample.path.name for sample in read_samples(tmp_path)] == ["scan.001", "scan.002"]


def test_a_table_may_define_how_to_read_an_image(tmp_path: Path) -> None:
    for name in "abc":
        place(tmp_path, name + ".dcm", dicom(LEVELS, PatientID=name))
    table = tmp_path / "images.csv"
    table.write_text("path,label,invert,any_modality\na.dcm,A,yes,\nb.dcm,B,false,TRUE\nc.dcm,B,,\n")
    samples = read_samples(table, reading=Reading(invert=True))
    assert [sample.reading for sample in samples] == [Reading(True), Reading(False, True), Reading(True)]
    assert [sample.patient for sample in samples] == ["a", "b", "c"]
    write_samples(tmp_path / "again.csv", samples)
    assert [s.reading for s in read_samples(tmp_path / "again.csv")] == [s.reading for s in samples]
    table.write_text("path,label,invert\na.dcm,A,perhaps\n")
    with pytest.raises(DataError, match="line 2: invert: 'perhaps' is neither true nor false"):
        read_samples(table)


def test_nothing_is_added_to_a_table_of_ordinary_images(tmp_path: Path) -> None:
    write_samples(tmp_path / "images.csv", [Sample(tmp_path / "a.png", "A")])
    assert (tmp_path / "images.csv").read_text(encoding="utf-8").splitlines()[0] == "path,label,patient,split"


def test_a_damaged_header_does_not_stop_the_others(tmp_path: Path) -> None:
    place(tmp_path, "A/good.dcm", dicom(LEVELS, PatientID="P"))
    place(tmp_path, "B/bad.dcm", dicom(LEVELS)[:140])
    assert [(sample.path.name, sample.patient) for sample in read_samples(tmp_path)] == [
        ("good.dcm", "P"),
        ("bad.dcm", None),
    ]


def test_dicom_without_the_extra_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "A/image.dcm", dicom(LEVELS))
    forget_pydicom(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[dicom\]"):
        read_samples(tmp_path)


def test_the_header_comes_before_a_name_that_viewers_give_to_everybody(tmp_path: Path) -> None:
    for number in range(3):
        place(tmp_path, f"A/{number}/IM-0001-0001.dcm", dicom(LEVELS, PatientID=f"P{number}"))
    assert [sample.patient for sample in read_samples(tmp_path)] == ["P0", "P1", "P2"]
    assert {sample.patient for sample in read_samples(tmp_path, r"IM-(\d+)")} == {"0001"}
    place(tmp_path, "A/IM-0007-0001.dcm", dicom(LEVELS, PatientID=""))
    assert "IM-0007" in {sample.patient for sample in read_samples(tmp_path)}


def forget_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)


def test_dicom_gives_its_tags_whatever_its_suffix(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.TIF", "d.jp2", "e.dcm", "f"):
        place(tmp_path, f"A/{name}", dicom(LEVELS, PatientID=f"P-{name}", ViewPosition="AP"))
    samples = read_samples(tmp_path)
    assert [sample.patient for sample in samples] == [f"P-{sample.path.name}" for sample in samples]
    assert [sample.tags.view for sample in samples if sample.tags] == ["AP"] * 6


def test_one_dicom_file_without_the_extra_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path, "A/image.dcm", dicom(LEVELS))
    (tmp_path / "B").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "B" / "scan.png")
    (tmp_path / "images.csv").write_text("path,label\nA/image.dcm,A\nB/scan.png,B\n")
    forget_pydicom(monkeypatch)
    for samples in (read_samples(tmp_path), read_samples(tmp_path / "images.csv"), find_images([tmp_path])):
        assert [(sample.path.name, sample.tags) for sample in samples] == [("image.dcm", None), ("scan.png", None)]
    (tmp_path / "images.csv").write_text("path,label\nA/image.dcm,A\n")
    for alone in (tmp_path / "A", tmp_path / "images.csv"):
        with pytest.raises(MissingExtraError, match=r"image\.dcm: reading DICOM needs an extra"):
            find_images([alone])
