"""Monitoring: shares with intervals, and drift from the validation images."""

from __future__ import annotations

import csv
import datetime
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp
from services import draw, run_thread
from test_store import make_record

from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.models.model_folder import load_model
from pneumoscope.server.monitoring.groups import list_groups, list_series
from pneumoscope.server.monitoring.summary import MIN_IMAGES, bound_by_chance, find_reference, measure_drift, summarise
from pneumoscope.server.storage.reviews import export_reviews
from pneumoscope.server.storage.store import PredictionRecord, Review, Store, now

if TYPE_CHECKING:
    from pathlib import Path

    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run

PERIOD = (now().date() - datetime.timedelta(days=29), 30)


def test_drift_is_small_between_equal_distributions_and_large_between_opposite_ones() -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(0.5, 0.5, 2000)
    index, distance = measure_drift(rng.beta(0.5, 0.5, 2000), reference)
    assert index < 0.05
    assert distance < 0.06
    scores = rng.beta(5, 1, 2000)
    index, distance = measure_drift(scores, reference)
    assert distance == pytest.approx(ks_2samp(scores, reference).statistic)
    assert index > 0.25
    assert distance > 0.3


def test_drift_is_what_its_definition_says() -> None:
    """Siddiqi 2006: the sum over bins of (new - old) ln(new / old), with bins that halve the reference here."""
    reference = np.linspace(0.05, 0.95, 10)  # an image in each tenth
    scores = np.array([0.0] * 6 + [1.0] * 4)
    new = np.array([6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 4])
    old = np.ones(10)
    new, old = new / new.sum(), old / old.sum()
    assert measure_drift(scores, reference)[0] == pytest.approx(np.sum((new - old) * np.log(new / old)))


def test_if_nothing_has_changed_the_index_stays_below_its_bound_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    bound = bound_by_chance(400, 900)
    drawn = [measure_drift(rng.beta(0.5, 0.5, 400), rng.beta(0.5, 0.5, 900))[0] for _ in range(1000)]
    assert 0.92 < np.mean(np.array(drawn) < bound) < 0.98


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_drift_is_finite_and_never_negative(scores: list[float], reference: list[float]) -> None:
    index, distance = measure_drift(np.array(scores), np.array(reference))
    assert 0 <= index < np.inf
    assert 0 <= distance <= 1


def test_shares_are_counted_over_the_images_they_are_about(run: Run) -> None:
    model = load_model(run.model)
    normal = {"decision": "NORMAL", "predicted_label": "NORMAL", "probabilities": {"NORMAL": 0.9, "PNEUMONIA": 0.1}}
    outside = {"decision": "out_of_distribution", "probability": None}
    kinds: list[dict[str, Any]] = [{}, normal | outside, normal, outside, normal | {"decision": "uncertain"}]
    records = [make_record(sha256=str(i), **kind) for i, kind in enumerate(kinds)]
    records[1].sha256 = "2"  # the same image as the next
    records.append(make_record(fingerprint="another"))
    given = ((0, False), (0, True), (1, False), (2, False), (2, True), (5, False))
    reviews = [(records[i], Review(prediction_id=records[i].id, agrees=agrees)) for i, agrees in given]
    number_as_stored(records, [review for _, review in reviews])
    summary = summarise(records[::-1], reviews[::-1], model, "f" * 64, PERIOD)
    assert (summary["of_this_model"], summary["images"]) == (5, 4)
    assert summary["shares"]["positive"]["value"] == 1 / 3  # of those that are in distribution
    assert summary["shares"]["out_of_distribution"] == {"value": 1 / 4, "n": 4, **interval(1, 4)}
    assert summary["shares"]["uncertain"]["value"] == 1 / 4
    assert summary["agreement"]["all"] == {"value": 1.0, "n": 2, **interval(2, 2)}  # the latest review of each image
    assert summary["agreement"]["PNEUMONIA"]["value"] == 1
    assert summary["agreement"]["NORMAL"]["n"] == 1
    assert summary["drift"]["psi"] is None  # too few images
    assert sum(summary["drift"]["current"]) == 3


def test_drift_is_measured_if_there_are_enough_images(run: Run) -> None:
    model = load_model(run.model)
    shares = np.arange(MIN_IMAGES) / MIN_IMAGES
    records = [
        make_record(sha256=str(i), probabilities={"NORMAL": 1 - share, "PNEUMONIA": share})
        for i, share in enumerate(shares.tolist())
    ]
    number_as_stored(records, [])
    assert summarise(records[1:], [], model, "f" * 64, PERIOD)["drift"]["psi"] is None
    drift = summarise(records, [], model, "f" * 64, PERIOD)["drift"]
    index, distance = measure_drift(shares, find_reference(model))
    assert drift["psi"] == pytest.approx(index)
    assert drift["ks_distance"] == pytest.approx(distance)
    assert drift["psi_by_chance"] == bound_by_chance(MIN_IMAGES, len(find_reference(model)))


def test_ood_scores_are_compared_as_distances_whatever_limit_the_group_has(run: Run) -> None:
    model = load_model(run.model)
    ood = read_decisions(model).ood
    assert ood is not None
    reference = np.concatenate([np.array(each) for each in ood.distances.values()])
    drawn = np.random.default_rng(0).choice(reference, MIN_IMAGES)
    records = [make_record(sha256=str(i), ood_score=float(each) / ood.limit) for i, each in enumerate(drawn)]
    number_as_stored(records, [])
    same = summarise(records, [], model, "f" * 64, PERIOD)["ood_drift"]
    assert same["psi"] == pytest.approx(measure_drift(drawn, reference)[0])
    for record in records:
        record.ood_score = 2.0
    assert summarise(records, [], model, "f" * 64, PERIOD)["ood_drift"]["psi"] > 1


def test_days_with_few_images_are_pooled_and_none_is_lost(run: Run) -> None:
    model = load_model(run.model)
    first = datetime.date(2026, 1, 1)
    counts = {0: 25, 1: 5, 2: 0, 3: 18, 4: 30, 6: 3}  # by day
    records = [
        make_record(created_at=datetime.datetime(2026, 1, 1 + day), decision="uncertain" if day == 4 else "PNEUMONIA")
        for day, count in counts.items()
        for _ in range(count)
    ]
    series = list_series(records, model, first, 7)
    found = [(part["first_day"][-2:], part["last_day"][-2:], part["images"]) for part in series]
    assert found == [("01", "01", 25), ("02", "04", 23), ("05", "07", 33)]
    assert series[2]["shares"]["uncertain"] == {"value": 30 / 33, "n": 33, **interval(30, 33)}
    assert list_series([], model, first, 7) == []
    few = list_series(records[-3:], model, first, 7)
    assert [(part["first_day"], part["images"]) for part in few] == [("2026-01-07", 3)]
    weeks = list_series(records, model, first - datetime.timedelta(days=70), 90)
    assert [(part["first_day"], part["last_day"], part["images"]) for part in weeks] == [
        ("2026-01-01", "2026-01-07", 81)
    ]


def test_groups_hold_every_image_and_count_what_is_missing(run: Run) -> None:
    model = load_model(run.model)
    ages = [None, 0.5, 17.9, 18.0, 64.0, 65.0, 90.0]
    records = [make_record(age=age, view=f"view {i}", sex="F" if i else None) for i, age in enumerate(ages)]
    records += [make_record(view=f"view {i}", sex="M", decision="out_of_distribution") for i in range(4, 20)]
    groups = list_groups(records, [(records[1], True), (records[2], False), (records[0], True)], model)
    assert all(sum(group["images"] for group in kind) == len(records) for kind in groups.values())
    assert [(each["name"], each["images"]) for each in groups["age"]] == [
        ("0–17", 2), ("18–39", 1), ("40–64", 1), ("65 and over", 2), ("unknown", 17),
    ]  # fmt: skip
    assert groups["age"][0]["agreement"] == {"value": 0.5, "n": 2, **interval(1, 2)}
    assert groups["age"][1]["agreement"]["n"] == 0
    assert [each["name"] for each in groups["sex"]] == ["F", "M", "unknown"]
    assert groups["sex"][1]["shares"]["out_of_distribution"] == {"value": 1.0, "n": 16, **interval(16, 16)}
    assert groups["sex"][1]["shares"]["positive"]["n"] == 0
    assert len(groups["view"]) == 8
    assert groups["view"][-1]["name"] == "others"


def number_as_stored(records: list[PredictionRecord], reviews: list[Review]) -> None:
    """As a database numbers what is stored."""
    for number, record in enumerate(records, start=1):
        record.number = number
    for number, review in enumerate(reviews, start=1):
        review.number = number


def test_monitoring_and_export_mean_the_same_latest_after_a_clock_was_set_back(
    url: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image.png").write_bytes(image := draw(3))
    yesterday = now() - datetime.timedelta(days=1)
    digest = hashlib.sha256(image).hexdigest()
    first = make_record(sha256=digest, decision="uncertain")
    second = make_record(sha256=digest, created_at=yesterday)
    with Store(url) as store:
        for record in (first, second):
            store.add([record])
        store.add([Review(prediction_id=second.id, agrees=True, label="PNEUMONIA")])
        store.add([Review(prediction_id=second.id, agrees=False, label="NORMAL", created_at=yesterday)])
        export_reviews(store, tmp_path / "reviews.csv", [tmp_path / "images"])
        period = yesterday - datetime.timedelta(days=1)
        outcomes, reviews = store.list_outcomes(10, period), store.list_reviews(period)
        listed = store.list_predictions(10)
    (row,) = csv.DictReader((tmp_path / "reviews.csv").read_text(encoding="utf-8").splitlines())
    summary = summarise(outcomes, reviews, load_model(run.model), "f" * 64, PERIOD)
    assert (row["label"], row["decision"]) == ("NORMAL", "PNEUMONIA")
    assert summary["agreement"]["all"]["value"] == 0
    assert summary["shares"]["uncertain"]["value"] == 0
    assert [record.id for record in listed] == [second.id, first.id]


def interval(hits: int, n: int) -> dict[str, Any]:
    wilson = binomtest(hits, n).proportion_ci(method="wilson")
    return {"low": pytest.approx(wilson.low), "high": pytest.approx(wilson.high)}


def test_the_reference_is_the_validation_images_of_the_model(run: Run) -> None:
    model = load_model(run.model)
    sets = read_decisions(model).prediction_sets
    assert sets is not None
    reference = find_reference(model)
    assert len(reference) == sum(len(each) for each in sets.scores.values())
    positive = sets.scores["PNEUMONIA"]
    assert sorted(reference[-len(positive) :]) == pytest.approx(list(positive))
    without = replace(model, decisions={**model.decisions, "prediction_sets": None})
    assert len(find_reference(without)) == 0


def test_the_service_summarises_the_days_asked_for(settings: Settings) -> None:
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        files = [("files", (f"{seed}.png", draw(seed))) for seed in range(30)]
        assert client.get("/v1/monitoring").json()["predictions"] == 0
        client.post("/v1/predictions", files=files)
        summary = client.get("/v1/monitoring", params={"days": 7}).json()
        assert (summary["predictions"], summary["images"], summary["summarised"]) == (30, 30, 30)
        assert summary["per_day"] == {datetime.datetime.now(datetime.UTC).date().isoformat(): 30}
        assert summary["drift"]["psi"] is None
        assert client.get("/v1/monitoring", params={"days": 0}).status_code == 422
