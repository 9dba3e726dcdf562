"""Cross-validation fold by fold: means, and intervals that respect folds, repeats and patients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from crossval_coverage import METRICS, Setting, cross_validate

from pneumoscope.evaluation.metrics import measure
from pneumoscope.evaluation.out_of_fold import AVERAGED, OutOfFold, measure_folds

FOLDS = 4


def draw(images: int = 120, each: int = 1, seed: int = 0, skill: float = 1.5) -> OutOfFold:
    """Predictions of patients with so many images each, alike, in folds by patient."""
    rng = np.random.default_rng(seed)
    patients = np.arange(images) // each
    labels = (patients % 2).astype(np.int64)
    scores = rng.standard_normal(patients.max() + 1)[patients] + skill * (labels - 0.5)
    places = [(1, int(patient // 2) % FOLDS + 1) for patient in patients]
    return OutOfFold(labels, 1 / (1 + np.exp(-scores)), np.full(images, 0.5), places, patients)


def repeat(data: OutOfFold, times: int) -> OutOfFold:
    """The same predictions as if each repeat had given them."""
    places = [(number + 1, fold) for number in range(times) for _, fold in data.places]
    parts: tuple[Any, ...] = (data.labels, data.probabilities, data.thresholds)
    labels, probabilities, thresholds = (np.concatenate([part] * times) for part in parts)
    return OutOfFold(labels, probabilities, thresholds, places, np.tile(data.clusters, times))


def test_the_mean_is_that_of_the_folds_and_its_interval_holds_it() -> None:
    data = draw()
    found = measure_folds(data)
    assert [each.fold for each in found.folds] == [1, 2, 3, 4]
    part = np.array([place == (1, 2) for place in data.places])
    assert found.folds[1].metrics["auroc"] == measure(data.labels[part], data.probabilities[part])["auroc"][0]
    for metric in AVERAGED:
        values = [each.metrics[metric] for each in found.folds]
        mean = found.means[metric]
        assert mean.value == pytest.approx(np.mean(values))
        assert mean.sd == pytest.approx(np.std(values, ddof=1))
        assert mean.low < mean.value < mean.high


def test_repeats_that_say_the_same_do_not_make_the_result_more_certain() -> None:
    once, thrice = measure_folds(draw()), measure_folds(repeat(draw(), 3))
    assert thrice.repeats == 3
    for metric in AVERAGED:
        assert thrice.means[metric].low == pytest.approx(once.means[metric].low, abs=1e-6)
        assert thrice.means[metric].high == pytest.approx(once.means[metric].high, abs=1e-6)


def test_copies_of_images_do_not_make_the_result_more_certain() -> None:
    single, double = measure_folds(draw(60)), measure_folds(draw(120, each=2))
    for metric in ("auroc", "sensitivity", "brier"):
        assert double.means[metric].value == pytest.approx(single.means[metric].value)
        assert double.means[metric].high == pytest.approx(single.means[metric].high, abs=1e-6)


def test_each_prediction_is_labelled_by_the_threshold_of_its_own_fold() -> None:
    data = draw()
    high = np.where([fold == 1 for _, fold in data.places], 0.999, 0.5)
    first = measure_folds(OutOfFold(data.labels, data.probabilities, high, data.places, data.clusters)).folds[0]
    assert (first.threshold, first.metrics["sensitivity"], first.metrics["specificity"]) == (0.999, 0, 1)
    assert first.metrics["auroc"] == measure_folds(data).folds[0].metrics["auroc"]


def test_perfect_folds_have_an_interval_below_one() -> None:
    means = measure_folds(draw(skill=100.0)).means
    for metric in ("auroc", "accuracy", "sensitivity"):
        assert means[metric].value == means[metric].high == 1
        assert 0.8 < means[metric].low < 1


def test_three_classes_have_means_and_no_threshold() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(90) % 3
    shares = np.exp(rng.standard_normal((90, 3)) + 2 * np.eye(3)[labels])
    shares /= shares.sum(1, keepdims=True)
    places = [(1, i // 3 % 3 + 1) for i in range(90)]
    found = measure_folds(OutOfFold(labels, shares, np.full((90, 3), 1 / 3), places, np.arange(90)))
    assert math.isnan(found.folds[0].threshold)
    assert all(0 < found.means[name].low < found.means[name].high for name in ("auroc", "accuracy", "brier"))
    assert found.to_rows()[0]["threshold"] is None


def test_intervals_cover_the_mean_performance_of_the_models_of_the_folds() -> None:
    held = []
    for seed in range(60):
        data, truths, _ = cross_validate(Setting(80, 2.0, width=5, folds=3), seed)
        means = measure_folds(data).means
        held.append([means[name].low <= truth <= means[name].high for name, truth in zip(METRICS, truths, strict=True)])
    assert (np.mean(held, axis=0) > 0.86).all()  # 60 intervals of 95% fall below by chance once in 1,000
