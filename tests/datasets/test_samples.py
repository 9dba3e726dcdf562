"""Samples: folders and tables are read as intended or refused with a reason; nothing in them is touched."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from dataset_files import touch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pneumoscope.datasets.labels import clean, look
from pneumoscope.datasets.reading import find_images, read_samples
from pneumoscope.datasets.samples import (
    SPLITS,
    Sample,
    cluster_by_patient,
    describe_counts,
    find_classes,
    fingerprint_samples,
    write_samples,
)
from pneumoscope.datasets.splits import find_shared_patients, split_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.training.train import train

Row = tuple[str, str | None, str | None, str | None]


def rows(samples: Iterable[Sample], root: Path) -> list[Row]:
    return [(s.path.relative_to(root).as_posix(), s.label, s.patient, s.split) for s in samples]


def labelled(*labels: str) -> list[Sample]:
    return [Sample(Path(f"{i}.png"), label) for i, label in enumerate(labels)]


def csv_table(folder: Path, text: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def parquet_table(folder: Path, **columns: Sequence[Any]) -> Path:
    path = folder / "table.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# Folders


def test_folders_of_three_splits(tmp_path: Path) -> None:
    names = [f"{split}/{label}/1.png" for split in SPLITS for label in ("NORMAL", "PNEUMONIA")]
    found = rows(read_samples(touch(tmp_path, *names)), tmp_path)
    assert sorted(found) == sorted((name, name.split("/")[1], None, name.split("/")[0]) for name in names)


def test_folders_of_two_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/A/1.png", "train/B/2.png", "test/A/3.png", "test/B/4.png")
    assert Counter(sample.split for sample in read_samples(tmp_path)) == {"train": 2, "test": 2}


def test_folders_of_classes_alone(tmp_path: Path) -> None:
    touch(tmp_path, "B/2.png", "A/10.png", "A/1.png")
    assert rows(read_samples(tmp_path), tmp_path) == [
        ("A/1.png", "A", None, None),
        ("A/10.png", "A", None, None),
        ("B/2.png", "B", None, None),
    ]
    assert read_samples(str(tmp_path)) == read_samples(tmp_path)


@pytest.mark.parametrize("valid", ["val", "valid", "validation", "Val", "VALIDATION"])
@pytest.mark.parametrize("train", ["train", "training", "Train"])
def test_other_spellings_of_the_splits(tmp_path: Path, train: str, valid: str) -> None:
    touch(tmp_path, f"{train}/A/1.png", f"{valid}/A/2.png", "Test/A/3.png")
    assert {sample.path.stem: sample.split for sample in read_samples(tmp_path)} == dict(
        zip("123", SPLITS, strict=True)
    )


def test_other_folders_beside_train_are_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "train/A/1.png", "masks/A/1.png", "old/B/2.png", "truth.csv", "cover.png", ".cache/A/3.png")
    assert rows(read_samples(tmp_path), tmp_path) == [("train/A/1.png", "A", None, "train")]


def test_hidden_files_and_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    kept = [f"A/image{suffix}" for suffix in (".png", ".JPG", ".jpeg", ".tif", ".TIFF", ".bmp", ".webp", ".dcm")]
    touch(
        tmp_path,
        *kept,
        "A/LICENSE",
        "A/.1.png",
        "A/._2.jpeg",
        "A/notes.txt",
        "A/Thumbs.db",
        "A/.hidden/3.png",
        ".B/4.png",
    )
    assert {name for name, *_ in rows(read_samples(tmp_path), tmp_path)} == set(kept)


def test_a_linked_image_and_a_linked_class_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a.png", "more/b.png")
    (tmp_path / "data/A").mkdir(parents=True)
    (tmp_path / "data/A/1.png").symlink_to(tmp_path / "store/a.png")
    (tmp_path / "data/B").symlink_to(tmp_path / "store/more")
    found = read_samples(tmp_path / "data")
    assert rows(found, tmp_path / "data") == [("A/1.png", "A", None, None), ("B/b.png", "B", None, None)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class folders"),
        (["1.png"], "no class folders"),
        (["A/notes.txt", "B/.1.png"], r"no images in its class folders \(A, B\)"),
        (["train/1.png"], "no class folders"),
        (["train/A/notes.txt"], r"no images in its class folders \(A\)"),
    ],
)
def test_a_folder_without_images_is_an_error_that_names_it(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}: {message}"):
        read_samples(touch(tmp_path, *names))


def test_a_missing_folder_and_a_file_that_is_not_a_table_are_errors_that_name_them(tmp_path: Path) -> None:
    for name in ("gone", "gone.csv", "gone.parquet"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read: No such file"):
            read_samples(tmp_path / name)
    with pytest.raises(DataError, match=r"1\.png is not a table"):
        read_samples(touch(tmp_path, "1.png") / "1.png")


def test_a_file_name_that_is_not_utf_8_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "A/1.png")
    bad = Path(os.fsdecode(bytes(tmp_path / "A") + b"/image\xff.png"))
    bad.write_bytes(b"")
    for samples in (find_images([tmp_path]), read_samples(tmp_path)):
        assert [sample.path.name for sample in samples] == ["1.png"]
    assert r"1 file whose name is not valid UTF-8 was left out (1 A): A/image\xff.png." in caplog.text
    assert [sample.path for sample in find_images([bad, tmp_path / "A" / "1.png"])] == [bad, tmp_path / "A" / "1.png"]


def test_a_folder_whose_name_is_not_utf_8_is_refused_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = os.fsdecode(b"B\xff")
    for name in ("A/1.png", f"A/{bad}/2.png", "B/3.png"):
        touch(tmp_path / "data", name)
    assert [sample.path.name for sample in read_samples(tmp_path / "data")] == ["1.png", "3.png"]
    assert r"1 file whose name is not valid UTF-8 was left out (1 A): A/B\xff/2.png." in caplog.text
    (tmp_path / "data" / "B").rename(tmp_path / "data" / bad)
    with pytest.raises(DataError, match=r"data/B\\udcff': its name is not valid UTF-8. Rename it"):
        read_samples(tmp_path / "data")
    with pytest.raises(DataError, match="not valid UTF-8"):
        find_images([tmp_path / "data" / bad])
    with pytest.raises(UsageError, match=r"data.path: must be valid UTF-8, found '.*B\\udcff'"):
        train(tmp_path / "data" / bad, tmp_path / "run")


def test_nothing_in_the_data_is_written_or_moved(tmp_path: Path) -> None:
    data = tmp_path / "data"
    touch(data, *(f"{label}/person{i}_virus_{i}.png" for label in "AB" for i in range(8)))
    parquet_table(data, path=["A/person0_virus_0.png"], label=["A"])

    def state() -> str:
        each = [(str(p), p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in data.rglob("*")]
        return hashlib.sha256(repr([(data.stat().st_mtime_ns, sorted(each))]).encode()).hexdigest()

    before = state()
    samples = split_samples(read_samples(data))
    write_samples(tmp_path / "table.csv", samples)
    read_samples(data / "table.parquet")
    find_images([data])
    assert state() == before


# Patients


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person23_bacteria_78.jpeg", "bacteria-person23"),
        ("person23_virus_5.jpeg", "virus-person23"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0115-0001-0002.jpeg", "IM-0115"),
        ("NORMAL2-IM-0588-0001.jpeg", "NORMAL2-IM-0588"),
        ("NORMAL2-IM-0588-0001-0002.jpeg", "NORMAL2-IM-0588"),
        ("phantom0012_1.png", "phantom0012"),
        ("chest.png", None),
        ("person.png", None),
        ("0001.png", None),
    ],
)
def test_patients_of_known_names(tmp_path: Path, name: str, patient: str | None) -> None:
    assert read_samples(touch(tmp_path, f"A/{name}"))[0].patient == patient


def test_numbers_of_separate_series_are_different_patients(tmp_path: Path) -> None:
    touch(tmp_path, "A/person1_bacteria_1.png", "A/person1_virus_1.png", "B/IM-1-1.png", "B/NORMAL2-IM-1-1.png")
    assert len({sample.patient for sample in read_samples(tmp_path)}) == 4


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [
        (r"/([^_/]+)_", ["p1", "p2", None]),
        (r"[^_/]+(?=_|$)", ["p1", "p2", "x"]),
        (r"^A/(.+)", ["p1_a", "p2_b", "x"]),  # the whole path below the folder
        (r"p(\d)", ["1", "2", None]),
        (r"p(\d)|x", ["1", "2", None]),  # a group that did not match
        (r"(_a)?$", ["_a", None, None]),  # a match of nothing is no patient
        (r"_(?P<who>.)$", ["a", "b", None]),
    ],
)
def test_patients_by_the_users_pattern(tmp_path: Path, pattern: str, patients: list[str | None]) -> None:
    touch(tmp_path, "A/p1_a.png", "A/p2_b.png", "A/x.png")
    assert [sample.patient for sample in read_samples(tmp_path, pattern)] == patients
    table = csv_table(tmp_path, "path,label\nA/p1_a.png,A\nA/p2_b.png,A\nA/x.png,A\n")
    assert [sample.patient for sample in read_samples(table, pattern)] == patients


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<a>x)(?P<a>y)"])
def test_an_invalid_pattern_is_wrong_usage(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match=r"patient_pattern: .*not a regular expression"):
        read_samples(touch(tmp_path, "A/1.png"), pattern)


def test_the_seed_data_have_389_patients_and_share_two_between_train_and_val(real_data: Path) -> None:
    samples = read_samples(real_data / "seed-400")
    assert len(samples) == 400
    assert len({sample.patient for sample in samples}) == 389
    assert None not in {sample.patient for sample in samples}
    assert find_shared_patients(samples) == {
        "bacteria-person1644": ("train", "val"),
        "bacteria-person336": ("train", "val"),
    }
    assert find_classes(samples) == (("NORMAL", "PNEUMONIA"), "PNEUMONIA")
    assert split_samples(samples) == samples
    assert describe_counts(samples) == (
        "train 200 (100 NORMAL, 100 PNEUMONIA) · val 100 (50 NORMAL, 50 PNEUMONIA) · test 100 (50 NORMAL, 50 PNEUMONIA)"
    )


# Round trips

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
names = text.filter(lambda name: "/" not in name and name not in (".", ".."))
nobody = (
    "na", "nan", "none", "null", "n/a", "#n/a", "<na>", "nat", "unknown", "unbekannt", "anonymous", "anonymized",
    "anonymised", "-", "--", "?", ".", "#ref!", "#value!",
)  # fmt: skip
words = text.map(clean).filter(lambda word: word and word.casefold() not in nobody)


@settings(max_examples=150, deadline=None)
@given(
    samples=st.lists(
        st.builds(
            Sample,
            path=st.lists(names, min_size=1, max_size=3).map(lambda parts: Path("images", *parts)),
            label=st.sampled_from(["A", "B,", 'C "c"', "Ä\nä", "нет"]),
            patient=st.none() | words,
            split=st.none() | st.sampled_from(SPLITS),
        ),
        min_size=1,
        max_size=6,
        unique_by=(
            lambda sample: sample.path,
            lambda sample: sample.patient and look(sample.patient),
        ),
    )
)
@example(samples=[Sample(Path("images/Icon\r"), "A"), Sample(Path('images/a, "b"\n c .png '), "B,", "'", "val")])
def test_samples_survive_a_table_unchanged(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> None:
    patients = {str(sample.patient) for sample in samples}
    assume(len({re.sub(r"[\W_]", "", look(patient)) for patient in patients}) == len(patients))  # else they are one
    root = touch(tmp_path_factory.getbasetemp() / "round", "there.png")
    given_ = [replace(sample, path=root / sample.path) for sample in [Sample(Path("there.png"), "A"), *samples]]
    for table in (root / "table.csv", root / "run/deeper/samples.csv"):
        table.parent.mkdir(parents=True, exist_ok=True)
        write_samples(table, given_)
        back = [replace(sample, path=Path(os.path.normpath(sample.path))) for sample in read_samples(table)]
        assert back == given_


def test_files_with_unusual_names_are_found_through_a_table_elsewhere(tmp_path: Path) -> None:
    odd = ["two words.png", "a,b.png", 'say "hi".png', "it's.png", "naïve ☢.png", "line\nbreak.png", " lead.png"]
    data = touch(tmp_path / "data", *(f"train/A, b/{name}" for name in odd))
    (tmp_path / "runs/one").mkdir(parents=True)
    write_samples(tmp_path / "runs/one/samples.csv", read_samples(data))
    back = read_samples(tmp_path / "runs/one/samples.csv")
    assert sorted(sample.path.name for sample in back) == sorted(odd)
    assert all(sample.path.read_bytes().decode() == f"train/A, b/{sample.path.name}" for sample in back)
    assert {(sample.label, sample.split) for sample in back} == {("A, b", "train")}


def test_a_table_leads_to_its_images_from_a_linked_folder_and_after_both_were_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "home/images", "A/1.png")
    (tmp_path / "scratch/deep/runs").mkdir(parents=True)
    (tmp_path / "home/runs").symlink_to(tmp_path / "scratch/deep/runs")
    touch(tmp_path / "scratch/deep/more", "A/2.png")
    monkeypatch.chdir(tmp_path / "home")
    table = Path("runs/samples.csv")
    for images in ("runs/../more", "images"):  # the first is where the link leads, not here
        write_samples(table, read_samples(Path(images)))
        assert read_samples(table)[0].path.is_file()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("home", "scratch"):
        (tmp_path / name).rename(moved / name)
    assert read_samples(moved / "scratch/deep/runs/samples.csv")[0].path.is_file()


# Classes


@pytest.mark.parametrize(
    ("labels", "positive", "expected"),
    [
        (("NORMAL", "PNEUMONIA"), None, (("NORMAL", "PNEUMONIA"), "PNEUMONIA")),
        (("healthy", "Pneumonia"), None, (("healthy", "Pneumonia"), "Pneumonia")),
        (("pneumonia", "zzz"), None, (("zzz", "pneumonia"), "pneumonia")),
        (("sick", "healthy", "sick"), "sick", (("healthy", "sick"), "sick")),
        (("sick", "healthy"), "healthy", (("sick", "healthy"), "healthy")),
        (("NORMAL", "PNEUMONIA"), "NORMAL", (("PNEUMONIA", "NORMAL"), "NORMAL")),
        (("virus", "NORMAL", "bacteria"), None, (("NORMAL", "bacteria", "virus"), None)),
        (("B", "PNEUMONIA", "A"), None, (("A", "B", "PNEUMONIA"), None)),
    ],
)
def test_classes_are_in_order_and_the_positive_one_is_last_of_two(
    labels: tuple[str, ...], positive: str | None, expected: tuple[tuple[str, ...], str | None]
) -> None:
    assert find_classes(labelled(*labels), positive) == expected


@pytest.mark.parametrize(
    ("labels", "positive", "error", "message"),
    [
        (("sick", "healthy"), None, DataError, "Unclear which class is positive, healthy or sick.*`positive`"),
        (("A", "A"), None, DataError, r"the only class is A; at least two"),
        ((), None, DataError, "no image has a label"),
        (("A", "out_of_distribution"), "A", DataError, "class out_of_distribution has the name of a decision"),
        (("A", "B"), "C", UsageError, "positive: no class is named .C.. The classes are A, B"),
        (("A", "B", "C"), "A", UsageError, "positive: needs exactly two classes"),
    ],
)
def test_invalid_classes_are_errors(
    labels: tuple[str, ...], positive: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_classes(labelled(*labels), positive)


# Files to predict


def test_files_folders_and_tables_expand_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/deep/1.jpg", "b/.hidden/3.png", "b/notes.txt", "a.png", "odd.xyz")
    table = csv_table(tmp_path, "path\nx.png\nx.png\n", "t/list.csv")  # for a prediction, twice is twice
    known = csv_table(tmp_path, "path,label\ny.png,A\n", "t/known.csv")
    found = find_images([tmp_path / "odd.xyz", tmp_path / "b", table, tmp_path / "a.png", known])
    assert rows(found, tmp_path) == [
        ("odd.xyz", None, None, None),
        ("b/2.png", None, None, None),
        ("b/deep/1.jpg", None, None, None),
        ("t/x.png", None, None, None),
        ("t/x.png", None, None, None),
        ("a.png", None, None, None),
        ("t/y.png", "A", None, None),
    ]


def test_a_path_with_nothing_to_predict_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("gone.csv", "cannot be read"), ("empty", "no images")):
        with pytest.raises(DataError, match=f"{name}: {message}"):
            find_images([tmp_path / name])


def test_a_missing_file_among_others_is_left_to_its_row() -> None:
    names = [Path("gone.png"), Path("x" * 300), Path("gone/too.dcm")]
    assert [sample.path for sample in find_images(names)] == names


def test_a_class_may_have_subfolders(tmp_path: Path) -> None:
    for name in ("A/p1/1.png", "A/p2/1.png", "A/0.png", "B/p3/deep/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {sample.path.relative_to(tmp_path).as_posix(): sample.label for sample in read_samples(tmp_path)}
    assert found == {"A/0.png": "A", "A/p1/1.png": "A", "A/p2/1.png": "A", "B/p3/deep/1.png": "B"}


def test_a_test_split_alone_is_a_dataset(tmp_path: Path) -> None:
    for name in ("test/A/1.png", "test/B/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert {(sample.split, sample.label) for sample in read_samples(tmp_path)} == {("test", "A"), ("test", "B")}


# Fingerprints


def test_a_fingerprint_follows_content_label_and_split_but_not_order_or_place() -> None:
    one, two = Sample(Path("a"), "A", "p", "train"), Sample(Path("b"), "B", None, "test")
    known = fingerprint_samples([one, two], ["1", "2"])
    assert known == fingerprint_samples([replace(two, path=Path("z")), one], ["2", "1"])
    others = [
        fingerprint_samples([one, two], ["1", "3"]),
        fingerprint_samples([replace(one, label="B"), two], ["1", "2"]),
        fingerprint_samples([replace(one, split="val"), two], ["1", "2"]),
        fingerprint_samples([one], ["1"]),
    ]
    assert len({known, *others}) == 5


def test_images_without_a_patient_are_their_own_cluster() -> None:
    assert cluster_by_patient(["b", None, "a", "b", "", None], 6).tolist() == [0, 1, 2, 0, 3, 4]
    assert cluster_by_patient(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="3 images"):
        cluster_by_patient(["a"], 3)
