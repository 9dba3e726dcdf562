"""What is logged to MLflow, TensorBoard and callbacks, what never is, and that their failure ends no training."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pneumoscope import Callback, MissingExtraError, UsageError
from pneumoscope.training.train import Run, train

SHORT: dict[str, Any] = {"recipe": "head", "epochs": 2, "size": 64, "resamples": 20}


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def on_start(self, settings: Mapping[str, Any]) -> None:
        self.calls.append(("start", settings["seed"]))

    def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        self.calls.append((str(metrics["phase"]), (epoch, round(metrics["val_loss"], 6))))

    def on_end(self, run: Run) -> None:
        self.calls.append(("end", run.folder))


@pytest.fixture(scope="module")
def tracked(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Recorder]:
    """A run that was logged everywhere."""
    recorder, out = Recorder(), tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.delenv(name, raising=False)
        run = train(images, out, log_to=["mlflow", "tensorboard"], callbacks=[recorder], **SHORT)
        assert (os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("true", "true")
    return run, recorder


def read_history(run: Run) -> list[dict[str, str]]:
    with (run.folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_callback_gets_settings_every_epoch_and_the_finished_run(tracked: tuple[Run, Recorder]) -> None:
    run, recorder = tracked
    epochs = [(row["phase"], (int(row["epoch"]), round(float(row["val_loss"]), 6))) for row in read_history(run)]
    assert recorder.calls == [("start", 0), *epochs, ("end", run.folder)]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_settings_curves_and_test_metrics_with_intervals(tracked: tuple[Run, Recorder]) -> None:
    from mlflow import MlflowClient

    run, _ = tracked
    client = MlflowClient((run.folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("pneumoscope")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert (found.data.params["recipe"], found.data.params["epochs"]) == ("head", "2")
    interval = run.evaluation.metrics["auroc"]
    assert found.data.metrics["test/auroc"] == pytest.approx(interval.value)
    assert found.data.metrics["test/auroc_low"] == pytest.approx(interval.low)
    logged, rows = client.get_metric_history(found.info.run_id, "head/val_loss"), read_history(run)
    assert [each.step for each in logged] == [int(row["epoch"]) for row in rows]
    assert [each.value for each in logged] == pytest.approx([float(row["val_loss"]) for row in rows])


def test_no_image_and_no_name_of_a_file_or_patient_is_sent(tracked: tuple[Run, Recorder]) -> None:
    run, _ = tracked
    (artefacts,) = (run.folder / "mlflow").glob("*/*/artifacts")
    sent = {path.relative_to(artefacts).as_posix() for path in artefacts.rglob("*") if path.is_file()}
    own = {f"model/{path.name}" for path in run.model.iterdir()}
    assert sent == {"metrics.json", "report.html", *own}
    with (run.folder / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {Path(row["path"]).name for row in rows}
    assert any(name in run.report.read_text() for name in names)
    assert "data:image/" in run.report.read_text()
    for name in ("report.html", "metrics.json", "model/README.md", "model/model.json"):
        text = (artefacts / name).read_text()
        assert not [each for each in names if each in text], name
        assert "data:image/" not in text
    page = (artefacts / "report.html").read_text()
    assert "Metrics</h2>" in page
    assert "Provenance</h2>" in page


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_curves_and_test_metrics(tracked: tuple[Run, Recorder]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = tracked
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    losses = [(each.step, each.value) for each in events.Scalars("head/train_loss")]
    expected = [(int(row["epoch"]), pytest.approx(float(row["train_loss"]), rel=1e-4)) for row in read_history(run)]
    assert losses == expected
    (accuracy,) = events.Scalars("test/accuracy")
    assert accuracy.value == pytest.approx(run.evaluation.metrics["accuracy"].value, rel=1e-4)
    assert "recipe: head" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_server_that_is_gone_is_said_once_and_ends_no_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:password@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        run = train(images, tmp_path / "run", log_to="mlflow", **SHORT)
    assert run.report.is_file()
    (warning,) = [record.message for record in caplog.records if "mlflow failed" in record.message]
    assert "The training goes on" in warning
    assert "password" not in caplog.text + (run.folder / "log.txt").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_runs_that_begin_at_once_share_a_new_experiment(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    found = MlflowClient.get_experiment_by_name
    looked: list[str] = []

    def look(client: MlflowClient, name: str) -> Any:
        looked.append(name)
        if len(looked) > 1:
            return found(client, name)
        client.create_experiment(name)  # by another run, just after this one looked
        return None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", look)
    train(images, tmp_path / "run", log_to="mlflow", **SHORT)
    experiment = found(client := MlflowClient(store), "pneumoscope")
    assert experiment is not None
    assert [each.info.status for each in client.search_runs([experiment.experiment_id])] == ["FINISHED"]


def test_an_error_in_a_callback_ends_the_training(images: Path, tmp_path: Path) -> None:
    class Faulty(Callback):
        def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(images, tmp_path / "run", callbacks=[Faulty()], log_to="tensorboard", **SHORT)


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"log_to: no such tracker: wandb\. Choose from mlflow, tensorboard\."):
        train(images, tmp_path / "run", log_to="tensorboard,wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(
        MissingExtraError, match=r'mlflow is not installed: pip install "pneumoscope\[tracking\]"'
    ) as error:
        train(images, tmp_path / "run", log_to="mlflow")
    assert error.value.exit_code == 6
    assert not (tmp_path / "run").exists()
