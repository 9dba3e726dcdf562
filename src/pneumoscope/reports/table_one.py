"""Table 1 of a paper: patients, images, classes, age, sex and view by split, with missing values counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TypeAlias

from pneumoscope.datasets.samples import Sample
from pneumoscope.evaluation.subgroups import SEXES
from pneumoscope.reports.pages import format_percent
from pneumoscope.reports.study import SPLIT_NAMES, Study

_Describe: TypeAlias = Callable[[Sequence[Sample]], str]
_Find: TypeAlias = Callable[[Sample], str | None]
ALL, UNKNOWN = "All", "not known"
_TITLES = {split: name.capitalize() for split, name in SPLIT_NAMES.items()}


def tabulate(study: Study) -> list[dict[str, str]]:
    """Rows with the columns `characteristic`, one for each split, and one for all images."""
    columns = {_TITLES[split]: study.select(split) for split in study.splits} | {ALL: list(study.samples)}
    unreadable = {_TITLES[split]: 0 for split in study.splits}
    for (split, _), n in study.unreadable.items():
        unreadable[_TITLES[split]] += n
    unreadable[ALL] = study.unreadable.total()
    rows = [
        _row("Patients", columns, lambda images: f"{len({each.patient for each in images if each.patient}):,}"),
        _row("Images", columns, lambda images: f"{len(images):,}"),
        {"characteristic": "Images that could not be used", **{name: f"{n:,}" for name, n in unreadable.items()}},
        _row(
            f"Images whose patient is {UNKNOWN}",
            columns,
            lambda images: f"{sum(not each.patient for each in images):,}",
        ),
    ]
    rows += _count_values("Class", columns, lambda each: each.label, {})
    rows.append(_row("Age in years: median (range)", columns, _describe_ages))
    rows.append(_row(f"Age: {UNKNOWN}", columns, lambda images: _share(sum(_age(e) is None for e in images), images)))
    rows += _count_values("Sex", columns, lambda each: each.tags.sex if each.tags else None, SEXES)
    rows += _count_values("View", columns, lambda each: each.tags.view if each.tags else None, {})
    return rows


def _row(name: str, columns: Mapping[str, Sequence[Sample]], describe: _Describe) -> dict[str, str]:
    return {"characteristic": name, **{title: describe(images) for title, images in columns.items()}}


def _count_values(
    kind: str, columns: Mapping[str, Sequence[Sample]], find: _Find, names: Mapping[str, str]
) -> list[dict[str, str]]:
    """A row for each value, the unknown one last."""
    known = sorted({value for each in columns[ALL] if (value := find(each))})
    values = known if known and all(map(find, columns[ALL])) else [*known, None]
    return [
        _row(f"{kind}: {names.get(value, value) if value else UNKNOWN}", columns, partial(_count, find, value))
        for value in values
    ]


def _count(find: _Find, value: str | None, images: Sequence[Sample]) -> str:
    return _share(sum((find(each) or None) == value for each in images), images)


def _describe_ages(images: Sequence[Sample]) -> str:
    ages = [age for each in images if (age := _age(each)) is not None]
    return f"{median(ages):.3g} ({min(ages):.3g} to {max(ages):.3g})" if ages else "–"


def _age(sample: Sample) -> float | None:
    return sample.tags.age if sample.tags else None


def _share(n: int, images: Sequence[Sample]) -> str:
    return f"{n:,} ({format_percent(n / len(images))})" if images else "0"
