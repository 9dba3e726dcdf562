"""Prediction sets: the promise holds whatever the model, and broken promises are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import betabinom, binomtest

from pneumoscope.decisions.decide import decide, find_limits
from pneumoscope.evaluation.decision_summary import find_broken_promises, fit_conformal, summarise_decisions
from pneumoscope.models.model_folder import Conformal, Model, OODState, load_model
from pneumoscope.training.train import Run

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
        conformal = fit_conformal(y, p, names, rate)
        held = q[np.arange(len(q)), truth] >= find_limits(conformal, names, rate)[truth]
        for i, name in enumerate(names):
            n, m = len(conformal.scores[name]), int((truth == i).sum())
            k = int(rate * (n + 1) + 1e-9)
            low, high = betabinom(m, n + 1 - k, k).interval(0.95)
            inside += low <= held[truth == i].sum() <= high
            total += 1
            shares.append(held[truth == i].mean() - (1 - k / (n + 1)))
    assert binomtest(inside, total, 0.95, "less").pvalue > 0.01  # intervals of whole images hold a little more
    assert np.mean(shares) == pytest.approx(0, abs=0.01)


def test_too_few_images_leave_a_class_in() -> None:
    conformal = fit_conformal([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], CLASSES, 0.1)
    assert conformal.scores == {"NORMAL": (0.9,), "PNEUMONIA": (0.6, 0.8)}
    assert find_limits(conformal, CLASSES, 0.1).tolist() == [0, 0]
    assert find_limits(conformal, CLASSES, 0.4).tolist() == [0, 0.6]


@pytest.mark.parametrize(
    ("prediction_set", "predicted_label", "ood", "decision"),
    [
        (("PNEUMONIA",), "PNEUMONIA", False, "PNEUMONIA"),
        (("NORMAL",), "NORMAL", False, "NORMAL"),
        (CLASSES, "NORMAL", False, "uncertain"),
        (("NORMAL",), "PNEUMONIA", False, "uncertain"),
        ((), "NORMAL", False, "neither"),
        (("NORMAL",), "NORMAL", True, "out_of_distribution"),
    ],
)
def test_a_label_is_given_only_where_all_agree(
    prediction_set: tuple[str, ...], predicted_label: str, ood: bool, decision: str
) -> None:
    assert decide(prediction_set, predicted_label, ood) == decision


def test_decisions_are_counted() -> None:
    truth = ["NORMAL"] * 4 + ["PNEUMONIA"] * 6
    decisions = ["NORMAL", "uncertain", "out_of_distribution", "PNEUMONIA", *["PNEUMONIA"] * 5, "neither"]
    sets = [("NORMAL",), CLASSES, ("NORMAL",), ("PNEUMONIA",), *[("PNEUMONIA",)] * 5, ()]
    found = summarise_decisions(truth, decisions, sets, CLASSES)
    assert found["counts"] == {"NORMAL": 1, "PNEUMONIA": 6, "uncertain": 1, "neither": 1, "out_of_distribution": 1}
    assert found["answered"]["value"] == 0.7
    assert (found["accuracy_of_answered"]["n"], found["accuracy_of_answered"]["value"]) == (7, pytest.approx(6 / 7))
    assert found["coverage"]["NORMAL"]["value"] == 0.75
    assert found["set_size"] == 1.0
    wilson = binomtest(6, 7).proportion_ci(method="wilson")
    assert (found["accuracy_of_answered"]["low"], found["accuracy_of_answered"]["high"]) == pytest.approx(wilson)
    nothing = summarise_decisions(["NORMAL"], ["out_of_distribution"], [("NORMAL",)], CLASSES)
    assert nothing["accuracy_of_answered"]["value"] is nothing["coverage"]["PNEUMONIA"]["value"] is None


@pytest.fixture
def model(run: Run) -> Model:
    scores = tuple(np.linspace(0.1, 1, 50).tolist())
    known = load_model(run.model)
    return replace(
        known,
        conformal=Conformal(0.1, dict.fromkeys(CLASSES, scores)),
        ood=OODState(0.01, dict.fromkeys(CLASSES, scores)),
    )


def test_a_broken_promise_is_said(model: Model) -> None:
    truth = ["NORMAL"] * 50 + ["PNEUMONIA"] * 50
    right = summarise_decisions(truth, truth, [(one,) for one in truth], CLASSES)
    assert find_broken_promises(right, model, 0.1, 0.01) == []
    wrong = ["PNEUMONIA"] * 30 + ["out_of_distribution"] * 20 + ["PNEUMONIA"] * 50
    found = summarise_decisions(truth, wrong, [("PNEUMONIA",)] * 100, CLASSES)
    coverage, ood = find_broken_promises(found, model, 0.1, 0.01)
    assert "0% of the 50 NORMAL images" in coverage
    assert "20 of the 50 NORMAL images are out of distribution" in ood
    assert find_broken_promises(found, model, None, None) == []
    assert model.ood is not None
    assert model.ood.promise() == pytest.approx(1 / 51)  # 50 images know no 1 %


@pytest.mark.parametrize("count", [50, 312])
def test_images_like_those_of_validation_seldom_break_a_promise(count: int, model: Model) -> None:
    rng = np.random.default_rng(count)
    warned = 0
    for _ in range(400):
        scores, new = rng.random(50), rng.random(count)
        conformal = Conformal(0.1, {"NORMAL": tuple(np.sort(scores).tolist()), "PNEUMONIA": ()})
        held = new >= find_limits(conformal, CLASSES, 0.1)[0]
        sets = [("NORMAL",) if each else () for each in held]
        found = summarise_decisions(["NORMAL"] * count, ["NORMAL"] * count, sets, CLASSES)
        warned += bool(find_broken_promises(found, replace(model, conformal=conformal), 0.1, None))
    assert binomtest(warned, 400, 0.025, "greater").pvalue > 0.01
