"""Every metric against scikit-learn's, on random and on degenerate inputs."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from pneumoscope.errors import DataError
from pneumoscope.evaluation.metrics import (
    METRICS,
    confusion,
    measure,
    precision_recall_curve,
    predict_classes,
    reliability_curve,
    roc_curve,
)

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


@st.composite
def predictions(draw: st.DrawFn, classes: int = 2) -> Arrays:
    """Labels, probabilities rounded to few values so that ties abound, and weights of which some may be 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 40))
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes, unique=True))
    steps = draw(st.sampled_from([1, 2, 5, 7, 1000]))
    weights = draw(
        st.sampled_from([np.ones(n), rng.integers(0, 4, n).astype(float), rng.random(n), np.eye(n)[0] * 0.1])
    )
    if classes == 2:
        probabilities = np.round(rng.random(n) * steps) / steps
    else:
        probabilities = np.floor(rng.random((n, classes)) * steps) + rng.choice([0.25, 1.0])
        probabilities /= probabilities.sum(1, keepdims=True)
    return rng.choice(present, n), probabilities, weights if weights.sum() else weights + 1


def reference(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any], threshold: float) -> dict[str, float]:
    """What scikit-learn says; its 0 for an undefined MCC and its errors for undefined areas become nan."""
    y, p, w = (part[w > 0] for part in (y, p, w))  # scikit-learn lets images of weight 0 define classes
    classes = 2 if p.ndim == 1 else p.shape[1]
    called = (p >= threshold) * 1 if classes == 2 else p.argmax(1)

    def rate(metric: Any, truth: NDArray[Any], decision: NDArray[Any], positive: int) -> float:
        return float(metric(truth == positive, decision == positive, sample_weight=w, zero_division=np.nan))

    def area(metric: Any, truth: NDArray[Any], score: NDArray[Any], needs: set[int]) -> float:
        return float(metric(truth, score, sample_weight=w)) if needs <= set(truth.tolist()) else math.nan

    def mean(values: list[float]) -> float:
        return float(np.mean([v for v in values if not math.isnan(v)] or [math.nan]))

    over = [1] if classes == 2 else list(range(classes))
    scores = [p] if classes == 2 else list(p.T)
    defined = len(set(y.tolist())) > 1 and len(set(called.tolist())) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": sk.accuracy_score(y, called, sample_weight=w),
            "f1": mean([rate(sk.f1_score, y, called, c) for c in over]),
            "sensitivity": mean([rate(sk.recall_score, y, called, c) for c in over]),
            "specificity": mean([rate(sk.recall_score, y != c, called != c, True) for c in over]),
            "ppv": mean([rate(sk.precision_score, y, called, c) for c in over]),
            "npv": mean([rate(sk.precision_score, y != c, called != c, True) for c in over]),
            "auroc": mean([area(sk.roc_auc_score, (y == c) * 1, s, {0, 1}) for c, s in zip(over, scores, strict=True)]),
            "average_precision": mean(
                [area(sk.average_precision_score, (y == c) * 1, s, {1}) for c, s in zip(over, scores, strict=True)]
            ),
            "mcc": sk.matthews_corrcoef(y, called, sample_weight=w) if defined else math.nan,
            "brier": sk.brier_score_loss(y, p, sample_weight=w, labels=list(range(classes)))
            if classes > 2
            else sk.brier_score_loss(y, p, sample_weight=w, pos_label=1),
            "ece": calibration_error(y == 1, p, w) if classes == 2 else calibration_error(y == called, p.max(1), w),
        }


def calibration_error(right: NDArray[Any], stated: NDArray[Any], w: NDArray[Any]) -> float:
    """Naeini et al. 2015, word for word: bin by bin."""
    total = 0.0
    for low in range(10):
        inside = (stated > low / 10) & (stated <= (low + 1) / 10) | (stated == 0) * (low == 0)
        if w[inside].sum():
            gap = np.average(right[inside], weights=w[inside]) - np.average(stated[inside], weights=w[inside])
            total += w[inside].sum() / w.sum() * abs(gap)
    return total


def agree(values: dict[str, Any], expected: dict[str, float]) -> None:
    assert tuple(values) == METRICS == tuple(expected)
    for name, value in expected.items():
        assert values[name][0] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@settings(deadline=None, max_examples=100)
@given(predictions(), st.sampled_from([0.2, 0.5, 1.0]))
def test_two_classes_agree_with_scikit_learn(arrays: Arrays, threshold: float) -> None:
    y, p, w = arrays
    agree(measure(y, p, threshold=threshold, weights=w[None]), reference(y, p, w, threshold))


@settings(deadline=None, max_examples=60)
@given(predictions(classes=4))
def test_more_classes_agree_with_scikit_learn(arrays: Arrays) -> None:
    y, p, w = arrays
    agree(measure(y, p, weights=w[None]), reference(y, p, w, 0.5))


def test_the_means_over_classes_are_those_scikit_learn_calls_macro() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 60), rng.dirichlet(np.ones(4), 60)  # class 3 is called, but never true
    values, called = measure(y, p), p.argmax(1)
    for name, metric in (("f1", sk.f1_score), ("sensitivity", sk.recall_score), ("ppv", sk.precision_score)):
        assert values[name][0] == pytest.approx(metric(y, called, average="macro", zero_division=np.nan))
    y = rng.integers(0, 4, 60)
    assert measure(y, p)["auroc"][0] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", average="macro"))


@settings(deadline=None, max_examples=30)
@given(predictions(classes=3))
def test_a_count_weighs_like_repetition(arrays: Arrays) -> None:
    y, p, _ = arrays
    counts = np.random.default_rng(len(y)).multinomial(len(y), np.full(len(y), 1 / len(y)), size=5)
    together = measure(y, p, weights=counts)
    for i, count in enumerate(counts):
        alone = measure(np.repeat(y, count), np.repeat(p, count, axis=0))
        for name in METRICS:
            assert together[name].shape == (5,)
            assert together[name][i] == pytest.approx(alone[name][0], abs=1e-12, nan_ok=True), name


def test_what_is_undefined_is_nan() -> None:
    only_negatives = measure([0, 0], [0.1, 0.2])
    assert {name for name, value in only_negatives.items() if math.isnan(value[0])} == {
        "f1", "sensitivity", "ppv", "auroc", "average_precision", "mcc",
    }  # fmt: skip
    assert math.isnan(measure([0, 1], [0.6, 0.9])["mcc"][0])  # one decision only
    assert all(math.isnan(value[0]) for value in measure([0, 1], [0.6, 0.9], weights=[[0, 0]]).values())


def test_confusion_and_decisions() -> None:
    assert confusion([0, 0, 1, 1, 1], [0.4, 0.5, 0.5, 0.9, 0.1]) == {"tp": 2, "fp": 1, "tn": 1, "fn": 1}
    assert confusion([1], [0.5], threshold=0.6) == {"tp": 0, "fp": 0, "tn": 0, "fn": 1}
    p = np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    assert confusion([1, 0], p) == {"matrix": [[1, 0, 0], [0, 0, 1], [0, 0, 0]]}
    assert predict_classes(p).tolist() == [2, 0]


@settings(deadline=None, max_examples=50)
@given(predictions())
def test_curves_agree_with_scikit_learn(arrays: Arrays) -> None:
    y, p, _ = arrays
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        roc = sk.roc_curve(y, p, drop_intermediate=False, pos_label=1)
        pr = sk.precision_recall_curve(y, p, pos_label=1)
    for ours, theirs in zip(roc_curve(y, p), roc, strict=True):
        np.testing.assert_allclose(ours, theirs)
    if 1 in y:
        for ours, theirs in zip(precision_recall_curve(y, p), pr, strict=True):
            np.testing.assert_allclose(ours, theirs)
    predicted, observed, counts = reliability_curve(y, p)
    assert counts.sum() == len(y)
    if len(set(y)) == 2:
        for ours, theirs in zip((observed, predicted), calibration_curve(y, p, n_bins=10, pos_label=1), strict=True):
            np.testing.assert_allclose(ours, theirs)


def test_reliability_of_more_classes_is_that_of_the_decision() -> None:
    predicted, observed, counts = reliability_curve([0, 1], [[0.8, 0.1, 0.1], [0.76, 0.14, 0.1]])
    assert (predicted.tolist(), observed.tolist(), counts.tolist()) == ([pytest.approx(0.78)], [0.5], [2])


@pytest.mark.parametrize(
    ("labels", "probabilities", "says"),
    [
        ([], [], "no labelled images"),
        ([0, 1], [0.5], "2 labels"),
        ([0, 1], [0.5, math.nan], "nan"),
        ([0, 1], [0.5, 1.1], "between 0 and 1"),
        ([0, 2], [0.5, 0.5], "0 to 1"),
        ([0.0, 1.0], [0.5, 0.5], "class indices"),
        ([0, 1], [[0.5, 0.5], [0.1, 0.9]], "only those of the positive class"),
        ([0, 1], [[0.5, 0.5, 0.5], [0.1, 0.8, 0.1]], "sum to 1"),
    ],
)
def test_unusable_input_is_named(labels: Any, probabilities: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        measure(labels, probabilities)


def test_unusable_weights_and_curves_are_named() -> None:
    with pytest.raises(DataError, match="weights"):
        measure([0, 1], [0.2, 0.3], weights=[[1, -1]])
    with pytest.raises(DataError, match="one class"):
        roc_curve([0], [[0.2, 0.3, 0.5]])
