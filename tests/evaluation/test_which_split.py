"""`evaluate` takes the test split, says so, and never measures on training images by default."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import write_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.reports.evaluation_report import evaluate
from pneumoscope.training.train import Run


def copy(images: Path, folder: Path, *splits: str) -> Path:
    for split in splits:
        shutil.copytree(images / split, folder / split)
    return folder


def test_the_split_that_is_evaluated_is_said(images: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pneumoscope")
    assert evaluate(images, run.folder, resamples=50).split == "test"
    assert "Evaluating the split test; the data have test (12), train (24), val (12)." in caplog.text
    caplog.clear()
    assert evaluate(images, run.folder, resamples=50, split="val").split == "val"
    assert "Evaluating the split" not in caplog.text


def test_train_and_val_without_test_are_not_evaluated_together(images: Path, run: Run, tmp_path: Path) -> None:
    folder = copy(images, tmp_path / "some", "train", "val")
    with pytest.raises(
        DataError, match=r"split: the data have no test split, but train \(24\), val \(12\)\. Choose one"
    ):
        evaluate(folder, run.folder, resamples=50)
    with pytest.raises(UsageError, match=r"split: no split 'test'; the data have train \(24\), val \(12\)"):
        evaluate(folder, run.folder, split="test", resamples=50)


def test_the_only_split_is_taken_by_its_name(images: Path, run: Run, tmp_path: Path) -> None:
    assert evaluate(copy(images, tmp_path / "one", "val"), run.folder, resamples=50).split == "val"


def test_unreadable_images_are_noted_by_class(images: Path, run: Run, tmp_path: Path) -> None:
    folder = copy(images, tmp_path / "some", "test")
    for number in range(12):
        (folder / "test" / "NORMAL" / f"bad{number}.png").write_bytes(b"damaged")
    notes = evaluate(folder, run.folder, resamples=50).notes
    assert any(note.startswith("12 images without a prediction were left out (12 NORMAL): ") for note in notes)
    lost = "The classes lose unequal shares of their files: 12 of 18 NORMAL (67%), 0 of 6 PNEUMONIA (0%)."
    assert any(note.startswith(lost) for note in notes)


def test_a_copy_under_another_label_is_noted_by_both_names(images: Path, run: Run, tmp_path: Path) -> None:
    folder = copy(images, tmp_path / "some", "test")
    first = min((folder / "test" / "NORMAL").iterdir())
    shutil.copy(first, folder / "test" / "PNEUMONIA" / "copy.png")
    (note,) = [note for note in evaluate(folder, run.folder, resamples=50).notes if "identical" in note]
    about = "1 image is identical to an image with another label, so one of the labels is wrong: "
    assert note == f"{about}{first} (NORMAL) and {folder}/test/PNEUMONIA/copy.png (PNEUMONIA)."  # a card has no names


@pytest.mark.parametrize("inner", [False, True])
def test_patients_whom_the_run_trained_on_are_counted(
    images: Path, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, inner: bool
) -> None:
    learned = [sample for sample in read_samples(images) if sample.split in ("train", "val")]
    fresh = [sample for sample in read_samples(images) if sample.split == "test"]
    mixed = [replace(sample, split=None) for sample in (*learned[:3], *fresh)]
    for sample in mixed[:3]:  # another image of the same patient
        path = tmp_path / sample.path.name
        Image.open(sample.path).rotate(2).save(path)
        mixed[mixed.index(sample)] = replace(sample, path=path)
    write_samples(tmp_path / "held.csv", mixed)
    found = evaluate(tmp_path / "held.csv", run.folder / "model" if inner else run.folder, resamples=50)
    patients = len({sample.patient for sample in learned[:3]})
    told = f"3 images are of {patients} patient{'s' * (patients > 1)} whose images the model was trained on"
    assert told in caplog.text
    assert any(note.startswith(told) for note in found.notes)
    assert found.seen == 0
    caplog.clear()
    evaluate(images, run.folder, resamples=50)
    assert "whose images the model was trained on" not in caplog.text
    shutil.copytree(run.folder / "model", tmp_path / "alone")
    evaluate(tmp_path / "held.csv", tmp_path / "alone", resamples=50)  # a model folder holds no names
    assert "whose images the model was trained on" not in caplog.text
