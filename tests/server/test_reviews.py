"""Reviews become labelled samples, which train and evaluate accept."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from services import draw, run_thread
from test_store import make_record

from commands import Command, Result
from pneumoscope.server.storage.reviews import export_reviews, find_label
from pneumoscope.server.storage.store import PredictionRecord, Review, Store

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run


def export(command: Command, settings: Settings, out: Path) -> Result:
    options = ("--database", settings.database, "--images", settings.keep_images, "--out", out)
    return command("reviews", "export", *options)


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def review(client: httpx.Client, prediction: dict[str, Any], label: str) -> None:
    body = {"agrees": prediction["decision"] == label, "label": label}
    assert client.post(f"/v1/predictions/{prediction['id']}/reviews", json=body).status_code == 201


@pytest.fixture
def reviewed(settings: Settings, tmp_path: Path) -> tuple[Settings, dict[str, str]]:
    """A service in which 24 images were given their true labels, and these by SHA-256."""
    settings = replace(settings, keep_images=tmp_path / "kept")
    truth = {}
    with run_thread(settings) as url, httpx.Client(base_url=url) as client:
        for seed in range(24):
            answer = client.post("/v1/predictions", files={"files": (f"{seed}.png", draw(seed))})
            (prediction,) = answer.json()["predictions"]
            label = truth[prediction["sha256"]] = "PNEUMONIA" if seed % 2 else "NORMAL"
            review(client, prediction, label)
    return settings, truth


def test_exported_reviews_are_evaluated_and_trained_on(
    command: Command, reviewed: tuple[Settings, dict[str, str]], run: Run, tmp_path: Path
) -> None:
    settings, truth = reviewed
    table = tmp_path / "reviews.csv"
    done = export(command, settings, table)
    assert done.code == 0, done.err
    rows = read_table(table)
    assert {row["sha256"]: row["label"] for row in rows} == truth
    wrong = sum(row["label"] != row["decision"] for row in rows)
    assert f"{len(truth)} images; the model disagreed on {wrong}." in done.out
    evaluated = command("evaluate", table, "--model", run.model, "--out", tmp_path / "evaluated", "--resamples", 20)
    assert evaluated.code == 0, evaluated.err
    assert "24 images" in evaluated.out
    options = ("--out", tmp_path / "run", "--recipe", "head", "--epochs", 2, "--resamples", 20)
    trained = command("train", table, *options)
    assert trained.code == 0, trained.err
    again = export(command, settings, table)
    assert again.code == 2
    assert "--overwrite" in again.err


def test_the_latest_review_counts_and_missing_files_are_reported(
    command: Command, reviewed: tuple[Settings, dict[str, str]], tmp_path: Path
) -> None:
    settings, truth = reviewed
    assert settings.keep_images is not None
    with run_thread(settings) as url, httpx.Client(base_url=url) as client:
        prediction = client.get("/v1/predictions").json()["predictions"][0]
        other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[truth[prediction["sha256"]]]
        review(client, prediction, other)
        new = client.post("/v1/predictions", files={"files": ("new.png", draw(99))}).json()["predictions"][0]
        if new["decision"] not in ("NORMAL", "PNEUMONIA"):
            client.post(f"/v1/predictions/{new['id']}/reviews", json={"agrees": True})
    (settings.keep_images / "empty.png").touch()
    used = (prediction["sha256"], new["sha256"], "empty")
    gone = next(path for path in settings.keep_images.iterdir() if path.stem not in used)
    gone.unlink()
    done = export(command, settings, tmp_path / "reviews.csv")
    labels = {row["sha256"]: row["label"] for row in read_table(tmp_path / "reviews.csv")}
    assert labels[prediction["sha256"]] == other
    assert gone.stem not in labels
    assert "1 image with a label, but no file in these folders" in done.err
    assert "1 image with several labels: the latest is written" in done.err
    assert "1 image in these folders: cannot be read" in done.err


def test_without_reviews_or_a_database_there_is_no_export(command: Command, settings: Settings, tmp_path: Path) -> None:
    empty = tmp_path / "empty.sqlite"
    settings = replace(settings, database=str(empty), keep_images=tmp_path)
    done = export(command, settings, tmp_path / "a.csv")
    assert done.code == 2
    assert "no such file" in done.err
    assert not empty.exists()
    Store(str(empty)).close()
    done = export(command, settings, tmp_path / "a.csv")
    assert done.code == 3
    assert "no reviews" in done.err
    assert not (tmp_path / "a.csv").exists()


def test_a_later_review_without_a_class_withdraws_a_label(
    reviewed: tuple[Settings, dict[str, str]], tmp_path: Path
) -> None:
    settings, _ = reviewed
    with Store(settings.database) as store:
        record, _ = store.list_reviews()[0]
        store.add([Review(prediction_id=record.id, agrees=True)])
        done = export_reviews(store, tmp_path / "reviews.csv", [settings.keep_images or tmp_path])
    assert (done.images, done.unlabelled) == (23, 1)
    assert record.sha256 not in {row["sha256"] for row in read_table(tmp_path / "reviews.csv")}


def test_another_models_prediction_is_reviewed_by_that_models_classes(settings: Settings) -> None:
    other = make_record(decision="TUBERCULOSIS", predicted_label="TUBERCULOSIS", fingerprint="another")
    with run_thread(settings) as url:
        with Store(settings.database) as store:
            store.add([other])
            where = f"{url}/v1/predictions/{other.id}/reviews"
        assert httpx.post(where, json={"agrees": True}).json()["label"] == "TUBERCULOSIS"
        assert httpx.post(where, json={"agrees": False}).status_code == 422
        assert httpx.post(where, json={"agrees": False, "label": "NORMAL"}).json()["label"] == "NORMAL"


def test_reviewers_words_are_not_formulas_in_a_spreadsheet(
    reviewed: tuple[Settings, dict[str, str]], tmp_path: Path
) -> None:
    settings, _ = reviewed
    with Store(settings.database) as store:
        record, _ = store.list_reviews()[0]
        store.add(
            [Review(prediction_id=record.id, agrees=True, label="NORMAL", comment="=HYPERLINK(1)", reviewer="@me")]
        )
        export_reviews(store, tmp_path / "reviews.csv", [settings.keep_images or tmp_path])
    rows = read_table(tmp_path / "reviews.csv")
    assert ("'=HYPERLINK(1)", "'@me") in {(row["comment"], row["reviewer"]) for row in rows}


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
def test_a_review_of_a_prediction_that_is_deleted_meanwhile_is_refused(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    database = url

    def delete_first(record: PredictionRecord, *arguments: Any) -> str | None:
        with Store(database) as store:
            store.delete([record.id])
        return find_label(record, *arguments)

    with run_thread(replace(settings, database=database)) as url:
        answer = httpx.post(f"{url}/v1/predictions", files={"f": draw(1)}, timeout=60)
        monkeypatch.setattr("pneumoscope.server.stored.find_label", delete_first)
        where = f"{url}/v1/{answer.json()['predictions'][0]['href']}/reviews"
        refused = httpx.post(where, json={"agrees": True}, headers=headers, timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (404, "prediction-not-found")
