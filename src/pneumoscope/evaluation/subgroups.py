"""Metrics of subgroups of a test split: does a classifier work less well for some patients?"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, product

import numpy as np

from pneumoscope.datasets.columns import AGE, SEX, VIEW, to_key
from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals.all_metrics import measure_some
from pneumoscope.evaluation.intervals.differences import adjust_holm
from pneumoscope.evaluation.intervals.groups import compare_with_rest
from pneumoscope.evaluation.results import Evaluation, GroupDifference, Subgroup
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities

_NAMED = (
    ("Cause, by file name", re.compile(r"person\d+_(bacteria|virus)_\d+")),
    ("Series, by file name", re.compile(r"(NORMAL2-IM|IM)(?:-\d+)+")),
)
MOST = 8  # values of a column that are measured apart
MOST_TEXTS = 20  # different texts of a column; more are names or comments
MOST_COLUMNS = 12
MOST_COMBINED = 24  # combinations of several columns
OTHERS, MISSING, NO_GROUP = "other values", "not known", "no group"
SEXES = {"F": "female", "M": "male", "O": "other"}  # the codes of DICOM in words
_AGES = (
    (1, "under 1 year"), (6, "1 to 5 years"), (18, "6 to 17 years"), (40, "18 to 39 years"), (65, "40 to 64 years"),
)  # fmt: skip
_COLUMNS = {"Age": AGE, "Sex": SEX, "View": VIEW}  # of a table, from which predictions have age, sex and view
_OLDEST = "65 years and over"
_IDENTIFIERS = {"accession", "code", "id", "ids", "index", "key", "mrn", "no", "nr", "num", "number", "pk", "uid"}
# Keys (see `to_key`) of columns that say which study or image it is, however few there are.
_REFERENCES = re.compile(r"(?:study|series|sop)?(?:instance)?uids?|accession(?:number|num|no|nr|id|code)?s?")
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
    if prediction.sex in SEXES:
        kinds["Sex"] = SEXES[prediction.sex]
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
        wanted: names of kinds, such as `sex,age`, and `sex*age` for all combinations; None takes all.

    Raises:
        UsageError: nothing is known by a wanted name, or it does not divide the images.
    """
    found = [find_kinds(prediction) for prediction in predictions]
    kinds = [_Kind(name, parts := [each.get(name) for each in found], _sort(parts)) for name, _ in _NAMED]
    for name in ("Sex", "Age", "View"):
        parts = [each.get(name) for each in found]
        kinds.append(_complete(name, parts, [age for _, age in _AGES] + [_OLDEST] if name == "Age" else _sort(parts)))
    groups = [prediction.group for prediction in predictions]
    if any(groups):
        kinds.append(_Kind("Group of the model", [each or NO_GROUP for each in groups], [*_sort(groups), NO_GROUP]))
    known = {key for name, keys in _COLUMNS.items() if any(name in each for each in found) for key in keys}
    columns = [{name: each[name] for name in each if to_key(name) not in known} for each in metadata]
    divided, left_out = _divide_by_columns(columns, None if wanted else MOST_COLUMNS)
    kinds = [kind for kind in [*kinds, *divided] if len(set(kind.parts) - {None}) > 1]
    if wanted is not None:
        kinds = _choose(kinds, left_out, wanted)
    elif left_out:
        shown = ", ".join(f"{name} ({why})" for name, why in left_out.items())
        logging.getLogger("pneumoscope").info("These columns are not used for subgroups: %s.", shown)
    return _measure_kinds(predictions, evaluation, kinds)


def _divide_by_columns(metadata: Sequence[Mapping[str, str]], most: int | None) -> tuple[list[_Kind], dict[str, str]]:
    """Divide images by columns of their table; also why the other columns are left out, by name."""
    names = list(dict.fromkeys(name for each in metadata for name in each))
    kinds, left_out = [], dict[str, str]()
    for name in names[:most]:
        kind = _divide(name, [each.get(name) for each in metadata])
        if isinstance(kind, str):
            left_out[name] = kind
        else:
            kinds.append(kind)
    left_out |= dict.fromkeys(names[len(names[:most]) :], f"after the first {most} columns")
    return kinds, left_out


def _choose(kinds: Sequence[_Kind], left_out: Mapping[str, str], wanted: str) -> list[_Kind]:
    """The kinds of these names, or their combinations."""
    by_key = {key: kind for kind in reversed(kinds) for key in (to_key(kind.name.partition(",")[0]), to_key(kind.name))}
    reasons = {to_key(name): why for name, why in left_out.items()}

    def find(name: str) -> _Kind:
        if (kind := by_key.get(to_key(name))) is not None:
            return kind
        if (why := reasons.get(to_key(name))) is not None:
            raise UsageError(f"{name.strip()!r} cannot divide the images: {why}.", "subgroups")
        known = ", ".join(kind.name for kind in kinds) or "none"
        raise UsageError(f"no column {name.strip()!r} divides the images; known: {known}.", "subgroups")

    terms = [[find(name) for name in term.split("*")] for term in wanted.split(",")]
    return [each[0] if len(each) == 1 else _cross(each) for each in terms]


def _cross(kinds: Sequence[_Kind]) -> _Kind:
    """All combinations of several kinds that occur; the rarest are pooled."""
    parts = [
        None if None in cells else MISSING if MISSING in cells else ", ".join(map(str, cells))
        for cells in zip(*(kind.parts for kind in kinds), strict=True)
    ]
    sizes = Counter(part for part in parts if part not in (None, MISSING))
    kept = {part for part, _ in sizes.most_common(MOST_COMBINED)}
    parts = [part if part in kept or part in (None, MISSING) else OTHERS for part in parts]
    order = [part for cells in product(*(kind.order for kind in kinds)) if (part := ", ".join(cells)) in kept]
    return _Kind(" × ".join(kind.name for kind in kinds), parts, [*order, OTHERS, MISSING])


def _divide(name: str, cells: Sequence[str | None]) -> _Kind | str:
    """Divide images by their cells in a column, many numbers by quartile; or say why this cannot be done."""
    sizes = Counter(cell for cell in cells if cell is not None)
    if len(sizes) + (None in cells) < 2:
        return "the same value for all images"
    if _REFERENCES.fullmatch(to_key(name)) or _WORDS.split(name)[-1].casefold() in ("uid", "uids"):
        return f"{len(sizes)} different identifiers"
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


def count_differences(subgroups: Sequence[Subgroup], n: int) -> int:
    """How many differences were looked at, of N images; of two parts that are all images, both have the same."""
    kinds = by_kind(subgroups).values()
    return sum(
        not math.isnan(difference.p)
        for members in kinds
        for part in (members[:1] if _are_opposite(members, n) else members)
        for difference in part.differences.values()
    )


def _are_opposite(members: Sequence[Subgroup], n: int) -> bool:
    return len(members) == 2 and members[0].n + members[1].n == n


def _measure_kinds(predictions: Sequence[Prediction], evaluation: Evaluation, kinds: Sequence[_Kind]) -> list[Subgroup]:
    """Measure every part of every kind, and its differences from all other images."""
    labels, probabilities = index_labels(predictions, evaluation.classes), stack_probabilities(predictions)
    clusters = cluster_by_patient([each.patient for each in predictions], len(predictions))
    names = choose_metrics(evaluation)
    found = []
    for kind in kinds:
        for part in kind.order:
            inside = np.array([its == part for its in kind.parts])
            if not inside.any():
                continue
            differences = {}
            if not inside.all():
                differences = compare_with_rest(
                    labels, probabilities, inside, clusters, names, threshold=evaluation.cut
                )
            members = [each for each, its in zip(predictions, inside, strict=True) if its]
            found.append(replace(_measure(kind.name, part, members, evaluation), differences=differences))
    return _adjust(found, evaluation.n)


def _adjust(subgroups: Sequence[Subgroup], n: int) -> list[Subgroup]:
    """Correct the p values for the number of differences, each counted once."""
    adjusted = []
    opposite = {kind: _are_opposite(members, n) for kind, members in by_kind(subgroups).items()}
    seen: set[str] = set()
    places: list[tuple[int, str]] = []
    for i, part in enumerate(subgroups):
        if not (part.kind in seen and opposite[part.kind]):
            places += [(i, name) for name in part.differences]
        seen.add(part.kind)
    values = adjust_holm([subgroups[i].differences[name].p for i, name in places])
    by_place = dict(zip(places, values, strict=True))
    for i, part in enumerate(subgroups):
        differences: dict[str, GroupDifference] = {
            name: replace(each, adjusted=by_place.get((i, name), by_place.get((i - 1, name), math.nan)))
            for name, each in part.differences.items()
        }
        adjusted.append(replace(part, differences=differences))
    return adjusted


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
