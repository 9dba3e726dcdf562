"""The folder of a search for settings: what it holds, and how a process begins a search there or joins one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pneumoscope.config import build, quote, read_mapping, write_mapping
from pneumoscope.datasets.samples import Sample, format_samples, write_samples
from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import claim_folder, write_text
from pneumoscope.reports.tuning import PAGE, RESULT, TABLE
from pneumoscope.training.run_folder import resume_settings, write_settings
from pneumoscope.training.search_space import Space, read_space, to_plain
from pneumoscope.training.settings import Settings, flatten

DESIGN, SPACE, BEST, RUN, STORE = "tune.yaml", "space.yaml", "best.yaml", "run", "study.db"
FILES = (
    "config.yaml", DESIGN, SPACE, "samples.csv", STORE, f"{STORE}-journal", f"{STORE}-wal", f"{STORE}-shm", "log.txt",
    BEST, TABLE, "plots", PAGE, RESULT, RUN,
)  # fmt: skip
METRICS = ("auroc", "average_precision", "accuracy", "f1", "mcc", "brier")


@dataclass(frozen=True)
class Design:
    """How settings are searched, as `tune.yaml` records it."""

    metric: str
    folds: int
    trials: int  # how many the first process wanted
    storage: str | None = None  # the database's URL, without its password; None: a file in the folder
    study: str = ""  # its name in the database


def open_search(
    folder: Path, base: Settings, samples: Sequence[Sample], given: Mapping[str, Any],
    space: str | Path | Mapping[str, Any] | None, storage: str | None, resume: bool, overwrite: bool,
) -> tuple[Design, Space]:  # fmt: skip
    """Begin a search in a folder, or join the one that began there with the same settings.

    Raises:
        UsageError: there is none to resume, or it began with something else.
        DataError: the data changed since it began.
    """
    from pneumoscope.training.studies import check_storage, hide_password

    path = folder / DESIGN
    metric = given["metric"] or "auroc"
    if metric not in METRICS:
        raise UsageError(f"must be one of {', '.join(METRICS)}, found {quote(metric)}.", "metric")
    shown = None if storage is None else hide_password(storage)
    if overwrite or not path.is_file():
        if resume:
            raise UsageError(f"{folder}: no search to resume. Start it without `resume=True`.")
        domains = read_space(space, base)
        design = Design(metric, given["folds"] or 5, given["trials"] or 50, shown)
        design = replace(design, study=_name_study(base, design, domains, samples))
        if storage is not None:
            check_storage(storage)  # before anything is written
        claim_folder(folder, FILES, overwrite)
        write_settings(folder / "config.yaml", base)
        write_samples(folder / "samples.csv", samples)
        write_text(folder / SPACE, yaml.safe_dump(to_plain(domains), sort_keys=False, allow_unicode=True))
        write_mapping(path, design)
        return design, domains
    design = build(Design, read_mapping(path), str(path))
    domains = read_space(folder / SPACE, base)
    if not resume:
        resume_settings(folder, flatten(asdict(base)))  # refuses others
    began = {"metric": design.metric, "folds": design.folds, "space": to_plain(domains), "storage": design.storage}
    now = {
        "metric": given["metric"], "folds": given["folds"], "storage": shown,
        "space": None if space is None else to_plain(read_space(space, base)),
    }  # fmt: skip
    for name, value in now.items():
        if value is not None and value != began[name]:
            raise UsageError(
                f"the search in {folder} began with {quote(began[name])}, not {quote(value)}. Continue it without this "
                "option, or start another one.",
                name,
            )
    if (folder / "samples.csv").read_bytes() != format_samples(samples, folder).encode():
        raise DataError(f"{base.data.path}: the data have changed since the search in {folder} began. Start a new one.")
    return design, domains


def _name_study(base: Settings, design: Design, space: Space, samples: Sequence[Sample]) -> str:
    """A name that is the same for processes that search for the same, and for no others."""
    settings = asdict(base)
    content = [
        *(settings[group] for group in ("network", "optimisation", "augmentation", "decisions")),
        base.run.seed, design.metric, design.folds, to_plain(space),
        [(str(sample.path.resolve()), sample.label, sample.patient, sample.split) for sample in samples],
    ]  # fmt: skip
    return "pneumoscope-" + hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def find_storage(folder: Path, design: Design) -> str:
    """The URL of the database of the search that began in a folder.

    Raises:
        UsageError: its password is needed again.
    """
    from pneumoscope.training.studies import open_file

    if design.storage is None:
        return open_file(folder / STORE)
    if "***" in design.storage:
        raise UsageError(f"the search uses {design.storage}; give its URL again, with the password.", "storage")
    return design.storage
