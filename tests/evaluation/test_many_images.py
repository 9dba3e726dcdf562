"""What is used for very many images gives the intervals that resampling and the jackknife give for fewer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from pneumoscope.evaluation import curves
from pneumoscope.evaluation.compare import compare_pairing
from pneumoscope.evaluation.intervals import all_metrics, bootstrap, calibration_error, differences
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.intervals.bootstrap import jackknife_errors
from pneumoscope.evaluation.intervals.differences import compare_means, mcnemar
from pneumoscope.evaluation.intervals.many_images import condense, influence_errors, join_patients
from pneumoscope.evaluation.intervals.proportions import Floats, Ints
from pneumoscope.evaluation.pairing import Pairing, Predictions

N = 3000


def draw(classes: int, patients: int) -> tuple[Ints, Floats, Ints]:
    """Labels, probabilities and patients, whose images resemble each other; a third of the scores are ties."""
    rng = np.random.default_rng(0)
    clusters = np.unique(rng.integers(0, patients, N), return_inverse=True)[1]
    y = rng.integers(0, classes, N)
    score = rng.normal(0, 1, (N, classes)) + rng.normal(0, 0.7, (N, classes))[clusters]
    score[np.arange(N), y] += 1.2
    score[::3] = score[::3].round()
    p = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    return y, (p[:, 1] if classes == 2 else p), clusters


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes any number of images count as many."""

    def switch() -> None:
        for module in (all_metrics, bootstrap, calibration_error, differences, curves):
            monkeypatch.setattr(module, "MANY", 0)

    return switch


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("patients", [N * 10, 800])
def test_influence_functions_give_the_errors_of_the_jackknife(classes: int, patients: int) -> None:
    y, p, clusters = draw(classes, min(patients, 1900))  # up to 2,000, the jackknife leaves out single patients
    threshold = 0.4 if classes == 2 else np.array([0.3, 0.5, 0.4])
    expected = jackknife_errors(y, p, clusters, threshold=threshold)
    found = influence_errors(y, p, clusters, threshold=threshold)
    assert set(expected) - set(found) == {"brier", "ece"}
    for name, error in found.items():
        assert error == pytest.approx(expected[name], rel=0.01), name


def test_influence_functions_need_two_patients_and_two_classes() -> None:
    y, p, _ = draw(2, N)
    assert all(np.isnan(error) for error in influence_errors(y, p, np.zeros(N, int)).values())
    alone = influence_errors(np.zeros(N, int), p, np.arange(N))
    assert np.isnan(alone["auroc"])
    assert np.isnan(alone["average_precision"])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("patients", [N * 100, 900])
def test_intervals_of_many_images_are_those_of_few(classes: int, patients: int, many: Callable[[], None]) -> None:
    y, p, clusters = draw(classes, patients)
    names = [f"p{i}" for i in clusters]

    def evaluate() -> dict[str, tuple[float, float, float]]:
        found = evaluate_predictions(y, p, classes=[f"c{i}" for i in range(classes)], patients=names, resamples=1000)
        return {name: (each.value, each.low, each.high) for name, each in found.metrics.items()}

    few = evaluate()
    many()
    for name, (value, low, high) in evaluate().items():
        expected = few[name]
        assert value == expected[0]
        assert [low, high] == pytest.approx(expected[1:], abs=0.15 * (expected[2] - expected[1])), name


def test_bands_of_many_images_are_those_of_few(many: Callable[[], None]) -> None:
    y, p, clusters = draw(2, 900)
    names = [f"p{i}" for i in clusters]

    def trace() -> list[Floats]:
        selective = curves.selective_curve((p > 0.5) == y, curves.confidence_of(p), names)
        roc, precision = curves.roc_band(y, p, names), curves.precision_recall_band(y, p, names)
        return [*roc[1:], *precision[1:], selective.low, selective.high]

    few = trace()
    many()
    for i, (expected, found) in enumerate(zip(few, trace(), strict=True)):
        inside = slice(10, 90)  # at the ends a band is as narrow as a step of the curve
        assert np.abs(found[inside] - expected[inside]).max() < 0.02, i


def test_differences_of_many_images_are_those_of_few(many: Callable[[], None]) -> None:
    rng = np.random.default_rng(0)
    first, other, clusters = rng.random(N), rng.random(N) - 0.02, draw(2, 900)[2]
    few = compare_means(first, other, clusters)
    many()
    found = compare_means(first, other, clusters)
    assert found.value == few.value
    assert few.bootstrap is not None
    assert found.bootstrap == pytest.approx(few.bootstrap, abs=0.002)


@pytest.mark.parametrize("lead", [0, 1, 40, 150, 300])
@pytest.mark.parametrize("patients", [N * 100, 900])
def test_mcnemars_test_is_approximated_where_counting_takes_too_long(
    lead: int, patients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    gain = rng.permutation(
        np.concatenate([np.ones(700 + lead, int), -np.ones(700, int), np.zeros(N - 1400 - lead, int)])
    )
    clusters = draw(2, patients)[2]
    few, exact = mcnemar(gain, clusters)
    assert exact
    monkeypatch.setattr(differences, "EXACT_STEPS", -1)
    found, exact = mcnemar(gain, clusters)
    assert found == pytest.approx(few, rel=0.1, abs=1e-12)
    assert exact == (gain.sum() == 0)  # then it is 1


@pytest.mark.parametrize(("wins", "losses"), [(8, 0), (500_400, 499_600), (500_000, 500_000), (505_000, 495_000)])
def test_a_million_patients_with_one_image_are_tested_exactly(wins: int, losses: int) -> None:
    gain = np.repeat([1, -1, 0], [wins, losses, 1000])
    p, exact = mcnemar(gain, np.arange(len(gain)))
    assert exact
    assert p == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-6)


def test_a_comparison_says_which_test_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    probabilities = np.array([[0.2, 0.4], [0.6, 0.9]])[labels, rng.integers(0, 2, (2, 200))]
    predicted = rng.integers(0, 2, (2, 200))
    sides = [Predictions(Path(name), ("NORMAL", "PNEUMONIA"), "PNEUMONIA", 0.5, ()) for name in "ab"]
    pairing = Pairing(
        tuple(sides), ("NORMAL", "PNEUMONIA"), labels, probabilities, predicted, tuple(map(str, range(200))),
        np.arange(200) // 3, 67, "path", (0, 0),
    )  # fmt: skip
    assert "McNemar's exact test" in compare_pairing(pairing, ["a", "b"], resamples=10).methods["accuracy"]
    monkeypatch.setattr(differences, "EXACT_STEPS", -1)
    methods = compare_pairing(pairing, ["a", "b"], resamples=10).methods
    assert "normal approximation" in methods["accuracy"]
    assert "normal approximation" not in methods["brier"]


def test_patients_are_joined_whole_to_groups_of_equal_size() -> None:
    clusters = np.random.default_rng(0).integers(0, 1000, 5000)
    clusters = np.unique(clusters, return_inverse=True)[1]
    groups = join_patients(clusters, seed=1, groups=50)
    assert len(np.unique(np.stack([clusters, groups]), axis=1)[0]) == clusters.max() + 1
    assert np.ptp(np.bincount(groups[np.unique(clusters, return_index=True)[1]])) <= 1
    assert join_patients(clusters, seed=1, groups=2000) is clusters


def test_condensed_images_are_all_counted() -> None:
    y, p, clusters = draw(2, 900)
    classes, scores, counts = condense(y, p, clusters, seed=0)
    assert counts.sum() == N
    assert (counts.sum(0) @ classes) == y.sum()
    assert counts.sum(0) @ scores == pytest.approx(p.sum())
