"""The audit log says who saw, predicted, reviewed, exported or deleted what, and the database lets nobody change it."""

from __future__ import annotations

import csv
import datetime
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from services import draw, run_process, run_thread, wait_until
from test_migrations import connect, make_earlier
from test_store import make_record

from pneumoscope.server.app import build_app
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.audit import Actor, AuditLog, find_action
from pneumoscope.server.storage.audit_messages import AuditQuery
from pneumoscope.server.storage.audit_table import list_entries
from pneumoscope.server.storage.store import AuditEntry, Store

if TYPE_CHECKING:
    from commands import Command
    from pneumoscope.training.train import Run

READER = Actor("Dr A", "review", "token", "192.0.2.1", "req")
# Addresses that show nothing of a patient.
UNLOGGED = {
    "/v1/agreement",
    "/v1/reading-performance",
    "/v1/teaching",
    "/v1/models",
    "/v1/models/{name}",
    "/v1/examples",
    "/v1/examples/{number}",
    "/v1/monitoring",
    "/v1/me",
}


def add_tokens(command: Command, file: Path) -> dict[str, dict[str, str]]:
    """A file of tokens; gives a header for each role."""
    headers = {}
    for role in ("read", "review", "admin"):
        done = command("tokens", "add", f"the {role}", "--role", role, "--tokens", file)
        assert done.code == 0, done.err
        headers[role] = {"authorization": f"Bearer {done.out.split()[-1]}"}
    return headers


def read_log(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/audit", params=query, headers=query.pop("headers", None))
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["entries"]
    return entries


def describe(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["action"], entry["caller"], entry["status"], entry["count"]


def test_every_address_that_shows_or_changes_predictions_is_logged(settings: Settings) -> None:
    service = PredictionService(settings)
    app: Any = build_app(settings, service)
    routes = {(route.path, find_action(route.endpoint)) for route in app._app.routes if route.path.startswith("/v1/")}
    service.store.close()
    assert {path for path, action in routes if action is None} == UNLOGGED


def test_views_reviews_and_deletions_are_logged_with_who_and_what(
    settings: Settings, command: Command, tmp_path: Path, image: bytes
) -> None:
    headers = add_tokens(command, tmp_path / "tokens")
    kept = replace(settings, tokens=tmp_path / "tokens", keep_images=tmp_path / "kept")
    with run_thread(kept) as address, httpx.Client(base_url=address, timeout=60) as client:
        file = {"files": ("person0815_bacteria_1.png", image)}
        made = client.post("/v1/predictions", files=file, headers=headers["review"])
        (prediction,) = made.json()["predictions"]
        at = f"/v1/predictions/{prediction['id']}"
        for path in (at, f"{at}/image", f"{at}/reviews", f"/v1/predictions?patient={prediction['patient']}"):
            assert client.get(path, headers=headers["read"]).status_code == 200
        review = {"answer": "cannot_tell", "comment": "Mr Miller's"}
        for answer in (review, {"answer": "withdrawn"}):
            assert client.post(f"{at}/reviews", json=answer, headers=headers["review"]).status_code == 201
        assert client.delete(at, headers=headers["review"]).status_code == 403
        assert client.delete(at, headers=headers["admin"]).status_code == 204
        assert client.get(at, headers=headers["read"]).status_code == 404
        for _ in range(3):
            assert client.get(at, headers={"authorization": "Bearer wrong-wrong-wrong-wrong"}).status_code == 401
        assert client.get(at).status_code == 401  # a page that asks for the token first
        assert client.get("/v1/audit", headers=headers["review"]).status_code == 403
        log = client.get("/v1/audit", headers=headers["admin"]).json()["entries"]
        again = client.get("/v1/audit?action=read_audit", headers=headers["admin"]).json()["entries"]
    assert [describe(entry) for entry in again] == [
        ("read_audit", "the admin", 200, 0),
        ("read_audit", "the review", 403, 0),
    ]
    assert sorted(describe(entry) for entry in log) == sorted([
        ("predict", "the review", 201, 1), ("view_prediction", "the read", 200, 1), ("view_image", "the read", 200, 1),
        ("view_reviews", "the read", 200, 1), ("list_predictions", "the read", 200, 1),
            ("review", "the review", 201, 1),
        ("withdraw", "the review", 201, 1), ("delete", "the review", 403, 0), ("delete", "the admin", 204, 1),
        ("view_prediction", "the read", 404, 0), ("sign_in", "", 401, 0), ("read_audit", "the review", 403, 0),
    ])  # fmt: skip
    by_action = {entry["action"]: entry for entry in log if entry["status"] < 300}
    assert {entry["patient"] for entry in by_action.values()} == {prediction["patient"]}
    assert {entry["prediction_id"] for name, entry in by_action.items() if name != "list_predictions"} == {
        prediction["id"]
    }
    assert {entry["address"] for entry in log} == {"127.0.0.1"}
    assert by_action["predict"]["request"] == made.headers["x-request-id"]
    assert not re.search("person0815|png|Miller", str(log))


def test_the_log_is_listed_in_pages_and_by_caller_action_and_time(url: str) -> None:
    with Store(url) as store:
        old = Actor("Dr B", "read", "token").to_entry("view_image")
        old.at -= datetime.timedelta(days=9)
        store.add([old])
        for number in range(5):
            store.add([READER.to_entry("review", count=number)])

        def find(**query: Any) -> list[int]:
            return [entry.number for entry in list_entries(store, AuditQuery(**query)).entries]

        first = list_entries(store, AuditQuery(limit=4))
        assert [entry.number for entry in first.entries] == [6, 5, 4, 3]
        assert find(limit=4, cursor=first.next) == [2, 1]
        assert find(caller="Dr B") == find(action="view_image") == [1]
        assert find(since=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)) == [6, 5, 4, 3, 2]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET caller = 'nobody'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "INSERT OR REPLACE INTO audit SELECT at, 'nobody', role, source, address, action, prediction_id, patient, "
        "study, count, status, request, number FROM audit",
    ],
)
def test_the_database_refuses_to_change_the_log(url: str, statement: str) -> None:
    with Store(url) as store:
        store.add([READER.to_entry("review")])
        with pytest.raises(sql.exc.DBAPIError), connect(url) as connection:
            connection.execute(sql.text(statement))
        (entry,) = list_entries(store, AuditQuery()).entries
        assert entry.caller == "Dr A"


def test_the_refusal_is_that_of_the_log(url: str) -> None:
    with Store(url) as store:
        store.add([READER.to_entry("review")])
        for statement in ("UPDATE audit SET caller = 'x'", "DELETE FROM audit"):
            with pytest.raises(sql.exc.DBAPIError, match="cannot be changed"), connect(url) as connection:
                connection.execute(sql.text(statement))


def test_a_change_that_fails_leaves_no_entry(url: str) -> None:
    with Store(url) as store:
        record = make_record()
        store.add([record])
        with pytest.raises(sql.exc.IntegrityError):
            store.add([make_record(id=record.id), READER.to_entry("predict")])
        assert list_entries(store, AuditQuery()).entries == []


def test_what_waits_is_written_when_the_service_ends(url: str) -> None:
    with Store(url) as store:
        record = make_record(patient="0123456789abcdef", study_uid="1.2.3")
        store.add([record])
        log = AuditLog(store)
        log.open()
        for _ in range(1200):
            log.add(READER.to_entry("view_image", prediction_id=record.id))
        log.close()
        with store.read() as connection:
            rows = connection.execute(sql.select(AuditEntry.patient, AuditEntry.study)).all()
        assert len(rows) == 1200
        assert set(rows) == {("0123456789abcdef", store.pseudonymise_study("1.2.3"))}


def test_entries_beyond_the_bound_go_to_the_services_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with Store(url) as store:
        log = AuditLog(store, most=2)
        for _ in range(3):
            log.add(READER.to_entry("view_image"))
        log.close()
        assert len(list_entries(store, AuditQuery()).entries) == 2
    assert caplog.text.count("not in the database") == 1
    assert "view_image" in caplog.text


def test_the_log_is_exported_and_old_entries_leave_it_only_then(url: str, command: Command, tmp_path: Path) -> None:
    with Store(url) as store:
        old = READER.to_entry("review")
        old.at -= datetime.timedelta(days=800)
        store.add([old])
        store.add([READER.to_entry("delete", prediction_id="a" * 32)])
    out = tmp_path / "audit.csv"
    done = command("database", "audit", "--out", out, "--database", url, "--delete-older", "730d")
    assert done.code == 0, done.err
    with out.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["action"], row["caller"], row["address"]) for row in rows] == [
        ("review", "Dr A", "192.0.2.1"), ("delete", "Dr A", "192.0.2.1"),
    ]  # fmt: skip
    assert out.stat().st_mode & 0o077 == 0
    with Store(url) as store:
        left = [(entry.action, entry.source) for entry in list_entries(store, AuditQuery()).entries]
        assert left == [("trim_audit", "command"), ("export_audit", "command"), ("delete", "token")]
        with pytest.raises(sql.exc.DBAPIError), connect(url) as connection:  # the guard is back
            connection.execute(sql.text("DELETE FROM audit"))


def test_commands_are_logged_with_the_user_and_erasure_leaves_pseudonyms(command: Command, tmp_path: Path) -> None:
    database = str(tmp_path / "predictions.sqlite")
    with Store(database) as store:
        record = make_record(patient=store.pseudonymise("p1"))
        store.add([record, READER.to_entry("predict", prediction_id=record.id, patient=record.patient)])
    assert command("database", "backup", "--out", tmp_path / "copy", "--database", database).code == 0
    assert command("database", "erase", "--patient", "p1", "--database", database).code == 0
    with Store(database) as store:
        assert store.list_predictions(10) == []
        entries = list_entries(store, AuditQuery()).entries
        assert [(each.action, each.source, each.count) for each in entries] == [
            ("erase", "command", 1), ("backup", "command", 0), ("predict", "token", 0),
        ]  # fmt: skip
        assert [each.patient for each in entries] == [record.patient, None, record.patient]
        assert all(each.caller for each in entries)


def test_a_database_of_an_earlier_version_is_backed_up_and_says_that_this_is_not_logged(
    command: Command, tmp_path: Path
) -> None:
    make_earlier(str(tmp_path / "old.sqlite"), 3)
    done = command("database", "backup", "--out", tmp_path / "copy", "--database", tmp_path / "old.sqlite")
    assert done.code == 0
    assert "Not in the audit log" in done.err


def test_a_killed_service_loses_no_entry_of_a_change(run: Run, url: str) -> None:
    with run_process(run.model, url) as process, process.client() as client:
        (prediction,) = client.post("/v1/predictions", files={"files": ("a.png", draw(1))}).json()["predictions"]
        review = client.post(f"/v1/predictions/{prediction['id']}/reviews", json={"answer": "cannot_tell"})
        assert review.status_code == 201
        process.end(signal.SIGKILL)
    with Store(url) as store:
        actions = [entry.action for entry in list_entries(store, AuditQuery()).entries]
    assert {"predict", "review"} <= set(actions)


def test_views_are_written_while_the_service_runs(settings: Settings, image: bytes) -> None:
    with run_thread(settings) as address, httpx.Client(base_url=address, timeout=60) as client:
        client.post("/v1/predictions", files={"files": ("a.png", image)})
        client.get("/v1/predictions")
        with Store(settings.database) as store:
            wait_until(lambda: len(list_entries(store, AuditQuery()).entries) == 2)
