"""A second model beside the first: kept and compared, or answering for a share of the images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from services import draw, run_thread, wait_until

from pneumoscope.errors import UsageError
from pneumoscope.models.model_folder import load_model, save_changed
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.storage.records import ShadowPrediction
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run

IMAGES = [draw(seed) for seed in range(12)]


@pytest.fixture
def other(run: Run, tmp_path: Path) -> Path:
    """The same model with a threshold that no image reaches, and without prediction sets: nothing is uncertain."""
    model = load_model(run.model)
    threshold = {**model.decisions["threshold"], "value": 0.9999999, "rule": "0.9999999"}
    changed = replace(model, decisions={**model.decisions, "threshold": threshold, "prediction_sets": None})
    save_changed(tmp_path / "other", run.model, changed, {})
    return tmp_path / "other"


def upload(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    files = [("files", (f"{i}.png", content)) for i, content in enumerate(IMAGES)]
    found: list[dict[str, Any]] = client.post("/v1/predictions", files=files, params=query).json()["predictions"]
    return found


def wait_for(client: httpx.Client, images: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def seen() -> bool:
        found.update(client.get("/v1/monitoring").json()["second_model"])
        return bool(found["images"] == images)

    wait_until(seen)
    return found


def test_a_shadow_is_kept_and_compared_and_never_shown(settings: Settings, other: Path) -> None:
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        alone = upload(client, store=False)
        assert client.get("/v1/monitoring").json()["second_model"] is None
    with run_thread(replace(settings, shadow_model=other)) as url, httpx.Client(base_url=url, timeout=60) as client:
        beside = upload(client)
        for one, two in zip(alone, beside, strict=True):
            assert {**one, "id": 0, "created_at": 0, "href": 0} == {**two, "id": 0, "created_at": 0, "href": 0}
        upload(client, store=False)
        found = wait_for(client, len(IMAGES))
        first, second = client.get("/v1/models").json()
        listed = client.get("/v1/predictions").json()["predictions"]
        assert {each["fingerprint"] for each in listed} == {first["fingerprint"]}
        changed = [each for each in beside if each["predicted_label"] == "PNEUMONIA"]
        assert changed
        assert (found["fingerprint"], found["answered_by_second"]) == (second["fingerprint"], 0)
        assert found["same_label"]["value"] == pytest.approx(1 - len(changed) / len(IMAGES))
        assert found["mean_absolute_difference"] == pytest.approx(0, abs=1e-5)  # only the threshold is another
        named = next(each for each in beside if each["id"] == found["latest"][0]["prediction_id"])
        assert named["decision"] == found["latest"][0]["first"] != found["latest"][0]["second"]
        assert found["latest"][0]["second"] == "NORMAL"
        review = {"agrees": False, "label": "NORMAL"}
        assert client.post(f"/v1/predictions/{named['id']}/reviews", json=review).status_code == 201
        reviewed = client.get("/v1/monitoring").json()["second_model"]["reviewed"]
        assert reviewed == {"images": 1, "first_matches": 0, "second_matches": 1}
        metrics = client.get("/metrics").text
        assert 'pneumoscope_shadow_images_total{result="kept"} 12.0' in metrics
        assert 'role="shadow"' in metrics


def test_the_same_image_is_always_answered_by_the_same_model(settings: Settings, other: Path) -> None:
    digests = [hashlib.sha256(content).hexdigest() for content in IMAGES]
    of_second = {digest for digest in digests if int(digest[:8], 16) < 0.5 * 2**32}
    assert 0 < len(of_second) < len(digests)
    given = replace(settings, shadow_model=other, canary=0.5)
    with run_thread(given) as url, httpx.Client(base_url=url, timeout=60) as client:
        first, second = client.get("/v1/models").json()
        for _ in range(2):
            for each in upload(client):
                model = second if each["sha256"] in of_second else first
                assert (each["model"], each["fingerprint"]) == (model["name"], model["fingerprint"])
                if model is second and each["decision"] != "out_of_distribution":
                    assert each["predicted_label"] == "NORMAL"
        assert all(each["reused"] for each in upload(client, reuse=True))
        found = wait_for(client, len(IMAGES))
        assert found["answered_by_second"] == len(of_second)
        assert found["canary"] == 0.5


def test_what_a_shadow_said_is_deleted_with_the_prediction(url: str, settings: Settings, other: Path) -> None:
    given = replace(settings, shadow_model=other, database=url)
    with run_thread(given) as address, httpx.Client(base_url=address, timeout=60) as client:
        predictions = upload(client)
        wait_for(client, len(IMAGES))
        assert client.delete(f"/v1/predictions/{predictions[0]['id']}").status_code == 204
        with Store(url) as store:
            store.delete([each["id"] for each in predictions[1:5]])
            with store.read() as connection:
                left = set(connection.scalars(sql.select(ShadowPrediction.prediction_id)))
    assert left == {each["id"] for each in predictions[5:]}


def test_models_that_cannot_be_compared_are_refused(settings: Settings, other: Path, run: Run) -> None:
    with pytest.raises(UsageError, match="This is the model that is served"):
        PredictionService(replace(settings, shadow_model=run.model))
    model = load_model(other)
    save_changed(other, run.model, replace(model, input=replace(model.input, fit="squash")), {})
    with pytest.raises(UsageError, match="prepares images differently"):
        PredictionService(replace(settings, shadow_model=other))
    with pytest.raises(UsageError, match="no effect without"):
        replace(settings, canary=0.1).check()
