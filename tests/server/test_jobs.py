"""Requests that are sent twice, jobs, and calls to other programs."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
import sqlalchemy as sql
from dicom_files import dicom
from services import Process, draw, run_process, run_thread, wait_until

from pneumoscope.client import verify_callback
from pneumoscope.errors import ServiceError, UsageError
from pneumoscope.server.jobs import jobs as jobs_module
from pneumoscope.server.jobs.callbacks import sign
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import RequestError
from pneumoscope.server.settings import Limits
from pneumoscope.server.storage import idempotency
from pneumoscope.server.storage.erasure import erase
from pneumoscope.server.storage.idempotency import digest_upload
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.store import AnsweredRequest, JobRecord, Review, Store

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run

SECRET = "correct-horse-battery-staple"
ASYNC = {"prefer": "respond-async"}


def post(url: str, *contents: bytes, headers: dict[str, str] | None = None, **query: Any) -> httpx.Response:
    files = [("files", (f"{i}.png", content)) for i, content in enumerate(contents)]
    return httpx.post(f"{url}/v1/predictions", files=files, params=query, headers=headers, timeout=60)


def count(url: str) -> int:
    return len(httpx.get(f"{url}/v1/predictions", params={"limit": 500}).json()["predictions"])


def finish(url: str, answer: httpx.Response) -> dict[str, Any]:
    """The job that an answer announces, once it is finished."""
    where = urljoin(f"{url}/v1/predictions", answer.headers["location"])
    wait_until(lambda: httpx.get(where).json()["finished_at"] is not None)
    found: dict[str, Any] = httpx.get(where).json()
    return found


@contextmanager
def listen(*statuses: int) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """A program that is called: its address, and bodies and signatures that came; it answers these statuses first."""
    came: list[tuple[bytes, str]] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append((body, self.headers["pneumoscope-signature"]))
            self.send_response(left.pop(0) if left else 204)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", came
        finally:
            server.shutdown()
            thread.join()


def test_an_upload_that_is_sent_again_gets_the_same_answer_and_is_stored_once(settings: Settings) -> None:
    key = {"idempotency-key": "a-1"}
    with run_thread(settings) as url:
        first = post(url, draw(1), headers=key)
        again = post(url, draw(1), headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert count(url) == 1
    with run_thread(settings) as url:  # another process
        assert post(url, draw(1), headers=key).json() == first.json()
        for other in (post(url, draw(2), headers=key), post(url, draw(1), headers=key, invert=True)):
            assert (other.status_code, other.json()["code"]) == (422, "key-reused")
        assert post(url, draw(1), headers={"idempotency-key": "a-2"}).json() != first.json()
        assert count(url) == 2


def test_large_uploads_are_digested_beside_other_requests(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    blocking = []

    def digest(*arguments: Any) -> str:
        with suppress(RuntimeError):
            blocking.append(asyncio.get_running_loop())
        return digest_upload(*arguments)

    monkeypatch.setattr("pneumoscope.server.storage.idempotency.digest_upload", digest)
    with run_thread(settings) as url:
        assert post(url, draw(1), headers={"idempotency-key": "large"}).status_code == 201
    assert blocking == []


def test_an_answer_that_is_given_again_has_its_pictures(settings: Settings) -> None:
    key = {"idempotency-key": "pictured"}
    with run_thread(settings) as url:
        first, again = (post(url, draw(1), b"bad", headers=key, picture=True, heatmap=True) for _ in range(2))
        assert first.json() == again.json()
        assert first.json()["predictions"][0]["picture"]
        with Store(settings.database) as store, store.read() as connection:
            (content,) = connection.execute(sql.select(AnsweredRequest.content)).scalars()
        assert len(content) < 5000
        assert count(url) == 1


def test_a_request_that_failed_may_be_sent_again_under_its_key(settings: Settings) -> None:
    key = {"idempotency-key": "failed"}
    with run_thread(settings) as url:
        assert post(url, b"no image", headers=key).status_code == 415
        assert post(url, draw(1), headers=key).status_code == 201


def test_of_requests_with_one_key_at_once_one_is_done(settings: Settings) -> None:
    with run_thread(settings) as url, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: post(url, draw(1), headers={"idempotency-key": "x"}), range(6)))
        statuses = {answer.status_code for answer in answers}
        assert statuses <= {201, 409}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 409)
        assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
        assert count(url) == 1


def test_a_request_whose_service_died_is_taken_up_without_storing_twice(settings: Settings) -> None:
    key = {"idempotency-key": "died"}
    with run_thread(settings) as url:
        (stored,) = post(url, draw(1), headers=key).json()["predictions"]
        with Store(settings.database) as store, store.read() as connection:  # as if it had not been answered
            lost = sql.update(AnsweredRequest).values(status=None, content="")
            connection.execute(lost.values(began_at=AnsweredRequest.began_at - 1, beat_at=AnsweredRequest.beat_at - 1))
        waiting = post(url, draw(1), headers=key)
        assert (waiting.status_code, waiting.json()["code"]) == (409, "key-in-use")
        assert 100 < int(waiting.headers["retry-after"]) <= 120
        with Store(settings.database) as store, store.read() as connection:
            connection.execute(sql.update(AnsweredRequest).values(beat_at=AnsweredRequest.beat_at - 120))
        (again,) = post(url, draw(1), headers=key).json()["predictions"]
        assert again["id"] == stored["id"]
        assert count(url) == 1


def test_a_key_stays_in_use_however_long_its_request_takes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    real, calls = PredictionService.predict, []

    async def predict(service: PredictionService, *arguments: Any) -> Any:
        calls.append(1)
        await asyncio.to_thread(go_on.wait, 30)
        return await real(service, *arguments)

    def read_beat() -> float:
        with Store(settings.database) as store, store.read() as connection:
            return connection.scalar(sql.select(AnsweredRequest.beat_at)) or 0.0

    monkeypatch.setattr(PredictionService, "predict", predict)
    monkeypatch.setattr("pneumoscope.server.submissions._BEAT", 0.05)
    key = {"idempotency-key": "long"}
    with run_thread(settings) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, draw(1), headers=key)
        wait_until(lambda: bool(calls))
        with Store(settings.database) as store, store.read() as connection:  # as if it had not been heard of for long
            connection.execute(sql.update(AnsweredRequest).values(beat_at=AnsweredRequest.beat_at - 1000))
        wait_until(lambda: read_beat() > time.time() - 100)
        assert post(url, draw(1), headers=key).json()["code"] == "key-in-use"
        go_on.set()
        assert first.result().status_code == 201
        assert post(url, draw(1), headers=key).headers["idempotency-replayed"] == "true"
        assert count(url) == len(calls) == 1


def test_a_review_that_is_sent_again_is_stored_once(settings: Settings) -> None:
    with run_thread(settings) as url:
        (one,) = post(url, draw(1)).json()["predictions"]
        where, key = f"{url}/v1/predictions/{one['id']}/reviews", {"idempotency-key": "r"}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: httpx.post(where, json={"agrees": True}, headers=key), range(4)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.text for answer in answers}) == 1
        assert len({answer.headers["location"] for answer in answers}) == 1
        other = httpx.post(where, json={"agrees": True, "comment": "x"}, headers=key)
        assert (other.status_code, other.json()["code"]) == (422, "key-reused")
        assert len(httpx.get(where).json()["reviews"]) == 1
        assert 'pneumoscope_reviews_total{answer="agree"} 1.0' in httpx.get(f"{url}/metrics").text


def test_old_keys_and_jobs_are_forgotten(settings: Settings) -> None:
    with run_thread(settings) as url:
        first = post(url, draw(1), headers={"idempotency-key": "old"})
        job = finish(url, post(url, draw(1), headers=ASYNC))
        with Store(settings.database) as store, store.read() as connection:
            connection.execute(sql.update(AnsweredRequest).values(began_at=AnsweredRequest.began_at - 25 * 3600))
            connection.execute(sql.text("UPDATE jobs SET created_at = '2020-01-01 00:00:00.000000'"))
        assert post(url, draw(1), headers={"idempotency-key": "old"}).json() != first.json()
        finish(url, post(url, draw(1), headers=ASYNC))
        gone = httpx.get(f"{url}/v1/{job['href']}")
        assert (gone.status_code, gone.json()["code"]) == (404, "job-not-found")


def test_a_job_predicts_what_a_request_predicts(settings: Settings) -> None:
    contents = [draw(seed) for seed in range(20)]
    with run_thread(replace(settings, limits=Limits(images=8))) as url:
        answer = post(url, *contents, b"no image", headers=ASYNC)
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["state"] == "waiting"
        job = finish(url, answer)
        assert (job["state"], job["files"], job["problem"]) == ("done", 21, None)
        assert [each["name"] for each in job["predictions"]] == [f"{i}.png" for i in range(21)]
        assert job["predictions"][20]["code"] == "not-an-image"
        one = httpx.get(f"{url}/v1/{job['predictions'][3]['href']}").json()
        assert one == job["predictions"][3]
        assert count(url) == 20
        wait_until(lambda: "pneumoscope_buffered_bytes 0.0" in httpx.get(f"{url}/metrics").text)


@pytest.mark.parametrize("named", ["patient", "study"])
def test_a_job_that_runs_while_a_patient_is_erased_stores_nothing_of_them(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = PredictionService.predict

    async def predict(service: PredictionService, images: Any, *rest: Any) -> Any:
        if images[0].name.startswith("2-"):  # the first file has been stored
            begun.set()
            await asyncio.to_thread(go_on.wait, 30)
        return await real(service, images, *rest)

    monkeypatch.setattr(PredictionService, "predict", predict)
    monkeypatch.setattr(jobs_module, "_SLICE", 1)
    pixels = np.linspace(0, 4000, 64 * 64).astype(np.uint16).reshape(64, 64)
    files = [
        (
            "files",
            (f"{i}-SECRET{patient}.dcm", dicom(pixels + i, PatientID=patient, StudyInstanceUID=f"1.2.{patient[1]}")),
        )
        for i, patient in enumerate(("p1", "p2", "p1", "p2"))
    ]
    settings = replace(settings, keep_images=tmp_path / "kept")
    with run_thread(settings) as url:
        answer = httpx.post(f"{url}/v1/predictions", files=files, headers=ASYNC, timeout=60)
        assert begun.wait(30)
        with Store(settings.database) as store:
            kept = KeptImages(tmp_path / "kept")
            patient, study = ("p1", None) if named == "patient" else (None, "1.2.1")
            assert erase(store, kept, patient=patient, study=study).predictions == 1
        go_on.set()
        job = finish(url, answer)
        assert [each["code"] for each in job["predictions"]] == ["prediction-deleted", None] * 2
        assert count(url) == 2
        later = httpx.post(f"{url}/v1/predictions", files=files[:1], headers=ASYNC, timeout=60)
        assert finish(url, later)["predictions"][0]["id"]  # what is sent after the erasure is stored
    with Store(settings.database) as store, store.read() as connection:
        assert not any("SECRETp1" in each for each in connection.scalars(sql.select(JobRecord.content)).all()[:1])
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_an_answer_to_a_key_is_not_kept_if_its_predictions_were_deleted_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = idempotency.answer

    def answer(store: Store, *rest: Any) -> None:
        store.delete([record.id for record in store.list_predictions(9)])
        real(store, *rest)

    monkeypatch.setattr(idempotency, "answer", answer)
    with run_thread(settings) as url:
        assert post(url, draw(1), headers={"idempotency-key": "a"}).status_code == 201
    with Store(settings.database) as store, store.read() as connection:
        assert connection.scalars(sql.select(AnsweredRequest.content)).all() == []


def test_a_request_that_stalled_leaves_the_claim_of_its_successor_alone(tmp_path: Path) -> None:
    key = idempotency.make_key("me", "/v1/predictions", "k", "digest")
    answered = idempotency.Answered(201, "x", "{}")
    with Store(str(tmp_path / "a.sqlite")) as store:
        first = idempotency.claim(store, key)
        with store.begin() as session:  # its service stalls for longer than its claim lasts
            session.execute(sql.update(AnsweredRequest).values(beat_at=0.0))
        second = idempotency.claim(store, key)
        assert isinstance(first, idempotency.Claim)
        assert isinstance(second, idempotency.Claim)
        assert second.since == first.began_at
        idempotency.release(store, key, first)
        idempotency.answer(store, key, first, answered)
        with pytest.raises(RequestError, match="in progress"):
            idempotency.claim(store, key)
        idempotency.answer(store, key, second, answered)
        found = idempotency.claim(store, key)
        assert isinstance(found, idempotency.Answered)
        assert found.replayed


def test_a_job_of_which_no_file_can_be_read_has_failed(settings: Settings) -> None:
    with run_thread(settings) as url:
        job = finish(url, post(url, b"no image", b"no image", headers=ASYNC))
        assert (job["state"], job["predictions"]) == ("failed", None)
        assert job["problem"]["code"] == "files-unreadable"
        assert [each["code"] for each in job["problem"]["files"]] == ["not-an-image"] * 2


def test_answers_that_are_kept_have_no_names_and_uids_where_these_are_not_kept(
    settings: Settings, image: bytes
) -> None:
    elements: dict[str, Any] = {"StudyInstanceUID": "1.2.840.4711.1", "AccessionNumber": "ACC4711"}
    content = dicom(np.linspace(0, 4000, 64 * 64).astype(np.uint16).reshape(64, 64), **elements)
    files = [("files", ("mueller.dcm", content)), ("files", ("mueller.txt", b"x" * 40)), ("files", ("hans.png", image))]
    with run_thread(replace(settings, keep_names=False, keep_uids=False)) as url:
        first, again = (
            httpx.post(f"{url}/v1/predictions", files=files, headers={"idempotency-key": "a"}, timeout=60).json()
            for _ in range(2)
        )
        assert [each["name"] for each in again["predictions"]] == ["mueller.dcm", "mueller.txt", "hans.png"]
        assert [each["id"] for each in again["predictions"]] == [each["id"] for each in first["predictions"]]
        assert first["predictions"][0]["accession_number"] == "ACC4711"
        job = finish(url, httpx.post(f"{url}/v1/predictions", files=files, headers=ASYNC, timeout=60))
        assert [each["name"] for each in job["predictions"]] == ["", "", ""]
        failed = httpx.post(f"{url}/v1/predictions", files=files[1:2], headers=ASYNC, timeout=60)
        assert finish(url, failed)["state"] == "failed"
    stored = b"".join(path.read_bytes() for path in Path(str(settings.database)).parent.glob("predictions.sqlite*"))
    assert b"answered_requests" in stored
    for word in (b"mueller", b"hans", b"4711"):
        assert word not in stored


def test_a_job_is_made_once_for_a_key(settings: Settings) -> None:
    with run_thread(settings) as url:
        answers = [post(url, draw(1), headers={**ASYNC, "idempotency-key": "j"}) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        assert answers[0].headers["location"] == answers[1].headers["location"]
        finish(url, answers[0])
        assert count(url) == 1


def test_what_a_job_cannot_do_is_refused(service: Process) -> None:
    for answer, code in (
        (post(service.url, draw(1), headers=ASYNC, picture=True), "no-pictures"),
        (post(service.url, draw(1), callback="https://example.org/"), "callback-refused"),
        (httpx.get(f"{service.url}/v1/jobs/nobody"), "job-not-found"),
    ):
        assert answer.json()["code"] == code
    metrics = httpx.get(f"{service.url}/metrics").text
    assert "pneumoscope_buffered_bytes 0.0" in metrics


def test_a_job_whose_service_was_killed_says_that_it_is_lost(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = str(tmp_path / "predictions.sqlite")
    with run_process(run.model, database) as process:
        content = draw(1, 1536)
        answer = post(process.url, *[content] * 60, headers=ASYNC)
        assert answer.status_code == 202
        process.end(signal.SIGKILL)
    with Store(database) as store, store.read() as connection:
        connection.execute(sql.update(JobRecord).values(beat_at=JobRecord.beat_at - 31))
    with run_process(run.model, database) as process:
        job = httpx.get(f"{process.url}/v1/{answer.json()['href']}").json()
        assert (job["state"], job["problem"]["code"]) == ("lost", "job-lost")


def test_a_job_is_lost_where_its_service_stops(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(*_: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(jobs_module.Jobs, "_answer", wait)
    with run_thread(settings) as url:
        answer = post(url, draw(1), headers=ASYNC)
    with run_thread(settings) as url:
        assert httpx.get(f"{url}/v1/{answer.json()['href']}").json()["state"] == "lost"


def test_a_finished_job_is_announced_with_a_signature_until_that_succeeds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pneumoscope.server.jobs.callbacks._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("pneumoscope.server.jobs.callbacks._POLL", 0.05)
    with listen(500, 302) as (address, came):
        settings = replace(settings, callback_hosts=(address,), callback_secret=SECRET)
        with run_thread(settings) as url:
            answer = post(url, draw(1), headers=ASYNC, callback=f"{address}/done?job=1")
            where = f"{url}/v1/{answer.json()['href']}"
            wait_until(lambda: httpx.get(where).json()["callback_state"] == "sent")
    assert len(came) == 3  # neither the error nor the redirection counts as success
    for body, signature in came:
        job = verify_callback(body, signature, SECRET)
        assert (job.state, job.predictions) == ("done", None)
        assert f"{url}/v1/{job.href}" == where
        with pytest.raises(ServiceError, match="not valid"):
            verify_callback(body + b" ", signature, SECRET)
        with pytest.raises(ServiceError, match="not valid"):
            verify_callback(body, signature, "another-secret")
        with pytest.raises(ServiceError, match="older"):
            verify_callback(body, signature, SECRET, tolerance=-1)
    for wrong in ("", "t=,v1=", "t=x,v1=y", "v1=ü"):
        with pytest.raises(ServiceError):
            verify_callback(came[0][0], wrong, SECRET)
    forged = json.dumps({"state": "done"}).encode()
    with pytest.raises(ServiceError, match="older"):
        verify_callback(forged, sign(SECRET, 1, forged), SECRET)


def test_a_callback_that_fails_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_FIRST_PAUSE", 0.001), ("_FACTOR", 1.0), ("_POLL", 0.02), ("_ATTEMPTS", 3)):
        monkeypatch.setattr(f"pneumoscope.server.jobs.callbacks.{name}", value)
    with listen(*[500] * 9) as (address, came):
        settings = replace(settings, callback_hosts=(address,), callback_secret=SECRET)
        with run_thread(settings) as url:
            answer = post(url, draw(1), headers=ASYNC, callback=address)
            where = f"{url}/v1/{answer.json()['href']}"
            wait_until(lambda: httpx.get(where).json()["callback_state"] == "failed")
    assert len(came) == 3


def test_only_addresses_that_the_settings_allow_are_called(settings: Settings) -> None:
    with listen() as (address, came):
        port = address.rpartition(":")[2]
        allowed = replace(settings, callback_hosts=(address, "ris.example.org"), callback_secret=SECRET)
        with run_thread(allowed) as url:
            for callback in (
                f"http://localhost:{port}/", f"https://127.0.0.1:{port}/", "http://127.0.0.1/", "http://ris.example.org/",
                "https://ris.example.org.evil.example/", "https://evil.example/?ris.example.org", "ftp://ris.example.org/",
                f"http://evil.example:x@127.0.0.1:{port}/", f"http://127.0.0.1:{port}@evil.example/", "//127.0.0.1/",
                "file:///etc/passwd", "https://[::1]/", f"http://127.0.0.1:{port}\\@evil.example/", "https://", "x",
                "http://169.254.169.254/latest/meta-data", f"http://2130706433:{port}/",
            ):  # fmt: skip
                answer = post(url, draw(1), headers=ASYNC, callback=callback)
                assert (answer.status_code, answer.json()["code"]) == (422, "callback-refused"), callback
            assert count(url) == 0
            assert post(url, draw(1), headers=ASYNC, callback="https://ris.example.org/x").status_code == 202
        with run_thread(settings) as url:  # nothing is allowed by default
            assert post(url, draw(1), headers=ASYNC, callback=address).json()["code"] == "callback-refused"
    assert came == []


def test_a_program_that_does_not_answer_delays_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.server.jobs.callbacks._TIMEOUT", 20.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf, listen() as (address, came):
        silent = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        settings = replace(settings, callback_hosts=(silent, address), callback_secret=SECRET)
        with Store(settings.database) as store, store.begin() as session:
            for callback in (silent, silent, address):
                job: dict[str, Any] = {"state": "done", "files": 1, "beat_at": time.time()}
                session.add(JobRecord(**job, content='{"predictions": []}', callback=callback, callback_state="due"))
        with run_thread(settings):
            wait_until(lambda: len(came) == 1, 15)


def test_a_job_that_cannot_be_described_stops_no_other_call(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with listen() as (address, came):
        settings = replace(settings, callback_hosts=(address,), callback_secret=SECRET)
        with Store(settings.database) as store, store.begin() as session:
            for content in ('{"another version": "SECRET"}', '{"predictions": []}'):
                job: dict[str, Any] = {"state": "done", "files": 1, "beat_at": time.time(), "content": content}
                session.add(JobRecord(**job, callback=address, callback_state="due"))
        with run_thread(settings):
            wait_until(lambda: len(came) == 1, 15)
    assert "KeyError" in caplog.text
    assert "SECRET" not in caplog.text


def test_callbacks_need_a_secret_and_addresses(settings: Settings) -> None:
    with pytest.raises(UsageError, match="secret"), run_thread(replace(settings, callback_hosts=("a.example",))):
        pass
    for host in ("ftp://a.example", "https://a.example/hooks", "https://a.example?x"):  # a path would limit nothing
        wrong = replace(settings, callback_hosts=(host,), callback_secret=SECRET)
        with pytest.raises(UsageError, match="give scheme and host without a path"), run_thread(wrong):
            pass
    with run_thread(replace(settings, callback_secret=SECRET)):
        pass


def test_reviews_are_kept_while_their_prediction_is(settings: Settings) -> None:
    with run_thread(settings) as url:
        (one,) = post(url, draw(1)).json()["predictions"]
        where = f"{url}/v1/predictions/{one['id']}"
        assert httpx.delete(where).status_code == 204
        answer = httpx.post(f"{where}/reviews", json={"agrees": True}, headers={"idempotency-key": "late"})
        assert answer.status_code == 404
    with Store(settings.database) as store, store.read() as connection:
        assert connection.scalar(sql.select(sql.func.count()).select_from(Review)) == 0
