"""`adapt`: a model for another hospital's images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pneumoscope
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.training.adapt import Adaptation
from pneumoscope.training.train import Run


@pytest.fixture(scope="session")
def other_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of another source, with a test split."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "elsewhere", count=60, seed=5, size=128)


@pytest.fixture(scope="session")
def adapted(run: Run, other_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Adaptation:
    """The model of `run`, adapted to `other_images`."""
    return pneumoscope.adapt(
        other_images, tmp_path_factory.mktemp("adapted") / "new", model=run.folder, resamples=200, plot_formats="svg"
    )


def test_an_adapted_model_is_a_run_that_predicts_and_tells_where_it_comes_from(adapted: Adaptation, run: Run) -> None:
    parent = json.loads((run.model / "model.json").read_text())
    model = json.loads((adapted.model / "model.json").read_text())
    assert model["weights_sha256"] == parent["weights_sha256"]
    (step,) = model["lineage"]
    assert step["parent"]["weights_sha256"] == parent["weights_sha256"]
    assert step["parent"]["data_fingerprint"] == parent["data"]["fingerprint"]
    assert sum(step["data"]["images"].values()) == 46
    assert "Adapted from the model" in (adapted.model / "README.md").read_text()
    assert "before and after" in adapted.report.read_text()
    assert json.loads((adapted.folder / "metrics.json").read_text())["split"] == "test"
    assert len((adapted.folder / "out_of_fold.csv").read_text().splitlines()) == 47
