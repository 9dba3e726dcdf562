"""Metrics of subgroups of a test split: does a classifier work less well for some patients?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.results import Evaluation, Subgroup
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities

_NAMED = (
    ("Cause, by file name", re.compile(r"person\d+_(bacteria|virus)_\d+")),
    ("Series, by file name", re.compile(r"(NORMAL2-IM|IM)(?:-\d+)+")),
)
MOST = 8  # subgroups of a kind
_SEXES = {"F": "female", "M": "male", "O": "other"}
_AGES = (
    (1, "under 1 year"), (6, "1 to 5 years"), (18, "6 to 17 years"), (40, "18 to 39 years"), (65, "40 to 64 years"),
)  # fmt: skip
_OLDEST = "65 years and over"


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


def measure_subgroups(predictions: Sequence[Prediction], evaluation: Evaluation) -> list[Subgroup]:
    """Measure every subgroup of every kind that has at least two; of a kind at most `MOST`, the largest.

    The predictions are those of the evaluation, which gives classes and threshold.
    """
    kinds_of = [find_kinds(prediction) for prediction in predictions]
    order = [kind for kind, _ in _NAMED] + ["Sex", "Age", "View"]
    ages = [name for _, name in _AGES] + [_OLDEST]
    subgroups = []
    for kind in order:
        sizes = Counter(kinds[kind] for kinds in kinds_of if kind in kinds)
        names = [name for name, _ in sizes.most_common(MOST)]
        if len(sizes) > 1:
            for name in sorted(names, key=lambda name: (ages.index(name) if name in ages else 0, name)):
                members = [each for each, kinds in zip(predictions, kinds_of, strict=True) if kinds.get(kind) == name]
                subgroups.append(_measure(kind, name, members, evaluation))
    return subgroups


def by_kind(subgroups: Sequence[Subgroup]) -> dict[str, list[Subgroup]]:
    """Group subgroups that follow each other by kind."""
    return {kind: list(members) for kind, members in groupby(subgroups, key=lambda one: one.kind)}


def _measure(kind: str, name: str, members: Sequence[Prediction], evaluation: Evaluation) -> Subgroup:
    classes = evaluation.classes
    part = evaluate_predictions(
        index_labels(members, classes),
        stack_probabilities(members),
        classes=classes,
        split=evaluation.split,
        threshold=evaluation.threshold if evaluation.positive else 0.5,
        patients=[prediction.patient for prediction in members],
        resamples=2,  # intervals of rates and areas need none
    )
    wanted = ("auroc", "sensitivity", "specificity") if evaluation.positive else ("accuracy", "auroc")
    counts = Counter(prediction.label for prediction in members)
    return Subgroup(
        kind,
        name,
        len(members),
        {label: counts[label] for label in classes},
        {metric: part.metrics[metric] for metric in wanted if part.metrics[metric].value == part.metrics[metric].value},
    )
