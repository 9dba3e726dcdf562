"""Tables and folders as people have them: exports of programs, habits of languages, marks instead of splits."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import read_samples
from pneumoscope.errors import DataError, UsageError

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
    with pytest.raises(DataError, match="semicolons or tabs, not by spaces"):
        read_samples(table(tmp_path, '"path" "label"', '"a.png" "A"'))


@pytest.mark.parametrize("line", ["Total:,2,", ",Summe,110"])
def test_a_line_of_totals_is_no_image(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    samples = read_samples(table(tmp_path, "path,label,age", "a.png,A,50", "b.png,B,60", line))
    assert [s.label for s in samples] == ["A", "B"]
    assert "line 4 is a line of totals, and is left out" in said(caplog)


def test_an_image_that_has_a_total_of_something_is_kept(tmp_path: Path) -> None:
    assert len(read_samples(table(tmp_path, "path,label,extent", "a.png,A,partial", "b.png,B,total"))) == 2


@pytest.mark.parametrize("header", ["No Finding,Pneumonia", "NORMAL,PNEUMONIA", "Sex_Male,PNEUMONIA"])
def test_a_column_for_each_finding_is_an_error_that_says_how_to_read_one(tmp_path: Path, header: str) -> None:
    path = table(tmp_path, f"Path,{header}", "a.png,1.0,", "b.png,,1.0", "c.png,,-1.0", "d.png,,0.0")
    name = header.split(",")[1]
    with pytest.raises(DataError, match=rf"`label_column='{name}'` and `map='1=PNEUMONIA,0=NORMAL,\*='`"):
        read_samples(path)
    samples = read_samples(path, naming=Naming(label_column=name, map="1=PNEUMONIA,0=NORMAL,*="))
    assert [(s.path.name, s.label) for s in samples] == [("b.png", "PNEUMONIA"), ("d.png", "NORMAL")]


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        ("Pneumonia,Edema,View,pid", "`label_column='Pneumonia'` and `map='1=PNEUMONIA,0=NORMAL,*='`"),
        ("Fracture,Edema,Sex,Patient", "`label_column='Edema'` and `map='1=POSITIVE,0=NEGATIVE,*='`"),
    ],
)
def test_the_class_that_a_message_proposes_is_that_of_the_column(tmp_path: Path, header: str, advice: str) -> None:
    path = table(tmp_path, f"Path,{header}", "a.png,1,0,1,0", "b.png,0,1,1,1", "c.png,0,0,0,0")
    with pytest.raises(DataError, match=re.escape(advice)):
        read_samples(path)


@pytest.mark.parametrize(
    ("path", "image"),
    [
        ("A.PNG", "a.png"), ("Images/a.png", "images/A.png"), (" a.png", "a.png"), ("a.png ", "a.png"),
        ("chest%20ray.png", "chest ray.png"), ("im%C3%A4ge.png", "imäge.png"), ("IMAGES\\a.PNG", "images/a.png"),
    ],
)  # fmt: skip
def test_images_are_found_in_spite_of_spaces_and_capitals(
    tmp_path: Path, path: str, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_samples(table(tmp_path, "path,label", f"{path},A", images=(image,)))
    assert [s.path for s in found] == [tmp_path / image]
    assert "1 image was found by" in said(caplog)


def test_two_images_that_differ_in_capitals_are_not_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"A.PNG fits 2 files"):
        read_samples(table(tmp_path, "path,label", "A.PNG,A", images=("a.png", "A.png")))


def test_a_path_of_a_folder_is_an_error(tmp_path: Path) -> None:
    lines = ("path,filename,label", "images,a.png,A", "images,b.png,B")
    with pytest.raises(DataError, match=r"line 2: .*images is a folder, not an image.*`path_column`"):
        read_samples(table(tmp_path, *lines, images=("images/a.png", "images/b.png")))


def test_the_current_folder_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, "path,label", "gone.png,A", images=())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"gone\.png in all folders below the current folder\. Paths are relative"):
        read_samples("table.csv")


def test_one_of_several_findings_does_not_contradict_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("A/1.png", "A/2.png", "B/3.png")
    path = table(tmp_path, "path,label", "A/1.png,A", "A/2.png,A|Mass", "B/3.png,B", images=names)
    read_samples(path, naming=Naming(map="A=A,Mass=,B=B"))
    assert "name of another class" not in said(caplog)


def test_a_label_that_contradicts_the_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path, "path,label", "A/a.png,B", "B/b.png,B", "c.png,A", images=("A/a.png", "B/b.png", "c.png"))
    assert [s.label for s in read_samples(path)] == ["B", "B", "A"]
    assert "1 images lie in a folder with the name of another class" in said(caplog)


# Splits and patients in columns with other names


@pytest.mark.parametrize(
    "name", ["test", "is_test", "In Training", "fold", "cv_fold", "kfold", "holdout", "validation"]
)
def test_a_column_that_marks_a_split_is_not_ignored(tmp_path: Path, name: str) -> None:
    lines = (f"path,label,{name}", "a.png,A,0", "b.png,B,1")
    with pytest.raises(DataError, match=f"does the column '{name}' hold the split.*`split_column='none'`"):
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
    with pytest.raises(DataError, match=f"does the column '{name}' hold the patient"):
        read_samples(table(tmp_path, *lines))
    assert {s.patient for s in read_samples(table(tmp_path, *lines), naming=Naming(patient_column=name))} == {"1"}


@pytest.mark.parametrize("name", ["image_no", "rad_id", "PatientSex_DICOM", "Patient Orientation", "study"])
def test_other_columns_are_not_asked_about(tmp_path: Path, name: str) -> None:
    samples = read_samples(table(tmp_path, f"path,label,{name}", "a.png,A,1", "b.png,B,2"))
    assert samples[0].metadata == {name: "1"}


# Labels


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"), ("0", "00"), ("COVID-19", "COVID19"), ("COVID-19", "COVID\u201119"), ("NORMAL", "NORMAL."),
        ("NORMAL", "'NORMAL'"), ("PNEUMONIA", "PNEUMONIA - Kopie"), ("PNEUMONIA", "PNEUMONIA (1)"),
        ("Normal", "Normal copy (2)"),
    ],
)  # fmt: skip
def test_labels_that_differ_in_marks_only_are_one_class_or_an_error(tmp_path: Path, one: str, other: str) -> None:
    path = table(tmp_path, "path,label", f"a.png,{one}", f"b.png,{other}", "c.png,X")
    with pytest.raises(DataError, match="differ only"):
        read_samples(path)
    assert {s.label for s in read_samples(path, naming=Naming(map={other: one}))} == {one, "X"}


@pytest.mark.parametrize(
    ("one", "other"), [("1", "-1"), ("1.5", "15"), ("Grade (1)", "Grade (2)"), ("A+", "A"), ("T1", "T2")]
)
def test_labels_that_differ_are_two_classes(
    tmp_path: Path, one: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = read_samples(table(tmp_path, "path,label", f"a.png,{one}", f"b.png,{other}"))
    assert {s.label for s in samples} == {one, other}
    assert "same name" not in said(caplog)


@pytest.mark.parametrize(("one", "other"), [("PNEUMONIA", "PNUEMONIA"), ("NORMAL", "NORMALS"), ("Krank", "Kränk")])
def test_labels_that_may_be_misspelt_are_said(
    tmp_path: Path, one: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    read_samples(table(tmp_path, "path,label", f"a.png,{one}", f"b.png,{one}", f"c.png,{other}"))
    if one != "Krank":  # too short to tell
        assert f"'{one}' (2 images) and '{other}' (1) have nearly the same name" in said(caplog)


@pytest.mark.parametrize(
    "name", ["unsorted", "New folder", "EXCLUDED", "old", "-", "?", "--", "Unknown", "None", "not_known"]
)
def test_class_folders_that_may_be_none_are_said(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    read_samples(folders(tmp_path, "A", "B", name))
    assert f"Is {name!r} (1 images) a class? If not, leave it out with `map='{name}='`" in said(caplog)


def test_findings_in_brackets_are_several_findings(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "path,label",
        "a.png,\"['normal']\"",
        "b.png,\"['pneumonia', 'pleural effusion']\"",
        "c.png,['mass']",
        "d.png,[]",
    )
    with pytest.raises(DataError, match="several findings"):
        read_samples(path)
    samples = read_samples(path, naming=Naming(map="normal=NORMAL,pneumonia=PNEUMONIA,*="))
    assert [s.label for s in samples] == ["NORMAL", "PNEUMONIA"]


def test_a_label_mapped_to_nothing_in_a_file_of_settings_is_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label", "a.png,A", "b.png,B", "c.png,C")
    assert len(read_samples(path, naming=Naming(map={"C": None}))) == 2  # type: ignore[dict-item]


# Patients


@pytest.mark.parametrize(
    ("one", "other"), [("12", "12.0"), ("12", "012"), ("12", '"12,0"'), ("P-001", "P\u2013001"), ("P001", "\u0420001")]
)
def test_patients_that_programs_write_in_two_ways_are_one(
    tmp_path: Path, one: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = read_samples(table(tmp_path, "path,label,patient", f"a.png,A,{one}", f"b.png,B,{other}", "c.png,B,13"))
    assert [s.patient for s in samples] == [one, one, "13"]
    assert "count as the same patient: 1" in said(caplog)


@pytest.mark.parametrize(
    ("one", "other"), [("1-11", "11-1"), ("1" * 40, "1" * 39 + "2"), ("10", "100"), ("1.5", "1.50.0"), ("P1", "P01")]
)
def test_patients_that_differ_stay_apart(tmp_path: Path, one: str, other: str) -> None:
    samples = read_samples(table(tmp_path, "path,label,patient", f"a.png,A,{one}", f"b.png,B,{other}"))
    assert [s.patient for s in samples] == [one, other]


@pytest.mark.parametrize("nobody", ["unknown", "-", "?", "ANONYMOUS", "#REF!"])
def test_an_unknown_patient_is_not_one_person(tmp_path: Path, nobody: str) -> None:
    samples = read_samples(table(tmp_path, "path,label,patient", f"a.png,A,{nobody}", f"b.png,B,{nobody}", "c.png,B,1"))
    assert [s.patient for s in samples] == [None, None, "1"]


def test_numbers_of_patients_that_were_rounded_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_samples(table(tmp_path, "path,label,patient", "a.png,A,1.23E+11", "b.png,B,1.23E+11"))
    assert "Patient numbers that a spreadsheet has rounded: 1, such as 1.23E+11." in said(caplog)


def test_patients_of_a_pattern_are_compared_too(tmp_path: Path) -> None:
    root = folders(tmp_path, "A/P1_x", "B/p1_x")
    assert {s.patient for s in read_samples(root, r"[Pp]\d")} == {"P1"}


def test_a_group_named_patient_is_the_patient(tmp_path: Path) -> None:
    root = folders(tmp_path, "A/s1_p1", "B/s1_p2")
    assert [s.patient for s in read_samples(root, r"(s\d)_(?P<patient>p\d)")] == ["p1", "p2"]


def test_a_pattern_that_finds_the_class_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"finds the class \(NORMAL\), not the patient"):
        read_samples(folders(tmp_path, "NORMAL/p1", "PNEUMONIA/p2"), "([A-Z]+)")


def test_folders_of_patients_below_classes_are_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = read_samples(folders(tmp_path, "A/patient1", "A/Patient_2", "B/patient1/day2", "B/other"))
    assert [s.patient for s in samples] == ["Patient_2", "patient1", None, "patient1"]
    assert (
        "The patient of 3 images is known from folders of patients: 2 patients.\nThe patient of 1 image is unknown."
        in said(caplog)
    )


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


def test_classes_below_folders_of_something_else_are_an_error(tmp_path: Path) -> None:
    root = folders(
        tmp_path, *(f"{site}/{name}" for site in ("original", "resized") for name in ("NORMAL", "PNEUMONIA"))
    )
    with pytest.raises(
        DataError, match="original, resized all hold the folders NORMAL, PNEUMONIA, which seem to be the"
    ):
        read_samples(root)
