"""The folder of a run: its files, its log, and what is needed to resume it."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.config import check_mapping, read_mapping, write_mapping
from pneumoscope.datasets.samples import format_samples, write_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import claim_folder
from pneumoscope.reports.evaluation_report import OUTPUTS
from pneumoscope.training.data import Setup
from pneumoscope.training.settings import Settings, find_groups, flatten, resolve_settings

CHECKPOINTS = "checkpoints"
RUN_FILES = ("config.yaml", "samples.csv", "history.csv", "model", "log.txt", CHECKPOINTS, *OUTPUTS)


def open_run(folder: Path, setup: Setup, resume: bool, overwrite: bool) -> None:
    """Create the folder with its settings and samples, or check that a run to resume began with the same samples.

    Raises:
        UsageError: the folder exists already, or holds something else.
        DataError: the data changed since the run began.
    """
    table = folder / "samples.csv"
    if not resume:
        claim_folder(folder, RUN_FILES, overwrite)
        write_mapping(folder / "config.yaml", setup.settings)
    elif table.exists() and table.read_bytes() != format_samples(setup.samples, folder).encode():
        raise DataError(
            f"{setup.settings.data.path}: the data have changed since the run in {folder} began ({table}). "
            "Start a new run."
        )
    write_samples(table, setup.samples)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def resume_settings(folder: Path, options: Mapping[str, Any]) -> Settings:
    """Read the settings of an interrupted run.

    Raises:
        UsageError: there is no run, or an option differs from what the run began with.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{folder}: no run to resume. Start it without `resume=True`.")
    config = read_mapping(path)
    check_mapping(Settings, config, str(path))
    recorded = flatten(config)
    if missing := sorted(set(find_groups()) - set(recorded)):
        raise UsageError(f"{path}: lacks {', '.join(missing)}, so the run cannot continue unchanged. Start a new run.")
    for name, value in options.items():
        if value is not None and value != "auto" and recorded.get(name) != value:
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


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what is logged to a run's log file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pneumoscope")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
