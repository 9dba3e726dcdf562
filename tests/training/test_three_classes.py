"""Three classes of which one is rare: one rule for the predicted label, from training to every output."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pneumoscope import evaluate, load, train
from pneumoscope.cli.main import app
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.errors import UsageError

SMALL: dict[str, Any] = {"recipe": "baseline", "size": 64, "epochs": 3}


def test_a_rule_of_two_classes_is_refused_for_three_before_anything_is_computed(tmp_path: Path) -> None:
    make_three_classes(tmp_path / "images", (4, 4, 4))
    with pytest.raises(UsageError, match=r"cost=5.* is for two classes; there are 3"):
        train(tmp_path / "images", tmp_path / "run", **{**SMALL, "threshold": "cost=5"})


def test_of_three_classes_a_rare_one_is_labelled_by_its_likelihood_everywhere(tmp_path: Path) -> None:
    make_three_classes(tmp_path / "images", (60, 12, 6))
    run = train(tmp_path / "images", tmp_path / "run", **{**SMALL, "threshold": "likelihood"})
    decisions = json.loads((run.model / "model.json").read_text())["decisions"]
    names, cuts = ("BACTERIA", "NORMAL", "VIRUS"), decisions["class_thresholds"]
    assert cuts == pytest.approx(decisions["calibration"]["class_fractions"])
    assert cuts[0] > cuts[1] > cuts[2] > 0
    labelled = list(csv.DictReader((run.folder / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    for row in labelled:
        multiples = [float(row[f"probability_{name}"]) / cut for name, cut in zip(names, cuts, strict=True)]
        assert row["predicted_label"] == names[int(np.argmax(multiples))]
        assert row["probability"] == row[f"probability_{row['predicted_label']}"]
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["thresholds"] == dict(zip(names, cuts, strict=True))
    assert metrics["metrics"]["accuracy"]["value"] == pytest.approx(
        np.mean([row["label"] == row["predicted_label"] for row in labelled])
    )
    assert metrics["per_class"]["VIRUS"]["support"] == sum(row["label"] == "VIRUS" for row in labelled)
    assert "the most probable one if all classes were equally common" in (run.model / "README.md").read_text()
    report = (run.folder / "report.html").read_text()
    assert "The predicted label is the class whose probability is the largest multiple of its threshold." in report
    assert "largest multiple of its threshold (BACTERIA" in report
    again = evaluate(tmp_path / "images", run.folder, tmp_path / "again", split="all", adapt_prior=True)
    assert again.thresholds == metrics["thresholds"]
    assert again.adjusted is not None
    # Thresholds move with the estimated shares, so the labels, and what depends on them alone, stay.
    assert again.adjusted.metrics["accuracy"].value == again.metrics["accuracy"].value
    predictions = load(run.folder).predict(tmp_path / "images")
    correct = [each.predicted_label == each.path.parent.name for each in predictions if each.path is not None]
    assert np.mean(correct) == pytest.approx(again.metrics["accuracy"].value)
    assert f"{cuts[2]:.3g} for VIRUS" in CliRunner().invoke(app, ["models", "show", str(run.folder)]).output
    with pytest.raises(UsageError, match="more than two classes"):
        load(run.folder, threshold=0.3)


def make_three_classes(folder: Path, counts: tuple[int, int, int]) -> None:
    for label, count in zip(("BACTERIA", "NORMAL", "VIRUS"), counts, strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = draw_phantom(1000 * count + number, pneumonia=label == "VIRUS", size=96)
            Image.fromarray((image.pixels * 255).astype("uint8")).save(folder / label / f"{number}.png")
