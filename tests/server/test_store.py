"""Predictions and reviews survive, in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from services import draw, run_process, run_thread, wait_until

from pneumoscope.datasets.pseudonyms import KEY_FILE
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.storage import databases
from pneumoscope.server.storage.store import PredictionRecord, Review, Store, now

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run


def make_record(**values: Any) -> PredictionRecord:
    usual: dict[str, Any] = {
        "sha256": "d" * 64, "name": "image.png", "patient": "", "model": "model", "fingerprint": "f" * 64,
        "decision": "PNEUMONIA", "predicted_label": "PNEUMONIA", "probability": 0.9,
        "probabilities": {"NORMAL": 0.1, "PNEUMONIA": 0.9}, "prediction_set": ["PNEUMONIA"], "ood_score": 0.5,
        "warnings": [], "width": 100, "height": 80, "format": "PNG",
    }  # fmt: skip
    return PredictionRecord(**usual | values)


def facts_of(row: PredictionRecord | Review) -> dict[str, Any]:
    """What the columns of a row hold."""
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def test_predictions_and_reviews_come_back_as_they_were(url: str) -> None:
    outside = make_record(
        name="Ünïcode ✓.png", decision="out_of_distribution", probability=None, ood_score=None, prediction_set=[],
        warnings=["lateral view"],
    )  # fmt: skip
    records = [make_record(), outside]
    with Store(url) as store:
        store.add(records)
        review = Review(
            prediction_id=outside.id,
            agrees=False,
            label="NORMAL",
            comment="a 'comment' with \"quotes\";\n--",
            reviewer="ab",
        )
        store.add([review])
        store.add([Review(prediction_id=outside.id, agrees=True)])
    with Store(url) as store:
        stored = store.find_prediction(outside.id)
        assert stored is not None
        assert facts_of(stored) == facts_of(outside)
        assert store.find_prediction("nothing") is None
        listed = {record.id: record for record in store.list_predictions(10)}
        assert set(listed) == {record.id for record in records}
        assert facts_of(listed[outside.id].reviews[0]) == facts_of(review)
        assert [each.agrees for each in listed[outside.id].reviews] == [False, True]
        assert len(store.list_predictions(1)) == 1
        outcomes = store.list_outcomes(10, min(record.created_at for record in records))
        assert {row.decision for row in outcomes} == {"PNEUMONIA", "out_of_distribution"}
        assert store.list_outcomes(10, now()) == []
        assert store.count_by_day(outside.created_at) == {outside.created_at.date().isoformat(): 2}
        assert [record.id for record, _ in store.list_reviews()] == [outside.id] * 2
        assert store.list_reviews(now()) == []


def test_a_batch_is_stored_whole_or_not_at_all(url: str) -> None:
    first, again = make_record(), make_record()
    with Store(url) as store:
        store.add([again])
        with pytest.raises(sql.exc.IntegrityError):
            store.add([first, make_record(id=again.id)])
        assert store.find_prediction(first.id) is None


def test_many_threads_write_side_by_side(url: str) -> None:
    with Store(url) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.add([make_record(), make_record()]), range(40)))
        assert len(store.list_predictions(1000)) == 80


def test_services_that_start_at_once_agree_on_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_FILE)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(url), range(4)))
    assert len({store.pseudonymise("p1") for store in stores}) == 1
    for store in stores:
        store.close()


def test_a_pseudonym_is_of_no_use_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_FILE)
    with Store(str(tmp_path / "a")) as store, Store(str(tmp_path / "b")) as other:
        assert store.pseudonymise("p1") == store.pseudonymise("p1") != store.pseudonymise("p2")
        assert store.pseudonymise("p1") != other.pseudonymise("p1")
        assert store.pseudonymise(None) == ""


@pytest.mark.parametrize("start", ["", "sqlite:///"])
def test_a_database_file_can_be_read_by_its_owner_only(tmp_path: Path, start: str) -> None:
    with Store(f"{start}{tmp_path / 'predictions.sqlite'}"):
        assert stat.S_IMODE((tmp_path / "predictions.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "url",
    [
        "mysql://a@b/c",
        "nothing://",
        "postgresql://a@127.0.0.1:1/none",
        "postgresql://a@b/c?ssl=x&y=z",
        "/proc/no/predictions.sqlite",
    ],
)
def test_an_error_about_a_database_does_not_show_its_password(url: str) -> None:
    with pytest.raises((UsageError, DataError)) as error:
        Store(url.replace("a@", "a:hunter2@"))
    assert "hunter2" not in str(error.value)


def test_the_password_of_a_postgresql_may_come_from_a_file(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sql.create_engine(postgresql.replace("postgresql:", "postgresql+pg8000:"), isolation_level="AUTOCOMMIT")
    name, password = f"guest_{uuid.uuid4().hex}", "hunter2@/ %"
    with engine.connect() as connection:
        connection.execute(sql.text("SET password_encryption = 'scram-sha-256'"))
        connection.execute(sql.text(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'"))
        connection.execute(sql.text(f"CREATE DATABASE {name} OWNER {name}"))
        rules = Path(str(connection.scalar(sql.text("SHOW hba_file"))))
        rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        connection.execute(sql.text("SELECT pg_reload_conf()"))
        count = sql.text("SELECT count(*) FROM pg_hba_file_rules WHERE :name = ANY(user_name)")
        wait_until(lambda: connection.scalar(count, {"name": name}) == 1)
    engine.dispose()
    url = f"{postgresql.rpartition('/')[0].replace('reader', name)}/{name}"

    def say_why() -> str:
        try:
            Store(url).close()
        except (UsageError, DataError) as problem:
            return str(problem)
        return ""

    wait_until(lambda: "the server asks for a password" in say_why())
    assert databases.PASSWORD_FILE in say_why()
    file = tmp_path / "password"
    monkeypatch.setenv(databases.PASSWORD_FILE, str(file))
    assert f"{file}: cannot be read" in say_why()
    for wrong, said in (("", "only the password"), ("two\nlines", "only the password"), ("wrong", "password")):
        file.write_text(wrong)
        assert said in say_why()
    file.write_text(f"{password}\n")
    with Store(url) as store:
        store.list_predictions(1)
        assert "hunter2" not in store.location


SOURCE: dict[str, Any] = {
    "age": 4.5, "sex": "F", "view": "AP", "laterality": "U", "date": "2024-02-29", "accession_number": "A-007",
    "study_uid": "1.2.1", "series_uid": "1.2.2", "sop_uid": "1.2.3",
}  # fmt: skip


def test_whose_image_it_is_comes_back_as_it_was(url: str) -> None:
    odd = {"accession_number": "検-7 'x'; --", "view": "PA CHEST" * 40, "study_uid": "1." * 5000, "age": 1 / 365.25}
    record = make_record(**SOURCE | odd)
    with Store(url) as store:
        store.add([record])
    with Store(url) as store:
        stored = store.find_prediction(record.id)
        assert stored is not None
        assert facts_of(stored) == facts_of(record)


def test_a_file_that_is_not_a_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes" * 100)
    with pytest.raises((UsageError, DataError)):
        Store(str(path))
    assert path.read_text().startswith("not a database")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pg8000 leaves its socket open
@pytest.mark.parametrize("silent", [False, True])
def test_an_unreachable_postgresql_is_tried_once(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(databases.OPTIONS, "pg8000", {"timeout": 1})
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits for another try"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.setblocking(False)
        if not silent:
            listener.close()
        with pytest.raises(UsageError, match="cannot be opened"):
            Store(f"postgresql://a@127.0.0.1:{port}/none")
        if silent:
            listener.accept()[0].close()
            with pytest.raises(BlockingIOError):
                listener.accept()
    gc.collect()


def test_a_database_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(databases.OPTIONS, "pysqlite", {"timeout": 0.01})
    path = tmp_path / "predictions.sqlite"
    other = sqlite3.connect(path, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.5, other.rollback)
    timer.start()
    with Store(str(path)) as store:
        store.list_predictions(1)
    timer.join()
    other.close()


def test_a_store_that_cannot_be_set_up_keeps_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disposed: list[sql.Engine] = []
    monkeypatch.setattr(sql.Engine, "dispose", lambda self, *_, **__: disposed.append(self))
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes" * 100)
    with pytest.raises(UsageError, match="not a database"):
        Store(str(path))
    assert len(disposed) == 2  # each of its engines


def test_a_killed_service_has_lost_no_review_that_it_acknowledged(run: Run, url: str) -> None:
    acknowledged: list[str] = []
    with run_process(run.model, url) as process:
        with process.client() as client:
            answer = client.post("/v1/predictions", files=[("files", (f"{i}.png", draw(i))) for i in range(8)])
        predictions = answer.json()["predictions"]

        def review(worker: int) -> None:
            prediction = predictions[worker]
            agrees = prediction["decision"] == "NORMAL"
            with httpx.Client(base_url=process.url) as client:
                for turn in range(10_000):
                    comment = f"{worker}-{turn}"
                    body = {"agrees": agrees, "label": "NORMAL", "comment": comment}
                    try:
                        answer = client.post(f"/v1/predictions/{prediction['id']}/reviews", json=body)
                    except httpx.TransportError:
                        return
                    if answer.status_code == 201:
                        acknowledged.append(comment)

        def predict(worker: int) -> None:
            with httpx.Client(base_url=process.url) as client, suppress(httpx.TransportError):
                while True:
                    client.post("/v1/predictions", files={"files": ("a.png", draw(worker))})

        threads = [threading.Thread(target=review, args=(worker,)) for worker in range(8)]
        threads += [threading.Thread(target=predict, args=(worker,)) for worker in range(2)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 100:
            assert any(thread.is_alive() for thread in threads)
        process.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
    with Store(url) as store:
        stored = {review.comment for _, review in store.list_reviews()}
    assert len(acknowledged) >= 100
    assert set(acknowledged) <= stored


def test_a_service_recovers_when_its_database_does(settings: Settings) -> None:
    with run_thread(settings) as url:

        def send() -> httpx.Response:
            return httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", draw(3))})

        assert send().status_code == 201
        with sql.create_engine(f"sqlite:///{settings.database}").connect() as connection:
            connection.execute(sql.text("ALTER TABLE predictions RENAME TO elsewhere"))
            connection.commit()
            answer = send()
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert "predictions" not in answer.text
            connection.execute(sql.text("ALTER TABLE elsewhere RENAME TO predictions"))
            connection.commit()
        assert send().status_code == 201


def test_a_store_recovers_when_postgresql_restarts(postgresql: str) -> None:
    with Store(postgresql) as store:
        store.list_predictions(1)
        engine = sql.create_engine(postgresql.replace("postgresql:", "postgresql+pg8000:"))
        with engine.connect() as connection:  # as a restart does: every other session ends
            connection.execute(
                sql.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
        engine.dispose()
        store.list_predictions(1)


def test_the_users_own_file_is_the_default(tmp_path: Path) -> None:
    script = "from pneumoscope.server.storage.store import Store; print(Store().location)"
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    environment.pop("PNEUMOSCOPE_DATABASE", None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str(tmp_path / "pneumoscope" / "predictions.sqlite")


def test_a_review_that_arrives_during_a_deletion_is_deleted_too(url: str) -> None:
    with Store(url) as store, ThreadPoolExecutor(1) as pool:
        record = make_record()
        store.add([record])
        review = facts_of(Review(prediction_id=record.id, agrees=True))
        del review["number"]
        with store.read() as connection:
            connection.execute(sql.insert(Review).values(**review))
            deletion = pool.submit(store.delete, [record.id])
            time.sleep(0.5)  # it looks for reviews, and finds this one when it is committed
        assert deletion.result(30) == (1, 1)
