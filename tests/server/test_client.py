"""The client for Python, against the real service."""

from __future__ import annotations

import datetime
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image
from services import Process, draw, run_thread

import pneumoscope
from pneumoscope.client import Client
from pneumoscope.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

TOKEN = "8f3kQz71LmXw0pRt5vYb2NcD9sHgJ4u6"


@pytest.fixture
def client(service: Process) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@contextmanager
def stand_between(url: str, *faults: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A proxy that answers these statuses at first (0: nothing, after the service has answered)."""
    came: list[dict[str, str]] = []
    left = list(faults)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            came.append({name.lower(): value for name, value in self.headers.items()})
            fault = left.pop(0) if left else None
            if fault:
                self.send_response(fault)
                self.send_header("retry-after", "0")
                self.send_header("content-length", "0")
                self.end_headers()
                return
            own = {name: value for name, value in came[-1].items() if name not in ("host", "connection")}
            answer = httpx.request(self.command, f"{url}{self.path}", content=body, headers=own)
            if fault == 0:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_DELETE = do_GET  # noqa: N815 - names of the standard library

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


def test_files_and_contents_are_predicted_in_their_order(client: Client, tmp_path: Path) -> None:
    paths = []
    for seed in range(20):  # more than a request takes
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(draw(seed))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = client.predict([*paths, str(bad), draw(1)])
    assert [each.name for each in found] == [*(path.name for path in paths), "bad.png", "image"]
    assert (found[20].code, found[20].id) == ("not-an-image", None)
    assert found[21].sha256 == found[1].sha256
    assert found[0].created_at is not None


def test_one_or_no_readable_file_is_answered_like_many(client: Client) -> None:
    assert [each.code for each in client.predict(b"no image")] == ["not-an-image"]
    assert [each.code for each in client.predict([b"no image", draw(1)[:300]])] == ["not-an-image", "image-damaged"]
    assert client.predict([]) == []


def test_stored_predictions_are_walked_through_and_reviewed(settings: Settings, tmp_path: Path) -> None:
    with run_thread(replace(settings, keep_images=tmp_path / "kept")) as url, Client(url) as client:
        made = client.predict([draw(seed) for seed in range(5)])
        listed = list(client.list_predictions(limit=2))
        assert sorted(str(each.id) for each in listed) == sorted(str(each.id) for each in made)
        one = client.get_prediction(str(made[0].id))
        assert one.sha256 == made[0].sha256
        review = client.review(str(one.id), agrees=True, comment="clear")
        assert list(client.list_reviews(str(one.id))) == [review]
        assert [each.id for each in client.list_predictions(reviewed=True)] == [one.id]
        tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        assert list(client.list_predictions(since=tomorrow)) == []
        assert client.get_image(str(one.id), original=True) == draw(0)
        assert Image.open(io.BytesIO(client.get_image(str(one.id)))).format == "PNG"
        assert np.asarray(Image.open(io.BytesIO(client.get_evidence(str(one.id))))).ndim >= 2
        assert list(client.list_studies()) == []
        assert client.list_models()[0].fingerprint == one.fingerprint
        assert client.get_monitoring(days=1).predictions == 5
        client.delete_prediction(str(one.id))
        with pytest.raises(ServiceError) as caught:
            client.get_prediction(str(one.id))
        assert (caught.value.status, caught.value.code) == (404, "prediction-not-found")


def test_readings_agreement_and_what_awaits_a_second_reading(settings: Settings) -> None:
    with run_thread(settings) as url, Client(url) as client:
        made = [str(each.id) for each in client.predict([draw(seed) for seed in range(4)])]
        assert [each.id for each in client.list_predictions(second_reading=True, reader="jane")] == []
        client.review(made[0], agrees=False, label="NORMAL", reviewer="joe")
        client.review(made[1], answer="cannot_tell", reviewer="joe")
        assert [each.id for each in client.list_predictions(disagreement=True)] == [made[0]]
        waiting = {each.id for each in client.list_predictions(second_reading=True, reader="jane")}
        assert waiting == {made[0], made[1]}
        client.review(made[0], agrees=False, label="NORMAL", reviewer="jane")
        agreement = client.get_agreement(days=1)
        assert {each.name for each in agreement.readers} == {"joe", "jane"}
        assert [each.images for each in agreement.pairs] == [1]

        first = client.commit_reading(made[2], "NORMAL", confidence=75, reader="joe", seconds=2.5)
        assert (first.reading.label, first.reading.with_ai, first.prediction.id) == ("NORMAL", False, made[2])
        again = client.commit_reading(made[2], "PNEUMONIA", with_ai=True, reader="joe")
        assert list(client.list_readings(reader="joe", limit=1)) == [again.reading, first.reading]
        (performance,) = client.get_reading_performance().readers
        assert (performance["reader"], performance["changed"]) == ("joe", 1)
        with pytest.raises(ServiceError) as caught:
            client.commit_reading(made[2], "NORMAL", reader="joe", confidence=1)
        assert caught.value.code == "reading-committed"
        model = client.list_models()[0]
        assert client.get_model(model.fingerprint) == model


def test_options_reach_the_service(client: Client) -> None:
    (unstored,) = client.predict(draw(1), store=False, heatmap=True, picture=True)
    assert unstored.id is None
    assert unstored.picture
    (first,) = client.predict(draw(77))
    (again,) = client.predict(draw(77), reuse=True)
    assert (again.id, again.reused) == (first.id, True)
    assert client.predict(draw(77), reuse=True, invert=True)[0].reused is False


def test_a_job_is_waited_for(client: Client) -> None:
    job = client.submit([draw(seed) for seed in range(3)])
    assert [each.name for each in client.wait(job)] == ["image"] * 3
    assert client.get_job(job.id).state == "done"
    failed = client.submit(b"no image")
    with pytest.raises(ServiceError) as caught:
        client.wait(failed)
    assert caught.value.code == "not-an-image"
    with pytest.raises(ServiceError) as refused:
        client.submit(draw(1), callback="https://example.org/")
    assert refused.value.code == "callback-refused"


def test_a_busy_service_is_asked_again(service: Process) -> None:
    with stand_between(service.url, 503, 429, 503) as (url, came), Client(url) as client:
        assert client.predict(draw(1))[0].decision
    assert len(came) == 4
    assert len({each["idempotency-key"] for each in came}) == 1


def test_a_lost_answer_stores_nothing_twice(settings: Settings) -> None:
    with run_thread(settings) as service, stand_between(service, 0) as (url, came), Client(url) as client:
        (one,) = client.predict(draw(1))
        assert [each.id for each in client.list_predictions()] == [one.id]
        assert len(came) == 3


def test_a_service_that_stays_busy_or_away_is_an_error(service: Process) -> None:
    with stand_between(service.url, *[503] * 9) as (url, came), Client(url, retries=2) as client:
        with pytest.raises(ServiceError) as caught:
            client.list_models()
        assert (caught.value.status, len(came)) == (503, 3)
    with Client("http://127.0.0.1:9/", retries=0) as client, pytest.raises(ServiceError, match="does not answer"):
        client.list_models()


def test_what_is_no_service_of_ours_is_said(tmp_path: Path, service: Process) -> None:
    with Client(f"{service.url}/monitoring/") as client, pytest.raises(ServiceError) as caught:
        client.list_models()
    assert caught.value.status == 404


def test_a_token_is_sent_and_never_to_another_address(settings: Settings) -> None:
    with run_thread(replace(settings, token=TOKEN)) as url:
        with Client(url, TOKEN) as client:
            assert client.list_models()
        with Client(url) as client, pytest.raises(ServiceError) as caught:
            client.list_models()
        assert (caught.value.status, caught.value.code) == (401, "token-missing")
    with stand_between(url, 302) as (proxy, came), Client(proxy, TOKEN) as client, pytest.raises(ServiceError):
        client.list_models()
    assert len(came) == 1  # no redirection is followed


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((3,), {}), (("localhost:8000",), {}), (("ftp://a.example",), {}), (("http://",), {}), ((), {"retries": -1})],
)
def test_a_wrong_argument_is_refused(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Client(*arguments, **options)


def test_what_is_no_image_is_refused_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        client.predict(tmp_path / "absent.png")
    with pytest.raises(UsageError, match="paths or bytes"):
        client.predict([3])  # type: ignore[list-item]


def test_it_is_a_public_name_and_needs_no_extra() -> None:
    import subprocess
    import sys

    assert pneumoscope.Client is Client
    script = (
        "import sys, pneumoscope; pneumoscope.Client; "
        "print([name for name in ('fastapi', 'sqlalchemy', 'torch', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
