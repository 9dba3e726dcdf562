"""Monitoring: shares with intervals, and drift against the validation images."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rooms import draw, run_thread
from scipy.stats import binomtest, ks_2samp
from test_memory import make_read

from pneumoscope.models.model_folder import load_model
from pneumoscope.server.monitoring import ENOUGH, bound_by_chance, find_reference, measure_drift, summarise
from pneumoscope.server.store import Verdict, now

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run


def test_drift_is_nothing_between_equals_and_much_between_opposites() -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(0.5, 0.5, 2000)
    stability, distance = measure_drift(rng.beta(0.5, 0.5, 2000), reference)
    assert stability < 0.05
    assert distance < 0.06
    scores = rng.beta(5, 1, 2000)
    stability, distance = measure_drift(scores, reference)
    assert distance == pytest.approx(ks_2samp(scores, reference).statistic)
    assert stability > 0.25
    assert distance > 0.3


def test_drift_is_what_its_definition_says() -> None:
    """Siddiqi 2006: the sum over bins of (new - old) ln(new / old), with bins that halve the reference here."""
    reference = np.linspace(0.05, 0.95, 10)  # an image in each tenth
    scores = np.array([0.0] * 6 + [1.0] * 4)
    new = np.array([6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 4])
    old = np.ones(10)
    new, old = new / new.sum(), old / old.sum()
    assert measure_drift(scores, reference)[0] == pytest.approx(np.sum((new - old) * np.log(new / old)))


def test_where_nothing_has_changed_the_index_stays_below_its_bound_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    bound = bound_by_chance(400, 900)
    drawn = [measure_drift(rng.beta(0.5, 0.5, 400), rng.beta(0.5, 0.5, 900))[0] for _ in range(1000)]
    assert 0.92 < np.mean(np.array(drawn) < bound) < 0.98


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_drift_is_finite_and_never_negative(scores: list[float], reference: list[float]) -> None:
    stability, distance = measure_drift(np.array(scores), np.array(reference))
    assert 0 <= stability < np.inf
    assert 0 <= distance <= 1


def test_shares_are_counted_over_the_images_they_are_about(run: Run) -> None:
    model = load_model(run.model)
    normal = make_read(decision="NORMAL", predicted_label="NORMAL", score=0.1)
    ood = make_read(decision="out_of_distribution", predicted_label="PNEUMONIA", probability=None)
    unsure = make_read(decision="uncertain", predicted_label="NORMAL", score=0.4)
    other = make_read(fingerprint="another")
    reads = [make_read(), normal, normal, ood, unsure, other]
    reads = [replace(read, id=str(i), digest=str(i)) for i, read in enumerate(reads)]
    reads[1] = replace(
        reads[1], digest=reads[2].digest, decision="out_of_distribution"
    )  # the same image, read again as number 2
    reads[2] = replace(reads[2], at=later(1))
    verdicts = {
        "0": [Verdict("0", now(), "", False, "NORMAL", ""), Verdict("0", now(), "", True, "PNEUMONIA", "")],
        "1": [Verdict("1", now(), "", False, "PNEUMONIA", "")],
        "2": [Verdict("2", later(1), "", False, "PNEUMONIA", ""), Verdict("2", later(2), "", True, "NORMAL", "")],
        "5": [Verdict("5", now(), "", False, "NORMAL", "")],  # on another model's read
    }
    found = summarise(reads, verdicts, model, "f" * 64)
    assert (found["of_this_model"], found["images"]) == (5, 4)
    assert found["shares"]["positive"]["value"] == 1 / 3  # of those that are not ood
    assert found["shares"]["out_of_distribution"] == {"value": 1 / 4, "n": 4, **limits(1, 4)}
    assert found["shares"]["uncertain"]["value"] == 1 / 4
    assert found["agreement"]["all"] == {"value": 1.0, "n": 2, **limits(2, 2)}  # the latest verdict on an image counts
    assert found["agreement"]["PNEUMONIA"]["value"] == 1
    assert found["agreement"]["NORMAL"]["n"] == 1
    assert found["scores"]["stability_index"] is None  # too few images
    assert sum(found["scores"]["now"]) == 3


def test_drift_is_told_from_enough_images_on(run: Run) -> None:
    model = load_model(run.model)
    reads = [make_read(id=str(i), digest=str(i), score=i / ENOUGH) for i in range(ENOUGH)]
    assert summarise(reads[1:], {}, model, "f" * 64)["scores"]["stability_index"] is None
    found = summarise(reads, {}, model, "f" * 64)["scores"]
    index, distance = measure_drift(np.arange(ENOUGH) / ENOUGH, find_reference(model))
    assert found["stability_index"] == pytest.approx(index)
    assert found["largest_distance"] == pytest.approx(distance)
    assert found["stability_by_chance"] == bound_by_chance(ENOUGH, len(find_reference(model)))


def later(seconds: int) -> datetime.datetime:
    return now() + datetime.timedelta(seconds=seconds)


def limits(hits: int, n: int) -> dict[str, Any]:
    wilson = binomtest(hits, n).proportion_ci(method="wilson")
    return {"low": pytest.approx(wilson.low), "high": pytest.approx(wilson.high)}


def test_the_reference_is_the_validation_images_of_the_model(run: Run) -> None:
    model = load_model(run.model)
    assert model.conformal is not None
    scores = find_reference(model)
    assert len(scores) == sum(len(each) for each in model.conformal.scores.values())
    positive = model.conformal.scores["PNEUMONIA"]
    assert sorted(scores[-len(positive) :]) == pytest.approx(list(positive))
    assert len(find_reference(replace(model, conformal=None))) == 0


def test_the_service_tells_what_it_saw_in_the_days_asked_for(settings: Settings) -> None:
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        files = [("files", (f"{seed}.png", draw(seed))) for seed in range(30)]
        assert client.get("/v1/monitoring").json()["reads"] == 0
        client.post("/v1/predictions", files=files)
        found = client.get("/v1/monitoring", params={"days": 7}).json()
        assert (found["reads"], found["images"], found["looked_at"]) == (30, 30, 30)
        assert found["volume"] == {datetime.datetime.now(datetime.UTC).date().isoformat(): 30}
        assert found["scores"]["stability_index"] is None
        assert client.get("/v1/monitoring", params={"days": 0}).status_code == 422
