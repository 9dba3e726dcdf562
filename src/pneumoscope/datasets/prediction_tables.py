"""Tables of predictions that any program wrote: which column holds what, and the numbers in them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.columns import Naming, find_columns, to_key
from pneumoscope.datasets.labels import look
from pneumoscope.datasets.tables import Table, read_table, to_text
from pneumoscope.errors import DataError, UsageError
from pneumoscope.text import counted, shorten

Floats: TypeAlias = NDArray[np.float64]
Scale: TypeAlias = Literal["probability", "percent", "logit"]

# Keys (see `to_key`) of the column with the probability of the positive class, the surest names first.
_PROBABILITY = (
    {"probability", "probabilities", "prob", "probs", "proba", "yprob", "yproba", "predproba", "predprob", "ypredproba",
     "predictedprobability", "predictionprobability", "positiveprobability", "wahrscheinlichkeit", "probabilite",
     "probabilidad"},
    {"score", "scores", "yscore", "predictionscore", "risk", "output", "sigmoid", "logit", "logits"},
    {"prediction", "predictions", "pred", "preds", "ypred", "predicted", "yhat", "vorhersage", "pradiktion"},
    {"label", "class", "target"},  # of a submission to a contest
)  # fmt: skip
_PREDICTED = (
    {"predictedlabel", "predictedclass", "predlabel", "predclass", "predictionlabel", "labelpredicted"},
    {"prediction", "pred", "ypred", "predicted", "yhat", "vorhersage", "pradiktion"},
)
# What stands before or after a class in the name of the column with its probability.
_AROUND = (
    "probability",
    "prob",
    "proba",
    "p",
    "score",
    "pred",
    "prediction",
    "yprob",
    "yproba",
    "class",
    "output",
    "logit",
)
_BRACKETS = re.compile(r"\[+\s*([^\[\],\s]+)\s*\]+")  # an array of one number, as NumPy prints it
_EMPTY = "an empty cell"
_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")  # a decimal comma
_ROUNDING = 1e-6
_SUMS = 0.02  # by how much rounded probabilities of all classes may miss 1


@dataclass(frozen=True)
class PredictionColumns:
    """The columns of a table of predictions, where they have unusual names, and the scale of its numbers."""

    id_column: str | None = None  # the image: a path, a file name or an id
    # the probability of the positive class, or `CLASS=COLUMN,CLASS=COLUMN`
    probability_column: str | None = None
    predicted_column: str | None = None  # the predicted label
    scale: Scale = "probability"


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """N rows of a table of predictions."""

    table: Table
    names: Sequence[str]  # (N,) of the images
    probabilities: Floats  # (N, C); nan in rows without a number
    texts: Sequence[str]  # (N,) the cells behind them
    predicted: Sequence[str | None] | None  # (N,) class names; None without such a column
    used: frozenset[str]  # names of the columns that were read


def find_id_column(path: Path, columns: PredictionColumns) -> str:
    """The column of a table that names the images."""
    table = read_table(path)
    return find_columns(table.columns, table.name, Naming(path_column=columns.id_column), labelled=False)["path"]


def read_prediction_table(
    path: Path, classes: Sequence[str], positive: str | None, columns: PredictionColumns, own_labels: str | None = None
) -> PredictionTable:
    """Read the images, probabilities and predicted labels of a table.

    Args:
        path: CSV, in any of the forms of `read_table`, or Parquet.
        classes: of the labels; if there are two, the second is positive.
        positive: the positive class, if there are two.
        columns: those with unusual names.
        own_labels: the column with true labels, if this table is to be measured against itself.

    Raises:
        DataError: a column is missing or unclear, or numbers are not probabilities.
        UsageError: `columns` names one that does not exist.
    """
    table = read_table(path)
    naming = Naming(path_column=columns.id_column)
    name = find_columns(table.columns, table.name, naming, labelled=False)["path"]
    free = [each for each in table.columns if each not in (name, own_labels)]
    by_class = _find_probabilities(table, free, classes, positive, columns.probability_column)
    left = [each for each in free if each not in by_class.values()]
    label = _find_predicted(table, left, columns.predicted_column)
    names = [to_text(cell) or "" for cell in _cells(table, name)]
    if "" in names:
        raise DataError(f"{table.place(names.index(''))} has no {name}, so its image is not known.")
    raw = np.array([[_to_number(cell) for cell in _cells(table, each)] for each in by_class.values()]).T
    cells = [[_write(cell) for cell in _cells(table, each)] for each in by_class.values()]
    probabilities = _complete(_to_probabilities(raw, columns.scale, table), list(by_class), classes, columns, table)
    predicted = None
    if label is not None:
        predicted = [_to_class(to_text(cell), classes, f"{table.place(i)}, column {label!r}") for i, cell in
                     enumerate(_cells(table, label))]  # fmt: skip
    shown = ", ".join([f"images from {name}", *(f"{each} from {column}" for each, column in by_class.items())])
    shown += f", predicted labels from {label}" if label else ""
    rest = [each for each in left if each != label]
    logger = logging.getLogger("pneumoscope")
    logger.info("%s: columns used: %s.", table.name, shown)
    if rest and own_labels is None:
        logger.info("%s: columns not used: %s.", table.name, ", ".join(rest))
    used = frozenset({name, *by_class.values()} | ({label} if label else set()))
    texts = [_explain(row, table, i) for i, row in enumerate(zip(*cells, strict=True))]
    return PredictionTable(table, names, probabilities, texts, predicted, used)


def _cells(table: Table, name: str) -> list[Any]:
    place = table.columns.index(name)
    return [row[place] for row in table.rows]


def _find_probabilities(
    table: Table, names: Sequence[str], classes: Sequence[str], positive: str | None, given: str | None
) -> dict[str, str]:
    """The columns with probabilities, by class."""
    if given is not None:
        return _read_given(table, names, classes, positive, given)
    by_class = {name: column for name in classes if (column := _find_of_class(table, names, name))}
    wanted = classes if positive is None else (positive,)
    if positive is not None and positive not in by_class:
        for group in _PROBABILITY:
            found = [name for name in names if to_key(name) in group and _holds_numbers(table, name, group)]
            if len(found) > 1:
                raise DataError(
                    f"{table.name}: the columns {' and '.join(map(repr, found))} may both hold the probability of "
                    f"{positive}. Choose one with `probability_column`."
                )
            if found:
                return {positive: found[0]}
        if len(by_class) == 1:  # that of the negative class
            return by_class
    if missing := [name for name in wanted if name not in by_class]:
        what = f"the probability of {' or '.join(missing)}"
        form = f"`probability_column='{missing[0]}=COLUMN,…'`" if positive is None else "`probability_column`"
        raise DataError(
            f"{table.name}: no column seems to hold {what}; found {', '.join(shorten(each, 40) for each in names)}. "
            f"Name it with {form}. Predicted labels alone are not enough: most metrics need probabilities."
        )
    return by_class


def _find_of_class(table: Table, names: Sequence[str], name: str) -> str | None:
    key = to_key(name)
    keys = {key, *(f"{word}{key}" for word in _AROUND), *(f"{key}{word}" for word in _AROUND)}
    found = [each for each in names if to_key(each) in keys]
    if len(found) > 1:
        raise DataError(
            f"{table.name}: the columns {' and '.join(map(repr, found))} may both hold the probability of {name}. "
            f"Choose one with `probability_column='{name}=COLUMN'`."
        )
    return found[0] if found else None


def _holds_numbers(table: Table, name: str, group: Iterable[str]) -> bool:
    """Whether a column holds numbers; where its name may also mean labels, other ones than 0 and 1."""
    if group in _PROBABILITY[:2]:
        return True
    texts = {text for cell in _cells(table, name) if (text := to_text(cell)) is not None}
    return any(math.isfinite(_to_number(text)) for text in texts) and not {look(text) for text in texts} <= {"0", "1"}


def _read_given(
    table: Table, names: Sequence[str], classes: Sequence[str], positive: str | None, given: str
) -> dict[str, str]:
    def find(name: str) -> str:
        matching = [each for each in names if each == name] or [each for each in names if to_key(each) == to_key(name)]
        if len(matching) != 1:
            raise UsageError(
                f"{table.name} has {'several columns' if matching else 'no column'} {name!r}; found "
                f"{', '.join(names)}.",
                "probability_column",
            )
        return matching[0]

    if given in names or "=" not in given:
        if positive is None:
            raise UsageError(
                f"there are {len(classes)} classes, so each needs a column: "
                f"{','.join(f'{name}=COLUMN' for name in classes)}.", "probability_column",
            )  # fmt: skip
        return {positive: find(given)}
    pairs = [part.rpartition("=") for part in given.split(",")]
    by_class = {label.strip(): find(column.strip()) for label, _, column in pairs}
    if unknown := [label for label in by_class if label not in classes]:
        raise UsageError(f"{unknown[0]!r} is none of the classes ({', '.join(classes)}).", "probability_column")
    if positive is None and len(by_class) < len(classes):
        missing = ", ".join(name for name in classes if name not in by_class)
        raise UsageError(f"names no column for {missing}.", "probability_column")
    return by_class


def _find_predicted(table: Table, names: Sequence[str], given: str | None) -> str | None:
    if given is not None:
        if given not in names:
            raise UsageError(f"{table.name} has no column {given!r}; found {', '.join(names)}.", "predicted_column")
        return given
    for group in _PREDICTED:
        if len(found := [name for name in names if to_key(name) in group]) == 1:
            return found[0]
    return None


def _to_class(text: str | None, classes: Sequence[str], place: str) -> str | None:
    """The class that a cell names; of two, 0 and 1, or false and true, are the negative and the positive one."""
    if text is None:
        return None
    by_look = {look(name): name for name in classes}
    if len(classes) == 2:
        by_look = {"0": classes[0], "1": classes[1], "false": classes[0], "true": classes[1], **by_look}
    if look(text) not in by_look:
        raise DataError(f"{place}: the predicted label {text!r} is none of the classes ({', '.join(classes)}).")
    return by_look[look(text)]


def _to_number(cell: Any) -> float:
    """A cell as a number, also with a decimal comma, as a percentage or in the brackets of an array; else nan."""
    text = to_text(cell)
    if text is None:
        return math.nan
    if match := _BRACKETS.fullmatch(text):
        text = match[1]
    percent = text.endswith("%")
    text = text.rstrip("% ")
    try:
        value = float(text.replace(",", ".") if _COMMA.fullmatch(text) else text)
    except ValueError:
        return math.nan
    return (value / 100 if percent else value) if math.isfinite(value) else math.nan


def _write(cell: Any) -> str:
    return repr(shorten(str(cell), 30)) if cell is not None and str(cell).strip() else _EMPTY


def _explain(texts: Sequence[str], table: Table, row: int) -> str:
    """The cells of a row in words, and why they are empty if `pneumoscope predict` left them so."""
    text = " ".join(texts)
    if text == _EMPTY and "decision" in table.columns and _cells(table, "decision")[row] == "out_of_distribution":
        return f"{text} (out of distribution; `pneumoscope predict --no-ood` gives it a probability)"
    return text


def _to_probabilities(values: Floats, scale: Scale, table: Table) -> Floats:
    if scale == "logit":
        return values
    values = values / 100 if scale == "percent" else values
    outside = np.argwhere((values < -_ROUNDING) | (values > 1 + _ROUNDING))
    if len(outside):
        i, j = outside[0]
        shown = values[i, j] * (100 if scale == "percent" else 1)
        raise DataError(
            f"{table.place(i)}: {shown:g} is not a probability "
            f"({counted(len({row for row, _ in outside.tolist()}), 'row')} like this). If the numbers are percentages, "
            "pass `scale='percent'`; if they are logits (without sigmoid or softmax), `scale='logit'`."
        )
    return np.clip(values, 0, 1)


def _complete(
    values: Floats, given: Sequence[str], classes: Sequence[str], columns: PredictionColumns, table: Table
) -> Floats:
    """Probabilities (N, C) of all classes, from those that are given."""
    two = len(classes) == 2
    if columns.scale == "logit":
        if two and len(given) == 1:
            values = values if given[0] == classes[1] else -values
            values = np.hstack([np.zeros_like(values), values])
        else:
            values = values[:, [given.index(name) for name in classes]]
        shifted = np.exp(values - values.max(1, keepdims=True))
        softmax: Floats = shifted / shifted.sum(1, keepdims=True)
        return softmax
    if two and len(given) == 1:
        both = np.hstack([1 - values, values])
        return both if given[0] == classes[1] else both[:, ::-1]
    values = values[:, [given.index(name) for name in classes]]
    sums = values.sum(1)
    wrong = np.flatnonzero(np.abs(sums - 1) > _SUMS)
    if len(wrong):
        raise DataError(
            f"{table.place(wrong[0])}: the probabilities of {', '.join(classes)} add up to {sums[wrong[0]]:.3g}, not 1 "
            f"({counted(len(wrong), 'row')} like this). Give those of classes that exclude each other (softmax)."
        )
    shares: Floats = values / sums[:, None]
    return shares


def used_mapping(rows: Mapping[str, str], used: Iterable[str]) -> dict[str, str]:
    """What a row says apart from the columns that were used."""
    left = set(used)
    return {name: cell for name, cell in rows.items() if name not in left}
