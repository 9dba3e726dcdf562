"""Another prevalence: adjusted probabilities, estimated shares, and metrics as if it were so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from pneumoscope.datasets.reading import find_images
from pneumoscope.decisions import prior_shift
from pneumoscope.decisions.calibration import Calibration, normalise
from pneumoscope.decisions.decisions import Decisions, read_decisions
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.prevalence import adapt_prior, adjust_evaluation, estimate_prevalence
from pneumoscope.inference.predictor import load
from pneumoscope.models.model_folder import load_model
from pneumoscope.training.train import Run, train

SHARE = st.floats(0.01, 0.99)


def simulated(n: int, prevalence: float, stated: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels at a prevalence, and logarithms of probabilities that are right for another."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prevalence).astype(int)
    x = rng.normal(2 * y - 1, 1)  # log likelihood ratio: 2 x
    z = 2 * x + np.log(stated / (1 - stated))
    return y, normalise(np.stack([np.zeros(n), z], axis=1))


@pytest.fixture
def decisions() -> Decisions:
    return Decisions(Calibration(class_fractions=(0.5, 0.5)), Threshold(0.5, "youden"))


@given(st.floats(-9, 9), SHARE, SHARE)
def test_adjusting_is_bayes_rule_and_can_be_taken_back(z: float, stated: float, wanted: float) -> None:
    logs = normalise(np.array([[0.0, z]]))
    there = prior_shift.apply(logs, (1 - stated, stated), (1 - wanted, wanted))
    odds = np.exp(z) * (wanted / (1 - wanted)) / (stated / (1 - stated))
    assert np.exp(there[0, 1]) == pytest.approx(odds / (1 + odds))
    assert prior_shift.apply(there, (1 - wanted, wanted), (1 - stated, stated)) == pytest.approx(logs)


def test_adjusted_probabilities_are_right_where_the_images_come_from() -> None:
    y, logs = simulated(100_000, 0.1)
    p = np.exp(prior_shift.apply(logs, (0.5, 0.5), (0.9, 0.1)))[:, 1]
    for low in (0.1, 0.3, 0.6):
        chosen = (p > low) & (p < low + 0.1)
        assert y[chosen].mean() == pytest.approx(p[chosen].mean(), abs=0.03)


@pytest.mark.parametrize("prevalence", [0.05, 0.3, 0.8])
def test_shares_are_those_of_the_greatest_likelihood(prevalence: float) -> None:
    y, logs = simulated(3000, prevalence, stated=0.6)
    found = prior_shift.fit(logs, (0.4, 0.6))
    likelihoods = np.exp(logs) / (0.4, 0.6)
    best = minimize_scalar(
        lambda share: -np.log(likelihoods @ (1 - share, share)).sum(), bounds=(0, 1), method="bounded"
    )
    assert found[1] == pytest.approx(best.x, abs=1e-4)
    assert found[1] == pytest.approx(y.mean(), abs=0.03)
    interval = estimate_prevalence(logs, (0.4, 0.6), resamples=100)
    assert interval.low < found[1] < interval.high
    assert interval.high - interval.low < 0.1
    assert estimate_prevalence(logs, (0.4, 0.6), resamples=100) == interval


def test_an_operating_point_moves_along_and_a_probability_stays() -> None:
    _, logs = simulated(200, 0.5)
    for prevalence in (0.02, 0.5, 0.9):
        threshold = prior_shift.adjust_threshold(Threshold(0.5, "youden"), (0.5, 0.5), prevalence).value
        adjusted = np.exp(prior_shift.apply(logs, (0.5, 0.5), (1 - prevalence, prevalence)))[:, 1]
        np.testing.assert_array_equal(adjusted >= threshold, np.exp(logs[:, 1]) >= 0.5)
    assert prior_shift.adjust_threshold(Threshold(0.5, "cost=1"), (0.5, 0.5), 0.02).value == 0.5


def test_predictive_values_are_those_of_the_formula(decisions: Decisions) -> None:
    y, logs = simulated(300, 0.5)
    evaluation = evaluate_predictions(y, np.exp(logs[:, 1]), classes=("N", "P"), resamples=200)
    sensitivity, specificity = (evaluation.metrics[name].value for name in ("sensitivity", "specificity"))
    adjusted = adjust_evaluation(evaluation, decisions, y, logs, 0.05)
    ppv = sensitivity * 0.05 / (sensitivity * 0.05 + (1 - specificity) * 0.95)
    npv = specificity * 0.95 / (specificity * 0.95 + (1 - sensitivity) * 0.05)
    assert adjusted.metrics["ppv"].value == pytest.approx(ppv)
    assert adjusted.metrics["npv"].value == pytest.approx(npv)
    assert adjusted.metrics["sensitivity"].value == pytest.approx(sensitivity)
    assert adjusted.metrics["ppv"].low < ppv < adjusted.metrics["ppv"].high
    assert adjusted.metrics["brier"].value < evaluation.metrics["brier"].value
    with pytest.raises(DataError, match="both classes"):
        adjust_evaluation(evaluation, decisions, y[y == 1], logs[y == 1], 0.05)


def test_only_two_classes_have_a_prevalence() -> None:
    prior_shift.check_prevalence(0.2, ("a", "b"))
    prior_shift.check_prevalence(None, ("a", "b", "c"))
    with pytest.raises(UsageError, match="between 0 and 1"):
        prior_shift.check_prevalence(1.0, ("a", "b"))
    with pytest.raises(UsageError, match="only for two"):
        prior_shift.check_prevalence(0.2, ("a", "b", "c"))


def test_prevalence_is_estimated_from_the_very_images_that_are_predicted(run: Run, images: Path) -> None:
    predictor = load(run.model)
    samples = find_images([images / "test", images / "val", images / "nothing.png"])
    adapted, share = adapt_prior(predictor, samples)
    assert share.low <= share.value <= share.high
    assert adapted.decider.prevalence == pytest.approx(share.value, abs=1e-4)
    assert predictor.decider.prevalence is None
    for before, after in zip(predictor.predict(samples), adapted.predict(samples), strict=True):
        if (
            before.raw_probability is not None
            and after.raw_probability is not None
            and adapted.decider.prevalence is not None
        ):
            odds = adapted.decider.prevalence / (1 - adapted.decider.prevalence)  # the network's own prevalence is 0.5
            expected = before.raw_probability / (1 - before.raw_probability) * odds
            assert after.raw_probability == pytest.approx(expected / (1 + expected))
    with pytest.raises(DataError, match=r"9 images can be read.*needs at least 10"):
        adapt_prior(load(run.model, ood=False), [*samples[:9], samples[-1]])


def test_a_prevalence_other_than_the_images_is_noted(run: Run, images: Path, tmp_path: Path) -> None:
    rare = train(images, tmp_path / "rare", epochs=1, size=64, prevalence=0.05)
    (note,) = [note for note in rare.evaluation.notes if "hold for a prevalence" in note]
    assert "prevalence of 5.0%, but 50.0% of these images are PNEUMONIA" in note
    assert read_decisions(load_model(rare.model)).calibration.class_fractions == pytest.approx((0.95, 0.05))
    assert not [note for note in run.evaluation.notes if "hold for a prevalence" in note]
    assert [note for note in run.evaluation.notes if "With 6 validation images of a class" in note]
