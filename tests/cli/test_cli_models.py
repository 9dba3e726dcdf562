"""Using and listing the models that ship, through the command line."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.cli import main as cli
from pneumoscope.models.model_folder import load_model, load_weights, save_model
from pneumoscope.training.train import Run


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def image(images: Path) -> Path:
    return next((images / "test" / "PNEUMONIA").iterdir())


@pytest.fixture
def noted(pretrained_models: Path, run: Run) -> None:
    """A model that ships and says where its images are from, and how good it was."""
    model = load_model(run.model)
    figures = {name: {"value": 0.9, "low": 0.8, "high": 0.95} for name in ("accuracy", "auroc")}
    noted = replace(
        model,
        data={**model.data, "source": "kermany"},
        training={
            **model.training,
            "test": {
                "split": "test",
                "n": 1234,
                "metrics": figures,
                "decisions": {
                    "out_of_distribution": {"NORMAL": 20, "PNEUMONIA": 3},
                    "answered": {"value": 0.625},
                    "coverage": {"NORMAL": {"value": 0.7, "low": 0.6, "high": 0.8}},
                },
                "note": "They were looked at before.",
            },
        },
    )
    save_model(pretrained_models / "pneumonia-lite0", noted, load_weights(run.model, model), half=True)


def test_predict_takes_the_model_that_ships_and_says_which(
    noted: None, run: Run, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "predict", image, "--format", "csv") == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == (
        "Model: pneumonia-lite0, trained on 24 images: children of one to five years in one hospital (Guangzhou, "
        "China), anterior-posterior images. For research; not a medical device."
    )
    assert said.err.count("pneumonia-lite0") == 1
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert typed(monkeypatch, "predict", image, "--format", "csv", "--model", run.folder) == 0
    said = capsys.readouterr()
    assert "Model:" not in said.err
    (other,) = csv.DictReader(io.StringIO(said.out))
    assert float(row["ood_score"]) == pytest.approx(float(other["ood_score"]), abs=0.02)


def test_its_name_stands_for_it_in_every_command(
    simulated_model: str,
    images: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(monkeypatch, "evaluate", simulated_model, images / "test", "--out", "e", "--resamples", 10) == 0
    assert typed(monkeypatch, "explain", simulated_model, image, "--out", "x") == 0
    assert typed(monkeypatch, "predict", image, "--model", simulated_model, "--format", "csv") == 0
    assert typed(monkeypatch, "predict", image, "--model", "pneumonia-light", "--format", "csv") == 4
    assert "pneumonia-light: no model here" in (said := capsys.readouterr().err)
    assert f"({simulated_model})" in said


def test_models_lists_what_ships_within_80_columns(
    noted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert typed(monkeypatch, "models") == 0
    said = capsys.readouterr()
    assert max(map(len, said.out.splitlines())) <= 80
    assert said.out.startswith("pneumonia-lite0 (default)\n")
    words = " ".join(said.out.split())
    for expected in (
        "NORMAL, PNEUMONIA (positive)",
        "224 × 224 pixels, crop",
        "24 images to train (12 NORMAL, 12 PNEUMONIA); 12 images to decide on",
        "AUROC 0.900 (0.800 to 0.950), accuracy 0.900 (0.800 to 0.950); 1,234 images",
        "called PNEUMONIA from a probability of 0.5 on",
        "decided 62% of them; 23 called ood; NORMAL in its prediction set 0.700 (0.600 to 0.800)",
        "about the test They were looked at before.",
        "MB",
        "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): Kermany D",
    ):
        assert expected in words


def test_models_gives_a_pipe_whole_lines(
    noted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert typed(monkeypatch, "models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("NORMAL, PNEUMONIA (positive)" in line for line in lines)
    (cited,) = [line for line in lines if "CC BY 4.0" in line]
    assert "Kermany D" in cited
    assert not any(line.endswith(" ") for line in lines)


def test_where_nothing_ships_it_is_said(
    pretrained_models: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "predict", image) == 2
    assert "--model RUN" in capsys.readouterr().err
    assert typed(monkeypatch, "models") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "No model ships with this installation.\n")
