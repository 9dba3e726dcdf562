"""The commands that use, list and describe pretrained models."""

from __future__ import annotations

import csv
import io
import shutil
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
    """A pretrained model that names its data set and its test results."""
    model = load_model(run.model)
    figures = {name: {"value": 0.9, "low": 0.8, "high": 0.95} for name in ("accuracy", "auroc")}
    noted = replace(
        model,
        data={**model.data, "sources": ["kermany"]},
        decisions={**model.decisions, "scope": {**model.decisions["scope"], "ages": [2, 87.5]}},
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
    save_model(pretrained_models / "all-ages-lite0", noted, load_weights(run.model, model), half=True)


def test_predict_uses_the_pretrained_model_and_names_it(
    noted: None, run: Run, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "predict", image, "--format", "csv") == 0
    printed = capsys.readouterr()
    assert (
        "Model: all-ages-lite0, trained on 24 images: children of one to five years in one hospital (Guangzhou, "
        "China), anterior-posterior images. For research; not a medical device."
    ) in printed.err.splitlines()
    assert printed.err.count("all-ages-lite0") == 1
    (row,) = csv.DictReader(io.StringIO(printed.out))
    assert typed(monkeypatch, "predict", image, "--format", "csv", "--model", run.folder) == 0
    printed = capsys.readouterr()
    assert "Model:" not in printed.err
    (other,) = csv.DictReader(io.StringIO(printed.out))
    assert float(row["ood_score"]) == pytest.approx(float(other["ood_score"]), abs=0.02)


def test_every_command_accepts_the_name_of_a_pretrained_model(
    simulated_model: str,
    images: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        typed(monkeypatch, "evaluate", images / "test", "--model", simulated_model, "--out", "e", "--resamples", 10)
        == 0
    )
    assert typed(monkeypatch, "explain", image, "--model", simulated_model, "--out", "x") == 0
    assert typed(monkeypatch, "predict", image, "--model", simulated_model, "--format", "csv") == 0
    assert typed(monkeypatch, "predict", image, "--model", "pneumonia-light", "--format", "csv") == 2
    assert "--model: pneumonia-light: there is no such folder or model" in (printed := capsys.readouterr().err)
    assert f"({simulated_model})" in printed


def test_the_list_of_pretrained_models_says_whom_they_are_for_and_compares_no_results_of_different_tests(
    noted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert typed(monkeypatch, "models", "list") == 0
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 80
    row = printed.out.splitlines()[1]
    assert row.startswith("all-ages-lite0  NORMAL, PNEUMONIA  patients of 2 to 87.5 years")
    assert "0.9" not in row  # the AUROC
    assert "Default: all-ages-lite0" in printed.err


class Terminal(io.BytesIO):
    """What a terminal received."""

    def isatty(self) -> bool:
        return True


def test_a_model_is_described_within_80_columns(noted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    stdout = io.TextIOWrapper(terminal := Terminal(), "utf-8")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert typed(monkeypatch, "models", "show") == 0
    printed = terminal.getvalue().decode()
    assert max(map(len, printed.splitlines())) <= 80
    words = " ".join(printed.split())
    for expected in (
        "NORMAL, PNEUMONIA (positive)",
        "128 × 128 pixels, crop",
        "24 images to train (12 NORMAL, 12 PNEUMONIA); 12 images to validate",
        "AUROC 0.900 (0.800 to 0.950), accuracy 0.900 (0.800 to 0.950); 1,234 images",
        "threshold 0.5 for PNEUMONIA",
        "62% of test images get a label; 23 are out of distribution; "
        "true class in the prediction set: NORMAL 0.700 (0.600 to 0.800)",
        "about the test They were looked at before.",
        "MB",
        "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): Kermany D",
    ):
        assert expected in words


def test_a_pipe_gets_the_description_in_whole_lines(
    noted: None, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert typed(monkeypatch, "models", "show", "all-ages-lite0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "classes: NORMAL, PNEUMONIA (positive)" in lines
    (cited,) = [line for line in lines if "CC BY 4.0" in line]
    assert "Kermany D" in cited
    assert not any(line.endswith(" ") for line in lines)
    assert typed(monkeypatch, "models", "show", run.folder) == 0
    shown = capsys.readouterr().out
    assert f"card: {run.model / 'README.md'}" in shown
    auroc = run.evaluation.metrics["auroc"]
    assert f"\ntest: AUROC {auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f}), accuracy" in shown


@pytest.mark.parametrize("kind", ["run", "folder", "zip", "name"])
def test_the_card_is_shown_at_80_columns_whatever_names_the_model(
    kind: str, simulated_model: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", run.model)
    reference = {"run": run.folder, "folder": run.model, "zip": archive, "name": simulated_model}[kind]
    assert typed(monkeypatch, "models", "show", reference) == 0
    printed = capsys.readouterr().out
    card = (run.model / "README.md").read_text().partition("\n---\n")[2].strip()
    assert card in printed
    assert "library_name" not in printed
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    stdout = io.TextIOWrapper(terminal := Terminal(), "utf-8")  # kept, as it closes the terminal at its end
    monkeypatch.setattr(sys, "stdout", stdout)
    assert typed(monkeypatch, "models", "show", reference) == 0
    shown = terminal.getvalue().decode()
    assert max(map(len, shown.splitlines())) <= 80
    assert "Intended use" in shown
    assert "## " not in shown


def test_an_installation_without_pretrained_models_says_so(
    pretrained_models: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "predict", image) == 2
    assert "--model: This installation has no pretrained model" in capsys.readouterr().err
    assert typed(monkeypatch, "models", "list") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "This installation has no pretrained models.\n")
