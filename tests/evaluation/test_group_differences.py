"""A group against all other images: published examples, a bootstrap, coverage and errors of the first kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals.all_metrics import evaluate_predictions
from pneumoscope.evaluation.intervals.groups import compare_with_rest
from pneumoscope.evaluation.results import GroupDifference, Subgroup
from pneumoscope.evaluation.subgroups import count_differences, measure_subgroups
from pneumoscope.inference.prediction import Prediction

CLASSES = ("NORMAL", "PNEUMONIA")


def compare_rates(hits: Any, members: Any, clusters: Any = None) -> GroupDifference:
    """The accuracy of members against the others, from which images are predicted correctly."""
    y = np.ones(len(hits), np.int64)
    numbers = np.arange(len(y)) if clusters is None else clusters
    return compare_with_rest(y, np.where(hits, 0.9, 0.1), np.asarray(members), numbers, ["accuracy"])["accuracy"]


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (5, 56, 0, 29, -0.0381, 0.1926)],
)
def test_intervals_of_rates_are_those_that_newcombe_published(
    a: int, m: int, b: int, n: int, low: float, high: float
) -> None:
    """Stat Med 17:873-890 (1998), table II, method 10."""
    hits = np.concatenate([np.arange(m) < a, np.arange(n) < b])
    found = compare_rates(hits, np.arange(m + n) < m)
    assert (found.value, found.rest) == pytest.approx((a / m - b / n, b / n))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert (found.p < 0.05) == (low > 0)


def test_the_p_value_is_near_that_of_the_z_test_in_large_samples() -> None:
    hits = np.concatenate([np.arange(4000) < 3000, np.arange(4000) < 3080])
    found = compare_rates(hits, np.arange(8000) < 4000)
    z = (0.75 - 0.77) / math.sqrt((0.75 * 0.25 + 0.77 * 0.23) / 4000)
    assert found.p == pytest.approx(2 * norm.sf(abs(z)), rel=0.02)


def test_patients_count_not_images() -> None:
    hits, members = np.arange(100) % 4 > 0, np.arange(100) < 40
    once = compare_rates(hits, members)
    thrice = compare_rates(np.repeat(hits, 3), np.repeat(members, 3), np.repeat(np.arange(100), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=0.01)
    # The same patients on both sides, who resemble themselves: their difference is better known.
    both = np.tile(np.arange(50), 2)
    inside = np.arange(100) < 50
    same = np.tile(np.arange(50) % 4 > 0, 2)
    assert compare_rates(same, inside, both).high < 0.5 * compare_rates(same, inside).high


def test_the_interval_of_auroc_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(4)
    y, members = np.arange(400) % 2, np.arange(400) < 150
    p = 1 / (1 + np.exp(-(rng.normal(size=400) + np.where(members, 0.8, 1.6) * y)))
    found = compare_with_rest(y, p, members, np.arange(400), ["auroc"])["auroc"]

    def area(indices: Any) -> float:
        positive, negative = p[indices][y[indices] == 1], p[indices][y[indices] == 0]
        return float((positive[:, None] > negative).mean())

    inside, outside = np.flatnonzero(members), np.flatnonzero(~members)
    assert found.value == pytest.approx(area(inside) - area(outside))
    drawn = [area(rng.choice(inside, 150)) - area(rng.choice(outside, 250)) for _ in range(1000)]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_intervals_cover_the_truth_and_p_values_keep_their_level() -> None:
    rng = np.random.default_rng(0)
    covered, rejected, runs = {"sensitivity": 0, "auroc": 0}, 0, 300
    for _ in range(runs):
        patients = np.repeat(np.arange(60), 2)
        y = np.repeat(rng.permutation(np.arange(60) % 2), 2)
        members = np.repeat(rng.random(60) < 0.4, 2)
        shared = np.repeat(rng.normal(size=60), 2)
        z = (shared + rng.normal(size=120)) / math.sqrt(2) + 1.5 * y
        found = compare_with_rest(y, norm.cdf(z - 0.75), members, patients, tuple(covered))
        for name, each in found.items():
            covered[name] += each.low <= 0 <= each.high
        rejected += found["auroc"].p < 0.05
    assert all(0.92 <= count / runs <= 0.995 for count in covered.values()), covered
    assert rejected / runs <= 0.08


def test_a_metric_that_a_side_lacks_has_no_difference() -> None:
    y, p = np.array([0, 0, 1, 1, 1, 0]), np.array([0.1, 0.4, 0.8, 0.3, 0.9, 0.6])
    found = compare_with_rest(y, p, y == 1, np.arange(6), ["sensitivity", "specificity", "auroc"])
    assert found == {}
    three = np.array([0, 1, 2] * 6)
    shares = np.random.default_rng(1).dirichlet([1, 1, 1], 18)
    members = np.arange(18) < 9
    assert set(compare_with_rest(three, shares, members, np.arange(18), ["accuracy", "auroc"])) == {"accuracy", "auroc"}
    assert "auroc" not in compare_with_rest(three, shares, three < 2, np.arange(18), ["accuracy", "auroc"])


def measure(metadata: list[dict[str, str]], wanted: str | None = None) -> list[Subgroup]:
    rng = np.random.default_rng(2)
    n = len(metadata)
    y = np.arange(n) % 2
    p = np.clip(rng.normal(0.35 + 0.3 * y, 0.2), 0, 1)
    predictions = [
        Prediction(
            path=Path(f"{i}.png"), label=CLASSES[y[i]], sex="MF"[i // 2 % 2], age=float(i % 80),
            probabilities={"NORMAL": 1 - p[i], "PNEUMONIA": p[i]},
        )
        for i in range(n)
    ]  # fmt: skip
    evaluation = evaluate_predictions(y, p, classes=CLASSES, resamples=5)
    return measure_subgroups(predictions, evaluation, metadata, wanted)


def test_p_values_are_corrected_for_all_differences_and_opposite_ones_count_once() -> None:
    found = measure([{"site": "abc"[i % 3]} for i in range(120)], "sex,site")
    assert count_differences(found, 120) == 3 + 9
    female, male = (part.differences["auroc"] for part in found[:2])
    assert (female.value, female.p, female.adjusted) == pytest.approx((-male.value, male.p, male.adjusted), rel=1e-6)
    smallest = min((each for part in found for each in part.differences.values()), key=lambda each: each.p)
    assert smallest.adjusted == pytest.approx(min(1, 12 * smallest.p))
    assert all(each.adjusted >= each.p for part in found for each in part.differences.values())


def test_kinds_can_be_chosen_and_combined() -> None:
    metadata = [{"site": "ab"[i % 5 > 1], "note": f"text {i}"} if i % 10 else {} for i in range(120)]
    assert {part.kind for part in measure(metadata)} == {"Sex", "Age", "site"}
    found = measure(metadata, "Site, sex*site")
    assert [(part.kind, part.name) for part in found] == [
        ("site", "a"), ("site", "b"), ("site", "not known"),
        *(("Sex × site", f"{sex}, {site}") for sex in ("female", "male") for site in "ab"), ("Sex × site", "not known"),
    ]  # fmt: skip
    assert sum(part.n for part in found if part.kind == "Sex × site") == 120
    with pytest.raises(UsageError, match="'note' cannot divide the images: 108 different texts"):
        measure(metadata, "note")
    with pytest.raises(UsageError, match="no column 'ward' divides the images; known: Sex, Age, site"):
        measure(metadata, "ward")
