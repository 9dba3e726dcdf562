"""Prediction sets: the promise holds whatever the model, and broken promises are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import betabinom, binomtest

from pneumoscope.decisions import prediction_sets
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decider, Decisions
from pneumoscope.decisions.ood import OOD, Mahalanobis
from pneumoscope.decisions.prediction_sets import PredictionSets, find_cutoffs
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.evaluation.decision_summary import find_broken_promises, summarise_decisions

CLASSES = ("NORMAL", "PNEUMONIA")


def draw(rng: np.random.Generator, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the probabilities of a poor, badly calibrated model."""
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.full(classes, 0.5), n) + 0.6 * np.eye(classes)[y] * rng.random((n, 1))
    return y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_each_class_is_covered_as_promised(classes: int, rate: float) -> None:
    names = tuple(f"c{i}" for i in range(classes))
    rng = np.random.default_rng(0)
    inside = total = 0
    shares = []
    for _ in range(200):
        (y, p), (truth, q) = draw(rng, 120, classes), draw(rng, 200, classes)
        sets = prediction_sets.fit(y, p, names, rate)
        held = q[np.arange(len(q)), truth] >= find_cutoffs(sets, names)[truth]
        for i, name in enumerate(names):
            n, m = len(sets.scores[name]), int((truth == i).sum())
            k = int(rate * (n + 1) + 1e-9)
            low, high = betabinom(m, n + 1 - k, k).interval(0.95)
            inside += low <= held[truth == i].sum() <= high
            total += 1
            shares.append(held[truth == i].mean() - (1 - k / (n + 1)))
    assert binomtest(inside, total, 0.95, "less").pvalue > 0.01  # intervals of whole images hold a little more
    assert np.mean(shares) == pytest.approx(0, abs=0.01)


def test_too_few_images_leave_a_class_in() -> None:
    sets = prediction_sets.fit([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], CLASSES, 0.1)
    assert sets.scores == {"NORMAL": (0.9,), "PNEUMONIA": (0.6, 0.8)}
    assert find_cutoffs(sets, CLASSES).tolist() == [0, 0]
    assert find_cutoffs(sets.at(0.4), CLASSES).tolist() == [0, 0.6]


@pytest.mark.parametrize(
    ("prediction_set", "predicted_label", "ood", "decision"),
    [
        (("PNEUMONIA",), "PNEUMONIA", False, "PNEUMONIA"),
        (("NORMAL",), "NORMAL", False, "NORMAL"),
        (CLASSES, "NORMAL", False, "uncertain"),
        (("NORMAL",), "PNEUMONIA", False, "uncertain"),
        ((), "NORMAL", False, "uncertain"),
        (("NORMAL",), "NORMAL", True, "out_of_distribution"),
    ],
)
def test_a_label_is_given_only_where_all_agree(
    prediction_set: tuple[str, ...], predicted_label: str, ood: bool, decision: str
) -> None:
    cutoffs: dict[str, tuple[float, ...]] = {
        name: (0.0,) * 99 if name in prediction_set else (1.0,) * 99 for name in CLASSES
    }
    detector = Mahalanobis(np.zeros(1, np.float32), np.zeros((0, 1)), np.zeros(0, np.float32), 1.0)
    states = Decisions(
        Calibration(), Threshold(), PredictionSets(0.1, cutoffs), OOD("mahalanobis", 0.01, {"NORMAL": (1.0,)})
    )
    logit, distance = (2.0 if predicted_label == "PNEUMONIA" else -2.0), (1.5 if ood else 0.5)
    outcome = Decider(CLASSES, states, detector).apply([[logit]], np.array([[distance]]))
    assert outcome.decisions == [decision]
    assert CLASSES[outcome.predicted[0]] == predicted_label


def test_without_sets_and_detector_the_predicted_label_decides() -> None:
    decider = Decider(CLASSES, Decisions(Calibration(), Threshold(0.25)))
    outcome = decider.apply([[-2.0], [-1.0], [2.0]])
    np.testing.assert_allclose(outcome.probabilities[:, 1], 1 / (1 + np.exp([2.0, 1.0, -2.0])))
    assert outcome.decisions == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]
    assert outcome.in_set.tolist() == [[True, False], [False, True], [False, True]]
    assert outcome.ood_scores is None


def test_decisions_are_counted() -> None:
    truth = ["NORMAL"] * 4 + ["PNEUMONIA"] * 6
    decisions = ["NORMAL", "uncertain", "out_of_distribution", "PNEUMONIA", *["PNEUMONIA"] * 5, "uncertain"]
    sets = [("NORMAL",), CLASSES, ("NORMAL",), ("PNEUMONIA",), *[("PNEUMONIA",)] * 5, ()]
    found = summarise_decisions(truth, decisions, sets, CLASSES)
    assert found["counts"] == {"NORMAL": 1, "PNEUMONIA": 6, "uncertain": 2, "out_of_distribution": 1}
    assert found["answered"]["value"] == 0.7
    assert (found["accuracy_of_answered"]["n"], found["accuracy_of_answered"]["value"]) == (7, pytest.approx(6 / 7))
    assert found["coverage"]["NORMAL"]["value"] == 0.75
    assert found["set_size"] == 1.0
    wilson = binomtest(6, 7).proportion_ci(method="wilson")
    assert (found["accuracy_of_answered"]["low"], found["accuracy_of_answered"]["high"]) == pytest.approx(wilson)
    nothing = summarise_decisions(["NORMAL"], ["out_of_distribution"], [("NORMAL",)], CLASSES)
    assert nothing["accuracy_of_answered"]["value"] is nothing["coverage"]["PNEUMONIA"]["value"] is None


@pytest.fixture
def decisions() -> Decisions:
    scores = dict.fromkeys(CLASSES, tuple(np.linspace(0.1, 1, 50).tolist()))
    return Decisions(Calibration(), Threshold(), PredictionSets(0.1, scores), OOD("mahalanobis", 0.01, scores))


def test_a_broken_promise_is_reported(decisions: Decisions) -> None:
    truth = ["NORMAL"] * 50 + ["PNEUMONIA"] * 50
    right = summarise_decisions(truth, truth, [(one,) for one in truth], CLASSES)
    assert find_broken_promises(right, decisions) == []
    wrong = ["PNEUMONIA"] * 30 + ["out_of_distribution"] * 20 + ["PNEUMONIA"] * 50
    summary = summarise_decisions(truth, wrong, [("PNEUMONIA",)] * 100, CLASSES)
    coverage, ood = find_broken_promises(summary, decisions)
    assert "0% of the 50 NORMAL images" in coverage
    assert "20 of the 50 NORMAL images are out of distribution" in ood
    assert find_broken_promises(summary, decisions, detecting=False) == [coverage]
    assert find_broken_promises(summary, replace(decisions, prediction_sets=None, ood=None)) == []
    assert decisions.ood is not None
    assert decisions.ood.promised_false_alarms == pytest.approx(1 / 51)  # 50 images cannot promise 1%


@pytest.mark.parametrize("count", [50, 312])
def test_images_like_the_validation_images_seldom_break_a_promise(count: int, decisions: Decisions) -> None:
    rng = np.random.default_rng(count)
    warned = 0
    for _ in range(400):
        scores, new = rng.random(50), rng.random(count)
        sets = PredictionSets(0.1, {"NORMAL": tuple(np.sort(scores).tolist()), "PNEUMONIA": ()})
        held = new >= find_cutoffs(sets, CLASSES)[0]
        drawn = [("NORMAL",) if each else () for each in held]
        summary = summarise_decisions(["NORMAL"] * count, ["NORMAL"] * count, drawn, CLASSES)
        warned += bool(find_broken_promises(summary, replace(decisions, prediction_sets=sets), detecting=False))
    assert binomtest(warned, 400, 0.025, "greater").pvalue > 0.01
