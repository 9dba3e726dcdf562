"""Metrics of subgroups of a test split: does a classifier work less well for some patients?"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from pneumoscope.datasets.columns import AGE, SEX, VIEW, to_key
from pneumoscope.evaluation.intervals.all_metrics import measure_some
from pneumoscope.evaluation.results import Evaluation, Subgroup
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities

_NAMED = (
    ("Cause, by file name", re.compile(r"person\d+_(bacteria|virus)_\d+")),
    ("Series, by file name", re.compile(r"(NORMAL2-IM|IM)(?:-\d+)+")),
)
MOST = 8  # values of a column that are measured apart
MOST_TEXTS = 20  # different texts of a column; more are names or comments
MOST_COLUMNS = 12
OTHERS, MISSING = "other values", "not known"
_SEXES = {"F": "female", "M": "male", "O": "other"}
_AGES = (
    (1, "under 1 year"), (6, "1 to 5 years"), (18, "6 to 17 years"), (40, "18 to 39 years"), (65, "40 to 64 years"),
)  # fmt: skip
_COLUMNS = {"Age": AGE, "Sex": SEX, "View": VIEW}  # of a table, from which predictions have age, sex and view
_OLDEST = "65 years and over"
_IDENTIFIERS = {"accession", "code", "id", "ids", "index", "key", "mrn", "no", "nr", "num", "number", "pk", "uid"}
_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")  # what lies between the words of a column's name
_MANY = 200  # with fewer, most measurements differ, too
_DISTINCT = 0.95  # share of different whole numbers from which they are identifiers, unless they are dates
_DATES = (1900_01_01, 2100_12_31)


@dataclass(frozen=True)
class _Kind:
    """One way to divide the images."""

    name: str
    parts: Sequence[str | None]  # (N,) the part of each image; None where it belongs to none
    order: Sequence[str]  # the parts as they are shown


def find_kinds(prediction: Prediction) -> dict[str, str]:
    """Find an image's subgroups, by kind: from a file name of the Kermany data, and from DICOM tags."""
    kinds: dict[str, str] = {}
    for kind, pattern in _NAMED:
        if prediction.path is not None and (match := pattern.fullmatch(prediction.path.stem)):
            kinds[kind] = match[1]
    if prediction.sex in _SEXES:
        kinds["Sex"] = _SEXES[prediction.sex]
    if (age := prediction.age) is not None:
        kinds["Age"] = next((name for end, name in _AGES if age < end), _OLDEST)
    if prediction.view:
        kinds["View"] = prediction.view
    return kinds


def measure_subgroups(
    predictions: Sequence[Prediction],
    evaluation: Evaluation,
    metadata: Sequence[Mapping[str, str]] = (),
    wanted: str | None = None,
) -> list[Subgroup]:
    """Measure every subgroup of every kind that has at least two; columns that do not divide the images are named.

    Args:
        predictions: N images, those of the evaluation, which gives classes and threshold.
        evaluation: of all of them.
        metadata: (N,) other columns of the table that the images come from, by name; or empty.
    """
    found = [find_kinds(prediction) for prediction in predictions]
    kinds = [_Kind(name, parts := [each.get(name) for each in found], _sort(parts)) for name, _ in _NAMED]
    for name in ("Sex", "Age", "View"):
        parts = [each.get(name) for each in found]
        kinds.append(_complete(name, parts, [age for _, age in _AGES] + [_OLDEST] if name == "Age" else _sort(parts)))
    known = {key for name, keys in _COLUMNS.items() if any(name in each for each in found) for key in keys}
    kinds += _divide_by_columns([{name: each[name] for name in each if to_key(name) not in known} for each in metadata])
    return [
        _measure(kind.name, part, members, evaluation)
        for kind in kinds
        if len(set(kind.parts) - {None}) > 1
        for part in kind.order
        if (members := [each for each, its in zip(predictions, kind.parts, strict=True) if its == part])
    ]


def _divide_by_columns(metadata: Sequence[Mapping[str, str]]) -> list[_Kind]:
    """Divide images by columns of their table, and say which columns are left out, and why."""
    names = list(dict.fromkeys(name for each in metadata for name in each))
    kinds, left_out = [], [f"{name} (after the first {MOST_COLUMNS} columns)" for name in names[MOST_COLUMNS:]]
    for name in names[:MOST_COLUMNS]:
        kind = _divide(name, [each.get(name) for each in metadata])
        if isinstance(kind, str):
            left_out.append(f"{name} ({kind})")
        else:
            kinds.append(kind)
    if left_out:
        logging.getLogger("pneumoscope").info("These columns are not used for subgroups: %s.", ", ".join(left_out))
    return kinds


def _divide(name: str, cells: Sequence[str | None]) -> _Kind | str:
    """Divide images by their cells in a column, many numbers by quartile; or say why this cannot be done."""
    sizes = Counter(cell for cell in cells if cell is not None)
    if len(sizes) + (None in cells) < 2:
        return "the same value for all images"
    numbers = [_to_number(cell) for cell in cells]
    numeric = all(number is not None for number, cell in zip(numbers, cells, strict=True) if cell)
    identifies = numeric and _identifies(name, [number for number in numbers if number is not None])
    if len(sizes) > MOST and numeric and not identifies:
        return _divide_by_number(name, numbers)
    if len(sizes) > MOST and len(sizes) > min(MOST_TEXTS, sizes.total() / 2):
        return f"{len(sizes)} different {'identifiers' if identifies else 'texts'}"
    largest = [cell for cell, _ in sizes.most_common(MOST)]
    parts = [cell if cell is None or cell in largest else OTHERS for cell in cells]
    return _complete(name, parts, sorted(largest))


def _identifies(name: str, numbers: Sequence[float]) -> bool:
    """Whether whole numbers tell studies, machines or the like apart, so that an order of them means nothing."""
    if not all(number.is_integer() for number in numbers):
        return False
    if _WORDS.split(name)[-1].casefold() in _IDENTIFIERS:
        return True
    dates = _DATES[0] <= min(numbers) and max(numbers) <= _DATES[1]
    return len(numbers) >= _MANY and len(set(numbers)) >= _DISTINCT * len(numbers) and not dates


def _divide_by_number(name: str, numbers: Sequence[float | None]) -> _Kind:
    known = [each for each in numbers if each is not None]
    edges = sorted(set(np.quantile(known, (0.25, 0.5, 0.75), method="inverted_cdf").tolist()))
    shown = [np.format_float_positional(edge, trim="-") for edge in edges]  # rounded, dates would look the same
    order = [f"up to {shown[0]}", *(f"over {low} to {high}" for low, high in pairwise(shown)), f"over {shown[-1]}"]
    parts = [None if each is None else order[bisect_left(edges, each)] for each in numbers]
    return _complete(name, parts, order)


def _to_number(cell: str | None) -> float | None:
    try:
        number = float(cell or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _complete(name: str, parts: Sequence[str | None], order: Sequence[str]) -> _Kind:
    """Put images without a value into a part of their own, if others have a value."""
    known = any(part is not None for part in parts)
    order = [part for part in order if part not in (OTHERS, MISSING)]  # which may also be texts of a column
    return _Kind(name, [part or MISSING for part in parts] if known else parts, [*order, OTHERS, MISSING])


def _sort(parts: Sequence[str | None]) -> list[str]:
    return sorted({part for part in parts if part is not None})


def choose_metrics(evaluation: Evaluation) -> tuple[str, ...]:
    """The metrics that subgroups have, for two classes or more."""
    return ("auroc", "sensitivity", "specificity") if evaluation.positive else ("accuracy", "auroc")


def by_kind(subgroups: Sequence[Subgroup]) -> dict[str, list[Subgroup]]:
    """Group subgroups that follow each other by kind."""
    return {kind: list(members) for kind, members in groupby(subgroups, key=lambda one: one.kind)}


def _measure(kind: str, name: str, members: Sequence[Prediction], evaluation: Evaluation) -> Subgroup:
    classes = evaluation.classes
    metrics = measure_some(
        index_labels(members, classes),
        stack_probabilities(members),
        choose_metrics(evaluation),
        threshold=evaluation.cut,
        patients=[prediction.patient for prediction in members],
    )
    counts = Counter(prediction.label for prediction in members)
    return Subgroup(
        kind,
        name,
        len(members),
        {label: counts[label] for label in classes},
        {metric: found for metric, found in metrics.items() if not math.isnan(found.value)},
    )
