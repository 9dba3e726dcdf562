"""Folders as people have them: what they clearly mean is recognised, what is unclear is refused, nothing is silent."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from dataset_files import touch
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.folder_names import find_split, names_masks, names_nothing, seems_split
from pneumoscope.datasets.left_out import compare_losses, describe_unusable
from pneumoscope.datasets.reading import find_images, read_dataset, read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, UsageError

CLASSES = ("NORMAL", "PNEUMONIA")


def make(root: Path, *folders: str, count: int = 1) -> Path:
    """Put so many images into each folder."""
    return touch(root, *(f"{folder}/{number}.png" for folder in folders for number in range(count)))


def count(root: Path) -> dict[str, int]:
    """Images by `split/CLASS`."""
    return dict(Counter(f"{sample.split or '-'}/{sample.label}" for sample in read_samples(root)))


@pytest.fixture(autouse=True)
def hear_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")


# Splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"), ("train", "train"), ("TRAIN", "train"), ("train_images", "train"), ("trainset", "train"),
        ("TrainData", "train"), ("Train Set", "train"), ("images-train", "train"), ("chest_xray_train", "train"),
        ("Testing", "test"), ("test set", "test"), ("TestImages", "test"), ("test_x-rays", "test"),
        ("valid", "val"), ("validation", "val"), ("dev", "val"), ("val-set", "val"), ("Validation Data", "val"),
        ("fold1", None), ("holdout", None), ("internal_test", None), ("test2", None), ("train_test", None),
        ("NORMAL", None), ("Viral Pneumonia", None), ("No Finding", None), ("COVID-19", None), ("protest", None),
        ("images", None), ("0", None), ("", None),
    ],
)  # fmt: skip
def test_a_name_means_a_split_if_nothing_else_is_in_it(name: str, split: str | None) -> None:
    assert find_split(name) == split


@pytest.mark.parametrize(
    ("name", "seems"),
    [
        ("fold1", True), ("Fold_3", True), ("holdout", True), ("hold-out", True), ("external_test", True),
        ("test2", True), ("split_1", True), ("eval", True), ("train_test", True), ("private-test", True),
        ("part2", True),
        ("NORMAL", False), ("Lung_Opacity", False), ("covid", False), ("contest", False), ("household", False),
        ("grade1", False), ("0", False), ("images_001", False), ("Manifold", False), ("trained eye", False),
    ],
)  # fmt: skip
def test_a_name_seems_to_be_a_split_if_a_word_of_it_is_one(name: str, seems: bool) -> None:
    assert seems_split(name) is seems


@given(st.text(max_size=20))
def test_names_of_any_kind_are_judged(name: str) -> None:
    assert find_split(name) in (None, "train", "val", "test")
    assert not (find_split(name) and not seems_split(name))
    assert isinstance(names_masks(name) or names_nothing(name), bool)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"), ("Training", "Validation", "Testing"), ("train", "valid", "test"),
        ("train", "dev", "test"), ("train_images", "dev set", "TestImages"), ("Train", "VAL", "TEST"),
    ],
)  # fmt: skip
def test_split_folders_are_kept_whatever_their_spelling(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *(f"{name}/{label}" for name in names for label in CLASSES))
    assert count(tmp_path) == {f"{split}/{label}": 1 for split in ("train", "val", "test") for label in CLASSES}


def test_splits_below_the_classes_are_kept(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/{name}" for name in ("train", "test") for label in CLASSES))
    touch(tmp_path, "NORMAL/train/p1/deep.png")
    assert count(tmp_path) == {"train/NORMAL": 2, "train/PNEUMONIA": 1, "test/NORMAL": 1, "test/PNEUMONIA": 1}


@pytest.mark.parametrize("outer", ["split", "data", "Dataset", "chest_xray", "seed 7"])
def test_folders_around_the_splits_are_looked_through_and_said(
    tmp_path: Path, outer: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / outer, "train/A", "test/A", "train/B", "test/B")
    touch(tmp_path, "__MACOSX/._1.png", ".DS_Store", "README.md")
    assert count(tmp_path) == {"train/A": 1, "train/B": 1, "test/A": 1, "test/B": 1}
    assert f"Reading {tmp_path / outer}, the only folder with images in {tmp_path}." in caplog.text


@pytest.mark.parametrize("folders", [("images/NORMAL", "images/PNEUMONIA"), ("xrays/images/NORMAL", "xrays/images/B")])
def test_a_folder_that_names_nothing_is_looked_through(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert set(count(make(tmp_path, *folders))) == {f"-/{Path(folder).name}" for folder in folders}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("fold1/A", "fold1/B", "fold2/A", "fold2/B"), "fold1, fold2 seem to name splits, but it is unclear which"),
        (("fold1/train/A", "fold1/test/A", "fold2/train/A"), "fold1, fold2 seem to name splits"),
        (("A", "B", "holdout"), "holdout seems to name splits"),
        (("A", "B", "holdout/A", "holdout/B"), "holdout seems to name splits"),
        (("train/A", "train/B", "internal_test/A", "external_test/A"), "has the folder external_test beside train"),
        (("train/A", "train/B", "test1/A", "test2/A"), "has the folder test1 beside train"),
        (("A", "B", "test/A", "test/B"), "has the folder A beside test; it is unclear which split it belongs to"),
        (("normal", "test/NORMAL", "test/PNEUMONIA"), "has the folder normal beside test"),
        (("train/A", "Train/A", "train/B"), "the folders Train, train all name the split train"),
        (("train/A", "val/A", "dev/B"), "the folders dev, val all name the split val"),
        (("A/train", "A/test", "B"), "A/test: this folder lies below a class, but seems to name a split"),
        (("A/fold2", "A/x", "B/x"), "A/fold2: this folder lies below a class"),
        (("A/p1/test", "B/p2"), "A/p1/test: this folder lies below a class"),
        (("train/A/test", "train/B"), "train/A/test: this folder lies below a class"),
        (("train", "test"), "no class folders. The folders test, train hold images, but no class folders"),
        (("images_001/images", "images_002/images"), "the folders images_001, images_002 name no class"),
        (("train/images", "train/labels"), "the folders images name no class"),
        (("images", "A", "B"), "the folders images name no class"),
        (("train/patient00001/study1", "train/patient00002/study1"), "patient00001, patient00002 look like patients"),
        (("p10/p10000032/s50414267", "p11/p11000032/s1"), "the folders p10, p11 look like patients"),
    ],
)
def test_what_is_unclear_is_refused_with_the_way_out(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    make(tmp_path, *folders)
    with pytest.raises(DataError) as refused:
        read_samples(tmp_path)
    assert message in str(refused.value)
    assert "table" in str(refused.value) or "CLASS" in str(refused.value)


def test_a_table_beside_flat_splits_is_pointed_at(tmp_path: Path) -> None:
    make(tmp_path, "train", "test")
    touch(tmp_path, "train.csv")
    with pytest.raises(DataError, match=r"If train\.csv has their labels, give that table"):
        read_samples(tmp_path)


@pytest.mark.parametrize("classes", [("NORMAL", "PNEUMONIA"), ("train/NORMAL", "train/PNEUMONIA")])
def test_an_unlabelled_test_folder_is_left_out_and_said(
    tmp_path: Path, classes: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, *classes)
    make(tmp_path, "test", count=5)
    assert {key.rpartition("/")[2] for key in count(tmp_path)} == set(CLASSES)
    assert "5 images outside any class folder were left out: test/0.png, test/1.png, test/2.png, …." in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_images_beside_the_class_folders_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "train/A", "train/B", "test/A", "test/B")
    touch(tmp_path, "root.png", "train/loose.jpg", "old/C/1.png", "notes.txt")
    assert len(read_samples(tmp_path)) == 4
    assert "2 images outside any class folder were left out: root.png, train/loose.jpg." in caplog.text
    assert "1 image in a folder beside the splits was left out: old/C/1.png." in caplog.text


def test_splits_with_different_classes_and_empty_class_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "train/A", "train/B", "train/C", "test/A", "test/B")
    (tmp_path / "train" / "D").mkdir()
    assert len(read_samples(tmp_path)) == 5
    assert "there are no images of D, so this is not a class." in caplog.text
    assert "the splits have different classes: train has A, B, C; test has A, B." in caplog.text


# Files that are no radiographs


def test_masks_and_pictures_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in CLASSES:
        make(tmp_path, f"{label}/images", f"{label}/masks", f"{label}/heatmaps", count=2)
    make(tmp_path, "Lung Masks", "maps", "overlays")
    touch(tmp_path, "NORMAL/images/0_mask.png", "NORMAL/images/alone_mask.png")
    samples = read_samples(tmp_path)
    assert Counter(sample.label for sample in samples) == {"NORMAL": 3, "PNEUMONIA": 2}
    assert {sample.path.parent.name for sample in samples} == {"images"}
    assert "6 masks were left out (3 NORMAL, 2 PNEUMONIA)" in caplog.text
    assert "6 pictures made from images were left out (2 NORMAL, 2 PNEUMONIA)" in caplog.text


@pytest.mark.parametrize(
    "files",
    [
        ("config.yaml", "samples.csv"),
        ("model.json",),
        ("metrics.json", "predictions.csv"),
        ("audit.json", "audit.html"),
    ],
)
def test_output_of_our_own_is_no_class_and_no_dataset(
    tmp_path: Path, files: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "A", "B", "first/plots", "runs/second/plots")
    touch(tmp_path, *(f"{folder}/{name}" for folder in ("first", "runs/second") for name in files))
    assert count(tmp_path) == {"-/A": 1, "-/B": 1}
    assert "2 images in output folders of pneumoscope were left out" in caplog.text
    with pytest.raises(DataError, match="first is an output of pneumoscope, not a dataset"):
        read_samples(tmp_path / "first")


def test_files_of_the_system_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "A", "B")
    touch(tmp_path, "A/Thumbs.db", "B/desktop.ini", "A/.DS_Store", ".trash/1.png", "A/@eaDir/1.png", "A/._0.png")
    touch(tmp_path, "__MACOSX/A/._0.png", "__MACOSX/._A")
    assert count(tmp_path) == {"-/A": 1, "-/B": 1}
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        "3 files of macOS (._*) were left out (1 A): __MACOSX/._A, __MACOSX/A/._0.png, A/._0.png."
    ]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_files_that_are_no_images_are_counted_by_class_and_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, *CLASSES, count=30)
    touch(tmp_path, *(f"NORMAL/{number}.{kind}" for number in range(9) for kind in ("avif", "HEIC")))
    touch(tmp_path, "PNEUMONIA/a.npy", "PNEUMONIA/a.txt", "PNEUMONIA/a.json", "NORMAL/README")
    dataset = read_dataset(tmp_path)
    assert len(dataset.samples) == 60
    assert Counter((file.label, file.reason.many) for file in dataset.left_out) == {
        ("NORMAL", "files in an unknown format"): 18,
        ("PNEUMONIA", "files in an unknown format"): 1,
        ("PNEUMONIA", "text or table files"): 2,
        ("NORMAL", "text or table files"): 1,
    }
    said = {record.message: record.levelname for record in caplog.records}
    assert said["3 text or table files were left out (1 NORMAL, 2 PNEUMONIA): "
                "NORMAL/README, PNEUMONIA/a.json, PNEUMONIA/a.txt."] == "INFO"  # fmt: skip
    assert said["19 files in an unknown format were left out (18 NORMAL, 1 PNEUMONIA, 9 .heic, 9 .avif, "
                "1 .npy): NORMAL/0.HEIC, NORMAL/0.avif, NORMAL/1.HEIC, …."] == "WARNING"  # fmt: skip
    unequal = "The classes lose unequal shares of their files: 18 of 48 NORMAL (38%), 1 of 31 PNEUMONIA (3%)."
    assert any(message.startswith(unequal) for message in said)


@pytest.mark.parametrize(
    ("kept", "lost", "unequal"),
    [
        ({"A": 90, "B": 100}, {"A": 10}, True),
        ({"A": 99, "B": 100}, {"A": 1}, False),
        ({"A": 90, "B": 90}, {"A": 10, "B": 10}, False),
        ({"A": 100_000, "B": 100_000}, {"A": 300}, False),  # significant, but few
        ({"A": 3}, {"B": 2}, True),  # a whole class
        ({"A": 18, "B": 20}, {"A": 2}, False),  # may be chance
        ({"A": 50, "B": 50, "C": 50}, {"C": 25}, True),
        ({"A": 5}, {"A": 5}, False),
        ({"A": 5, "B": 5}, {}, False),
        ({}, {}, False),
    ],
)
def test_unequal_losses_are_said(kept: dict[str, int], lost: dict[str, int], unequal: bool) -> None:
    assert bool(compare_losses(kept, lost)) is unequal


# Links


def test_linked_folders_are_read_and_loops_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make(tmp_path / "store", "p1", "p2", count=3)
    data = make(tmp_path / "data", "A", "B")
    (data / "A" / "more").symlink_to(store / "p1")
    (data / "A" / "again").symlink_to(store / "p1")
    (data / "C").symlink_to(store / "p2")
    (data / "A" / "loop").symlink_to(data / "A")
    (data / "A" / "up").symlink_to(data)
    (data / "A" / "other").symlink_to(data / "B")
    (data / "A" / "gone").symlink_to(tmp_path / "nowhere")
    (store / "p1" / "back").symlink_to(store / "p1")
    assert count(data) == {"-/A": 4, "-/B": 1, "-/C": 3}
    assert "5 linked folders that had already been read were left out (5 A)" in caplog.text
    assert "1 file in an unknown format was left out (1 A): A/gone." in caplog.text
    assert len(find_images([data])) == 8


def test_links_that_branch_end_soon(tmp_path: Path) -> None:
    for number in range(12):  # each folder links to all: 12! paths
        make(tmp_path, f"A/f{number}")
    make(tmp_path, "B")
    for number in range(12):
        for other in range(12):
            (tmp_path / f"A/f{number}/l{other}").symlink_to(tmp_path / f"A/f{other}")
    assert count(tmp_path) == {"-/A": 12, "-/B": 1}


def test_two_class_folders_that_are_the_same_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "data/A", "store")
    for name in ("B", "C"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store")
    with pytest.raises(DataError, match=r"C and .*B are the same folder, because of a link"):
        read_samples(tmp_path / "data")


# Datasets as they come


def make_kermany(root: Path) -> Path:
    """As unpacked from Kaggle: a folder in a folder, a copy of macOS, 8 + 8 validation images."""
    for split, normal, pneumonia in (("train", 30, 60), ("val", 8, 8), ("test", 10, 20)):
        folder = root / "chest_xray" / split
        touch(folder, *(f"NORMAL/IM-{number:04}-0001.jpeg" for number in range(normal)))
        touch(folder, *(f"PNEUMONIA/person{number}_virus_{number}.jpeg" for number in range(pneumonia)))
        touch(root / "__MACOSX" / "chest_xray" / split, "NORMAL/._IM-0001-0001.jpeg", "._.DS_Store")
        touch(folder, ".DS_Store")
    return root


def test_kermany_as_it_comes_from_kaggle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_kermany(tmp_path / "chest_xray")
    assert count(tmp_path / "chest_xray") == {
        "train/NORMAL": 30, "train/PNEUMONIA": 60, "val/NORMAL": 8, "val/PNEUMONIA": 8,
        "test/NORMAL": 10, "test/PNEUMONIA": 20,
    }  # fmt: skip
    assert "The patient of 136 images is known from file names as in Kermany: 90 patients." in caplog.text


def test_a_second_copy_beside_the_splits_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_kermany(tmp_path)
    make_kermany(tmp_path / "chest_xray")  # as in the archive of Kaggle: chest_xray/{train,chest_xray/train}
    assert len(read_samples(tmp_path / "chest_xray")) == 136
    assert (
        "136 images in folders beside the splits were left out: chest_xray/test/NORMAL/IM-0000-0001.jpeg" in caplog.text
    )


def test_the_covid_radiography_database(tmp_path: Path) -> None:
    labels = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    make(tmp_path, *(f"{label}/{kind}" for label in labels for kind in ("images", "masks")), count=3)
    touch(tmp_path, *(f"{label}.metadata.xlsx" for label in labels), "README.md.txt")
    assert count(tmp_path) == {f"-/{label}": 3 for label in labels}


# Patients


def test_patients_of_nih_chexpert_and_mimic_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nih = touch(tmp_path / "nih", "A/00000013_005.png", "A/00000013_006.png", "B/00030805_000.png", "B/other.png")
    assert [sample.patient for sample in read_samples(nih)] == ["00000013", "00000013", "00030805", None]
    assert "The patient of 3 images is known from file names as in NIH: 2 patients." in caplog.text
    assert "The patient of 1 image is unknown." in caplog.text
    chexpert = tmp_path / "chexpert"
    touch(chexpert, "train/A/patient00001/study1/view1_frontal.jpg", "train/A/patient00001/study2/view2_lateral.jpg")
    touch(chexpert, "train/B/patient00002/study1/view1_frontal.jpg")
    assert [sample.patient for sample in read_samples(chexpert)] == ["patient00001"] * 2 + ["patient00002"]
    renamed = tmp_path / "renamed"  # its folders tell the patient, whatever the images are called
    touch(
        renamed,
        "A/patient00001/study1/frontal_224.png",
        "A/patient64541/study12/x.png",
        "B/p10/p10000032/s50414267/1.png",
    )
    assert [sample.patient for sample in read_samples(renamed)] == ["patient00001", "patient64541", "p10000032"]
    mimic = "p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"
    touch(tmp_path, "mimic.csv", mimic, f"files/{mimic}").joinpath("mimic.csv").write_text(
        f"path,label\nfiles/{mimic},A\n{mimic},B\n"
    )
    assert [sample.patient for sample in read_samples(tmp_path / "mimic.csv")] == ["p10000032"] * 2


@pytest.mark.parametrize(
    "names",
    [
        ["20240101_001", "20240102_002"],  # dates
        ["00030806_000", "99999999_000"],  # NIH ends at 30805
        ["00000001_001", "a", "b", "c"],  # one file among others
        ["patient/study1/view1_frontal", "patients00001/view1_frontal"],
        ["p10/p123/s1/x", "p10000032"],
        ["one/IM-0001-0001", "two/IM-0001-0001", "three/IM-0001-0001"],  # names that viewers give to everybody
    ],
)
def test_names_that_only_resemble_those_of_a_known_dataset_identify_nobody(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *(f"A/{name}.png" for name in names))
    assert {sample.patient for sample in read_samples(tmp_path)} == {None}


def test_a_pattern_sees_the_path_below_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "p9", "A/p1/x.png", "A/p1/y.png", "B/p2/x.png", "B/x.png")
    found = {
        s.path.relative_to(tmp_path / "p9").as_posix(): s.patient for s in read_samples(tmp_path / "p9", r"(p\d)/")
    }
    assert found == {"A/p1/x.png": "p1", "A/p1/y.png": "p1", "B/p2/x.png": "p2", "B/x.png": None}
    assert "The patient of 3 images is known from `patient_pattern`: 2 patients, such as p1." in caplog.text
    assert "The patient of 1 image is unknown." in caplog.text


def test_a_pattern_that_finds_nobody_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "A", "B")
    for pattern in (r"person\d+", r"(p1)?", "A()"):
        with pytest.raises(UsageError, match=r"patient_pattern: .* finds no patient in 2 paths such as 'A/0'"):
            read_samples(tmp_path, pattern)
    table = tmp_path / "table.csv"
    table.write_text("path,label,patient\nA/0.png,A,p1\nB/0.png,B,\n")
    with pytest.raises(UsageError, match="patient_pattern: the table has a column of patients"):
        read_samples(table, "(A)")


# Tables whose paths name splits


def list_files(folder: Path, *paths: str, header: str = "path,label", extra: str = "") -> Path:
    touch(folder, *paths)
    lines = [header, *(f"{path},{'AB'[number % 2]}{extra}" for number, path in enumerate(paths))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def test_splits_in_the_paths_of_a_table_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("x/Training/1.png", "x/Training/2.png", "x/Test/3.png", "x/Test/p1/4.png")
    table = list_files(tmp_path, *names)
    assert [sample.split for sample in read_samples(table)] == ["train", "train", "test", "test"]
    assert "the splits come from the folders of the files: train 2, test 2. To ignore them, use" in caplog.text
    assert {sample.split for sample in read_samples(table, naming=Naming(split_column="none"))} == {None}
    named = list_files(tmp_path, *names, header="path,label,split", extra=",val")
    assert {sample.split for sample in read_samples(named)} == {"val"}


@pytest.mark.parametrize(
    "names", [("x/train/1.png", "x/2.png"), ("test/1.png", "2.png"), ("a/train/test/1.png", "a/test/2.png")]
)
def test_paths_of_which_only_some_name_a_split_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"has no column of splits\. Some of its files lie in folders"):
        read_samples(list_files(tmp_path, *names))


def test_missing_files_are_said_to_be_missing_and_do_not_decide_on_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("x/train/1.png", "x/train/2.png", "x/test/3.png", "gone.png", "x/test/4.png")
    table = list_files(tmp_path, *names)
    (tmp_path / "gone.png").unlink()
    assert [sample.split for sample in read_samples(table)] == ["train", "train", "test", "test"]
    assert "1 of 5 images do not exist (1 of 2 B)" in caplog.text
    assert "1 missing file in no folder of a split was left out (1 B): gone.png." in caplog.text
    one = list_files(tmp_path, "y/test/1.png", "gone.png", "y/test/2.png")
    (tmp_path / "gone.png").unlink()
    assert [sample.split for sample in read_samples(one)] == [None] * 3  # found to be unreadable later, as ever


def test_paths_all_in_one_split_are_split_anew_and_unclear_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert {s.split for s in read_samples(list_files(tmp_path, "a/train/1.png", "b/train/2.png"))} == {None}
    assert "seem to name splits" not in caplog.text
    assert {s.split for s in read_samples(list_files(tmp_path, "fold1/1.png", "fold2/2.png"))} == {None}
    assert "the folders fold1, fold2 seem to name splits, but the table has no column of splits" in caplog.text


def test_a_tree_of_chexpert_with_its_views_as_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels come from a table alone; the folders name patients, and one split."""
    root = tmp_path / "CheXpert-v1.0-small"
    rows = []
    for patient in range(1, 5):
        for study, view in ((1, "PA"), (2, "AP")):
            name = f"train/patient{patient:05}/study{study}/view1_frontal.jpg"
            touch(root, name)
            rows.append(f"CheXpert-v1.0-small/{name},{view}")
    (root / "views.csv").write_text("\n".join(["Path,label", *rows]) + "\n")
    samples = read_samples(root / "views.csv")
    assert all(sample.path.is_file() for sample in samples)
    assert Counter(sample.label for sample in samples) == {"AP": 4, "PA": 4}
    assert "The patient of 8 images is known from file names as in CheXpert: 4 patients." in caplog.text
    with pytest.raises(DataError, match="patient00001, patient00002, patient00003, patient00004 look like patients"):
        read_samples(root)


def test_a_folder_of_nih(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number:08}_{study:03}.png" for number in (1, 2, 3) for study in (0, 1)]
    touch(tmp_path, *(f"images_{1 + number % 2:03}/images/{name}" for number, name in enumerate(names)))
    with pytest.raises(DataError, match=r"the folders images_001, images_002 name no class\. Give the table"):
        read_samples(tmp_path)
    findings = ["No Finding", "Pneumonia"]
    rows = [f"{name},{findings[number % 2]}" for number, name in enumerate(names)]
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(["Image Index,Finding Labels", *rows]) + "\n")
    samples = read_samples(tmp_path / "Data_Entry_2017.csv")
    assert all(sample.path.is_file() for sample in samples)
    assert Counter(sample.patient for sample in samples) == {"00000001": 2, "00000002": 2, "00000003": 2}
    assert "The patient of 6 images is known from file names as in NIH: 3 patients." in caplog.text


def test_classes_that_differ_by_case_between_the_splits_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/Normal", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA")
    with pytest.raises(DataError, match=r"NORMAL.*Normal|Normal.*NORMAL"):
        read_samples(tmp_path)


def test_reasons_beyond_the_first_ten_are_counted() -> None:
    (few,) = describe_unusable([Sample(Path("a.png"), "A")] * 2, ["a.png: bad", None])
    assert few == "1 image that could not be read was left out (1 A): a.png: bad"
    (many,) = describe_unusable([Sample(Path("a.png"), "A")] * 13, ["bad"] * 12 + [None])
    assert many == f"12 images that could not be read were left out (12 A): {'; '.join(['bad'] * 10)}; and 2 more"


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_one_file_linked_under_two_labels_is_refused(link: str, tmp_path: Path) -> None:
    for name in ("A/1.png", "A/2.png", "B/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    again = tmp_path / "B" / "4.png"
    again.symlink_to(tmp_path / "A" / "1.png") if link == "symbolic" else again.hardlink_to(tmp_path / "A" / "1.png")
    with pytest.raises(DataError, match=r"A/1\.png \(A\) and .*B/4\.png \(B\) are the same file, linked"):
        read_samples(tmp_path)
    (tmp_path / "t.csv").write_text("path,label\nA/1.png,A\nA/2.png,A\nB/3.png,B\nB/4.png,B\n")
    with pytest.raises(DataError, match=r"A/1\.png \(A\) and .*B/4\.png \(B\) are the same file, linked"):
        read_samples(tmp_path / "t.csv")
    assert len(read_samples(tmp_path, naming=Naming(map={"A": "X", "B": "X"}))) == 4
