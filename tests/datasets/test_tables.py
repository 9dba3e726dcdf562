"""Tables are read as intended, whoever wrote them, or refused with the place and a reason."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from dataset_files import touch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope.auditing.losses import find_losses
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import find_images, read_dataset, read_samples
from pneumoscope.datasets.samples import Sample, write_samples
from pneumoscope.datasets.tables import read_table
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.dicom import Tags

Row = tuple[str, str | None, str | None, str | None]


def rows(samples: Iterable[Sample], root: Path) -> list[Row]:
    return [(s.path.relative_to(root).as_posix(), s.label, s.patient, s.split) for s in samples]


def csv_table(folder: Path, text: str, *images: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    """A table, and images beside it; they are not opened here, so any content does."""
    path = touch(folder, *images) / name
    path.write_bytes(text.encode(encoding))
    return path


def parquet_table(folder: Path, *images: str, **columns: Sequence[Any]) -> Path:
    path = touch(folder, *images) / "table.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# Tables


def test_csv_and_parquet_tables_give_the_same_samples(tmp_path: Path) -> None:
    text = "path,label,patient,split\nA/1.png,A,p1,train\nB/2.png,B,,val\n../3.png,A,p3,test\n"
    expected = [
        ("A/1.png", "A", "p1", "train"),
        ("B/2.png", "B", None, "val"),
        ("../3.png", "A", "p3", "test"),
    ]
    columns = {name: [row[i] for row in expected] for i, name in enumerate(("path", "label", "patient", "split"))}
    folder = touch(tmp_path, "3.png") / "t"
    for table in (csv_table(folder, text, "A/1.png", "B/2.png"), parquet_table(folder, **columns)):
        assert rows(read_samples(table), folder) == expected


def test_a_table_may_have_only_paths_and_labels_in_any_order(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "label,path\nB,person4_virus_9.png\nA,b.png\n", "person4_virus_9.png", "b.png")
    assert rows(read_samples(table), tmp_path) == [
        ("person4_virus_9.png", "B", "virus-person4", None),
        ("b.png", "A", None, None),
    ]


def test_a_patient_column_is_used_even_where_it_is_empty(tmp_path: Path) -> None:
    images = ("person4_virus_9.png", "person4_virus_8.png")
    table = csv_table(tmp_path, f"path,label,patient\n{images[0]},A,\n{images[1]},A,x\n", *images)
    assert [sample.patient for sample in read_samples(table)] == [None, "x"]


def test_absolute_paths_are_kept(tmp_path: Path) -> None:
    table = csv_table(tmp_path, f"path,label\n{tmp_path}/elsewhere/1.png,A\n", "elsewhere/1.png")
    assert read_samples(table)[0].path == tmp_path / "elsewhere/1.png"


def test_missing_values_of_parquet_are_missing_and_numbers_become_text(tmp_path: Path) -> None:
    nan = float("nan")
    images = ["1.png", "2.png", "3.png"]
    table = parquet_table(
        tmp_path, *images, path=images, label=[0, 1, 1], patient=[7.0, nan, 2.5], split=[None, None, None]
    )
    assert rows(read_samples(table), tmp_path) == [
        ("1.png", "0", "7", None),
        ("2.png", "1", None, None),
        ("3.png", "1", "2.5", None),
    ]
    whole = parquet_table(tmp_path, path=["1.png"], label=["A"], patient=[2**60])
    assert read_samples(whole)[0].patient == str(2**60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "doc,sort\n1.png,A\n",
            r"no column path or label; found doc, sort\. A table has the columns path,label",
        ),
        ("path\n1.png\n", "no column label; found path"),
        (
            f"path,{','.join(f'gene{i}' for i in range(3000))}\n{'x,' * 3000}x\n",
            r"no column label; found path, .* and 2,989 others\. A",
        ),
        ("path,lable\n1.png,A\n", "no column label; found path, lable. Did you mean `label_column='lable'`"),
        ("", "the table is empty"),
        (" \n,,\n", "the table is empty"),
        ("path,label\n", "no rows"),
        ("path,label\n1.png,A\n\n,B\n", "line 4 has no path"),
        ("path,label\n1.png, \n", "no row has a label"),
        ("path,label\n1.png\n", "line 2 has 1 cell, but there are 2 columns"),
        ("path,label\n1.png,A\n1.png,A, b\n", "line 3 has 3 cells, but there are 2 columns"),
        ("path,label,split\n1.png,A,tets\n", "line 2 has the split 'tets'; valid are train, val, test"),
        ('path,label\n1.png,"A\n\n"\n"1.png,A\n', "cannot be read as CSV: in the row that begins in line 5"),
        ('path,label\n1.png,"A"B\n', "cannot be read as CSV: in the row that begins in line 2"),
        ('path,label\n"1.png,A\n' + "x" * 200_000, "cannot be read as CSV: in the row that begins in line 2"),
        ("path,label\n1.png,A\0\n", "line 2 has a null byte"),
        ("1.png,NORMAL\n2.png,PNEUMONIA\n", r"the first line must name the columns, but holds '1\.png'"),
        ("path,label,label\n1.png,A,B\n", "two columns are named 'label'"),
        ("path,label,Patient ID,pid\n1.png,A,1,2\n", "the columns 'Patient ID' and 'pid' may both hold the patient"),
        ("image,file,label\n1.png,1.png,A\n", "the columns 'image' and 'file' may both hold the path.*`path_column`"),
        ("path,label,pateint\n1.png,A,1\n", "does the column 'pateint' hold the patient.*`patient_column='none'`"),
        ("path,label,Spilt\n1.png,A,train\n", "does the column 'Spilt' hold the split"),
        ("path,label,usage\n1.png,A,train\n", "the column 'usage' holds train.*`split_column='usage'`"),
        ("path,label\ngone/2.png,A\n", r"none of its 1 images exists. The first, in line 2, is 'gone/2\.png'; tried: "),
    ],
)
def test_an_invalid_table_is_an_error_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"table\.csv: {message}"):
        read_samples(csv_table(tmp_path, text, "1.png"))


@pytest.mark.parametrize("column", ["path", "label", "site"])
def test_a_text_of_megabytes_in_parquet_is_refused(column: str, tmp_path: Path) -> None:
    columns = {"path": ["a.png", "b.png"], "label": ["A", "B"], "site": ["x", "y"]} | {column: ["a" * 200_000, "b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"holds a text of 200,000 characters; the limit is 131,072\."):
        read_samples(tmp_path / "table.parquet")


def test_a_damaged_parquet_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    content = parquet_table(tmp_path, "1.png", path=["1.png"], label=["A"]).read_bytes()
    table = tmp_path / "damaged.parquet"
    for damaged in (b"", b"PAR1", b"path,label\n1.png,A\n", content[:-9], content[: len(content) // 2]):
        table.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.parquet: cannot be read as Parquet"):
            read_samples(table)
    with pytest.raises(DataError, match=r"table\.parquet: no column label; found path, sort"):
        read_samples(parquet_table(tmp_path, path=["1.png"], sort=["A"]))


@pytest.mark.parametrize("again", ["A/1.png", "./A/1.png", "A/../A/1.png", r"A\1.png"])
@pytest.mark.parametrize(
    ("second", "differ"),
    [("A,train,p,", ""), ("A,test,p,", "split: train and test"), ("B,train,p,", "label: A and B"),
     ("A,train,,", "patient: p and none"), ("A,train,p,true", "reading: ")],
)  # fmt: skip
def test_a_file_that_a_table_names_twice_is_taken_once_or_refused(
    tmp_path: Path, again: str, second: str, differ: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"path,label,split,patient,invert\nA/1.png,A,train,p,\nB/2.png,B,train,q,\n{again},{second}\n"
    table = csv_table(tmp_path, text, "A/1.png", "B/2.png")
    if differ:
        with pytest.raises(DataError, match=rf"lines 2 and 4 name the same file, .*A/1\.png, but differ in {differ}"):
            read_samples(table)
    else:
        assert len(read_samples(table)) == 2
        assert "repeated rows are left out: 1" in caplog.text


@pytest.mark.parametrize("categories", [True, False])
def test_a_small_parquet_file_that_stands_for_gigabytes_is_refused(categories: bool, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 9000), pyarrow.array(["x" * 100_000]))
    pyarrow.parquet.write_table(pyarrow.table({"path": texts}), path, store_schema=categories)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="holds more than 536,870,912 bytes"):
        read_table(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_parquet_file_is_a_table_or_a_data_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.png", "b.png"], "label": ["A", "B"], "n": [1, None]}), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        read_table(path)


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")


# Headers as others write them

CHOSEN = "No Finding=NORMAL,Pneumonia=PNEUMONIA,*="


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.tuples(
        st.sampled_from(["path", "filename", "Image Index", "file_path", "X_ray_image_name"]),
        st.sampled_from(["label", "class", "Finding Labels", "Target"]),
        st.sampled_from(["patient", "patient_id", "Patient ID", "subject_id", "patientId"]),
        st.sampled_from(["split", "Dataset_type", "set", "data split"]),
    ),
    change=st.sampled_from([str, str.upper, str.lower, str.title]),
    spaces=st.lists(st.sampled_from(["", " ", "\xa0", "\u200b", "\ufeff"]), min_size=8, max_size=8),
    order=st.permutations(range(4)),
    delimiter=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    suffix=st.sampled_from(["csv", "tsv", "txt"]),
)
def test_no_way_to_write_a_header_changes_what_is_read(
    names: tuple[str, ...], change: Any, spaces: list[str], order: list[int], delimiter: str, encoding: str, end: str,
    suffix: str, tmp_path: Path,
) -> None:  # fmt: skip
    header = [spaces[2 * i] + change(name) + spaces[2 * i + 1] for i, name in enumerate(names)]
    cells = [header, ["ä.png", "A", "P1", "train"], ["b.png", "Ä", "P2", "Testing"], ["c.png", "A", "", "dev"]]
    text = end.join(delimiter.join(row[i] for i in order) for row in cells)
    table = csv_table(tmp_path, text, "ä.png", "b.png", "c.png", name=f"t.{suffix}", encoding=encoding)
    assert sorted(rows(read_samples(table), tmp_path)) == [
        ("b.png", "Ä", "P2", "test"),
        ("c.png", "A", None, "val"),
        ("ä.png", "A", "P1", "train"),
    ]


def test_a_table_of_nih_needs_a_map_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000013_005.png,Emphysema|Infiltration|Pneumonia,5,13,060Y,M,AP,2682,2749,0.143,0.143,\n"
        "00000013_006.png,No Finding,6,13,61,M,PA,2682,2749,0.143,0.143,\n"
        "00000014_000.png,Effusion,0,14,411,F,PA,2682,2749,0.143,0.143,\n"
        "00000015_000.png,No Finding,0,15,30,F,PA,2682,2749,0.143,0.143,\n"
    )
    images = ["images_001/images/00000013_005.png", "images_001/images/00000013_006.png",
              "images_002/images/00000014_000.png", "images_002/images/00000015_000.png"]  # fmt: skip
    table = csv_table(tmp_path, text, *images, name="Data_Entry_2017.csv")
    with pytest.raises(DataError, match=r"1 labels contain \|, such as 'Emphysema\|Infiltration\|Pneumonia'.*`map"):
        read_samples(table)
    caplog.clear()
    samples = read_samples(table, naming=Naming(map=CHOSEN))
    assert rows(samples, tmp_path) == [
        (images[0], "PNEUMONIA", "13", None),
        (images[1], "NORMAL", "13", None),
        (images[3], "NORMAL", "15", None),
    ]
    assert [(s.tags.age, s.tags.sex, s.tags.view) for s in samples if s.tags] == [
        (60, "M", "AP"), (61, "M", "PA"), (30, "F", "PA"),
    ]  # fmt: skip
    assert samples[0].metadata["Follow-up #"] == "5"
    for words in (
        "path from Image Index, label from Finding Labels, patient from Patient ID",
        "4 images were found by name, in subfolders",
        "The map gives the class NORMAL 2 images of 'No Finding' (2)",
        "The map gives the class PNEUMONIA 1 image of 'Emphysema|Infiltration|Pneumonia' (1)",
        "The map leaves out 1 image of 'Effusion' (1)",
        "1 cell was not understood (age",
    ):
        assert words in said(caplog)


def test_a_table_of_rsna_names_patients_who_are_files_and_repeats_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "patientId,x,y,width,height,Target\n0004cfab,,,,,0\n00436515,264.0,152.0,213.0,379.0,1\n"
        "00436515,562.0,152.0,256.0,453.0,1\n"
    )
    images = ["stage_2_train_images/0004cfab.dcm", "stage_2_train_images/00436515.dcm"]
    table = csv_table(tmp_path, text, *images)
    found = read_samples(table, naming=Naming(map={"0": "NORMAL", "1": "OPACITY"}))
    assert rows(found, tmp_path) == [(images[0], "NORMAL", "0004cfab", None), (images[1], "OPACITY", "00436515", None)]
    assert "repeated rows are left out: 1" in said(caplog)


def test_a_table_of_chexpert_begins_with_the_name_of_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pneumonia\n"
        "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,\n"
        "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,Male,87,Frontal,PA,,1.0\n"
        "CheXpert-v1.0-small/train/patient00002/study1/view2_lateral.jpg,Male,87,Lateral,,,1.0\n"
    )
    names = ["patient00001/study1/view1_frontal.jpg", "patient00002/study1/view1_frontal.jpg",
             "patient00002/study1/view2_lateral.jpg"]  # fmt: skip
    table = csv_table(tmp_path, text, *(f"train/{name}" for name in names))
    with pytest.raises(DataError, match="no column label; found Path, Sex"):
        read_samples(table)
    found = read_samples(table, naming=Naming(label_column="pneumonia"))
    assert rows(found, tmp_path) == [(f"train/{name}", "1.0", "patient00002", None) for name in names[1:]]
    assert [sample.tags and sample.tags.view for sample in found] == ["PA", "LATERAL"]
    assert "1 of 3 images have no label and are left out, the first in line 2" in said(caplog)
    assert "by leaving out the leading CheXpert-v1.0-small/" in said(caplog)


def test_tables_of_mimic_vindr_and_covid_sets_are_read(tmp_path: Path) -> None:
    mimic = csv_table(
        tmp_path / "mimic",
        "dicom_id,study_id,subject_id,split,label\n02aa804e-bde0afdd,50414267,10000032,validate,A\n",
        "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg",
    )
    found = read_samples(mimic)
    assert [(s.label, s.patient, s.split, s.metadata) for s in found] == [
        ("A", "10000032", "val", {"study_id": "50414267"})
    ]
    vindr = csv_table(
        tmp_path / "vindr", "image_id,class_name,class_id,rad_id\n50a4,No finding,14,R11\n9a5f,Cardiomegaly,3,R10\n",
        "50a4.png", "9a5f.png",
    )  # fmt: skip
    assert [sample.label for sample in read_samples(vindr)] == ["No finding", "Cardiomegaly"]
    covid = csv_table(
        tmp_path / "covid",
        ",X_ray_image_name,Label,Dataset_type,Label_2_Virus_category\n0,IM-0128.jpeg,Normal,TRAIN,\n1,p2.jpeg,Pnemonia,TEST,",
        "Coronahack/test/p2.jpeg", "Coronahack/train/IM-0128.jpeg",
    )  # fmt: skip
    assert rows(read_samples(covid), tmp_path / "covid") == [
        ("Coronahack/train/IM-0128.jpeg", "Normal", None, "train"),
        ("Coronahack/test/p2.jpeg", "Pnemonia", None, "test"),
    ]


def test_the_adults_are_read_with_age_sex_and_view(real_data: Path) -> None:
    samples = read_samples(real_data / "dicom/films.csv")
    assert len(samples) == 24
    assert {sample.label for sample in samples} >= {"OPACITY"}
    assert all(sample.tags and sample.tags.age and sample.tags.view for sample in samples)


def test_a_chosen_column_and_no_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,file,label,diagnosis,pateint,Usage\nx.png,a.png,A,B,p1,train\ny.png,b.png,A,C,p2,test\n"
    table = csv_table(tmp_path, text, "a.png", "b.png")
    naming = Naming("File", "diagnosis", "pateint", "usage")
    samples = read_samples(table, naming=naming)
    assert rows(samples, tmp_path) == [("a.png", "B", "p1", "train"), ("b.png", "C", "p2", "test")]
    assert samples[0].metadata == {"path (table)": "x.png", "label (table)": "A"}
    write_samples(tmp_path / "again.csv", samples)
    assert read_samples(tmp_path / "again.csv") == samples
    nobody = read_samples(table, naming=replace(naming, patient_column="none", split_column="none"))
    assert rows(nobody, tmp_path) == [("a.png", "B", None, None), ("b.png", "C", None, None)]
    for wrong, message in (
        (Naming(path_column="fiel"), r"path_column: .*has no column 'fiel'; found .*Did you mean 'file'"),
        (Naming(split_column="set"), r"split_column: .*has no column 'set'"),
    ):
        with pytest.raises(UsageError, match=message):
            read_samples(table, naming=wrong)
    with pytest.raises(UsageError, match=r"label_column: no effect, because .* is not a table"):
        read_samples(touch(tmp_path / "images", "A/1.png"), naming=Naming(label_column="x"))


def test_of_two_columns_the_one_with_the_exact_name_is_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = csv_table(tmp_path, "path,filename,label,class,patient,pid\na.png,b.png,A,B,1,2\n", "a.png", "b.png")
    assert rows(read_samples(table), tmp_path) == [("a.png", "A", "1", None)]
    for words in ("path is read from the column path, not from filename", "not from class", "not from pid"):
        assert words in said(caplog)


def test_known_columns_of_age_and_sex_are_not_taken_for_misspelled_patients(tmp_path: Path) -> None:
    table = csv_table(
        tmp_path, "path,label,Patient Age,patient_sex\na.png,A,12M,female\nb.png,A,90+,x\n", "a.png", "b.png"
    )
    first, second = read_samples(table)
    assert first.tags == Tags(age=1, sex="F")
    assert second.tags == Tags(age=90)


@pytest.mark.parametrize(
    ("written", "view"),
    [("PA", "PA"), ("ap supine", "AP"), ("AP_horizontal", "AP"), ("L", "LATERAL"), ("Lateral", "LATERAL"), ("LL", "LL"),
     ("posteroanterior", "PA"), ("Frontal", None), ("unknown", None), ("zz", None)],
)  # fmt: skip
def test_views_are_those_of_dicom(tmp_path: Path, written: str, view: str | None) -> None:
    table = csv_table(tmp_path, f"path,label,view\na.png,A,{written}\n", "a.png")
    (sample,) = read_samples(table)
    assert (sample.tags.view if sample.tags else None) == view


def test_patients_that_differ_invisibly_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [f"{i}.png" for i in range(6)]
    patients = ["P001", "p001 ", "P 001", "P002", "nan", ""]
    text = "path,label,patient\n" + "".join(f"{i},A,{p}\n" for i, p in zip(images, patients, strict=True))
    found = read_samples(csv_table(tmp_path, text, *images))
    assert [sample.patient for sample in found] == ["P001", "P001", "P001", "P002", None, None]
    assert "count as the same patient: 1, such as P001 and p001." in said(caplog)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,label\na.png,A\nb.png,\n\nc.png,nan\nd.png,NA\ne.png, B \n"
    found = read_samples(csv_table(tmp_path, text, *(f"{c}.png" for c in "abcde")))
    assert [(sample.path.stem, sample.label) for sample in found] == [("a", "A"), ("e", "B")]
    assert "3 of 5 images have no label and are left out, the first in line 3" in said(caplog)
    assert "1 blank line was left out" in said(caplog)


def test_columns_are_kept_through_a_written_table(tmp_path: Path) -> None:
    text = "path,label,Age,Sex,scanner,notes\na.png,A,7,F,X1,\nb.png,B,9,M,,\"=1+1, 'x'\"\n"
    samples = read_samples(csv_table(tmp_path, text, "a.png", "b.png"))
    assert [sample.metadata for sample in samples] == [
        {"Age": "7", "Sex": "F", "scanner": "X1"},
        {"Age": "9", "Sex": "M", "notes": "=1+1, 'x'"},
    ]
    write_samples(tmp_path / "again.csv", samples)
    assert read_samples(tmp_path / "again.csv") == samples


def test_parquet_of_any_types_gives_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = parquet_table(
        tmp_path, "1.png", "2.png",
        path=["1.png", "2.png"], label=pyarrow.array(["A", "B"]).dictionary_encode(), flag=[True, None],
        when=pyarrow.array([1, None], pyarrow.timestamp("ns")), box=[[1, 2], []], blob=[b"\0\1", None],
        nothing=[None, None], count=[3, 4],
    )  # fmt: skip
    first, second = read_samples(table)
    assert (first.label, second.label) == ("A", "B")
    assert first.metadata == {"flag": "True", "when": "1970-01-01 00:00:00.000000001", "count": "3"}
    assert second.metadata == {"count": "4"}
    assert "columns that are not read because of their type: box, blob" in said(caplog)
    with pytest.raises(DataError, match=r"the column 'label' holds list.*, from which no label can be read"):
        read_samples(parquet_table(tmp_path, path=["1.png"], label=[["A"]]))
    with pytest.raises(DataError, match="the column 'image' holds struct"):
        read_samples(parquet_table(tmp_path, image=[{"bytes": b"", "path": "1.png"}], label=["A"]))


@pytest.mark.parametrize("name", ["t.xlsx", "t.xls", "t.ods", "t.csv"])
def test_a_workbook_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + b"\0" * 100)
    for read in (read_samples, lambda path: find_images([path])):
        with pytest.raises(DataError, match=r"workbook.*Save the sheet as CSV \(UTF-8\)"):
            read(tmp_path / name)


def test_windows_1252_is_read_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = csv_table(tmp_path, "path;label\nfür.png;Lungenentzündung\n", "für.png", encoding="cp1252")
    assert rows(read_samples(table), tmp_path) == [("für.png", "Lungenentzündung", None, None)]
    assert "not in UTF-8, so it is read as Windows-1252" in said(caplog)
    table.write_bytes(b"path,label\nf\x81.png,A\n")
    with pytest.raises(DataError, match="text in an unknown encoding"):
        read_samples(table)


def test_what_excel_adds_is_no_part_of_the_table(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "sep=;\npath;label;\na.png;A;\nb.png;B\n;;\n", "a.png", "b.png")
    with pytest.raises(DataError, match="line 4 has 2 cells, but there are 3 columns"):
        read_samples(table)
    table = csv_table(tmp_path, "sep=;\npath;label;\na.png;A;;\nb.png;B;\n;;\n")
    assert rows(read_samples(table), tmp_path) == [("a.png", "A", None, None), ("b.png", "B", None, None)]


def test_a_table_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe\.csv: not a regular file"):
        read_samples(tmp_path / "pipe.csv")


# Where the images are


@pytest.mark.parametrize(
    ("path", "image", "word"),
    [
        (r"train\A\1.png", "train/A/1.png", "by writing / for"),
        ("train/A/1", "train/A/1.png", "by adding a suffix"),
        ("1.2.840", "1.2.840.dcm", "by adding a suffix"),
        (r"C:\Users\me\data\train\1.png", "train/1.png", "by leaving out the leading /Users/me/data/"),
        ("/old/place/train/1.png", "train/1.png", "by leaving out the leading /old/place/"),
        (r"\\server\share\1.png", "1.png", "by leaving out the leading /server/share/"),
        ("data/train/1.png", "train/1.png", "by leaving out the leading data/"),
        ("1.png", "images/001/1.png", "by name, in subfolders"),
        ("A/1.png", "images/A/1.png", "by name, in subfolders"),
        ("1", "images/1.DCM", "by name, in subfolders"),
        ("e\u0301.png", "\u00e9.png", "by writing / for"),
        ("\u00e9.png", "e\u0301.png", "by writing / for"),
    ],
)
def test_images_are_found_and_how_is_said(
    tmp_path: Path, path: str, image: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = csv_table(tmp_path, f"path,label\n{path},A\n", image)
    assert [sample.path for sample in read_samples(table)] == [tmp_path / image]
    assert word in said(caplog)
    assert [sample.path for sample in find_images([table])] == [tmp_path / image]


def test_a_name_that_several_files_have_is_an_error(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "path,label\n1.png,A\n", "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"1\.png fits 2 files below .*, such as a/1\.png and b/1\.png"):
        read_samples(table)
    table = csv_table(tmp_path, "path,label\nx,A\n", "x.png", "x.dcm")
    with pytest.raises(DataError, match=r"x fits 2 files below .*, such as x\.dcm and x\.png"):
        read_samples(table)


def test_a_missing_image_is_never_replaced_by_one_in_another_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "path,label\ntrain/A/1.png,A\ntrain/A/2.png,A\ntrain/B/1.png,B\n"
    table = csv_table(tmp_path, text, "train/A/1.png", "train/B/1.png", "test/A/2.png", "A/2.png")
    assert rows(read_samples(table), tmp_path) == [
        ("train/A/1.png", "A", None, None),
        ("train/A/2.png", "A", None, None),
        ("train/B/1.png", "B", None, None),
    ]
    assert "1 of 3 images do not exist (1 of 2 A). The first, in line 3, is 'train/A/2.png'; tried: " in said(caplog)


@pytest.mark.parametrize("split", ["", ",split"])
def test_if_no_image_exists_the_first_is_named_with_all_that_was_tried(tmp_path: Path, split: str) -> None:
    table = csv_table(tmp_path, f"path,label{split}\ntrain\\a,A{split and ',train'}\n")
    with pytest.raises(DataError) as caught:
        read_samples(table)
    message = str(caught.value)
    for part in ("none of its 1 images exists. The first, in line 2, is 'train\\\\a'", str(tmp_path / "train/a"),
                 "with the suffix of an image", f"a in all folders below {tmp_path}"):  # fmt: skip
        assert part in message


def test_for_a_prediction_a_missing_image_is_left_to_its_row_and_columns_that_do_not_matter_are_no_error(
    tmp_path: Path,
) -> None:
    table = csv_table(tmp_path, "filename,class,target,pateint,split\ngone.png,A,B,1,x\n")
    assert find_images([table]) == [
        Sample(tmp_path / "gone.png", metadata={"class": "A", "target": "B", "pateint": "1"})
    ]
    assert find_images([table], naming=Naming("target"))[0].path == tmp_path / "B"


def test_rows_that_are_left_out_of_a_table_are_listed_for_the_audit(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "path,label\n1.png,A\n2.png,\n1.png,A\n3.png,B\n", "1.png", "2.png", "3.png")
    dataset = read_dataset(table)
    assert [sample.path.name for sample in dataset.samples] == ["1.png", "3.png"]
    assert [(each.path.name, each.reason.count(1), each.label) for each in dataset.left_out] == [
        ("2.png", "1 row without a label", None),
        ("1.png", "1 row that repeats another", "A"),
    ]
    findings = find_losses(dataset, [None, None])
    assert [(each.severity, each.title) for each in findings] == [
        ("warning", "1 row without a label left out"),
        ("note", "1 row that repeats another left out"),
    ]


@pytest.mark.parametrize(
    ("header", "age"),
    [("Datei;Befund;Alter", 7), ("Bildpfad;Klasse;Alter", 7), ("Fichier;Étiquette;âge", 7), ("chemin;classe;Age", 7),
     ("Archivo;Diagnóstico;Edad", 7), ("ruta;clase;edad", 7)],
)  # fmt: skip
def test_usual_names_in_german_french_and_spanish_are_known(header: str, age: float, tmp_path: Path) -> None:
    (sample,) = read_samples(csv_table(tmp_path, f"{header}\n1.png;NORMAL;7\n", "1.png"))
    assert (sample.path.name, sample.label, sample.tags and sample.tags.age) == ("1.png", "NORMAL", age)


@pytest.mark.parametrize("header", ["Patientennummer", "ID paciente", "Identifiant patient"])
def test_names_of_patients_in_other_languages_are_asked_about(header: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"does the column '{header}' hold the patient"):
        read_samples(csv_table(tmp_path, f"Datei,Befund,{header}\n1.png,A,1\n", "1.png"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Usage", ("Training", "PublicTest", "PrivateTest")), ("Usage", ("Public", "Private", "Public")),
        ("group", ("train", "val", "test")), ("fold", ("train", "test", "test")), ("part", ("training", "public", "")),
    ],
)  # fmt: skip
def test_a_column_that_holds_splits_under_another_name_is_asked_about(
    name: str, values: tuple[str, ...], tmp_path: Path
) -> None:
    rows = "".join(f"{i}.png,A,{value}\n" for i, value in enumerate(values))
    table = csv_table(tmp_path, f"path,label,{name}\n{rows}", *(f"{i}.png" for i in range(3)))
    with pytest.raises(DataError, match=rf"the column '{name}' hold.*`split_column='{name}'`"):
        read_samples(table)
    assert len(read_samples(table, naming=Naming(split_column="none"))) == 3


@pytest.mark.parametrize("values", [("public", "public"), ("Public", "Private"), ("control", "train"), ("A", "B")])
def test_a_column_that_holds_something_else_is_metadata(values: tuple[str, str], tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,A,{value}\n" for i, value in enumerate(values))
    samples = read_samples(csv_table(tmp_path, f"path,label,group\n{rows}", "0.png", "1.png"))
    assert [sample.metadata["group"] for sample in samples] == list(values)


def test_folders_that_name_another_split_than_the_table_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = ["train/A/1.png", "train/A/2.png", "valid/B/3.png", "test/B/4.png", "other/5.png"]
    text = "path,label,split\n" + "".join(
        f"{path},{label},{split}\n"
        for path, label, split in zip(paths, "AABBA", ["train", "test", "val", "train", "test"], strict=True)
    )
    samples = read_samples(csv_table(tmp_path, text, *paths))
    assert [sample.split for sample in samples] == ["train", "test", "val", "train", "test"]
    assert "2 of 5 images lie in a folder with the name of another split, such as " in caplog.text
    assert "train/A/2.png, which the table puts into test. The table counts." in caplog.text


def test_patients_that_differ_in_punctuation_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["P-001", "P_001", "P 001", "p001", "P-002", "P0-01", "1-23", "12-3"]
    rows = "".join(f"{i}.png,A,{name}\n" for i, name in enumerate(names))
    samples = read_samples(csv_table(tmp_path, f"path,label,patient\n{rows}", *(f"{i}.png" for i in range(8))))
    assert [sample.patient for sample in samples] == ["P-001"] * 4 + names[4:]
    assert "count as the same patient: 1, such as P-001 and P_001." in caplog.text


@pytest.mark.parametrize(
    "cell",
    ["Effusion, Pneumonia", "Effusion;Pneumonia", "Effusion/Pneumonia", "Pneumonia + effusion",
     "Effusion and Pneumonia", "Mass, Effusion, Pneumonia"],
)  # fmt: skip
def test_a_cell_that_lists_labels_of_other_cells_is_no_class(cell: str, tmp_path: Path) -> None:
    rows = [f'0.png,"{cell}"', "1.png,Effusion", "2.png,Pneumonia"]
    table = csv_table(tmp_path, "path,label\n" + "\n".join(rows) + "\n", "0.png", "1.png", "2.png")
    with pytest.raises(DataError, match=r"seems to list several findings, as '.*' are labels too"):
        read_samples(table)
    chosen = read_samples(table, naming=Naming(map={cell: "Pneumonia"}))
    assert [sample.label for sample in chosen] == ["Pneumonia", "Effusion", "Pneumonia"]
    assert len(read_samples(table, naming=Naming(map={cell: "", "Effusion": "E", "Pneumonia": "P"}))) == 2
    with pytest.raises(DataError, match="seems to list several findings"):
        read_samples(table, naming=Naming(map={"Effusion": "E", "Pneumonia": "P"}))


@pytest.mark.parametrize("cell", ["Pneumonia, bacterial", "COVID-19", "Tuberculosis/Pneumonia", "no finding"])
def test_a_class_with_punctuation_may_be_one(cell: str, tmp_path: Path) -> None:
    table = csv_table(tmp_path, f'path,label\n0.png,"{cell}"\n1.png,Pneumonia\n', "0.png", "1.png")
    assert [sample.label for sample in read_samples(table)] == [cell, "Pneumonia"]
