"""Precision, recall and F1 of each class against scikit-learn, and thresholds by class."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pneumoscope.cli.output import print_evaluation
from pneumoscope.evaluation.curves import confidence_of
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.intervals.proportions import wilson_interval
from pneumoscope.evaluation.results import Evaluation


def evaluate(labels: Any, probabilities: Any, classes: int, **more: Any) -> Evaluation:
    return evaluate_predictions(labels, probabilities, classes=list("abcd")[:classes], resamples=2, **more)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(1, 40))
def test_each_class_is_measured_as_scikit_learn_does(seed: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    y, shares, cuts = rng.integers(0, classes, n), rng.dirichlet(np.ones(classes), n), rng.uniform(0.1, 0.9, classes)
    if classes == 2:
        found = evaluate(y, shares[:, 1], 2, threshold=cuts[0])
        predicted = (shares[:, 1] >= cuts[0]).astype(int)
    else:
        found = evaluate(y, shares, classes, threshold=cuts)
        predicted = (shares / cuts).argmax(1)
        assert found.thresholds == dict(zip("abcd", cuts, strict=False))
    truth = sk.precision_recall_fscore_support(y, predicted, labels=range(classes), zero_division=np.nan)
    for i, part in enumerate(found.per_class.values()):
        values = (part.precision.value, part.recall.value, part.f1.value, part.support)
        assert values == pytest.approx([column[i] for column in truth], nan_ok=True)
        for interval in (part.precision, part.recall, part.f1):
            assert math.isnan(interval.value) or 0 <= interval.low <= interval.value <= interval.high <= 1
    assert found.metrics["accuracy"].value == pytest.approx(float((y == predicted).mean()))
    if classes > 2:
        assert found.confusion["matrix"] == sk.confusion_matrix(y, predicted, labels=range(classes)).tolist()


def test_the_positive_class_has_the_intervals_of_sensitivity_ppv_and_f1() -> None:
    rng = np.random.default_rng(3)
    y, p = rng.integers(0, 2, 80), rng.random(80)
    found = evaluate(y, p, 2, patients=[str(i // 3) for i in range(80)])
    positive, negative = found.per_class["b"], found.per_class["a"]
    for interval, name in ((positive.precision, "ppv"), (positive.recall, "sensitivity"), (positive.f1, "f1"),
                           (negative.precision, "npv"), (negative.recall, "specificity")):  # fmt: skip
        known = found.metrics[name]
        assert (interval.value, interval.low, interval.high) == pytest.approx((known.value, known.low, known.high))


def test_the_interval_of_a_recall_is_wilsons_and_wider_if_images_share_patients() -> None:
    y = np.repeat([0, 1, 2], 20)
    shares = np.eye(3)[np.where(np.arange(60) % 20 < 15, y, (y + 1) % 3)]
    alone, several = (
        evaluate(y, shares, 3, patients=patients).per_class["b"].recall
        for patients in (None, [str(i // 5) for i in range(60)])
    )
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.75, *wilson_interval(0.75, 20, 0.95)))
    assert several.high - several.low > alone.high - alone.low


def test_a_class_that_is_absent_and_never_predicted_is_undefined(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate([0, 0, 1], np.eye(3)[[0, 1, 1]], 3)
    absent = json.loads(json.dumps(found.to_json()))["per_class"]["c"]
    nothing = {"value": None, "low": None, "high": None}
    assert absent == {"precision": nothing, "recall": nothing, "f1": nothing, "support": 0}
    print_evaluation(found)
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class"))
    assert lines[start + 1].split() == ["a", "images", "2"]
    assert lines[start + 2].split()[:2] == ["precision", "1.000"]
    assert lines[start + 9].split() == ["c", "images", "0"]
    assert lines[start + 12].split() == ["f1", "not", "defined"]


def test_thresholds_by_class_move_labels_and_confidence_but_not_the_calibration_error() -> None:
    y, shares = [0, 1, 2, 0], np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1]])
    likeliest, balanced = evaluate(y, shares, 3), evaluate(y, shares, 3, threshold=[0.7, 0.2, 0.1])
    assert likeliest.metrics["accuracy"].value == 0.5
    assert balanced.metrics["accuracy"].value == 1  # 0.7 / 0.7 = 0.2 / 0.2: the first of equals
    assert likeliest.thresholds == {}
    assert likeliest.metrics["ece"] == balanced.metrics["ece"]
    assert confidence_of(shares).tolist() == shares.max(1).tolist()
    assert confidence_of(shares, [0.7, 0.2, 0.1])[2] == pytest.approx(2 / (6 / 7 + 1 + 2))
