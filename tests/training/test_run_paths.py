"""Paths in a run's files resolve from any working directory."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from pneumoscope.errors import UsageError
from pneumoscope.reports.comparison import compare
from pneumoscope.reports.evaluation_report import evaluate
from pneumoscope.training.run_folder import read_settings, write_settings
from pneumoscope.training.settings import resolve_settings
from pneumoscope.training.train import Run, train


def test_a_run_begun_with_relative_paths_is_repeated_from_another_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "study" / "images")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    first = train("images", "runs/first", recipe="head", epochs=2, size=64, resamples=20)
    assert "  path: ../../images\n" in Path("runs/first/config.yaml").read_text()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = train(None, "second", config="../study/runs/first/config.yaml")
    assert second.settings.data.path == "../study/images"
    assert second.evaluation.metrics == first.evaluation.metrics
    for folder in (tmp_path / "study/runs/first", tmp_path / "elsewhere/second"):
        with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
            assert all((folder / row["path"]).is_file() for row in csv.DictReader(file))
    assert compare(["../study/runs/first", "second"], resamples=20).paired_by == "content"


def test_evaluate_writes_paths_that_lead_from_its_folder(
    images: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    evaluate(images.name, run.model, tmp_path / "out", resamples=20)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert all((tmp_path / "out" / path).is_file() and not Path(path).is_absolute() for path in paths)


@pytest.mark.parametrize("weights", [None, "weights.pth", "/elsewhere/weights.pth"])
def test_paths_of_settings_come_back_from_their_file(
    weights: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings = resolve_settings({"path": "images", "weights": weights, "intended_use": weights}, {})
    write_settings(Path("runs/first/config.yaml"), settings)
    assert resolve_settings({}, read_settings(Path("runs/first/config.yaml"))) == settings
    monkeypatch.chdir(tmp_path / "runs")
    moved = resolve_settings({}, read_settings(Path("first/config.yaml")))
    assert Path(moved.data.path) == Path("../images")
    assert moved.network.weights == (f"../{weights}" if weights == "weights.pth" else weights)
    assert moved.data.intended_use == moved.network.weights


def test_a_run_is_resumed_with_its_data_named_from_elsewhere_but_with_no_other(
    images: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    monkeypatch.chdir(images.parent)
    assert train(images.name, tmp_path / "run", resume=True).settings.data.path == str(images)
    with pytest.raises(UsageError, match=r"^path: the run in .* began with"):
        train(tmp_path, tmp_path / "run", resume=True)
