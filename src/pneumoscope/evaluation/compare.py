"""Compares runs on the same images: pairs their predictions image by image, and measures the differences."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals.differences import (
    Difference,
    adjust_holm,
    compare_aurocs,
    compare_macro_auroc,
    compare_means,
    compare_rates,
)
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE
from pneumoscope.evaluation.results import without_nan
from pneumoscope.files import parse_rows
from pneumoscope.inference.prediction import Prediction, index_labels
from pneumoscope.notebook import to_frame, to_html

LISTED = 3  # images that an error names

_RATE = "Interval: Tango's score interval by the patients' design effect. p: McNemar's exact test by patient."
_AREA = "Interval: MOVER, from DeLong's covariance by patient and the logit interval of each area. p: DeLong."
_MEAN = "Interval and p: paired t test, with a standard error by patient."


@dataclass(frozen=True)
class Predictions:
    """What one run or evaluation predicted; threshold nan and positive None for more than two classes."""

    folder: Path
    classes: tuple[str, ...]
    positive: str | None
    threshold: float
    rows: tuple[Prediction, ...]  # an unreadable image has no probabilities


@dataclass(frozen=True)
class Pairing:
    """The predictions of M runs on the N images that all of them could read."""

    runs: tuple[Predictions, ...]
    classes: tuple[str, ...]  # if there are two, the second is positive
    labels: NDArray[np.int64]  # (N,) indices into `classes`
    probabilities: NDArray[np.float64]  # (M, N) of the positive class, or (M, N, C) with C > 2
    predicted: NDArray[np.int64]  # (M, N) indices into `classes`
    paths: tuple[str, ...]  # (N,) as the first run names them
    clusters: NDArray[np.int64]  # (N,) numbers of the patients; an image without one counts as its own patient
    patients: int | None  # number of distinct known patients
    paired_by: Literal["content", "path"]
    unread: tuple[int, ...]  # (M,) how many images each run could not read


@dataclass(frozen=True)
class Contrast:
    """One run against the first: differences by metric, and how many images both, one or none labels correctly."""

    run: str
    differences: Mapping[str, Difference]
    both_correct: int
    only_first: int
    only_other: int
    both_wrong: int


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same images, each compared with the first.

    Attributes:
        runs: their folders, as given.
        thresholds: one per run; nan for more than two classes.
        contrasts: one for each run but the first.
        n: number of images that all runs could read.
        patients: number of distinct known patients; None if none is known.
        unread: how many images each run could not read.
        classes: their names.
        positive: the positive class, if there are two.
        shares: the classes' shares of the images.
        paired_by: `content` or `path`.
        methods: the methods behind interval and p value, by metric.
        notes: what a reader must know.
        resamples: bootstrap resamples.
        seed: fixes the resamples.
        confidence: of the intervals.
    """

    runs: tuple[str, ...]
    thresholds: tuple[float, ...]
    contrasts: tuple[Contrast, ...]
    n: int
    patients: int | None
    unread: tuple[int, ...]
    classes: tuple[str, ...]
    positive: str | None
    shares: Mapping[str, float]
    paired_by: str
    methods: Mapping[str, str]
    notes: tuple[str, ...]
    resamples: int
    seed: int
    confidence: float = CONFIDENCE

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.runs)}: {self.n} images)"

    def _repr_html_(self) -> str:
        return to_html(f"{self.n} images, each run against {self.runs[0]}", self.to_rows())

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each run but the first and each metric; it needs pandas."""
        return to_frame(self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return the content of comparison.json; undefined values are None, as JSON has no nan."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each run but the first and each metric."""
        return [
            {"run": contrast.run, "against": self.runs[0], "metric": metric}
            | {key: value for key, value in without_nan(asdict(difference)).items() if key != "bootstrap"}
            for contrast in self.contrasts
            for metric, difference in contrast.differences.items()
        ]


def compare_runs(runs: Sequence[str | Path], *, resamples: int = 2000, seed: int = 0) -> tuple[Comparison, Pairing]:
    """Compare runs or evaluations with the first one, on the same images.

    Args:
        runs: two or more folders with `metrics.json` and `predictions.csv`.
        resamples: bootstrap resamples.
        seed: fixes them.

    Returns:
        The comparison, and the paired predictions behind it.

    Raises:
        UsageError: fewer than two runs.
        DataError: different images, labels or classes; the message names the first.
    """
    if len(runs) < 2:
        given = f"only {runs[0]} was given" if runs else "none was given"
        raise UsageError(f"{given}. Name at least two runs: each is compared with the first.", "runs")
    if resamples < 1:
        raise UsageError(f"at least 1 is needed, found {resamples}.", "resamples")
    pairing = pair_predictions([read_predictions(Path(run)) for run in runs])
    return compare_pairing(pairing, [str(run) for run in runs], resamples=resamples, seed=seed), pairing


def compare_pairing(pairing: Pairing, names: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Measure the differences between the first and each other run of a pairing."""
    measured = [_measure_differences(pairing, other, resamples, seed) for other in range(1, len(names))]
    for metric in measured[0]:
        adjusted = adjust_holm([differences[metric].p for differences in measured])
        for differences, p in zip(measured, adjusted, strict=True):
            differences[metric] = replace(differences[metric], adjusted=p)
    correct = pairing.predicted == pairing.labels
    shares = (np.bincount(pairing.labels, minlength=len(pairing.classes)) / len(pairing.labels)).tolist()
    return Comparison(
        runs=tuple(names),
        thresholds=tuple(run.threshold for run in pairing.runs),
        contrasts=tuple(
            Contrast(
                run=name,
                differences=differences,
                both_correct=int((correct[0] & other).sum()),
                only_first=int((correct[0] & ~other).sum()),
                only_other=int((~correct[0] & other).sum()),
                both_wrong=int((~correct[0] & ~other).sum()),
            )
            for name, differences, other in zip(names[1:], measured, correct[1:], strict=True)
        ),
        n=len(pairing.labels),
        patients=pairing.patients,
        unread=pairing.unread,
        classes=pairing.classes,
        positive=pairing.runs[0].positive,
        shares=dict(zip(pairing.classes, shares, strict=True)),
        paired_by=pairing.paired_by,
        methods={metric: _describe_method(metric, len(pairing.classes)) for metric in measured[0]},
        notes=_find_notes(pairing),
        resamples=resamples,
        seed=seed,
    )


def _measure_differences(pairing: Pairing, other: int, resamples: int, seed: int) -> dict[str, Difference]:
    labels, clusters = pairing.labels, pairing.clusters
    probabilities = pairing.probabilities[[0, other]]
    two = len(pairing.classes) == 2
    sides = {"accuracy": np.ones_like(labels, dtype=bool)}
    if two:
        sides |= {"sensitivity": labels == 1, "specificity": labels == 0}
    differences = {}
    for metric, side in sides.items():
        first, second = (pairing.predicted[[0, other]] == labels)[:, side]
        differences[metric] = compare_rates(first, second, clusters[side], resamples=resamples, seed=seed)
    if two:
        differences["auroc"] = compare_aurocs(labels, probabilities, clusters)
        first, second = (probabilities - labels) ** 2
        differences["brier"] = compare_means(first, second, clusters, resamples=resamples, seed=seed)
    else:
        differences["auroc"] = compare_macro_auroc(labels, probabilities, clusters, resamples=resamples, seed=seed)
    return differences


def _describe_method(metric: str, classes: int) -> str:
    if metric == "auroc":
        return _AREA if classes == 2 else f"Mean over the classes, each against the rest. {_AREA}"
    return _MEAN if metric == "brier" else _RATE


def _find_notes(pairing: Pairing) -> tuple[str, ...]:
    notes = []
    unread = [f"{count} by {run.folder}" for run, count in zip(pairing.runs, pairing.unread, strict=True) if count]
    if unread:
        notes.append(f"Images that any run could not read are left out: {', '.join(unread)}.")
    if len({run.threshold for run in pairing.runs if not math.isnan(run.threshold)}) > 1:
        notes.append("The runs have different thresholds: each uses the threshold of its own model.")
    return tuple(notes)


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
        positive = values["positive"]
        with table.open(encoding="utf-8-sig", newline="") as file:
            _, lines = parse_rows(file)
    except FileNotFoundError as problem:
        name = Path(problem.filename).name
        raise DataError(f"{folder}: {name} is missing. Give a finished run, or an evaluation.") from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise DataError(f"{folder}: metrics.json or predictions.csv is damaged: {problem}. Evaluate again.") from None
    rows = [_read_row(line, classes, folder, f"{table}, line {i}") for i, line in enumerate(lines, start=2)]
    return Predictions(folder, classes, positive, threshold, tuple(rows))


def _read_row(line: Mapping[str, Any], classes: Sequence[str], folder: Path, where: str) -> Prediction:
    try:
        label, predicted = line["label"], line["predicted_label"]
        columns = (
            {classes[1]: "probability"} if len(classes) == 2 else {name: f"probability_{name}" for name in classes}
        )
        texts = [line[column] for column in columns.values()]
        values = [] if line["error"] else [float(text) for text in texts]
        path = Path(os.path.normpath(folder / line["path"]))
        patient, sha256 = line.get("patient") or None, line.get("sha256") or ""
    except (KeyError, ValueError, TypeError) as problem:
        raise DataError(f"{where}: damaged: {problem}. Evaluate again.") from None
    if not all(0 <= value <= 1 for value in values):
        raise DataError(f"{where}: a probability must lie between 0 and 1, found {texts}. Evaluate again.")
    if label not in classes or (values and predicted not in classes):
        raise DataError(
            f"{where}: label {label!r} or predicted label {predicted!r} is none of the classes ({', '.join(classes)}). "
            "Evaluate again."
        )
    probabilities = dict(zip(columns, values, strict=True)) if values else None
    return Prediction(
        path=path, label=label, predicted_label=predicted, probabilities=probabilities, patient=patient, sha256=sha256
    )


def pair_predictions(runs: Sequence[Predictions]) -> Pairing:
    """Pair what runs predicted for the same images.

    Images are identified by content where every run recorded it, else by path. Copies of one file are paired in the
    order of their labels and paths. An image that any run could not read is left out.

    Raises:
        DataError: different classes or images, or another label for the same image.
    """
    first = runs[0]
    for run in runs[1:]:
        if set(run.classes) != set(first.classes) or run.positive != first.positive:
            raise DataError(
                f"{run.folder}: its classes are {_name_classes(run)}, those of {first.folder} {_name_classes(first)}. "
                "Only runs with the same classes can be compared."
            )
    hashed = all(row.sha256 for run in runs for row in run.rows if row.probabilities)
    paired_by: Literal["content", "path"] = "content" if hashed else "path"
    rows = _match(runs, paired_by)
    if not rows:
        raise DataError(f"{first.folder}: there is no image that all runs could read. predictions.csv says why.")
    _check_labels(runs, rows)
    classes = first.classes
    named = classes if len(classes) > 2 else classes[1:]
    probabilities = np.array(
        [[[(each.probabilities or {})[name] for name in named] for each in run] for run in zip(*rows, strict=True)]
    )
    known = [next((each.patient for each in row if each.patient), None) for row in rows]
    # Copies of one file certainly show one patient.
    clusters = [patient or row[0].sha256 or None for patient, row in zip(known, rows, strict=True)]
    return Pairing(
        runs=tuple(runs),
        classes=classes,
        labels=index_labels([row[0] for row in rows], classes),
        probabilities=probabilities[:, :, 0] if len(classes) == 2 else probabilities,
        predicted=np.array([[classes.index(str(each.predicted_label)) for each in row] for row in rows]).T,
        paths=tuple(_write_path(row[0]) for row in rows),
        clusters=cluster_by_patient(clusters, len(rows)),
        patients=len({patient for patient in known if patient}) or None,
        paired_by=paired_by,
        unread=tuple(sum(not row.probabilities for row in run.rows) for run in runs),
    )


def _check_labels(runs: Sequence[Predictions], rows: Sequence[tuple[Prediction, ...]]) -> None:
    differing = [row for row in rows if len({each.label for each in row}) > 1]
    if differing:
        first, *others = differing[0]
        run, other = next((run, row) for run, row in zip(runs[1:], others, strict=True) if row.label != first.label)
        raise DataError(
            f"{_write_path(other)}: {other.label} in {run.folder}, but {first.label} in {runs[0].folder} "
            f"(images that differ: {len(differing)}). Evaluate both on the same labels."
        )


def _name_classes(run: Predictions) -> str:
    return ", ".join(run.classes) + (f" (positive: {run.positive})" if run.positive else "")


def _match(runs: Sequence[Predictions], paired_by: str) -> list[tuple[Prediction, ...]]:
    """Match the rows of the same image, one per run.

    A file that could not be read may have no hash; then its path or name identifies it.
    """
    tables = [_index_rows(run, paired_by) for run in runs]
    failed = [{name for row in run.rows if not row.probabilities for name in _identify(row, paired_by)} for run in runs]
    matched = []
    missing: dict[int, list[Prediction]] = defaultdict(list)
    for key in dict.fromkeys(key for rows in tables for key in rows):
        present = [rows[key] for rows in tables if key in rows]
        lacking = [i for i, rows in enumerate(tables) if key not in rows]
        if not lacking:
            matched.append(tuple(present))
        for i in lacking:
            if not _identify(present[0], paired_by) & failed[i]:
                missing[i].append(present[0])
    for i, rows in missing.items():
        names = ", ".join(map(_write_path, rows[:LISTED])) + (", …" if len(rows) > LISTED else "")
        raise DataError(
            f"{runs[i].folder}: it has no predictions for {len(rows)} of the other runs' test images"
            f"{' (paired by path)' if paired_by == 'path' else ''}: {names}. "
            "Evaluate both on the same images: pneumoscope evaluate DATA --model RUN --out DIR."
        )
    return matched


def _write_path(row: Prediction) -> str:
    return "" if row.path is None else row.path.as_posix()


def _find_name(row: Prediction) -> str:
    """The file's name without its folder, on whatever system it was written."""
    return _write_path(row).replace("\\", "/").rpartition("/")[2]


def _identify(row: Prediction, paired_by: str) -> set[str]:
    """Return what may identify an image; if that is its content, its folder may have another name."""
    path = _write_path(row)
    return {path} if paired_by == "path" else {path, _find_name(row), row.sha256} - {""}


def _index_rows(run: Predictions, paired_by: str) -> dict[tuple[str, int], Prediction]:
    """Readable rows by hash or path, and by the number of the copy."""
    copies: dict[str, list[Prediction]] = defaultdict(list)
    for row in run.rows:
        if row.probabilities:
            copies[row.sha256 if paired_by == "content" else _write_path(row)].append(row)
    return {
        (key, number): row
        for key, rows in copies.items()
        for number, row in enumerate(sorted(rows, key=lambda row: (row.label, _find_name(row), _write_path(row))))
    }
