"""Intervals: the right unit is drawn, the same seed gives the same intervals, and they cover the truth."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pneumoscope.datasets.samples import cluster_by_patient
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals import bootstrap
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.intervals.bootstrap import jackknife_errors, resample
from pneumoscope.evaluation.intervals.delong import auroc_covariance
from pneumoscope.evaluation.metrics import METRICS, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = ("NORMAL", "PNEUMONIA")


def simulated(n: int, seed: int = 0, gap: float = 2.1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, 1 / (1 + np.exp(-rng.normal(gap * (y - 0.5), 1)))


def test_a_resample_draws_as_many_patients_as_there_are() -> None:
    clusters = cluster_by_patient(["a", "a", "b", "c", "c", "c"], 6)
    weights = np.concatenate(list(resample(clusters, 400, seed=1)))
    assert weights.shape == (400, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3:] == weights[:, [3]]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert weights[:, [0, 2, 3]].mean(0) == pytest.approx(np.ones(3), abs=0.15)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resample(np.arange(7), 50, seed=3)))
    monkeypatch.setattr(bootstrap, "CHUNK", 21)
    chunks = list(resample(np.arange(7), 50, seed=3))
    assert {len(chunk) for chunk in chunks} == {3, 2}
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_equal_seeds_give_equal_intervals_and_lone_images_are_the_image_bootstrap() -> None:
    y, p = simulated(80)
    once = evaluate_predictions(y, p, classes=CLASSES, resamples=200, seed=5)
    lone = evaluate_predictions(y, p, classes=CLASSES, resamples=200, seed=5, patients=[f"p{i}" for i in range(80)])
    assert once == evaluate_predictions(y, p, classes=CLASSES, resamples=200, seed=5)
    assert once.metrics == lone.metrics
    assert (once.patients, lone.patients) == (None, 80)
    assert once.metrics != evaluate_predictions(y, p, classes=CLASSES, resamples=200, seed=6).metrics


def test_on_many_images_intervals_match_the_plain_bootstrap() -> None:
    y, p = simulated(2000)
    evaluation = evaluate_predictions(y, p, classes=CLASSES)
    assert tuple(evaluation.metrics) == tuple(evaluation.methods) == METRICS
    drawn = [measure(y, p, weights=weights) for weights in resample(np.arange(2000), 1000, seed=9)]
    for name, interval in evaluation.metrics.items():
        assert interval.low <= interval.value <= interval.high
        if name != "ece":  # to which resampling adds
            bounds = np.quantile(np.concatenate([draw[name] for draw in drawn]), [0.025, 0.975])
            assert (interval.low, interval.high) == pytest.approx(bounds, abs=0.15 * np.ptp(bounds)), name


def test_more_classes_match_the_plain_bootstrap_too() -> None:
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, 1500)
    p = np.exp(rng.normal(0, 1, (1500, 3)) + 1.5 * np.eye(3)[y])
    p /= p.sum(1, keepdims=True)
    patients = [f"p{i // 2}" for i in range(1500)]
    evaluation = evaluate_predictions(y, p, classes=("a", "b", "c"), patients=patients)
    drawn = [measure(y, p, weights=weights) for weights in resample(cluster_by_patient(patients, 1500), 1000, seed=9)]
    for name, interval in evaluation.metrics.items():
        if name != "ece":
            bounds = np.quantile(np.concatenate([draw[name] for draw in drawn]), [0.025, 0.975])
            assert (interval.low, interval.high) == pytest.approx(bounds, abs=0.15 * np.ptp(bounds)), name


def test_copies_of_an_image_are_no_evidence() -> None:
    y, p = (np.repeat(part, 5) for part in simulated(60))
    patients = [f"p{i // 5}" for i in range(300)]
    naive = evaluate_predictions(y, p, classes=CLASSES)
    clustered = evaluate_predictions(y, p, classes=CLASSES, patients=patients)
    single = evaluate_predictions(*simulated(60), classes=CLASSES)
    for name in METRICS:
        widths = [e.metrics[name].high - e.metrics[name].low for e in (naive, clustered, single)]
        assert widths[1] > (1.5 if name == "ece" else 1.8) * widths[0], name
        if name != "ece":
            assert astuple(clustered.metrics[name]) == pytest.approx(astuple(single.metrics[name]), abs=0.006), name


@pytest.mark.parametrize("images", [1, 3])
def test_intervals_cover_the_truth_as_often_as_they_should(images: int) -> None:
    """200 studies of 120 images, alone and three a patient: the benchmark in miniature; 3.3 standard errors are 5%."""

    def study(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rng = np.random.default_rng([seed, images])  # other numbers than the bootstrap of that seed draws
        y = np.repeat(rng.integers(0, 2, n), images)
        score = 2.1 * (y - 0.5) + np.repeat(rng.normal(0, 0.6, n), images) + rng.normal(0, 0.8, n * images)
        return y, 1 / (1 + np.exp(-3 * score))  # overconfident: 2.1 would be right

    truth = measure(*study(200_000, seed=999))
    covered = dict.fromkeys(METRICS, 0)
    for seed in range(200):
        y, p = study(120 // images, seed)
        patients = [f"p{i // images}" for i in range(120)]
        evaluation = evaluate_predictions(
            y, p, classes=CLASSES, patients=patients, resamples=200, seed=seed
        )  # fmt: skip
        for name, interval in evaluation.metrics.items():
            covered[name] += interval.low <= truth[name][0] <= interval.high
    assert all(180 <= count <= 200 for count in covered.values()), str(
        {name: int(count) for name, count in covered.items()}
    )


def test_the_calibration_error_of_a_calibrated_model_may_be_0() -> None:
    lows, values = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        p = rng.random(100)
        y = (rng.random(100) < p).astype(int)
        ece = evaluate_predictions(y, p, classes=CLASSES, resamples=200, seed=seed).metrics["ece"]
        lows.append(ece.low)
        values.append(ece.value)
    assert np.median(values) > 0.08
    assert 90 <= lows.count(0) <= 99  # a test at 5%; percentiles of a bootstrap would begin at about the value


def test_without_a_mistake_there_are_intervals_all_the_same() -> None:
    y = np.array([0] * 30 + [1] * 20)
    evaluation = evaluate_predictions(y, y * 0.8 + 0.1, classes=CLASSES)
    metrics = evaluation.metrics
    for name, trials in {"accuracy": 50, "sensitivity": 20, "specificity": 30, "ppv": 20, "npv": 30}.items():
        wilson = binomtest(trials, trials).proportion_ci(method="wilson")
        assert astuple(metrics[name]) == pytest.approx((1, wilson.low, 1))
    hits = binomtest(20, 20).proportion_ci(method="wilson").low
    assert metrics["f1"].low == pytest.approx(2 * hits / (1 + hits))
    assert metrics["auroc"].low == pytest.approx(binomtest(20, 20).proportion_ci(method="exact").low)
    assert (metrics["auroc"].high, metrics["mcc"].high) == (1, 1)
    assert 0.5 < metrics["average_precision"].low < metrics["auroc"].low
    assert 0.8 < metrics["mcc"].low < 0.9
    assert evaluation.methods["auroc"] == "exact, from disjoint pairs"
    assert evaluation.methods["brier"] == "none"
    assert math.isnan(metrics["brier"].low)  # each image errs alike
    wrong = evaluate_predictions(y, 1 - y * 1.0, classes=CLASSES).metrics
    assert astuple(wrong["accuracy"]) == pytest.approx((0, 0, binomtest(0, 50).proportion_ci(method="wilson").high))
    assert wrong["auroc"].high == pytest.approx(1 - metrics["auroc"].low)


def test_patients_without_a_mistake_count_as_if_their_images_were_alike() -> None:
    y = np.repeat([0, 1], 30)
    patients = [f"p{i // 3}" for i in range(60)]
    metrics = evaluate_predictions(y, y * 0.8 + 0.1, classes=CLASSES, patients=patients).metrics
    assert metrics["accuracy"].low == pytest.approx(binomtest(20, 20).proportion_ci(method="wilson").low)
    assert metrics["auroc"].low == pytest.approx(binomtest(10, 10).proportion_ci(method="exact").low)


def test_the_jackknife_knows_the_error_of_a_mean_and_of_an_area() -> None:
    y, p = simulated(100)
    errors = jackknife_errors(y, p, np.arange(100))
    accuracy = measure(y, p)["accuracy"][0]
    assert errors["accuracy"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 99), rel=1e-3)
    assert errors["auroc"] == pytest.approx(math.sqrt(auroc_covariance(y, p[None])[1][0, 0]), rel=0.01)
    assert all(math.isnan(error) for error in jackknife_errors([1], [0.9], np.array([0])).values())
    grouped = jackknife_errors(y, p, np.arange(100) // 10)
    drawn = [measure(y, p, weights=weights)["mcc"] for weights in resample(np.arange(100) // 10, 2000, seed=0)]
    assert grouped["mcc"] == pytest.approx(np.concatenate(drawn).std(), rel=0.15)


def test_metrics_json_has_the_shape_of_the_design() -> None:
    y, p = simulated(50)
    evaluation = evaluate_predictions(y, p, classes=CLASSES, threshold=0.4, patients=["a", None] * 25)
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert (content["split"], content["n"], content["threshold"], content["patients"]) == ("test", 50, 0.4, 1)
    assert content["prevalence"] == pytest.approx(y.mean())
    assert set(content["metrics"]) == set(METRICS)
    assert set(content["methods"]) == set(METRICS)
    assert set(content["metrics"]["f1"]) == {"value", "low", "high"}
    assert set(content["confusion"]) == {"tp", "fp", "tn", "fn"}
    assert sum(content["confusion"].values()) == 50


def test_more_classes_have_shares_instead_of_a_prevalence() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    evaluation = evaluate_predictions([0, 1, 2, 0, 1, 2, 0, 0], p, classes=("a", "b", "c"), resamples=50)
    content = evaluation.to_json()
    assert content["prevalence"] is content["threshold"] is content["positive"] is None
    assert content["shares"] == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert np.sum(content["confusion"]["matrix"], axis=1).tolist() == [4, 2, 2]


def test_what_is_undefined_has_no_interval() -> None:
    one = evaluate_predictions([1], [0.9], classes=CLASSES, resamples=20)
    auroc = one.to_json()["metrics"]["auroc"]
    assert auroc == {"value": None, "low": None, "high": None}
    assert one.methods["auroc"] == "none"
    assert astuple(one.metrics["accuracy"]) == pytest.approx((1, binomtest(1, 1).proportion_ci(method="wilson").low, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"classes": ("a", "b", "c")}, {"classes": ("PNEUMONIA", "PNEUMONIA")}, {"resamples": 0}],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        evaluate_predictions([0, 1], [0.1, 0.9], **{"classes": CLASSES, **wrong})


@settings(max_examples=40, deadline=None)
@example([(0, 0.1, 0), (1, 0.0, 0)], True)  # one patient, all wrong
@example([(0, 0.0, 0), (0, 0.1, 1), *[(1, 0.0, 0)] * 5, (1, 0.0, 1)], True)  # intervals that end at 0 and 1
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]), st.integers(0, 4)),
        min_size=1, max_size=14,
    ),
    st.booleans(),
)  # fmt: skip
def test_every_value_lies_within_its_interval(rows: list[tuple[int, float, int]], two: bool) -> None:
    y, p, patients = (np.array(column) for column in zip(*rows, strict=True))
    names = [str(patient) for patient in patients]
    if two:
        evaluation = evaluate_predictions(
            np.minimum(y, 1), p, classes=CLASSES, patients=names, resamples=20
        )  # fmt: skip
    else:
        shares = np.stack([p, (1 - p) / 2, (1 - p) / 2], axis=1)
        evaluation = evaluate_predictions(y, shares, classes=("a", "b", "c"), patients=names, resamples=20)
    for name, interval in evaluation.metrics.items():
        bounds = {"mcc": (-1, 1), "brier": (0, 2)}.get(name, (0, 1))
        known = not math.isnan(interval.low)
        assert known == (not math.isnan(interval.high)) == (evaluation.methods[name] != "none")
        if known:
            assert bounds[0] <= interval.low <= interval.value <= interval.high <= bounds[1], name
