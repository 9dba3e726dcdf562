"""What a finished run recorded, read back for a paper: settings, samples, history, model, metrics and decisions."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pneumoscope.config import read_mapping
from pneumoscope.datasets.image_files import read_head
from pneumoscope.datasets.samples import SPLITS, Sample, merge_tags
from pneumoscope.datasets.sources import Source, find_sources
from pneumoscope.datasets.table_samples import to_tags
from pneumoscope.decisions.decisions import Decisions, read_decisions
from pneumoscope.errors import DataError, ImageError, MissingExtraError
from pneumoscope.evaluation.results import GroupDifference, Interval, Subgroup
from pneumoscope.files import parse_rows
from pneumoscope.images.dicom import is_dicom, read_tags
from pneumoscope.models.lineage import name_earlier_sources
from pneumoscope.models.model_folder import Model, load_model
from pneumoscope.reports.pages import format_estimate

FILES = ("config.yaml", "samples.csv", "history.csv", "metrics.json", "predictions.csv")
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}  # in a sentence
_ROLES = ("path", "label", "patient", "split", "invert", "any_modality")


@dataclass(frozen=True)
class Study:
    """A finished run, as its files tell it."""

    folder: Path
    settings: Mapping[str, Any]  # of config.yaml, by name
    samples: Sequence[Sample]  # all images that the run began with
    history: Sequence[Mapping[str, str]]  # rows of history.csv
    model: Model
    decisions: Decisions
    metrics: Mapping[str, Any]  # the content of metrics.json
    predictions: Sequence[Mapping[str, str]]  # rows of predictions.csv
    drawn: Sequence[str] | None = None  # splits that were drawn at random; None where the run does not say
    left_out: Sequence[Mapping[str, Any]] | None = None  # counts of files; None where the run does not say
    digests: Sequence[str | None] = ()  # of the content of each sample, where the run recorded it
    environment: Mapping[str, str] = field(default_factory=dict)  # versions and machine that the run began with
    findings: Sequence[str] = ()  # titles of the errors and warnings of the audit before training
    reported: bool = False  # whether it has a report; a fold of a cross-validation has none

    @property
    def two(self) -> bool:
        """Whether there are two classes."""
        return self.model.positive is not None

    @property
    def splits(self) -> list[str]:
        """The splits that have images, in their usual order."""
        present = {sample.split for sample in self.samples}
        return [split for split in SPLITS if split in present]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The public datasets of the training images, where they were recognised."""
        return find_sources(self.model.data.get("sources", ()))

    @property
    def earlier(self) -> tuple[Source, ...]:
        """Those of the models that training continued from."""
        return find_sources(name_earlier_sources(self.model.lineage))

    @property
    def notes(self) -> list[str]:
        """The warnings of metrics.json."""
        return list(self.metrics.get("notes", ()))

    @cached_property
    def subgroups(self) -> list[Subgroup]:
        """The subgroups of the test split."""
        return [_to_subgroup(values) for values in self.metrics.get("subgroups", ())]

    @cached_property
    def unreadable(self) -> Counter[tuple[str, str]]:
        """How many images could not be read, by split and class."""
        counts = Counter((str(sample.split), str(sample.label)) for sample in self.samples)
        for split, classes in self.model.data.get("counts", {}).items():
            counts.subtract({(split, name): n for name, n in classes.items()})
        return +counts

    @cached_property
    def copies(self) -> int:
        """How many images are identical to an image listed before them."""
        known = [digest for digest in self.digests if digest]
        return len(known) - len(set(known))

    def count_left_out(self) -> Counter[str]:
        """How many files reading the data left out, by reason."""
        counts = Counter[str]()
        for row in self.left_out or ():
            counts[row["reason"]] += row["files"]
        return counts

    def select(self, split: str) -> list[Sample]:
        """The samples of a split."""
        return [sample for sample in self.samples if sample.split == split]

    def metric(self, name: str) -> Interval:
        """A metric of the test split."""
        return to_interval(self.metrics["metrics"][name])

    def write_metric(self, name: str) -> str:
        """A metric of the test split in words, with its interval."""
        return format_estimate(self.metric(name))

    def count_decisions(self) -> dict[str, Counter[str]]:
        """How often each decision was made, by true class; an image without a prediction has none."""
        counts = {name: Counter[str]() for name in self.model.labels}
        for row in self.predictions:
            if not row["error"]:
                counts[row["label"]][row["decision"]] += 1
        return counts


def to_interval(values: Mapping[str, float | None]) -> Interval:
    """An interval from metrics.json, where None stands for nan."""
    return Interval(**_to_numbers(values))


def _to_numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _to_subgroup(values: Mapping[str, Any]) -> Subgroup:
    """A subgroup from metrics.json."""
    metrics = {name: to_interval(each) for name, each in values["metrics"].items()}
    differences = {name: GroupDifference(**_to_numbers(each)) for name, each in values["differences"].items()}
    return Subgroup(values["kind"], values["name"], values["n"], values["counts"], metrics, differences)


def read_study(folder: Path) -> Study:
    """Read a finished run.

    Raises:
        DataError: the folder is not a finished run of `train`, or a file of it is damaged.
        ModelError: its model is damaged.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing, so this is not a finished run. Give the folder that "
            "`pneumoscope train` wrote."
        )
    model = load_model(folder / "model")
    try:
        groups = read_mapping(folder / "config.yaml").values()
        # A fold began with a table of the cross-validation, which left files out and drew the splits before.
        fold = (folder.resolve().parent.parent / "crossval.yaml").is_file()
        intake = {} if fold else _read_json(folder / "intake.json")
        record = _read_json(folder / "resume.json")
        found = (record.get("remarks") or {}).get("findings", [])
        return Study(
            folder,
            {name: value for group in groups for name, value in group.items()},
            _read_samples(folder),
            _read_table(folder / "history.csv"),
            model,
            read_decisions(model),
            json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
            _read_table(folder / "predictions.csv"),
            intake.get("drawn"),
            intake.get("left_out"),
            [digest for _, _, digest in record.get("files", [])],
            _read_json(folder / "environment.json"),
            [each["title"] for each in found if each["severity"] != "note"],
            (folder / "report.html").is_file(),
        )
    except (OSError, ValueError, TypeError, AttributeError, LookupError, csv.Error) as problem:
        raise DataError(f"{folder}: a file of this run is damaged: {problem}. Train or evaluate again.") from None


def _read_json(path: Path) -> dict[str, Any]:
    """A file that not every run has."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return parse_rows(file)[1]


def _read_samples(folder: Path) -> list[Sample]:
    """The samples of samples.csv, whether or not their files are still there."""
    samples = []
    for row in _read_table(folder / "samples.csv"):
        others = {name: text for name, text in row.items() if name not in _ROLES and text}
        label, patient, split = (row[name] or None for name in ("label", "patient", "split"))
        sample = Sample(folder / row["path"], label, patient, split, tags=to_tags(others), metadata=others)
        samples.append(_add_tags(sample))
    return samples


def _add_tags(sample: Sample) -> Sample:
    """Add the tags of a DICOM header, where the file is still there."""
    with suppress(OSError, ImageError, MissingExtraError):
        if sample.path.is_file() and is_dicom(read_head(sample.path)):
            return replace(sample, tags=merge_tags(read_tags(sample.path), sample.tags))
    return sample
