"""`errors.csv` lists every image whose predicted label is wrong, the most confident first, in runs and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.evaluation.curves import confidence_of
from pneumoscope.files import parse_rows
from pneumoscope.reports.evaluation_report import evaluate
from pneumoscope.training.train import Run, train


def read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        return parse_rows(file)


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.99])
def test_every_mistake_of_an_evaluation_is_listed(images: Path, run: Run, tmp_path: Path, threshold: float) -> None:
    evaluation = evaluate(images, run.folder, tmp_path / "e", split="all", threshold=threshold, resamples=20)
    columns, errors = read(tmp_path / "e" / "errors.csv")
    _, rows = read(tmp_path / "e" / "predictions.csv")
    assert columns[:4] == ["path", "label", "predicted_label", "probability"]
    wrong = [row for row in rows if row["predicted_label"] != row["label"]]
    assert len(errors) == len(wrong) == evaluation.confusion["fp"] + evaluation.confusion["fn"]
    assert sorted(row["path"] for row in errors) == sorted(row["path"] for row in wrong)
    assert dict(sorted(errors[0].items())) in [dict(sorted(row.items())) for row in wrong]
    confidence = confidence_of([float(row["probability"]) for row in errors], threshold)
    assert list(confidence) == sorted(confidence, reverse=True)
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    shown = min(6, len(errors))
    assert f"{shown} of {len(errors)}. Check the label" in page or f"All {len(errors)}. Check the label" in page


def test_a_run_has_the_table_too_even_without_a_mistake(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label, grey in (("NORMAL", 10), ("PNEUMONIA", 240)):
            (folder := tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([grey, i, count]).integers(grey - 9, grey + 9, (40, 40))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    run = train(tmp_path / "data", tmp_path / "run", size=32, epochs=40, resamples=20, audit=False)
    assert run.evaluation.metrics["accuracy"].value == 1
    columns, errors = read(tmp_path / "run" / "errors.csv")
    assert columns[:3] == ["path", "label", "predicted_label"]
    assert errors == []
    assert "No errors: every predicted label is correct." in run.report.read_text(encoding="utf-8")
