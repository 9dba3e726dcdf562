"""The folder of a run: its files, its log, and what is needed to resume it."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pneumoscope.config import check_mapping, read_mapping, write_mapping
from pneumoscope.datasets.samples import format_samples, write_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import claim_folder, path_in_file, relative_path, write_text
from pneumoscope.models.references import is_name
from pneumoscope.reports.environment import describe_environment
from pneumoscope.reports.evaluation_report import OUTPUTS
from pneumoscope.text import printable
from pneumoscope.training.data import Setup
from pneumoscope.training.record import RECORD, begin_record, check_files, check_initial
from pneumoscope.training.settings import Settings, find_groups, flatten, resolve_settings

CHECKPOINTS = "checkpoints"
TRACKED = ("mlflow", "tensorboard")  # folders of trackers, where there is no server
INTAKE = "intake.json"  # what reading the data left out, and which splits were drawn
ENVIRONMENT = "environment.json"  # versions and machine
# Settings that name a file or folder; `init` may be a name or an address instead.
_PATHS = (
    ("data", "path"), ("data", "intended_use"), ("network", "weights"), ("network", "init"), ("decisions", "groups"),
)  # fmt: skip
RUN_FILES = (
    "config.yaml", "samples.csv", "history.csv", "model", "log.txt", RECORD, INTAKE, ENVIRONMENT, CHECKPOINTS, *TRACKED,
    *OUTPUTS,
)  # fmt: skip


def open_run(folder: Path, setup: Setup, resume: bool, overwrite: bool) -> None:
    """Create the folder with its settings and samples, or check that a run to resume began with the same samples.

    Raises:
        UsageError: the folder exists already, or holds something else.
        DataError: the data changed since the run began.
    """
    table = folder / "samples.csv"
    if not resume:
        claim_run(folder, RUN_FILES, overwrite)
        write_settings(folder / "config.yaml", setup.settings)
    elif table.exists() and table.read_bytes() != format_samples(setup.samples, folder).encode():
        raise DataError(
            f"{setup.settings.data.path}: the data have changed since the run in {folder} began ({table}). "
            "Start a new run."
        )
    write_samples(table, setup.samples)
    intake = {"drawn": sorted(setup.drawn), "left_out": list(setup.left_out)}
    write_text(folder / INTAKE, json.dumps(intake, indent=2, ensure_ascii=False) + "\n")
    if not (folder / ENVIRONMENT).exists():  # it says where a run began, even if it is resumed elsewhere
        write_text(folder / ENVIRONMENT, json.dumps(describe_environment(), indent=2, ensure_ascii=False) + "\n")
    if resume and (folder / RECORD).exists():
        check_files(folder, setup.samples)
        check_initial(folder, setup.initial)
    else:
        begin_record(folder, setup.samples, setup.initial, setup.processes.launch)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def claim_run(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Claim a folder for a run or a cross-validation, as `claim_folder`.

    Raises:
        UsageError: it is not empty; the message says so if it holds an unfinished run, which can be resumed.
    """
    begun = (folder / "config.yaml").is_file() and (folder / "log.txt").is_file()
    if begun and not (folder / "report.html").exists() and not overwrite:
        raise UsageError(
            f"{folder}: holds an unfinished run. Pass `resume=True` to continue it, `overwrite=True` to start over, or "
            "choose another path."
        )
    claim_folder(folder, names, overwrite)


def write_settings(path: Path, settings: Settings) -> None:
    """Write settings as YAML; paths that are relative to the working directory become relative to the file."""
    data, network, decisions = settings.data, settings.network, settings.decisions
    data = replace(data, path=path_in_file(Path(data.path), path.parent))
    if data.intended_use is not None:
        data = replace(data, intended_use=path_in_file(Path(data.intended_use), path.parent))
    if network.weights is not None:
        network = replace(network, weights=path_in_file(Path(network.weights), path.parent))
    if network.init is not None and not is_name(network.init):
        network = replace(network, init=path_in_file(Path(network.init), path.parent))
    if decisions.groups is not None:
        decisions = replace(decisions, groups=path_in_file(Path(decisions.groups), path.parent))
    write_mapping(path, replace(settings, data=data, network=network, decisions=decisions))


def read_settings(path: Path) -> dict[str, Any]:
    """Read what `write_settings` wrote, or a file written by hand; the paths in it are relative to it.

    Raises:
        UsageError: the file is missing or is not YAML.
    """
    values = read_mapping(path)
    for group, name in _PATHS:
        inner = values.get(group)
        if not isinstance(inner, dict) or not isinstance(inner.get(name), str) or Path(inner[name]).is_absolute():
            continue
        if name != "init" or not is_name(inner[name]):
            inner[name] = relative_path(path.parent.resolve() / inner[name], Path.cwd())
    return values


def _is_same(name: str, recorded: object, value: object) -> bool:
    if any(name == each for _, each in _PATHS) and isinstance(recorded, str):
        return Path(recorded).resolve() == Path(str(value)).resolve()
    return recorded == value


def resume_settings(folder: Path, options: Mapping[str, Any]) -> Settings:
    """Read the settings of an interrupted run.

    Raises:
        UsageError: there is no run, or an option differs from what the run began with.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{folder}: no run to resume. Start it without `resume=True`.")
    config = read_settings(path)
    check_mapping(Settings, config, str(path))
    recorded = flatten(config)
    if missing := sorted(set(find_groups()) - set(recorded)):
        raise UsageError(f"{path}: lacks {', '.join(missing)}, so the run cannot continue unchanged. Start a new run.")
    for name, value in options.items():
        if value is not None and value != "auto" and not _is_same(name, recorded.get(name), value):
            raise UsageError(
                f"the run in {folder} began with {recorded.get(name)!r}, not {value!r}. Resume it without this option, "
                "or start another run.",
                name,
            )
    return resolve_settings({}, config, str(path))


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read `history.csv`, a row for each epoch."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [
        {"phase": row["phase"], "epoch": int(row["epoch"])}
        | {key: float(value) for key, value in row.items() if key not in ("phase", "epoch")}
        for row in rows
    ]


class _Lines(logging.Formatter):
    """Formats a record without characters, such as those in a file's name, that would control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what is logged to a run's log file."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pneumoscope")
    # Python shows warnings by itself only where there is no handler at all, and the file is one.
    shown = [] if logger.hasHandlers() or logging.lastResort is None else [logging.lastResort]
    level = logger.level
    logger.setLevel(logging.DEBUG)
    for each in (handler, *shown):
        logger.addHandler(each)
    try:
        yield
    finally:
        for each in (handler, *shown):
            logger.removeHandler(each)
        logger.setLevel(level)
        handler.close()


@contextmanager
def hush() -> Iterator[None]:
    """Show nothing of what is logged; a file that `log_to` opens meanwhile still gets it."""
    logger = logging.getLogger("pneumoscope")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.propagate = propagate
