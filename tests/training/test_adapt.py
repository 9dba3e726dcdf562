"""`adapt`: a model for another hospital's images, its folder, report, card and lineage."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import pneumoscope
from pneumoscope.cli.main import app
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.decisions import calibration
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.errors import DataError, UsageError
from pneumoscope.models.model_folder import load_arrays, load_model
from pneumoscope.training.adapt import Adaptation
from pneumoscope.training.train import Run


@pytest.fixture(scope="session")
def other_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of another source, with a test split."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "elsewhere", count=60, seed=5, size=128)


@pytest.fixture(scope="session")
def adapted(run: Run, other_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Adaptation:
    """The model of `run`, adapted to `other_images`."""
    return pneumoscope.adapt(other_images, tmp_path_factory.mktemp("adapted") / "new", model=run.folder, resamples=200)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def list_images(folder: Path, label: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if path.parent.name == label)


def copy_images(folder: Path, into: Path, counts: dict[str, int]) -> Path:
    """Some images of each class as a folder without splits."""
    for label, count in counts.items():
        (into / label).mkdir(parents=True)
        for path in list_images(folder, label)[:count]:
            shutil.copy(path, into / label)
    return into


def test_an_adapted_model_says_where_it_comes_from(adapted: Adaptation, run: Run) -> None:
    parent, model = read_json(run.model / "model.json"), read_json(adapted.model / "model.json")
    assert model["weights_sha256"] == parent["weights_sha256"]
    (step,) = model["lineage"]
    assert step["parent"]["weights_sha256"] == parent["weights_sha256"]
    assert step["parent"]["data_fingerprint"] == parent["data"]["fingerprint"]
    assert sum(step["data"]["images"].values()) == 46
    assert step["candidates"][0]["step"] == "unchanged"
    assert set(parent["data"]["seen"]) < set(model["data"]["seen"])
    card = (adapted.model / "README.md").read_text(encoding="utf-8")
    assert "Adapted from the model" in card
    assert step["changes"][0][:30] in card
    shown = CliRunner().invoke(app, ["models", "show", str(adapted.folder)]).output
    assert "adapted from" in shown


def test_images_are_measured_out_of_fold_and_those_of_a_test_split_apart(adapted: Adaptation) -> None:
    metrics, evidence = (read_json(adapted.folder / name) for name in ("metrics.json", "adaptation.json"))
    assert (metrics["split"], metrics["n"]) == ("test", 14)
    rows, tested = (read_table(adapted.folder / name) for name in ("out_of_fold.csv", "predictions.csv"))
    assert (len(rows), len(tested)) == (46, 14)
    assert not {row["path"] for row in rows} & {row["path"] for row in tested}
    found = evidence["differences"]
    positive = [row for row in rows if row["label"] == "PNEUMONIA"]
    share = np.mean([row["predicted_label"] == "PNEUMONIA" for row in positive])
    assert found["out-of-fold"]["sensitivity"]["other"] == pytest.approx(share)
    held = np.mean([row["label"] in row["prediction_set"].split("|") for row in positive])
    assert found["out-of-fold"]["coverage PNEUMONIA"]["other"] == pytest.approx(held)
    own = [float(row["probability"]) if row["label"] == "PNEUMONIA" else 1 - float(row["probability"]) for row in rows]
    assert found["out-of-fold"]["log_loss"]["other"] == pytest.approx(-np.log(own).mean())
    assert found["test"]["brier"]["other"] == pytest.approx(metrics["metrics"]["brier"]["value"])
    page = adapted.report.read_text(encoding="utf-8")
    assert "The test split, before and after" in page
    assert "out of fold" in page
    assert {row["images"] for row in adapted.to_rows()} == {"out-of-fold", "test"}


def test_without_a_test_split_the_report_is_about_images_out_of_fold(
    run: Run, other_images: Path, tmp_path: Path
) -> None:
    data = copy_images(other_images, tmp_path / "ours", {"NORMAL": 12, "PNEUMONIA": 10})
    arguments = ["adapt", str(data), "--model", str(run.folder), "--out", str(tmp_path / "new"), "--resamples", "100"]
    done = CliRunner().invoke(app, [*arguments, "--alpha", "0.2", "--threshold", "youden"])
    assert done.exit_code == 0, done.output
    assert "Probabilities: " in done.output
    metrics = read_json(tmp_path / "new" / "metrics.json")
    assert (metrics["split"], metrics["n"]) == ("out-of-fold", 22)
    assert len(read_table(tmp_path / "new" / "predictions.csv")) == 22
    model = read_json(tmp_path / "new" / "model" / "model.json")
    assert model["decisions"]["threshold"]["rule"] == "youden"
    assert model["decisions"]["prediction_sets"]["alpha"] == 0.2
    assert "threshold: youden" in (tmp_path / "new" / "config.yaml").read_text()
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, UsageError)


def test_another_head_is_stored_in_the_weights_and_predicts_as_it_was_fitted(
    run: Run, other_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.training import adaptation_choice

    monkeypatch.setattr(adaptation_choice, "WEAK", -1e9)  # evidence for anything
    monkeypatch.setattr(adaptation_choice, "WEAK_FROM", 0)
    new = pneumoscope.adapt(other_images, tmp_path / "new", model=run.folder, head=True, resamples=100)
    assert new.evidence.chosen.step == "head"
    before, model = load_model(run.model), load_model(new.model)
    assert model.weights_sha256 != before.weights_sha256
    old, arrays = load_arrays(run.model, before), load_arrays(new.model, model)
    changed = [name for name in old if not np.array_equal(old[name], arrays[name])]
    assert changed == ["head.weight"]
    image = list_images(other_images, "NORMAL")[0]
    by_graph, by_torch = (pneumoscope.load(new.model, engine=kind).predict(image)[0] for kind in ("onnx", "torch"))
    assert by_graph.raw_probability == pytest.approx(by_torch.raw_probability, abs=1e-4)
    fitted = read_decisions(model).calibration
    log_probabilities = calibration.apply([by_graph.logits], fitted)
    assert by_graph.raw_probability == pytest.approx(float(np.exp(log_probabilities[0, 1])))


def test_images_that_the_model_learned_from_are_left_out_and_counted(
    run: Run, images: Path, other_images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = copy_images(other_images, tmp_path / "ours", {"NORMAL": 8, "PNEUMONIA": 8})
    shutil.copy(list_images(images / "train", "NORMAL")[0], data / "NORMAL" / "known.png")
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        new = pneumoscope.adapt(data, tmp_path / "new", model=run.folder, resamples=100)
    assert "1 image left out: the model learned from them." in caplog.text
    assert new.evaluation.n == 16


def test_an_adapted_model_can_be_adapted_again_with_other_images(adapted: Adaptation, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "later", count=30, seed=11, size=128)
    again = pneumoscope.adapt(tmp_path / "later", tmp_path / "again", model=adapted.folder, resamples=100)
    first, second = read_json(again.model / "model.json")["lineage"]
    assert first == read_json(adapted.model / "model.json")["lineage"][0]
    assert second["parent"]["name"] == adapted.folder.name
    assert second["data"]["fingerprint"] != first["data"]["fingerprint"]
    assert "2. Adapted from the model" in (again.model / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_adapted_is_refused(run: Run, images: Path, other_images: Path, tmp_path: Path) -> None:
    few = copy_images(other_images, tmp_path / "few", {"NORMAL": 20, "PNEUMONIA": 3})
    with pytest.raises(DataError, match=r"20 NORMAL, 3 PNEUMONIA to adapt to, and at least 5 of each"):
        pneumoscope.adapt(few, tmp_path / "a", model=run.folder)
    with pytest.raises(DataError, match="to adapt to"):  # all are known from training
        pneumoscope.adapt(images, tmp_path / "b", model=run.folder)
    many = copy_images(other_images, tmp_path / "many", {"NORMAL": 12, "PNEUMONIA": 12})
    with pytest.raises(DataError, match="of 1 patient, and at least 5 are needed"):
        pneumoscope.adapt(many, tmp_path / "one", model=run.folder, patient_pattern="(?P<patient>phantom)")
    with pytest.raises(UsageError, match="alpha"):
        pneumoscope.adapt(other_images, tmp_path / "c", model=run.folder, alpha=1.5)
    (few / "NORMAL").rename(few / "HEALTHY")
    with pytest.raises(DataError, match="HEALTHY"):
        pneumoscope.adapt(few, tmp_path / "d", model=run.folder)
    assert not any((tmp_path / name).exists() for name in "cd")


def test_performance_is_estimated_without_labels(run: Run, other_images: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(other_images / "test"), "--model", str(run.folder), "--estimate"])
    assert done.exit_code == 0, done.output
    assert "if the probabilities are calibrated for these images" in done.stderr
    assert "sensitivity" in done.stderr
    assert "sensitivity" not in done.stdout
