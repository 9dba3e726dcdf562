"""MLflow and TensorBoard: what training logs to them. Neither can end the training, and neither gets an image."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.inference.runtimes import is_installed
from pneumoscope.reports.model_card import leave_names_out
from pneumoscope.reports.report import leave_images_out
from pneumoscope.text import shorten
from pneumoscope.training.run import Callback, Run
from pneumoscope.training.run_folder import TRACKED

MLFLOW, TENSORBOARD = TRACKED  # names of trackers, of their packages, and of their folders in a run
_OFF = {  # mlflow.org/docs/latest/community/usage-tracking
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # With a server, MLflow prints addresses among the results on standard output, with its password if it has one.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# By default, MLflow waits minutes for a server that is down, and refuses to write into a folder.
_USUAL = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
_LONGEST = 500  # characters of a parameter that every MLflow server accepts
_BATCH = 100  # parameters that it accepts at once
_SECONDS = 1.0  # between two batches of metrics


def parse_trackers(log_to: str | Sequence[str]) -> tuple[str, ...]:
    """Names of trackers, such as `mlflow,tensorboard`.

    Raises:
        UsageError: there is no such tracker.
        MissingExtraError: its package is not installed.
    """
    given = log_to.split(",") if isinstance(log_to, str) else log_to
    names = tuple(dict.fromkeys(name for each in given if (name := each.strip())))
    if unknown := [name for name in names if name not in TRACKED]:
        raise UsageError(f"no such tracker: {', '.join(unknown)}. Choose from {', '.join(TRACKED)}.", "log_to")
    for name in names:
        if not is_installed(name):
            raise MissingExtraError(f'{name} is not installed: pip install "pneumoscope[tracking]".', "log_to")
    return names


@contextmanager
def track(names: Sequence[str], callbacks: Sequence[Callback], folder: Path) -> Iterator[Callback]:
    """One callback that calls the given ones and the trackers of these names, which are closed after the block."""
    trackers = [_Careful(name, {MLFLOW: _MLflow, TENSORBOARD: _TensorBoard}[name](folder)) for name in names]
    try:
        yield _All([*trackers, *callbacks])
    finally:
        for tracker in trackers:
            tracker.close()


class _All(Callback):
    def __init__(self, each: Sequence[Callback]) -> None:
        self._each = each

    def on_start(self, settings: Mapping[str, Any]) -> None:
        for each in self._each:
            each.on_start(settings)

    def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        for each in self._each:
            each.on_epoch(metrics, epoch)

    def on_end(self, run: Run) -> None:
        for each in self._each:
            each.on_end(run)


class _Tracker(Callback):
    """A tracker; its messages about a store that will change one day are not for the user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        """Close the tracker; without an earlier `on_end`, record that the training failed."""


class _Careful(Callback):
    """A tracker that is not called again after its first error, which a warning reports; the training goes on."""

    def __init__(self, name: str, tracker: _Tracker) -> None:
        self._name, self._tracker, self._works = name, tracker, True

    def on_start(self, settings: Mapping[str, Any]) -> None:
        self._call("on_start", settings)

    def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        self._call("on_epoch", metrics, epoch)

    def on_end(self, run: Run) -> None:
        self._call("on_end", run)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if not self._works:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(self._tracker, method)(*arguments)
        except Exception as problem:  # of the tracker, its server or its disk, whatever they raise
            self._works = False
            reason = shorten(_hide_users(" ".join(str(problem).split())) or type(problem).__name__, 300)
            _logger().warning("%s failed: %s. The training goes on, but is no longer logged there.", self._name, reason)


class _MLflow(_Tracker):
    """A run of MLflow: settings, metrics of each epoch and of the test, report, metrics.json and model.

    MLflow's own environment variables say where it is stored; by default, in a folder of the run.
    """

    _run = ""  # its id, while it is open

    def on_start(self, settings: Mapping[str, Any]) -> None:
        os.environ.update(_OFF)  # before the import, which would begin to send
        for name, value in _USUAL.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self._folder / MLFLOW).resolve().as_uri()
        self._client = MlflowClient(uri)
        self._metrics: list[Any] = []
        self._logged = time.monotonic()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "pneumoscope"
        experiment = self._find_experiment(name)
        tags = {"pneumoscope.version": __version__}
        run_name = self._folder.resolve().name
        self._run = self._client.create_run(experiment, tags=tags, run_name=run_name).info.run_id
        parameters = [Param(name, str(value)[:_LONGEST]) for name, value in settings.items()]
        for start in range(0, len(parameters), _BATCH):
            self._client.log_batch(self._run, params=parameters[start : start + _BATCH])
        _logger().info("MLflow: run %s of the experiment %s in %s.", self._run, name, _hide_users(uri))

    def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        for name, value in metrics.items():
            if name != "phase":
                self._add(f"{metrics['phase']}/{name}", value, epoch)
        if time.monotonic() - self._logged > _SECONDS:  # a head's epochs take milliseconds, a request takes longer
            self._send()

    def on_end(self, run: Run) -> None:
        for name, value in list_results(run.evaluation).items():
            self._add(name, value, 0)
        self._send()
        with tempfile.TemporaryDirectory() as folder:
            for path in write_artefacts(run, Path(folder)):
                self._client.log_artifact(self._run, str(path))
        self._client.log_artifacts(self._run, str(run.model), "model")
        self._client.set_terminated(self._run)
        self._run = ""

    def close(self) -> None:
        if self._run:
            self._send()
            self._client.set_terminated(self._run, "FAILED")

    def _find_experiment(self, name: str) -> str:
        """The id of an experiment, which is created if there is none; another run may do so at the same moment."""
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _add(self, name: str, value: float, step: int) -> None:
        from mlflow.entities import Metric

        self._metrics.append(Metric(name, float(value), int(time.time() * 1000), step))

    def _send(self) -> None:
        if self._metrics:
            self._client.log_batch(self._run, metrics=self._metrics)
        self._metrics, self._logged = [], time.monotonic()


class _TensorBoard(_Tracker):
    """Event files in the run: settings as text, curves of each phase, and the metrics of the test."""

    _writer: Any = None

    def on_start(self, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder / TENSORBOARD))
        self._writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def on_epoch(self, metrics: Mapping[str, Any], epoch: int) -> None:
        for name, value in metrics.items():
            if name != "phase":
                self._writer.add_scalar(f"{metrics['phase']}/{name}", value, epoch)

    def on_end(self, run: Run) -> None:
        for name, value in list_results(run.evaluation).items():
            self._writer.add_scalar(name, value, 0)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def list_results(evaluation: Evaluation) -> dict[str, float]:
    """Metrics of the test split with the ends of their intervals, by name; undefined ones are left out."""
    found = {
        f"{evaluation.split}/{name}{end}": value
        for name, interval in evaluation.metrics.items()
        for end, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def write_artefacts(run: Run, folder: Path) -> list[Path]:
    """Write what may leave the run: report and metrics.json, without images and names of files and patients."""
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["notes"] = [short for note in metrics.get("notes", ()) if (short := leave_names_out(note))]
    written = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "report.html": leave_images_out(run.report.read_text(encoding="utf-8")),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def _hide_users(text: str) -> str:
    """Text with addresses that name neither user nor password, as a tracking URI may."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
