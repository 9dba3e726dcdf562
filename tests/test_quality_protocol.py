"""Splits of the quality benchmarks: no patient is on two sides, and a transfer tests series not trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corruptions import corruptions
from learning_curve import draw
from PIL import Image
from protocol import TRANSFERS, draw_folds, draw_small, draw_transfer, series_of, train_once

from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import find_shared_patients
from pneumoscope.errors import UsageError


@pytest.fixture
def named_images(tmp_path: Path) -> list[Sample]:
    """900 images named like the Kermany data's, several a patient; each has a content of its own."""
    rng = np.random.default_rng(0)
    images = []
    for series, label in (
        ("IM", "NORMAL"),
        ("NORMAL2-IM", "NORMAL"),
        ("bacteria", "PNEUMONIA"),
        ("virus", "PNEUMONIA"),
    ):
        for number in range(225):
            patient = int(rng.integers(120))
            name = f"{series}-{patient:04}-{number:04}" if label == "NORMAL" else f"person{patient}_{series}_{number}"
            path = tmp_path / f"{name}.jpeg"
            path.write_bytes(name.encode())
            images.append(Sample(path, label, f"{series}-{patient}"))
    return images


def test_small_draws_have_as_many_images_of_each_class_and_leave_the_rest_to_test(named_images: list[Sample]) -> None:
    drawn = [draw_small(named_images, seed) for seed in (0, 1)]
    for images in drawn:
        counts = Counter((image.split, image.label) for image in images)
        assert [counts["train", label] for label in ("NORMAL", "PNEUMONIA")] == pytest.approx([100, 100], abs=3)
        assert [counts["val", label] for label in ("NORMAL", "PNEUMONIA")] == pytest.approx([50, 50], abs=3)
        assert len(images) == len(named_images)
        assert not find_shared_patients(images)
    assert drawn[0] != drawn[1]


def test_folds_test_every_image_once(named_images: list[Sample]) -> None:
    folds = draw_folds(named_images, 5, 0)
    tested = Counter(image.path for fold in folds for image in fold if image.split == "test")
    assert tested == Counter(image.path for image in named_images)
    assert not any(find_shared_patients(fold) for fold in folds)


@pytest.mark.parametrize("tested", TRANSFERS, ids="-".join)
def test_a_transfer_tests_series_that_were_not_trained_on(tested: tuple[str, str], named_images: list[Sample]) -> None:
    images = draw_transfer(named_images, tested, 0, count=50)
    assert {series_of(image) for image in images if image.split == "test"} == set(tested)
    assert {series_of(image) for image in images if image.split != "test"} == {
        s for pair in TRANSFERS for s in pair
    } - set(tested)
    assert Counter(image.label for image in images if image.split == "test") == {"NORMAL": 50, "PNEUMONIA": 50}
    assert not find_shared_patients(images)


def test_a_learning_curve_tests_the_same_images_with_ever_more_to_train_on(named_images: list[Sample]) -> None:
    fold = draw_folds(named_images, 5, 0)[0]
    drawn = [draw(fold, count, 0) for count in (60, 200, 0)]
    tested = [{image.path for image in images if image.split == "test"} for images in drawn]
    assert tested[0] == tested[1] == tested[2]
    counts = [sum(image.split != "test" for image in images) for images in drawn]
    assert counts == [pytest.approx(60, abs=4), pytest.approx(200, abs=4), len(named_images) - len(tested[0])]
    assert not any(find_shared_patients(images) for images in drawn)


def test_a_run_is_trained_once_and_again_if_its_settings_or_images_change(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    options = {"recipe": "head", "size": 64, "epochs": 2, "resamples": 20}
    first = train_once(images, tmp_path / "run", **options)
    assert train_once(images, tmp_path / "run", **options) == first
    assert "other source code" not in capsys.readouterr().err
    record = tmp_path / "run.json"
    record.write_text(record.read_text().replace('"code": "', '"code": "0'))
    assert train_once(images, tmp_path / "run", **options) == first
    assert "made by other source code" in capsys.readouterr().err
    changed = train_once(images, tmp_path / "run", **{**options, "seed": 1})
    assert changed.metrics != first.metrics or changed.seconds != first.seconds
    copied = Path(shutil.copytree(images, tmp_path / "copied"))
    next((copied / "train" / "NORMAL").iterdir()).unlink()
    assert train_once(copied, tmp_path / "run", **{**options, "seed": 1}).seconds != changed.seconds


def test_an_unfinished_replacement_leaves_no_old_result(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    options = {"recipe": "head", "size": 64, "epochs": 2, "resamples": 20}
    train_once(images, tmp_path / "run", **options)
    with pytest.raises(UsageError):
        train_once(images, tmp_path / "run", **{**options, "positive": "OTHER"})
    assert not (tmp_path / "run.json").exists()


def test_the_first_amount_of_a_corruption_leaves_the_image_as_it_is_and_the_others_do_not() -> None:
    rows, columns = np.indices((64, 64))
    image = Image.fromarray((96 + 60 * np.sin(rows / 2) * np.cos(columns / 3)).astype(np.uint8))
    for name, kind in corruptions().items():
        first, *others = (np.asarray(kind.change(image, amount).resize(image.size), float) for amount in kind.amounts)
        assert np.abs(first - image).max() <= 1, name  # JPEG at its best is not exact
        assert all(np.abs(other - image).max() > 2 for other in others), name
