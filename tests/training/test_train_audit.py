"""Training checks its data first: it warns of serious findings, and stops at errors if `strict` is set."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli import main as cli
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, write_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.read import Reading
from pneumoscope.inference.predictor import load
from pneumoscope.reports.evaluation_report import evaluate
from pneumoscope.training.train import Run, train


@pytest.fixture
def leaky(images: Path, tmp_path: Path) -> Path:
    """The images, with a training image among the test images under another name."""
    folder = tmp_path / "leaky"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns("masks", "truth.csv"))
    image = next((folder / "train" / "NORMAL").iterdir())
    shutil.copy(image, folder / "test" / "NORMAL" / "phantom9000_1.png")
    return folder


def test_serious_findings_are_logged_and_reported(
    leaky: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        run = train(leaky, tmp_path / "run", epochs=1)
    finding = "2 images in 1 group are identical across splits"
    assert finding in caplog.text
    assert finding in run.report.read_text(encoding="utf-8")
    assert finding in (run.folder / "log.txt").read_text(encoding="utf-8")
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert finding in card
    assert "1 of them were also used in training" in card
    assert "phantom9000" not in card
    assert ".png" not in card


def test_the_audit_that_is_advised_reads_the_data_as_the_run_does(
    leaky: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [f"{path},{int(path.parent.name == 'PNEUMONIA')},{path.parent.parent.name}"
             for path in sorted(leaky.glob("t*/*/*.png")) + sorted(leaky.glob("val/*/*.png"))]  # fmt: skip
    (tmp_path / "my list.csv").write_text("\n".join(["path,Pneumonia,split", *lines]) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {"label_column": "Pneumonia", "map": {"1": "PNEUMONIA", "0": "NORMAL", "*": ""}}
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        train(tmp_path / "my list.csv", tmp_path / "run", epochs=1, size=32, resamples=20,
              patient_pattern=r"phantom(\d+)_", **settings)  # fmt: skip
    said = next(record.getMessage() for record in caplog.records if "with pictures, run" in record.getMessage())
    words = shlex.split(said.partition("run: ")[2])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [*words, "--quick", "--out", str(tmp_path / "audit")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "identical across splits" in shown
    assert "leaky/test/NORMAL/phantom9000_1.png" in shown
    assert "leaky/test/NORMAL/phantom9000_1.png" in caplog.text


def test_strict_training_refuses_errors(leaky: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"identical across splits.*pneumoscope audit"):
        train(leaky, tmp_path / "run", epochs=1, strict=True)
    assert not (tmp_path / "run" / "model").exists()
    assert train(images, tmp_path / "clean", epochs=1, strict=True).report.is_file()


def test_the_audit_can_be_left_out(leaky: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        train(leaky, tmp_path / "run", epochs=1, audit=False)
    assert "identical" not in caplog.text


def test_images_marked_as_inverted_give_the_very_same_model(images: Path, run: Run, tmp_path: Path) -> None:
    samples, inverted = read_samples(images), []
    for number, sample in enumerate(samples):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        with Image.open(sample.path) as picture:
            Image.fromarray(255 - np.asarray(picture)).save(path)
        inverted.append(Sample(path, sample.label, sample.patient, sample.split, Reading(invert=True)))
    write_samples(tmp_path / "images.csv", inverted)
    twin = train(tmp_path / "images.csv", tmp_path / "twin", epochs=3, size=128)
    assert twin.evaluation.metrics["auroc"].value == run.evaluation.metrics["auroc"].value
    again = evaluate(twin.folder / "samples.csv", twin.folder, tmp_path / "again")
    apart: dict[str, Any] = {"notes": [], "validation": None}  # which an evaluation does not have
    assert again.to_json() | apart == twin.evaluation.to_json() | apart
    (one,), (other,) = (load(twin.folder).predict([source]) for source in (inverted[0], samples[0].path))
    assert one.probability == pytest.approx(other.probability, abs=1e-4)
    turned = [Sample(sample.path, sample.label, sample.patient, sample.split) for sample in inverted]
    (wrong,) = load(twin.folder).predict([turned[0]])
    assert wrong.probability != pytest.approx(one.probability, abs=1e-4)


def test_strict_without_an_audit_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out `audit=False`"):
        train(images, tmp_path / "run", strict=True, audit=False)


def test_identical_images_are_never_separated_by_a_draw_of_ours(images: Path, tmp_path: Path) -> None:
    for number, image in enumerate(path for path in sorted(images.glob("*/*/*.png")) if path.parts[-3] != "masks"):
        for copy in (1, 2):
            place = tmp_path / "images" / image.parent.name / f"scan-{number}-{copy}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, place)
    run = train(tmp_path / "images", tmp_path / "run", epochs=1, strict=True)
    split = {sample.path.stem: sample.split for sample in read_samples(run.folder / "samples.csv")}
    assert set(split.values()) == {"train", "val", "test"}
    assert all(split[f"{name.rsplit('-', 1)[0]}-1"] == where for name, where in split.items())


def test_a_balanced_validation_split_that_training_drew_is_no_finding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label, patients, count in (("NORMAL", 40, 1), ("PNEUMONIA", 40, 6)):  # few patients fit the quota of val
        (folder := tmp_path / "images" / label).mkdir(parents=True)
        for number in range(patients * count):
            pixels = np.random.default_rng([count, number]).integers(0, 255, (32, 32)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"phantom{label}{number // count}_{number}.png")
    settings: dict[str, Any] = {"size": 32, "epochs": 1, "resamples": 20, "patient_pattern": r"phantom(\w+?\d+)_"}
    with caplog.at_level(logging.INFO, "pneumoscope"):
        run = train(tmp_path / "images", tmp_path / "run", **settings)
    assert "Class shares differ" not in caplog.text
    assert "Class shares differ" not in run.report.read_text(encoding="utf-8")
    val = [sample.label for sample in read_samples(run.folder / "samples.csv") if sample.split == "val"]
    assert val.count("NORMAL") == 10
    assert val.count("PNEUMONIA") == 6


def test_a_setting_without_effect_is_said(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"size": 32, "epochs": 1, "resamples": 20, "audit": False}
    train(images, tmp_path / "plain", **settings)
    assert "has no effect" not in caplog.text
    train(images, tmp_path / "run", test_fraction=0.2, val_fraction=0.2, momentum=0.5, **settings)
    said = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert said == [
        "`val_fraction` has no effect: the data have a validation split.",
        "`test_fraction` has no effect: the data have a test split.",
        "`momentum` has no effect: only the optimizer sgd uses it.",
    ]
