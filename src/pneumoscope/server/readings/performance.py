"""Readers without and with the model's answer, and the model: agreement and, with truth, how often they are right."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.datasets.tables import read_table
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.errors import DataError
from pneumoscope.evaluation.compare import compare_pairing
from pneumoscope.evaluation.intervals.all_metrics import measure_some
from pneumoscope.evaluation.intervals.differences import Difference
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, rate_interval
from pneumoscope.evaluation.pairing import Pairing, Predictions
from pneumoscope.evaluation.results import Interval, without_nan
from pneumoscope.images.read import read_bytes

WITHOUT, WITH, MODEL = "without AI", "with AI", "model"
_SIDES = (WITHOUT, WITH, MODEL)
_NO_LABEL = -1  # of whoever names no class; it is no class, so it is never right


@dataclass(frozen=True)
class Performance:
    """What one reader's readings come to.

    Attributes:
        reader: their name.
        read: images that they read without AI.
        finished: of them, those that they read with AI as well; only these are compared.
        with_truth: of these, those whose true class is known.
        cannot_tell: of the finished, how often they named no class, without and with AI.
        changed: of the finished, on how many the reading with AI names another class, or none.
        to_right: changes from a wrong reading to a right one.
        to_wrong: and the other way round.
        agreement: share of images on which a reader and the model name the same class, without and with AI.
        metrics: accuracy, sensitivity, specificity and AUROC of each side.
        differences: of the other sides from the reader without AI, by side and metric.
        notes: what to know about these numbers.
    """

    reader: str
    read: int
    finished: int
    with_truth: int
    cannot_tell: Mapping[str, int]
    changed: int
    to_right: int | None = None
    to_wrong: int | None = None
    agreement: Mapping[str, Interval] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON; undefined values are None."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each side and metric, with the difference from the reader without AI."""
        values = {**{(side, "agreement with model"): value for side, value in self.agreement.items()}}
        values |= {(side, name): value for side, found in self.metrics.items() for name, value in found.items()}
        rows = []
        for (side, name), value in values.items():
            difference = self.differences.get(side, {}).get(name)
            row = {"reader": self.reader, "side": side, "metric": name, "images": self.with_truth}
            row |= {"images": self.finished} if name == "agreement with model" else {}
            row |= {"value": value.value, "low": value.low, "high": value.high}
            row |= {
                "difference": getattr(difference, "value", math.nan),
                "difference_low": getattr(difference, "low", math.nan),
                "difference_high": getattr(difference, "high", math.nan),
                "p": getattr(difference, "p", math.nan),
            }
            rows.append(without_nan(row))
        return rows


def read_truth(data: Path) -> dict[str, str]:
    """True classes by the SHA-256 of files.

    Args:
        data: a table with the columns `sha256` and `label`, or images as `evaluate` reads them.

    Raises:
        DataError: it cannot be read, or gives a file two classes.
        UsageError: see `read_samples`.
    """
    pairs: list[tuple[str, str]] = []
    if data.is_file():
        table = read_table(data)
        if {"sha256", "label"} <= set(table.columns):
            places = table.columns.index("sha256"), table.columns.index("label")
            pairs = [(str(row[places[0]]).lower(), str(row[places[1]])) for row in table.rows]
    if not pairs:
        samples = read_samples(data)
        pairs = [
            (hashlib.sha256(read_bytes(each.path)).hexdigest(), each.label)
            for each in samples
            if each.label is not None
        ]
    truth: dict[str, str] = {}
    for digest, label in pairs:
        if truth.setdefault(digest, label) != label:
            raise DataError(
                f"{data}: the file {digest[:12]}… is {truth[digest]} and {label}. Give each file one class."
            )
    return truth


def measure_readers(rows: Sequence[Any], truth: Mapping[str, str] | None) -> list[Performance]:
    """Measure each reader, and the model on the same images.

    Of each file, a reader's first reading without AI and latest with AI count. A reader who cannot
    tell, and a model that finds an image out of distribution, name no class. That counts as wrong, and as no agreement
    with those who name one.

    Args:
        rows: all readings with what the model said, the oldest first (`readings.list_all`).
        truth: classes by SHA-256; None: what is known of teaching cases.

    Raises:
        DataError: a true class is not one of the model's.
    """
    first: dict[str, dict[str, Any]] = {}
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row.with_ai:
            first.setdefault(row.reader, {}).setdefault(row.sha256, row)
        else:
            last.setdefault(row.reader, {})[row.sha256] = row
    return [_measure(reader, own, last.get(reader, {}), truth) for reader, own in sorted(first.items())]


def _measure(
    reader: str, first: Mapping[str, Any], last: Mapping[str, Any], truth: Mapping[str, str] | None
) -> Performance:
    pairs = [(row, last[digest]) for digest, row in first.items() if digest in last]
    classes = tuple(dict.fromkeys(name for row, _ in pairs for name in row.probabilities))
    known = [row.truth if truth is None else truth.get(row.sha256) for row, _ in pairs]
    if strange := sorted({label for label in known if label is not None} - set(classes)):
        raise DataError(f"The true class {strange[0]} is not one of the model's ({', '.join(classes)}). Rename it.")

    def find(label: str | None) -> int:
        return _NO_LABEL if label is None or label not in classes else classes.index(label)

    said = np.array(
        [
            [find(row.label), find(other.label), find(_name(row))]
            for row, other in pairs
        ],
        np.int64,
    ).reshape(-1, 3)  # fmt: skip
    clusters = cluster_by_patient([row.patient for row, _ in pairs], len(pairs))
    agreement = {
        side: _bound((said[:, i] == said[:, 2]) & (said[:, i] != _NO_LABEL), np.ones(len(said), bool), clusters)
        for i, side in enumerate((WITHOUT, WITH))
    }
    among = np.array([label is not None for label in known], bool)
    common: dict[str, Any] = {
        "reader": reader, "read": len(first), "finished": len(pairs), "with_truth": int(among.sum()),
        "cannot_tell": {side: int((said[:, i] == _NO_LABEL).sum()) for i, side in enumerate((WITHOUT, WITH))},
        "changed": int((said[:, 0] != said[:, 1]).sum()), "agreement": agreement if pairs else {},
    }  # fmt: skip
    if not among.any():
        return Performance(**common, notes=("No truth is known.",))
    chosen = [pair for pair, is_known in zip(pairs, among, strict=True) if is_known]
    labels = np.array([find(label) for label in known if label is not None], np.int64)
    return _compare(common, chosen, said[among].T, labels, classes)


def _compare(
    common: Mapping[str, Any],
    pairs: Sequence[tuple[Any, Any]],
    said: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
) -> Performance:
    clusters = cluster_by_patient([row.patient for row, _ in pairs], len(pairs))
    patients, two = [row.patient or None for row, _ in pairs], len(classes) == 2
    ranked = two and all(each.label is None or each.confidence is not None for pair in pairs for each in pair)
    scores = _score(pairs, said, classes) if two else np.zeros((3, len(pairs), len(classes)))
    pairing = Pairing(
        tuple(Predictions(Path(side), classes, classes[1] if two else None, math.nan, ()) for side in _SIDES),
        classes, labels, scores, said, tuple(row.sha256 for row, _ in pairs), clusters,
        len({each for each in patients if each}) or None, "content", (0, 0, 0),
    )  # fmt: skip
    comparison = compare_pairing(pairing, [WITHOUT, WITH, MODEL])
    shown = ["accuracy", *(["sensitivity", "specificity"] if two else []), *(["auroc"] if ranked else [])]
    sides = {"accuracy": np.ones_like(labels, dtype=bool), "sensitivity": labels == 1, "specificity": labels == 0}
    right, metrics = said == labels, {}
    for i, side in enumerate((WITHOUT, WITH, MODEL)):
        metrics[side] = {name: _bound(right[i], sides[name], clusters) for name in shown if name != "auroc"}
        if ranked and len(np.unique(labels)) == 2:
            metrics[side] |= measure_some(labels, scores[i], ["auroc"], patients=patients)
    notes = ["Cannot tell and out of distribution count as wrong."]
    if two and not ranked:
        notes.append("There is no AUROC, because not every reading says how sure the reader is.")
    return Performance(
        **common,
        to_right=int((~right[0] & right[1]).sum()),
        to_wrong=int((right[0] & ~right[1]).sum()),
        metrics=metrics,
        differences={
            each.run: {name: each.differences[name] for name in shown if name in each.differences}
            for each in comparison.contrasts
        },
        notes=tuple(notes),
    )


def _name(row: Any) -> str | None:
    """The class that the model names; none if the image is out of distribution."""
    return None if row.decision == OUT_OF_DISTRIBUTION else str(row.predicted_label)


def _score(pairs: Sequence[tuple[Any, Any]], said: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.float64]:
    """How strongly each side holds an image for positive, in [0, 1]; *cannot tell* is in the middle."""
    sure = np.array([[(each.confidence or 0) / 200 for each in pair] for pair in pairs]).T
    signs = np.where(said[:2] == 1, 1.0, np.where(said[:2] == 0, -1.0, 0.0))
    model = np.array([[float(row.probabilities[classes[1]]) for row, _ in pairs]])
    return np.concatenate([0.5 + signs * sure, model])


def _bound(hits: NDArray[np.bool_], among: NDArray[np.bool_], clusters: NDArray[np.int64]) -> Interval:
    if not among.any():
        return Interval(math.nan, math.nan, math.nan)
    return Interval(float(hits[among].mean()), *rate_interval(hits, among, clusters, CONFIDENCE))
