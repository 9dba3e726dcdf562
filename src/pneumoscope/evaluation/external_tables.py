"""Joins tables of predictions of other programs with labels, by the names of the images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.columns import NONE, Naming, find_columns
from pneumoscope.datasets.joining import join_names
from pneumoscope.datasets.labels import look
from pneumoscope.datasets.prediction_tables import (
    PredictionColumns,
    PredictionTable,
    find_id_column,
    read_prediction_table,
    used_mapping,
)
from pneumoscope.datasets.reading import read_dataset
from pneumoscope.datasets.samples import Sample, find_classes
from pneumoscope.datasets.table_samples import log_others
from pneumoscope.datasets.tables import read_table
from pneumoscope.errors import DataError, UsageError
from pneumoscope.inference.prediction import OF_HEADERS
from pneumoscope.text import were

_POSITIVE = {
    "1",
    "true",
    "yes",
    "positive",
    "pos",
    "+",
    "abnormal",
    "ja",
    "oui",
}  # of two classes, as `look` shows them
_NEGATIVE = {"0", "false", "no", "negative", "neg", "-", "normal", "nein", "non", "-1"}
# Columns of our own `predictions.csv` that follow from the prediction, and so cannot be what images are divided by.
_OUTCOMES = frozenset({"prediction_set", "ood_score", "decision", "warnings", "error"})
# Others that say which image it is. Laterality, which is among them, is a property of the image.
_IDENTIFIERS = frozenset({*OF_HEADERS, "sha256"}) - {"laterality"}
_FOLDS = frozenset({"repeat", "fold"})  # what cross-validations add to it: no splits, as each image was a test image
_NAMED = 3  # names in a message


@dataclass(frozen=True)
class Choices:
    """How to read and use the predictions of another program."""

    columns: PredictionColumns = field(default_factory=PredictionColumns)
    positive: str | None = None  # the positive of two classes, where their names do not tell
    threshold: float | str | None = None  # a number, or a rule for the val split
    calibrate: bool = False  # whether to calibrate, on the val split or by cross-validation


@dataclass(frozen=True, eq=False)
class Joined:
    """The N labelled images, with what the table says of each."""

    samples: list[Sample]
    rows: list[int | None]  # of the table
    table: PredictionTable
    classes: tuple[str, ...]
    positive: str | None
    notes: list[str]

    def stack(self) -> NDArray[np.float64]:
        """Probabilities (N, C); nan for images that are not in the table."""
        missing = [np.nan] * len(self.classes)
        return np.array([missing if row is None else self.table.probabilities[row] for row in self.rows])

    def list_errors(self) -> list[str | None]:
        """Why each image has no prediction, or None."""
        return [self._find_error(i) for i in range(len(self.samples))]

    def _find_error(self, i: int) -> str | None:
        row, name = self.rows[i], self.samples[i].path.name
        if row is None:
            return f"{name}: no prediction in the table"
        if np.isfinite(self.table.probabilities[row]).all():
            return None
        return f"{name}: the probability is {self.table.texts[row]}, not a number ({self.table.table.place(row)})"


def read_joined(
    predictions: Path, truth: Path | None, choices: Choices, naming: Naming, patient_pattern: str | None
) -> Joined:
    """Read labels and predictions, and join them."""
    own = truth is None
    columns = set(read_table(predictions).columns) if own else set[str]()
    ours = columns >= _OUTCOMES
    if own:
        naming = replace(naming, path_column=find_id_column(predictions, choices.columns))
    if ours and columns >= _FOLDS and naming.split_column is None:
        naming = replace(naming, split_column=NONE)
    source = predictions if truth is None else truth
    try:
        samples = list(read_dataset(source, patient_pattern, naming=naming, files=False, elsewhere=own).samples)
    except DataError as problem:
        if not own or "no column label" not in problem.message:
            raise
        raise UsageError(
            f"{predictions} has no column with the true labels. Give a table or a folder of classes that has them with "
            "`truth`, or name the column with `label_column`.", "truth",
        ) from None  # fmt: skip
    classes, positive = find_positive(samples, choices.positive)
    label = _find_label_column(predictions, naming) if own else None
    table = read_prediction_table(predictions, classes, positive, choices.columns, label)
    if own:
        used = table.used | _OUTCOMES | _FOLDS | _IDENTIFIERS if ours else table.used
        samples = [replace(each, metadata=used_mapping(each.metadata, used)) for each in samples]
        log_others(predictions, dict.fromkeys(name for each in samples for name in each.metadata))
    rows, notes = join(table, samples, source if source.is_dir() else source.parent)
    return Joined(samples, rows, table, classes, positive, notes)


def _find_label_column(path: Path, naming: Naming) -> str:
    """The column of a table with the true labels."""
    return find_columns(read_table(path).columns, str(path), naming)["label"]


def find_positive(samples: Sequence[Sample], positive: str | None) -> tuple[tuple[str, ...], str | None]:
    """The classes in order, and the positive one: the given one, PNEUMONIA, or one named like 1, true or positive."""
    names = sorted({str(sample.label) for sample in samples})
    if positive is None and len(names) == 2:
        looks = {look(name): name for name in names}
        found = [name for each, name in looks.items() if each in _POSITIVE]
        if len(found) == 1 and looks.keys() <= _POSITIVE | _NEGATIVE:
            positive = found[0]
    return find_classes(samples, positive)


def join(table: PredictionTable, samples: Sequence[Sample], root: Path) -> tuple[list[int | None], list[str]]:
    """Find the row of each sample, and say which rows are left out.

    Raises:
        DataError: no row fits, names are ambiguous, or an image has two different predictions.
    """
    names = _list_below([sample.path for sample in samples], root)
    joined = join_names(table.names, names, table.table.name)
    rows: list[int | None] = [None] * len(samples)
    repeated = 0
    for row, place in enumerate(joined.partners):
        if place is None:
            continue
        first = rows[place]
        if first is None:
            rows[place] = row
            continue
        if not np.array_equal(table.probabilities[first], table.probabilities[row], equal_nan=True):
            raise DataError(
                f"{table.table.place(first)} and {table.table.numbers[row]} have different predictions for one image, "
                f"{table.names[row]!r}. Keep one of them, or their mean."
            )
        repeated += 1
    if not any(row is not None for row in rows):
        raise DataError(
            f"{table.table.name}: none of its {len(table.names)} images has a label. It names images like "
            f"{table.names[0]!r}, the labels like {names[0]!r}. Write the same file names into both, or choose other "
            "columns with `id_column` and `path_column`."
        )
    notes = []
    if repeated:
        notes.append(f"{table.table.name}: rows that repeat others are left out: {repeated}.")
    if alone := [name for name, place in zip(table.names, joined.partners, strict=True) if place is None]:
        shown = ", ".join(alone[:_NAMED]) + (", …" if len(alone) > _NAMED else "")
        notes.append(f"{were(len(alone), 'prediction')} left out, without a label: {shown}.")
    if joined.by_name:
        logging.getLogger("pneumoscope").info(
            "%s: joined by file name, as the folders differ: %d.", table.table.name, joined.by_name
        )
    return rows, notes


def _list_below(paths: Sequence[Path], root: Path) -> list[str]:
    """Paths below a folder, others as they are; as text, because pathlib takes long for millions."""
    folder = root.as_posix()
    if folder in (".", "/") or not isinstance(root, PurePosixPath):  # Windows ignores case; "//a" is not below "/"
        return [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]
    start = folder if folder.endswith("/") else f"{folder}/"
    return [text.removeprefix(start) if text != folder else "." for path in paths for text in [path.as_posix()]]
