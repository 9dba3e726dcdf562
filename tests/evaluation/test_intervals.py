"""Intervals: the right unit is drawn, the same seed gives the same limits, and they cover what they say."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation import intervals
from pneumoscope.evaluation.intervals import evaluate, group, precision_recall_band, resample, roc_band
from pneumoscope.evaluation.metrics import METRICS, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = ("NORMAL", "PNEUMONIA")


def simulated(n: int, seed: int = 0, gap: float = 2.1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, 1 / (1 + np.exp(-rng.normal(gap * (y - 0.5), 1)))


def test_images_without_a_patient_are_their_own_cluster() -> None:
    assert group(["b", None, "a", "b", "", None], 6).tolist() == [0, 1, 2, 0, 3, 4]
    assert group(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="3 images"):
        group(["a"], 3)


def test_a_resample_draws_as_many_patients_as_there_are() -> None:
    clusters = group(["a", "a", "b", "c", "c", "c"], 6)
    weights = np.concatenate(list(resample(clusters, 400, seed=1)))
    assert weights.shape == (400, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3:] == weights[:, [3]]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert weights[:, [0, 2, 3]].mean(0) == pytest.approx(np.ones(3), abs=0.15)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resample(np.arange(7), 50, seed=3)))
    monkeypatch.setattr(intervals, "CHUNK", 21)
    chunks = list(resample(np.arange(7), 50, seed=3))
    assert {len(chunk) for chunk in chunks} == {3, 2}
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_equal_seeds_give_equal_intervals_and_lone_images_are_the_image_bootstrap() -> None:
    y, p = simulated(80)
    once = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", resamples=200, seed=5)
    lone = evaluate(
        y, p, classes=CLASSES, positive="PNEUMONIA", resamples=200, seed=5, patients=[f"p{i}" for i in range(80)]
    )
    assert once == evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", resamples=200, seed=5)
    assert once.metrics == lone.metrics
    assert (once.patients, lone.patients) == (None, 80)
    assert once.metrics != evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", resamples=200, seed=6).metrics


def test_an_interval_holds_its_value_and_matches_the_plain_bootstrap() -> None:
    y, p = simulated(60)
    evaluation = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA")
    assert tuple(evaluation.metrics) == METRICS
    for interval in evaluation.metrics.values():
        assert interval.low <= interval.value <= interval.high
        assert interval.low < interval.high
    rng = np.random.default_rng(9)
    drawn = [measure(y[i], p[i])["auroc"][0] for i in rng.integers(60, size=(1000, 60))]
    auroc = evaluation.metrics["auroc"]
    assert (auroc.low, auroc.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.015)


def test_copies_of_an_image_are_no_evidence() -> None:
    y, p = (np.repeat(part, 5) for part in simulated(60))
    patients = [f"p{i // 5}" for i in range(300)]
    naive = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA")
    clustered = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", patients=patients)
    single = evaluate(*simulated(60), classes=CLASSES, positive="PNEUMONIA")
    for name in ("accuracy", "f1", "auroc", "brier"):
        widths = [e.metrics[name].high - e.metrics[name].low for e in (naive, clustered, single)]
        assert widths[1] > 1.8 * widths[0]
        assert astuple(clustered.metrics[name]) == pytest.approx(astuple(single.metrics[name]))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = measure(*simulated(400_000, seed=99))
    covered = dict.fromkeys(("accuracy", "sensitivity", "auroc", "brier"), 0)
    for seed in range(200):
        y, p = simulated(120, seed=seed)
        evaluation = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", resamples=300, seed=seed)
        for name in covered:
            interval = evaluation.metrics[name]
            covered[name] += interval.low <= truth[name][0] <= interval.high
    assert all(0.89 <= count / 200 <= 0.99 for count in covered.values()), covered


def test_a_calibration_error_of_noise_alone_may_be_zero() -> None:
    lows, values = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = rng.random(100)
        y = (rng.random(100) < p).astype(int)
        ece = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", resamples=300).metrics["ece"]
        lows.append(ece.low)
        values.append(ece.value)
    assert np.median(values) > 0.08
    assert np.median(lows) < 0.03  # percentiles would begin at about the value


def test_without_a_mistake_rates_have_exact_limits_and_the_rest_none() -> None:
    y = np.array([0] * 30 + [1] * 20)
    patients = [f"n{i // 3}" for i in range(30)] + [None] * 20
    metrics = evaluate(y, y * 1.0, classes=CLASSES, positive="PNEUMONIA", patients=patients).metrics
    for name, trials in {"accuracy": 30, "sensitivity": 20, "specificity": 10, "ppv": 20, "npv": 10}.items():
        assert astuple(metrics[name]) == pytest.approx((1, 0.025 ** (1 / trials), 1))
    hits = 0.025 ** (1 / 20)
    assert metrics["f1"].low == pytest.approx(2 * hits / (1 + hits))
    assert all(math.isnan(metrics[name].low) for name in ("auroc", "mcc", "brier", "ece"))
    wrong = evaluate(y, 1 - y * 1.0, classes=CLASSES, positive="PNEUMONIA").metrics
    assert astuple(wrong["accuracy"]) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 50)))


def test_metrics_json_has_the_shape_of_the_design() -> None:
    y, p = simulated(50)
    evaluation = evaluate(y, p, classes=CLASSES, positive="PNEUMONIA", threshold=0.4, patients=["a", None] * 25)
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert (content["split"], content["n"], content["threshold"], content["patients"]) == ("test", 50, 0.4, 1)
    assert content["prevalence"] == pytest.approx(y.mean())
    assert set(content["metrics"]) == set(METRICS)
    assert set(content["metrics"]["f1"]) == {"value", "low", "high"}
    assert set(content["confusion"]) == {"tp", "fp", "tn", "fn"}
    assert sum(content["confusion"].values()) == 50


def test_more_classes_have_shares_instead_of_a_prevalence() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    evaluation = evaluate([0, 1, 2, 0, 1, 2, 0, 0], p, classes=("a", "b", "c"), positive=None, resamples=50)
    content = evaluation.to_json()
    assert content["prevalence"] is content["threshold"] is content["positive"] is None
    assert content["shares"] == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert np.sum(content["confusion"]["matrix"], axis=1).tolist() == [4, 2, 2]


def test_what_is_undefined_has_no_interval() -> None:
    one = evaluate([1], [0.9], classes=CLASSES, positive="PNEUMONIA", resamples=20)
    auroc = one.to_json()["metrics"]["auroc"]
    assert auroc == {"value": None, "low": None, "high": None}
    assert astuple(one.metrics["accuracy"]) == pytest.approx((1, 0.025, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"positive": "NORMAL"},
        {"positive": None},
        {"classes": ("a", "b", "c")},
        {"classes": ("PNEUMONIA", "PNEUMONIA")},
        {"resamples": 0},
        {"confidence": 1.0},
    ],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        evaluate([0, 1], [0.1, 0.9], **{"classes": CLASSES, "positive": "PNEUMONIA", **wrong})


def test_roc_band_holds_the_curve() -> None:
    y, p = simulated(150)
    grid, low, high = roc_band(y, p)
    assert grid.shape == low.shape == high.shape
    assert (low <= high).all()
    sensitivity = np.array([(p[y == 1] >= np.quantile(p[y == 0], 1 - rate)).mean() for rate in grid])
    assert ((low <= sensitivity + 0.03) & (sensitivity <= high + 0.03)).all()
    assert np.isnan(roc_band([1, 1], [0.2, 0.3])[1]).all()


def test_precision_recall_band_holds_the_curve() -> None:
    y, p = simulated(150)
    grid, low, high = precision_recall_band(y, p)
    assert grid.shape == low.shape == high.shape == (101,)
    assert (low <= high).all()
    cuts = [np.sort(p[y == 1])[::-1][max(0, math.ceil(recall * y.sum() - 1e-9) - 1)] for recall in grid]
    precision = np.array([y[p >= cut].mean() for cut in cuts])
    assert ((low <= precision) & (precision <= high)).all()
    assert np.isnan(precision_recall_band([0, 0], [0.2, 0.3])[1]).all()
    assert precision_recall_band([1, 1], [0.2, 0.3])[1].tolist() == [1] * 101
