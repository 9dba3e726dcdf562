"""What several runs predicted for the same images, brought together image by image."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError

SHOWN = 3  # offending images that an error names


@dataclass(frozen=True)
class Row:
    """A line of predictions.csv; without shares the image could not be read."""

    path: str
    label: str
    predicted_label: str
    shares: tuple[float, ...]
    patient: str
    digest: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True)
class Predictions:
    """What one run predicted: a run's folder or an evaluation's.

    `threshold` is nan, and `positive` None, for more than two classes. `lost_patients` says that patients were known
    when the metrics were measured, and that predictions.csv, of an older version, does not name them.
    """

    folder: Path
    classes: tuple[str, ...]
    positive: str | None
    threshold: float
    rows: tuple[Row, ...]
    has_digests: bool
    lost_patients: bool


@dataclass(frozen=True)
class Pairing:
    """M runs' predictions on N images that all of them could read.

    Attributes:
        runs: whence they come.
        classes: their names; of two the second is positive.
        labels: (N,) indices into `classes`.
        probabilities: (M, N) of the positive class, or (M, N, C) with C > 2.
        calls: (M, N) indices of the classes that the runs decided for.
        paths: (N,) as the first run names them.
        clusters: (N,) numbers of the patients; an image without one counts as a patient of its own.
        patients: how many distinct ones are known, None if none is.
        by: what told that two images are the same.
        unread: (M,) how many images each run could not read; none of them is in the pairing.
    """

    runs: tuple[Predictions, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    calls: NDArray[np.int64]
    paths: tuple[str, ...]
    clusters: NDArray[np.int64]
    patients: int | None
    by: Literal["content", "path"]
    unread: tuple[int, ...]


def read_predictions(folder: Path) -> Predictions:
    """Read `metrics.json` and `predictions.csv` of a run or an evaluation.

    Raises:
        DataError: one of them is missing, damaged, or does not fit the other.
    """
    metrics, table = folder / "metrics.json", folder / "predictions.csv"
    try:
        values = json.loads(metrics.read_text(encoding="utf-8"))
        classes = tuple(map(str, values["classes"]))
        threshold = math.nan if values["threshold"] is None else float(values["threshold"])
        positive, patients = values["positive"], values["patients"]
        with table.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError as problem:
        raise DataError(
            f"{folder}: {Path(problem.filename).name} is missing. Give a finished run, or an evaluation."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise DataError(f"{folder}: damaged metrics.json or predictions.csv: {problem}. Evaluate again.") from None
    columns = set(lines[0]) if lines else set()
    return Predictions(
        folder=folder,
        classes=classes,
        positive=positive,
        threshold=threshold,
        rows=tuple(_read_row(line, classes, f"{table}, line {i}") for i, line in enumerate(lines, start=2)),
        has_digests="digest" in columns,
        lost_patients=patients is not None and "patient" not in columns,
    )


def _read_row(line: dict[str, Any], classes: Sequence[str], where: str) -> Row:
    two = len(classes) == 2
    try:
        label, call = line["label"], line.get("predicted_label", line["decision"]) or ""
        texts = [line["probability"]] if two else [line[f"probability_{name}"] for name in classes]
        shares = () if line["error"] else tuple(map(float, texts))
        row = Row(line["path"], label, call, shares, line.get("patient") or "", line.get("digest") or "")
    except (KeyError, ValueError, TypeError) as problem:
        raise DataError(f"{where}: cannot be understood: {problem}. Evaluate again.") from None
    if not all(0 <= share <= 1 for share in shares):
        raise DataError(f"{where}: a probability lies between 0 and 1, found {texts}. Evaluate again.")
    if label not in classes or (shares and call not in classes):
        raise DataError(f"{where}: {label!r} called {call!r}; the classes are {', '.join(classes)}. Evaluate again.")
    return row


def pair_predictions(runs: Sequence[Predictions]) -> Pairing:
    """Bring together what runs predicted for the same images.

    Images are the same by content where every run has recorded it, else by path. Copies of one file are paired in
    order of their labels and paths. An image that one of the runs could not read is left out.

    Raises:
        DataError: other classes, other images, or another label for the same image.
    """
    first = runs[0]
    for run in runs[1:]:
        if set(run.classes) != set(first.classes) or run.positive != first.positive:
            raise DataError(
                f"{run.folder}: classes {_name_classes(run)}, not {_name_classes(first)} as {first.folder} has. "
                "Only runs with the same classes can be compared."
            )
    by: Literal["content", "path"] = "content" if all(run.has_digests for run in runs) else "path"
    rows, unread = _match(runs, by)
    if not rows:
        raise DataError(f"{first.folder}: no image that all runs could read. predictions.csv says why.")
    for row in rows:
        for run, other in zip(runs, row, strict=True):
            if other.label != row[0].label:
                wrong = [each for each in rows if len({one.label for one in each}) > 1]
                raise DataError(
                    f"{other.path}: {other.label} in {run.folder}, but {row[0].label} in {first.folder} "
                    f"({len(wrong)} such images). Evaluate both on the same labels."
                )
    classes = first.classes
    shares = np.array(
        [[[one.shares[_places(run, classes)[i]] for i in range(len(one.shares))] for one in column]
         for run, column in zip(runs, zip(*rows, strict=True), strict=True)]
    )  # fmt: skip
    known = [next((one.patient for one in row if one.patient), None) for row in rows]
    # copies of one file surely show one patient
    clusters = cluster_by_patient(
        [patient or row[0].digest or None for patient, row in zip(known, rows, strict=True)], len(rows)
    )
    return Pairing(
        runs=tuple(runs),
        classes=classes,
        labels=np.array([classes.index(row[0].label) for row in rows]),
        probabilities=shares[:, :, 0] if len(classes) == 2 else shares,
        calls=np.array([[classes.index(one.predicted_label) for one in row] for row in rows]).T,
        paths=tuple(row[0].path for row in rows),
        clusters=clusters,
        patients=len({patient for patient in known if patient}) or None,
        by=by,
        unread=unread,
    )


def _places(run: Predictions, classes: Sequence[str]) -> list[int]:
    """Where a run keeps the share of each class; two classes have one share, and the same positive class."""
    return [0] if len(classes) == 2 else [run.classes.index(name) for name in classes]


def _name_classes(run: Predictions) -> str:
    return ", ".join(run.classes) + (f" (positive: {run.positive})" if run.positive else "")


def _match(runs: Sequence[Predictions], by: str) -> tuple[list[tuple[Row, ...]], tuple[int, ...]]:
    """Rows of the same image, one a run, and how many images each run could not read.

    A file that could not be read may have no digest: then its path, or else its name, tells what it would have been.
    """
    found = [_arrange(run, by) for run in runs]
    unread = tuple(sum(not row.shares for row in run.rows) for run in runs)
    failed = [{name for row in run.rows if not row.shares for name in _names(row, by)} for run in runs]
    keys = dict.fromkeys(key for rows in found for key in rows)
    matched = []
    missing: dict[int, list[Row]] = defaultdict(list)
    for key in keys:
        present = [rows.get(key) for rows in found]
        some = next(row for row in present if row is not None)
        lacking = [i for i, row in enumerate(present) if row is None and not _names(some, by) & failed[i]]
        if not lacking and None not in present:
            matched.append(tuple(row for row in present if row is not None))
        for i in lacking:
            missing[i].append(some)
    for i, rows in missing.items():
        some_paths = ", ".join(row.path for row in rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
        raise DataError(
            f"{runs[i].folder}: other test images than the other runs have: {len(rows)} are not among its "
            f"predictions{' (paired by path)' if by == 'path' else ''}: {some_paths}. "
            "Measure both on the same images: pneumoscope evaluate DATA --model RUN --out DIR."
        )
    return matched, unread


def _names(row: Row, by: str) -> set[str]:
    """What an image may be known by; where content tells, folders may have other names."""
    return {row.path} if by == "path" else {row.path, row.name, row.digest} - {""}


def _arrange(run: Predictions, by: str) -> dict[tuple[str, int], Row]:
    """Readable rows by what tells the image and, for copies, by which of them it is."""
    copies: dict[str, list[Row]] = defaultdict(list)
    for row in run.rows:
        if row.shares:
            copies[row.digest if by == "content" else row.path].append(row)
    return {
        (key, number): row
        for key, rows in copies.items()
        for number, row in enumerate(sorted(rows, key=lambda row: (row.label, row.name, row.path)))
    }
