"""Tables and folders as people have them: exports of programs, habits of languages, marks instead of splits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import DataError

IMAGES = ("a.png", "b.png", "c.png", "d.png")


def table(folder: Path, *lines: str, images: tuple[str, ...] = IMAGES) -> Path:
    """A table of these lines, with images beside it; they are not opened here, so any content does."""
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + name.encode())
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + name.encode())
    return root


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")


# What programs write around a table


@pytest.mark.parametrize(
    "lines",
    [
        ("path,label,patient", "a.png,A,1", "b.png,B,2"),
        ("Unnamed: 0,path,label,patient", "0,a.png,A,1", "1,b.png,B,2"),  # pandas, read and written again
        ('"path","label","patient"', '"1","a.png","A","1"', '"2","b.png","B","2"'),  # R: one name too few
        ("path|label|patient", "a.png|A|1", "b.png|B|2"),
        ("path,label,patient,", "a.png,A,1", "b.png,B,2"),
        ("# exported in May", "#a,b,c", "path,label,patient", "a.png,A,1", "b.png,B,2"),
        ("#path,label,patient", "a.png,A,1", "b.png,B,2"),
        ('"path", "label", "patient"', '"a.png", "A", "1"', '"b.png", "B", "2"'),
        ("path,label,patient", 'a.png,"=""A""","=""1"""', 'b.png,B,"=""2"""'),  # text, for Excel
    ],
)
def test_what_programs_add_is_no_part_of_the_table(tmp_path: Path, lines: tuple[str, ...]) -> None:
    samples = read_samples(table(tmp_path, *lines))
    assert [(s.path.name, s.label, s.patient, dict(s.metadata)) for s in samples] == [
        ("a.png", "A", "1", {}),
        ("b.png", "B", "2", {}),
    ]


def test_a_title_above_the_column_names_is_an_error_that_names_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3 seems to name the columns \(path, label\). Remove the lines above"):
        read_samples(table(tmp_path, "Study 7", "May 2024,", "path,label", "a.png,A", "b.png,B"))


def test_lines_are_counted_from_the_first_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 4 has 3 cells"):
        read_samples(table(tmp_path, "# a comment", "path,label", "a.png,A", "b.png,B,C"))


def test_a_table_separated_by_spaces_is_refused_with_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="semicolons or tabs, not spaces"):
        read_samples(table(tmp_path, '"path" "label"', '"a.png" "A"'))


# Splits and patients in columns with other names


@pytest.mark.parametrize(
    "name", ["test", "is_test", "In Training", "fold", "cv_fold", "kfold", "holdout", "validation"]
)
def test_a_column_that_marks_a_split_is_not_ignored(tmp_path: Path, name: str) -> None:
    lines = (f"path,label,{name}", "a.png,A,0", "b.png,B,1")
    with pytest.raises(DataError, match=f"is the column '{name}' the split.*`split_column='none'`"):
        read_samples(table(tmp_path, *lines))
    assert len(read_samples(table(tmp_path, *lines), naming=Naming(split_column="none"))) == 2


@pytest.mark.parametrize(
    "values", [("test", ""), ("train", "holdout"), ("train", "external", "test"), ("Training", "Validierung")]
)
def test_a_column_that_names_some_splits_is_not_ignored(tmp_path: Path, values: tuple[str, ...]) -> None:
    rows = [f"{image},{'AB'[i % 2]},{value}" for i, (image, value) in enumerate(zip(IMAGES, values, strict=False))]
    with pytest.raises(DataError, match=r"column 'group' holds .*`split_column='group'`"):
        read_samples(table(tmp_path, "path,label,group", *rows))


@pytest.mark.parametrize("values", [("adult", "child"), ("test", "test"), ("PCR test", "")])
def test_a_column_of_other_groups_is_metadata(tmp_path: Path, values: tuple[str, str]) -> None:
    samples = read_samples(table(tmp_path, "path,label,group", f"a.png,A,{values[0]}", f"b.png,B,{values[1]}"))
    assert samples[0].metadata == {"group": values[0]}


@pytest.mark.parametrize(
    "name",
    ["anonymized_patient_id", "PAT_ID", "pt id", "case_id", "anon_id", "MRN Number", "Fallnummer", "paciente",
     "identifiant_patient", "PatientID_hashed"],
)  # fmt: skip
def test_a_column_that_tells_persons_apart_is_not_ignored(tmp_path: Path, name: str) -> None:
    lines = (f"path,label,{name}", "a.png,A,1", "b.png,B,1")
    with pytest.raises(DataError, match=f"is the column '{name}' the patient"):
        read_samples(table(tmp_path, *lines))
    assert {s.patient for s in read_samples(table(tmp_path, *lines), naming=Naming(patient_column=name))} == {"1"}


@pytest.mark.parametrize("name", ["image_no", "rad_id", "PatientSex_DICOM", "Patient Orientation", "study"])
def test_other_columns_are_not_asked_about(tmp_path: Path, name: str) -> None:
    samples = read_samples(table(tmp_path, f"path,label,{name}", "a.png,A,1", "b.png,B,2"))
    assert samples[0].metadata == {name: "1"}


# Folders


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Validierung", "Test"), ("entrenamiento", "validación", "prueba"),
        ("entrai\u0302nement", "validation", "test"), ("Treinamento", "Validação", "Teste"),
        ("addestramento", "validazione", "test"),
    ],
)  # fmt: skip
def test_split_folders_in_other_languages_are_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    root = folders(tmp_path, *(f"{split}/{name}" for split in (train, val, test) for name in ("A", "B")))
    assert sorted((s.split, s.label) for s in read_samples(root)) == [
        (split, label) for split in ("test", "train", "val") for label in "AB"
    ]


def test_images_that_icloud_has_not_downloaded_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folders(tmp_path, "A", "B")
    (root / "A" / ".2.png.icloud").write_bytes(b"bplist00")
    assert len(read_samples(root)) == 2
    assert "A/.2.png.icloud" in said(caplog)
