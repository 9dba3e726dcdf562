"""What a run writes down as it goes, and reads again when it is taken up: settings, history and log."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pneumoscope.config import read_mapping
from pneumoscope.errors import UsageError
from pneumoscope.training.settings import Settings, resolve_settings


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read `history.csv`, a row for each epoch."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [
        {"stage": row["stage"], "epoch": int(row["epoch"])}
        | {key: float(value) for key, value in row.items() if key not in ("stage", "epoch")}
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


def resume_settings(folder: Path, given: Mapping[str, Any]) -> Settings:
    """Read the settings of an interrupted run.

    Raises:
        UsageError: there is no run, or an option contradicts what it began with.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder}: no run to resume. Start it without --resume.")
    recorded = read_mapping(folder / "config.yaml")
    if missing := sorted({field.name for field in fields(Settings)} - set(recorded)):
        raise UsageError(
            f"{folder}: began with another version, which had no {', '.join(missing)}: it cannot go on as it would "
            "have. Start another run."
        )
    for key, value in given.items():
        if value is not None and value != "auto" and recorded.get(key) != value:
            raise UsageError(
                f"{folder}: began with {key}={recorded.get(key)!r}, not {value!r}. Resume it without that option, or "
                "start another run."
            )
    return resolve_settings({}, recorded, str(folder / "config.yaml"))
