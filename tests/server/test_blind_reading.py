"""Blind reading: what the service withholds until a reading is committed, and what it keeps of readings."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from services import draw, run_process, run_thread, wait_until

from pneumoscope.server.access.tokens import TokenFile
from pneumoscope.server.app import build_app
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.readings import readings
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from commands import Command
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run

FREE = {"/v1/models", "/v1/examples", "/v1/me", "/v1/readings"}  # have nothing of a stored prediction that is unread
ANSWER = (
    "decision", "predicted_label", "probability", "ood_score", "group", "explanation", "heatmap",
)  # fmt: skip


@dataclass
class Room:
    """A service that is read blind, and clients of it."""

    reader: httpx.Client
    other: httpx.Client
    viewer: httpx.Client
    admin: httpx.Client


@pytest.fixture
def blind(settings: Settings, tmp_path: Path) -> Iterator[Room]:
    file = TokenFile(tmp_path / "tokens")
    tokens = [
        file.add_token("ann", "review"), file.add_token("bob", "review"), file.add_token("eve", "read"),
        file.add_token("root", "admin"),
    ]  # fmt: skip
    changed = replace(settings, tokens=file.path, mode="blind", keep_images=tmp_path / "kept")
    with run_thread(changed) as url:
        clients = [
            httpx.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {each}"}) for each in tokens
        ]
        yield Room(*clients)
        for client in clients:
            client.close()


def send(client: httpx.Client, seed: int = 3, **query: Any) -> dict[str, Any]:
    answer = client.post("/v1/predictions", params=query, files={"files": (f"{seed}.png", draw(seed))})
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()["predictions"][0]
    return found


def commit(client: httpx.Client, prediction: dict[str, Any], **values: Any) -> httpx.Response:
    return client.post(f"/v1/predictions/{prediction['id']}/readings", json=values)


def withheld(prediction: dict[str, Any]) -> bool:
    assert prediction["withheld"] is all(prediction[name] is None for name in ANSWER)
    if prediction["withheld"]:
        nothing: list[Any] = [{}, [], [], [], [], 0]
        names = ("probabilities", "prediction_set", "warnings", "reviews", "image_reviews", "review_count")
        assert [prediction[name] for name in names] == nothing
    return bool(prediction["withheld"])


def test_an_upload_shows_nothing_of_the_answer_before_a_reading_and_all_of_it_after(blind: Room) -> None:
    found = send(blind.reader, heatmap=True, picture=True)
    assert withheld(found)
    assert found["picture"]
    committed = commit(blind.reader, found, label="NORMAL", confidence=75, comment="clear", seconds=4.5)
    assert committed.status_code == 201
    reading, shown = committed.json()["reading"], committed.json()["prediction"]
    assert (reading["reader"], reading["with_ai"], reading["sequence"], reading["label"]) == ("ann", False, 1, "NORMAL")
    assert shown["decision"] is not None
    assert shown["probability"] is not None or shown["decision"] == "out_of_distribution"
    again = send(blind.reader)  # the same file, as a new prediction
    assert again["id"] != found["id"]
    assert not again["withheld"]
    assert again["decision"] == shown["decision"]


@pytest.mark.parametrize("query", [{"store": False}, {"reuse": True}, {"heatmap": True}, {"blind": False}])
def test_no_other_way_of_sending_a_file_shows_the_answer(blind: Room, query: dict[str, Any]) -> None:
    send(blind.admin)
    assert withheld(send(blind.reader, **query))


def test_a_request_that_is_sent_again_and_a_job_show_no_answer_either(blind: Room) -> None:
    for _ in range(2):
        answer = blind.reader.post(
            "/v1/predictions", files={"files": ("a.png", draw(5))}, headers={"idempotency-key": "once"}
        )
        assert withheld(answer.json()["predictions"][0])
    assert answer.headers["idempotency-replayed"] == "true"
    job = blind.reader.post(
        "/v1/predictions", files={"files": ("a.png", draw(6))}, headers={"prefer": "respond-async"}
    ).json()
    wait_until(lambda: blind.reader.get(f"/v1/{job['href']}").json()["state"] == "done")
    assert withheld(blind.reader.get(f"/v1/{job['href']}").json()["predictions"][0])


def test_lists_evidence_reviews_and_studies_show_no_answer(blind: Room) -> None:
    own, of_admin = send(blind.reader, 3), send(blind.admin, 4)
    review = {"answer": "disagree", "label": None, "reviewer": "root"}
    if of_admin["decision"] not in ("NORMAL", "PNEUMONIA"):
        review["label"] = "NORMAL"
    assert blind.admin.post(f"/v1/predictions/{of_admin['id']}/reviews", json=review).status_code == 201
    for client in (blind.reader, blind.viewer):
        listed = client.get("/v1/predictions").json()["predictions"]
        assert [withheld(each) for each in listed] == [True, True]
        for each in (own, of_admin):
            place = f"/v1/predictions/{each['id']}"
            assert withheld(client.get(place).json())
            assert client.get(f"{place}/image").status_code == 200
            for path in ("evidence.png", "reviews", "reviews/1"):
                answer = client.get(f"{place}/{path}")
                assert (answer.status_code, answer.json()["code"]) == (403, "answer-withheld")
        assert client.get("/v1/predictions", params={"decision": "PNEUMONIA"}).status_code == 403
        assert all(each["decisions"] == {} for each in client.get("/v1/studies").json()["studies"])
    refused = blind.reader.post(f"/v1/predictions/{of_admin['id']}/reviews", json={"answer": "agree"})
    assert (refused.status_code, refused.json()["code"]) == (403, "answer-withheld")
    assert not blind.admin.get(f"/v1/predictions/{own['id']}").json()["withheld"]
    assert blind.admin.get("/v1/predictions", params={"decision": "PNEUMONIA"}).status_code == 200


def test_counters_and_summaries_are_for_admins(blind: Room) -> None:
    for path in ("/v1/monitoring", "/metrics", "/v1/node", "/v1/reading-performance", "/v1/teaching"):
        assert blind.reader.get(path).json()["code"] == "answer-withheld"
        assert blind.admin.get(path).status_code == 200


def test_every_route_either_withholds_answers_or_is_closed(blind: Room, settings: Settings) -> None:
    """A route that somebody adds later is closed until it says that it withholds answers."""
    blind_settings = replace(settings, mode="blind")
    service = PredictionService(replace(blind_settings, database=f"{settings.database}.other"))
    app: Any = build_app(blind_settings, service)
    document = app._app.openapi()
    service.store.close()
    closed: set[str] = set()
    open_: set[str] = set()
    for path in document["paths"]:
        place = re.sub(r"\{number\}", "1", re.sub(r"\{(id|name)\}", "x", path))
        if place.startswith(("/v1/", "/metrics")) and "get" in document["paths"][path]:
            answer = blind.reader.get(place)
            (closed if answer.status_code == 403 else open_).add(path)
    assert {"/v1/monitoring", "/metrics", "/v1/node", "/v1/teaching"} <= closed
    assert open_ == FREE | {
        "/v1/predictions", "/v1/predictions/{id}", "/v1/predictions/{id}/image", "/v1/predictions/{id}/evidence.png",
        "/v1/predictions/{id}/reviews", "/v1/predictions/{id}/reviews/{number}", "/v1/studies", "/v1/jobs/{id}",
        "/v1/models/{name}", "/v1/examples/{number}",
    }  # fmt: skip


def test_a_reading_shows_the_answer_to_its_reader_alone(blind: Room) -> None:
    found = send(blind.reader)
    commit(blind.reader, found, label="PNEUMONIA")
    assert not blind.reader.get(f"/v1/predictions/{found['id']}").json()["withheld"]
    assert blind.reader.get(f"/v1/predictions/{found['id']}/reviews").status_code == 200
    for client in (blind.other, blind.viewer):
        assert withheld(client.get(f"/v1/predictions/{found['id']}").json())
        assert client.get("/v1/readings").json()["readings"] == []
        assert client.get("/v1/readings", params={"reader": "ann"}).status_code == 403
    assert [each["label"] for each in blind.reader.get("/v1/readings").json()["readings"]] == ["PNEUMONIA"]
    assert commit(blind.viewer, found, label="NORMAL").status_code == 403
    posing = commit(blind.other, found, label="NORMAL", reader="ann").json()
    assert posing["reading"]["reader"] == "bob"


def test_a_reading_is_never_changed_and_a_later_one_is_a_reading_with_ai(blind: Room) -> None:
    found = send(blind.reader)
    early = commit(blind.reader, found, label="NORMAL", with_ai=True)
    assert (early.status_code, early.json()["code"]) == (409, "reading-missing")
    first = {"label": "NORMAL", "confidence": 25}
    assert commit(blind.reader, found, **first).status_code == 201
    assert commit(blind.reader, found, **first).status_code == 200  # sent again after a lost answer
    changed = commit(blind.reader, found, label="PNEUMONIA", confidence=25)
    assert (changed.status_code, changed.json()["code"]) == (409, "reading-committed")
    assert commit(blind.reader, found, label="PNEUMONIA", confidence=100, with_ai=True).status_code == 201
    assert commit(blind.reader, found, label=None, with_ai=True).status_code == 201
    rows = blind.reader.get("/v1/readings").json()["readings"]
    assert [(each["sequence"], each["with_ai"], each["label"]) for each in rows] == [
        (3, True, None), (2, True, "PNEUMONIA"), (1, False, "NORMAL"),
    ]  # fmt: skip
    pages = blind.reader.get("/v1/readings", params={"limit": 2})
    assert 'rel="next"' in pages.headers["link"]
    rest = blind.reader.get("/v1/readings", params={"limit": 2, "cursor": pages.json()["next"]}).json()
    assert [each["sequence"] for each in rest["readings"]] == [1]


@pytest.mark.parametrize(
    "values",
    [{"label": "TUBERCULOSIS"}, {"label": None, "confidence": 50}, {"label": "NORMAL", "confidence": 101}, {"sure": 1}],
)
def test_an_invalid_reading_is_refused_and_shows_nothing(blind: Room, values: dict[str, Any]) -> None:
    found = send(blind.reader)
    assert commit(blind.reader, found, **values).status_code == 422
    assert withheld(blind.reader.get(f"/v1/predictions/{found['id']}").json())


def test_who_has_reviewed_an_image_is_not_blind_any_more(settings: Settings) -> None:
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        found = send(client)
        review = {"answer": "cannot_tell", "reviewer": "ann"}
        assert client.post(f"/v1/predictions/{found['id']}/reviews", json=review).status_code == 201
        late = commit(client, found, label="NORMAL", reader="ann")
        assert (late.status_code, late.json()["code"]) == (409, "reading-committed")
        assert commit(client, found, label="NORMAL", reader="ann", with_ai=True).status_code == 201
        assert commit(client, found, label="NORMAL", reader="bob").status_code == 201


def test_whoever_wants_to_read_blind_gets_no_answer_where_nothing_is_prescribed(settings: Settings) -> None:
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert withheld(send(client, blind=True, heatmap=True))
        assert not send(client)["withheld"]


def test_readings_go_with_their_prediction(blind: Room) -> None:
    found = send(blind.reader)
    commit(blind.reader, found, label="NORMAL")
    assert blind.admin.delete(f"/v1/predictions/{found['id']}").status_code == 204
    assert blind.reader.get("/v1/readings").json()["readings"] == []
    assert withheld(send(blind.reader))


def test_a_committed_reading_survives_kill_9(run: Run, tmp_path: Path) -> None:
    database = str(tmp_path / "predictions.sqlite")
    with run_process(run.model, database) as process:
        with process.client() as client:
            assert commit(client, send(client), label="NORMAL", reader="ann").status_code == 201
        process.process.end()
    with run_process(run.model, database) as process, process.client() as client:
        assert [each["reader"] for each in client.get("/v1/readings").json()["readings"]] == ["ann"]


def test_performance_is_measured_with_truth_from_a_table(settings: Settings, tmp_path: Path, command: Command) -> None:
    truth: dict[str, str] = {}
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        for seed in range(16):
            found = send(client, seed)
            right = ("NORMAL", "PNEUMONIA")[seed % 2]
            wrong = ("PNEUMONIA", "NORMAL")[seed % 2]
            truth[found["sha256"]] = right
            commit(client, found, label=wrong if seed < 6 else right, confidence=50, reader="ann")
            commit(client, found, label=wrong if seed < 2 else right, confidence=75, reader="ann", with_ai=True)
            for with_ai in (False, True):
                commit(client, found, label=right if seed % 4 or with_ai else None, reader="<b>", with_ai=with_ai)
        answer = client.get("/v1/reading-performance").json()["readers"]
    assert [(each["reader"], each["read"], each["finished"], each["with_truth"]) for each in answer] == [
        ("<b>", 16, 16, 0), ("ann", 16, 16, 0)
    ]  # fmt: skip
    table = tmp_path / "truth.csv"
    table.write_text("sha256,label\n" + "".join(f"{key},{label}\n" for key, label in truth.items()), encoding="utf-8")
    out = tmp_path / "out"
    result = command(
        "reviews", "performance", "--truth", str(table), "--database", str(settings.database), "--out", str(out)
    )
    assert result.code == 0, result.err
    written = json.loads((out / "performance.json").read_text(encoding="utf-8"))
    measured = written["readers"][1]
    metrics = measured["metrics"]
    assert metrics["without AI"]["accuracy"]["value"] == pytest.approx(10 / 16)
    assert metrics["with AI"]["accuracy"]["value"] == pytest.approx(14 / 16)
    assert (measured["changed"], measured["to_right"], measured["to_wrong"]) == (4, 4, 0)
    gain = measured["differences"]["with AI"]["accuracy"]
    assert gain["value"] == pytest.approx(4 / 16)
    assert gain["low"] < gain["value"] < gain["high"]
    # Of pairs of a positive and a negative image, 5 * 5 right at equal confidence.
    assert metrics["without AI"]["auroc"]["value"] == pytest.approx(10 / 16)
    # Of 16 images, half of each class, 10 and 14 right: (10/16 - 1/2) / (1 - 1/2), and so on.
    assert metrics["without AI"]["kappa with truth"]["value"] == pytest.approx(0.25)
    assert metrics["with AI"]["kappa with truth"]["value"] == pytest.approx(0.75)
    with_truth = metrics["with AI"]["kappa with truth"]
    assert with_truth["low"] < 0.75 < with_truth["high"]
    assert (measured["both_right"], set(measured["kappa"])) == (10, {"without AI", "with AI"})
    (pair,) = written["pairs"]
    assert (pair["first"], pair["second"], pair["images"]) == ("<b>", "ann", 16)
    assert pair["kappa"]["with AI"]["value"] == pytest.approx(0.75)  # the other reader is always right with AI
    assert "kappa with AI: 0.750" in result.out
    page = (out / "performance.html").read_text(encoding="utf-8")
    assert re.search(r"Right without AI</th><td class=\"n\">10</td><td class=\"n\">0</td>", page)
    assert re.search(r"Wrong without AI</th><td class=\"n\">4</td><td class=\"n\">2</td>", page)
    assert "&lt;b&gt; and ann" in page
    assert "<b> and ann" not in page
    rows = list(csv.DictReader((out / "performance.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert {(row["side"], row["metric"]) for row in rows} >= {("model", "auroc"), ("with AI", "agreement with model")}


def test_a_reading_of_an_image_that_is_deleted_meanwhile_is_refused(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, look = url, readings._has_reviewed

    def delete_first(connection: Any, sha256: str, reader: str) -> bool:
        with Store(database) as store:
            store.delete([row.id for row in store.find_images(sha256s=[sha256])])
        return look(connection, sha256, reader)

    monkeypatch.setattr(readings, "_has_reviewed", delete_first)
    with run_thread(replace(settings, database=database)) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = commit(client, send(client), label="NORMAL", reader="ann")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
