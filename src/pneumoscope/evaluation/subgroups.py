"""Metrics of subgroups of a test split: does a classifier work less well for some patients?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePath

from pneumoscope.evaluation.cases import Case, index_labels, stack_probabilities
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.results import Evaluation, Subgroup

_NAMED = (
    ("Cause, by file name", re.compile(r"person\d+_(bacteria|virus)_\d+")),
    ("Series, by file name", re.compile(r"(NORMAL2-IM|IM)(?:-\d+)+")),
)
_SEXES = {"F": "female", "M": "male", "O": "other"}
_AGES = (
    (1, "under 1 year"),
    (6, "1 to 5 years"),
    (18, "6 to 17 years"),
    (40, "18 to 39 years"),
    (65, "40 to 64 years"),
)
_OLDEST = "65 years and over"


def find_kinds(case: Case) -> dict[str, str]:
    """Find an image's subgroups, by kind: from a file name of the Kermany data, and from DICOM tags."""
    kinds: dict[str, str] = {}
    for kind, pattern in _NAMED:
        if match := pattern.fullmatch(PurePath(case.path).stem):
            kinds[kind] = match[1]
    if (tags := case.tags) is not None:
        if tags.sex and tags.sex in _SEXES:
            kinds["Sex"] = _SEXES[tags.sex]
        if tags.age is not None:
            kinds["Age"] = next((name for end, name in _AGES if tags.age < end), _OLDEST)
        if tags.view:
            kinds["View"] = tags.view
    return kinds


def measure_subgroups(cases: Sequence[Case], evaluation: Evaluation, *, most: int = 8) -> list[Subgroup]:
    """Measure every subgroup of every kind that has at least two.

    Args:
        cases: the images of the evaluation.
        evaluation: gives classes, threshold and confidence.
        most: maximum number of subgroups of a kind; the smallest are left out.
    """
    kinds_by_case = [find_kinds(case) for case in cases]
    order = [kind for kind, _ in _NAMED] + ["Sex", "Age", "View"]
    ages = [name for _, name in _AGES] + [_OLDEST]
    subgroups = []
    for kind in order:
        sizes = Counter(kinds[kind] for kinds in kinds_by_case if kind in kinds)
        names = [name for name, _ in sizes.most_common(most)]
        if len(sizes) > 1:
            for name in sorted(names, key=lambda name: (ages.index(name) if name in ages else 0, name)):
                members = [case for case, kinds in zip(cases, kinds_by_case, strict=True) if kinds.get(kind) == name]
                subgroups.append(_measure(kind, name, members, evaluation))
    return subgroups


def by_kind(subgroups: Sequence[Subgroup]) -> dict[str, list[Subgroup]]:
    """Group subgroups that follow each other by kind."""
    return {kind: list(members) for kind, members in groupby(subgroups, key=lambda one: one.kind)}


def _measure(kind: str, name: str, members: Sequence[Case], evaluation: Evaluation) -> Subgroup:
    classes = evaluation.classes
    labels = index_labels(members, classes)
    part = evaluate_predictions(
        labels,
        stack_probabilities(members),
        classes=classes,
        split=evaluation.split,
        threshold=evaluation.threshold if evaluation.positive else 0.5,
        patients=[case.patient for case in members],
        resamples=2,  # intervals of rates and areas need none
    )
    wanted = ("auroc", "sensitivity", "specificity") if evaluation.positive else ("accuracy", "auroc")
    counts = Counter(case.label for case in members)
    return Subgroup(
        kind,
        name,
        len(members),
        {label: counts[label] for label in classes},
        {metric: part.metrics[metric] for metric in wanted if part.metrics[metric].value == part.metrics[metric].value},
    )
