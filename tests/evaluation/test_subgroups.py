"""Parts of a split: told apart as names and headers allow, and measured by what each defines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.subgroups import by_kind, find_kinds, measure_subgroups
from pneumoscope.inference.prediction import Prediction, index_labels, stack_probabilities

CLASSES = ("NORMAL", "PNEUMONIA")


def predicted(path: str, label: str = "NORMAL", p: float = 0.5, **tags: Any) -> Prediction:
    probabilities = dict(zip(CLASSES, (1 - p, p), strict=True))
    return Prediction(path=Path(path), label=label, probabilities=probabilities, **tags)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("a/person23_bacteria_78.jpeg", {"Cause, by file name": "bacteria"}),
        ("person1_virus_12.jpeg", {"Cause, by file name": "virus"}),
        ("IM-0115-0001.jpeg", {"Series, by file name": "IM"}),
        ("NORMAL2-IM-0588-0001.jpeg", {"Series, by file name": "NORMAL2-IM"}),
        ("NORMAL2-IM-0173-0001-0001.jpeg", {"Series, by file name": "NORMAL2-IM"}),
        ("person_bacteria.jpeg", {}),
        ("scan.dcm", {}),
    ],
)
def test_names_of_the_kermany_data_tell(name: str, kinds: dict[str, str]) -> None:
    assert find_kinds(predicted(name)) == kinds


@pytest.mark.parametrize(
    ("age", "band"),
    [(0.5, "under 1 year"), (1.0, "1 to 5 years"), (5.9, "1 to 5 years"), (17.0, "6 to 17 years"),
     (18.0, "18 to 39 years"), (64.0, "40 to 64 years"), (65.0, "65 years and over"), (None, None)],
)  # fmt: skip
def test_headers_tell_age_sex_and_view(age: float | None, band: str | None) -> None:
    kinds = find_kinds(predicted("a.dcm", age=age, sex="F", view="AP"))
    assert kinds.get("Age") == band
    assert (kinds["Sex"], kinds["View"]) == ("female", "AP")
    assert "Sex" not in find_kinds(predicted("a.dcm", age=age, sex="", view=None))


def test_each_part_is_measured_by_what_it_defines() -> None:
    rng = np.random.default_rng(0)
    predictions = []
    for i in range(240):
        label = CLASSES[i % 2]
        p = float(np.clip(rng.normal(0.35 + 0.3 * (i % 2), 0.2), 0, 1))
        name = f"person{i}_{'virus' if i % 3 else 'bacteria'}_1.jpeg" if i % 2 else f"{i}.jpeg"
        predictions.append(predicted(name, label, p, sex="M" if i < 190 else "F", view="PA", age=float(i % 90)))
    evaluation = evaluate_predictions(
        index_labels(predictions, CLASSES), stack_probabilities(predictions), classes=CLASSES, resamples=100
    )
    groups = by_kind(measure_subgroups(predictions, evaluation))
    assert list(groups) == ["Cause, by file name", "Sex", "Age"]  # all views are the same
    assert [part.name for part in groups["Age"]] == [
        "under 1 year", "1 to 5 years", "6 to 17 years", "18 to 39 years", "40 to 64 years", "65 years and over",
    ]  # fmt: skip
    for part in groups["Sex"]:
        members = [each for each in predictions if each.sex == {"male": "M", "female": "F"}[part.name]]
        y, stated = index_labels(members, CLASSES), stack_probabilities(members)
        assert part.n == len(members) == sum(part.counts.values())
        assert part.metrics["auroc"].value == pytest.approx(roc_auc_score(y, stated))
        assert part.metrics["sensitivity"].value == pytest.approx(recall_score(y, stated >= 0.5))
        assert part.metrics["specificity"].value == pytest.approx(recall_score(y, stated >= 0.5, pos_label=0))
        alone = evaluate_predictions(y, stated, classes=CLASSES, resamples=50)
        assert part.metrics == {name: alone.metrics[name] for name in ("auroc", "sensitivity", "specificity")}
        assert part.small == (part.name == "female")
    assert {tuple(part.metrics) for part in groups["Cause, by file name"]} == {("sensitivity",)}
    assert sum(part.n for part in groups["Cause, by file name"]) == 120


def test_the_models_threshold_counts_and_more_classes_work() -> None:
    predictions = [predicted(f"{i}.dcm", CLASSES[i % 2], 0.3, sex="MF"[i // 5]) for i in range(10)]
    evaluation = evaluate_predictions([i % 2 for i in range(10)], [0.3] * 10, classes=CLASSES,
                          threshold=0.25, resamples=20)  # fmt: skip
    assert {part.metrics["sensitivity"].value for part in measure_subgroups(predictions, evaluation)} == {1.0}
    three = [
        replace(one, label="abc"[i % 3], probabilities={"a": 0.5, "b": 0.3, "c": 0.2})
        for i, one in enumerate(predictions)
    ]
    evaluation = evaluate_predictions([i % 3 for i in range(10)], [[0.5, 0.3, 0.2]] * 10, classes="abc", resamples=20)
    assert measure_subgroups(three, evaluation)[0].metrics["accuracy"].value == pytest.approx(2 / 5)
