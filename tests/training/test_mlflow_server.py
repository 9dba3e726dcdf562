"""What a real MLflow server has of a run, asked through its REST API; skipped where there is no such server."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pneumoscope import Callback
from pneumoscope.training.train import Run, train

SHORT: dict[str, Any] = {"recipe": "head", "epochs": 3, "size": 64, "resamples": 20}
HAS_SERVER = "import importlib.metadata; print(importlib.metadata.version('mlflow'))"  # which mlflow-skinny is not


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str

    def ask(self, what: str, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"api/2.0/mlflow/{what}", parameters).json()
        return found

    def read(self, run: str, path: str) -> bytes:
        """The content of an artifact."""
        return self._get("get-artifact", {"run_id": run, "path": path}).content

    def find_runs(self, experiment: str) -> list[dict[str, Any]]:
        number = self.ask("experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/runs/search", json={"experiment_ids": [number]}, timeout=30)
        found: list[dict[str, Any]] = answer.raise_for_status().json().get("runs", [])
        return found

    def _get(self, path: str, parameters: Mapping[str, Any]) -> httpx.Response:
        return httpx.get(f"{self.url}/{path}", params=parameters, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`mlflow server` with a database and artifacts of its own."""
    folder, port = tmp_path_factory.mktemp("server"), find_port()
    command = [
        find_program(), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'runs.db'}", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 200
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < end, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.wait(30)


def find_program() -> str:
    """The program `mlflow` that `PNEUMOSCOPE_MLFLOW` names, or the one on the path, if it has a server."""
    program = os.environ.get("PNEUMOSCOPE_MLFLOW") or shutil.which("mlflow")
    if program is None:
        pytest.skip("there is no `mlflow`; CONTRIBUTING.md says how to provide one")
    python = Path(program).with_name("python")
    if not python.exists() or subprocess.run([python, "-c", HAS_SERVER], capture_output=True).returncode:
        pytest.skip(
            f"{program} has no server, as it is not the complete mlflow; CONTRIBUTING.md says how to provide it"
        )
    return program


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def run(server: Server, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was logged there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "whole")
        return train(images, tmp_path_factory.mktemp("logged") / "run", log_to="mlflow", **SHORT)


def test_the_server_has_settings_epochs_and_metrics(server: Server, run: Run) -> None:
    (found,) = server.find_runs("whole")
    assert (found["info"]["status"], found["info"]["run_name"]) == ("FINISHED", "run")
    settings = {each["key"]: each["value"] for each in found["data"]["params"]}
    assert (settings["recipe"], settings["epochs"], settings["size"]) == ("head", "3", "64")
    assert len(settings) > 50
    metrics = {each["key"]: each["value"] for each in found["data"]["metrics"]}
    interval = run.evaluation.metrics["auroc"]
    assert [metrics[f"test/auroc{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [interval.value, interval.low, interval.high]
    )
    with (run.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train_loss", "val_loss", "val_accuracy", "lr"):
        logged = server.ask("metrics/get-history", run_id=found["info"]["run_id"], metric_key=f"head/{name}")["metrics"]
        assert [each["step"] for each in logged] == [int(row["epoch"]) for row in rows]
        assert [each["value"] for each in logged] == pytest.approx([float(row[name]) for row in rows])


def test_the_server_has_the_model_the_report_and_the_metrics_and_nothing_else(server: Server, run: Run) -> None:
    (found,) = server.find_runs("whole")
    number = found["info"]["run_id"]
    listed = [*server.ask("artifacts/list", run_id=number)["files"]]
    listed += server.ask("artifacts/list", run_id=number, path="model")["files"]
    own = {f"model/{path.name}" for path in run.model.iterdir()}
    assert {each["path"] for each in listed if not each["is_dir"]} == {"metrics.json", "report.html", *own}
    for path in run.model.iterdir():
        assert server.read(number, f"model/{path.name}") == path.read_bytes()
    sent = json.loads(server.read(number, "metrics.json"))
    assert sent["metrics"] == json.loads((run.folder / "metrics.json").read_text())["metrics"]
    assert b"data:image/" not in server.read(number, "report.html")


def test_a_training_that_fails_is_marked_as_failed(
    server: Server, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty(Callback):
        def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
            raise KeyError("mine")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "failing")
    with pytest.raises(KeyError, match="mine"):
        train(images, tmp_path / "run", log_to="mlflow", callbacks=[Faulty()], **SHORT)
    (found,) = server.find_runs("failing")
    assert found["info"]["status"] == "FAILED"


def test_no_password_of_the_server_is_shown_or_kept(
    server: Server, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("://", "://somebody:password@"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "protected")
    for name in ("first", "second"):
        train(images, tmp_path / name, log_to="mlflow", **SHORT)
    assert [each["info"]["status"] for each in server.find_runs("protected")] == ["FINISHED"] * 2
    shown = capsys.readouterr()
    assert shown.out == ""
    kept = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("log.txt"))
    assert "mlflow failed" not in kept
    assert "password" not in shown.err + caplog.text + kept
