"""Tables are read as intended, whoever wrote them, or refused with the place and a reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.tables import read_table
from pneumoscope.errors import DataError

Row = tuple[str, str | None, str | None, str | None]


def rows(samples: Iterable[Sample], root: Path) -> list[Row]:
    return [(s.path.relative_to(root).as_posix(), s.label, s.patient, s.split) for s in samples]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


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
            "datei,klasse\n1.png,A\n",
            r"no column path or label; found datei, klasse\. A table has the columns path,label",
        ),
        ("path\n1.png\n", "no column label; found path"),
        ("path,lable\n1.png,A\n", "no column label; found path, lable. Did you mean `label_column='lable'`"),
        ("", "the table is empty"),
        (" \n,,\n", "the table is empty"),
        ("path,label\n", "no rows"),
        ("path,label\n1.png,A\n\n,B\n", "line 4 has no path"),
        ("path,label\n1.png, \n", "no row has a label"),
        ("path,label\n1.png\n", "line 2 has 1 cell, and there are 2 columns"),
        ("path,label\n1.png,A\n1.png,A, b\n", "line 3 has 3 cells, and there are 2 columns"),
        ("path,label,split\n1.png,A,tets\n", "line 2 has the split 'tets'; valid are train, val, test"),
        ('path,label\n1.png,"A\n\n"\n"1.png,A\n', "cannot be read as CSV: in the row that begins in line 5"),
        ('path,label\n1.png,"A"B\n', "cannot be read as CSV: in the row that begins in line 2"),
        ('path,label\n"1.png,A\n' + "x" * 200_000, "cannot be read as CSV: in the row that begins in line 2"),
        ("path,label\n1.png,A\0\n", "line 2 has a null byte"),
        ("1.png,NORMAL\n2.png,PNEUMONIA\n", r"the first line must name the columns, and holds '1\.png'"),
        ("path,label,label\n1.png,A,B\n", "two columns are named 'label'"),
        ("path,label,Patient ID,pid\n1.png,A,1,2\n", "the columns 'Patient ID' and 'pid' may both hold the patient"),
        ("image,file,label\n1.png,1.png,A\n", "the columns 'image' and 'file' may both hold the path.*`path_column`"),
        ("path,label,pateint\n1.png,A,1\n", "is the column 'pateint' the patient.*`patient_column='none'`"),
        ("path,label,Spilt\n1.png,A,train\n", "is the column 'Spilt' the split"),
        ("path,label,usage\n1.png,A,train\n", "the column 'usage' holds train.*`split_column='usage'`"),
        ("path,label\ngone/2.png,A\n", r"none of its 1 images exists. The first, in line 2, is 'gone/2\.png'; tried: "),
    ],
)
def test_an_invalid_table_is_an_error_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"table\.csv: {message}"):
        read_samples(csv_table(tmp_path, text, "1.png"))


def test_a_damaged_parquet_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    content = parquet_table(tmp_path, "1.png", path=["1.png"], label=["A"]).read_bytes()
    table = tmp_path / "damaged.parquet"
    for damaged in (b"", b"PAR1", b"path,label\n1.png,A\n", content[:-9], content[: len(content) // 2]):
        table.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.parquet: cannot be read as Parquet"):
            read_samples(table)
    with pytest.raises(DataError, match=r"table\.parquet: no column label; found path, klasse"):
        read_samples(parquet_table(tmp_path, path=["1.png"], klasse=["A"]))


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
        assert "1 rows name a file again" in caplog.text


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
