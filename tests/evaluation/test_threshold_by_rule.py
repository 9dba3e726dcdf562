"""`evaluate` with a rule: its threshold comes from the validation split, never from what is measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pneumoscope import evaluate
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.training.train import Run


def test_a_rule_is_applied_to_the_validation_split(run: Run, images: Path, tmp_path: Path) -> None:
    found: Evaluation = evaluate(images, run.folder, tmp_path / "out", threshold="sensitivity>=0.95", resamples=2)
    at = evaluate(images, run.folder, split="val", threshold=found.threshold, resamples=2)
    assert at.metrics["sensitivity"].value >= 0.95
    assert found.split == "test"
    assert "sensitivity of 0.95 on validation data" in (tmp_path / "out" / "report.html").read_text()
    assert evaluate(images, run.folder, threshold="0.3", resamples=2).threshold == 0.3


@pytest.mark.parametrize("split", ["val", "all"])
def test_a_rule_is_never_applied_to_what_is_measured(split: str, run: Run, images: Path) -> None:
    with pytest.raises(UsageError, match="never on the images that are measured"):
        evaluate(images, run.folder, split=split, threshold="youden")


def test_data_without_a_validation_split_cannot_choose(run: Run, images: Path) -> None:
    with pytest.raises(UsageError, match="the data have none"):
        evaluate(images / "test", run.folder, threshold="youden")


def test_a_rule_needs_both_classes_in_the_validation_split(run: Run, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "val" / "NORMAL")
    with pytest.raises(UsageError, match="both classes in the split val"):
        evaluate(tmp_path / "images", run.folder, threshold="youden")
