"""Files are decoded in processes of their own: what happens to one of them harms no other image."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np
import pytest
from decoder_work import work
from services import draw, run_thread, wait_until

from pneumoscope.errors import UsageError
from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import ImageBytes
from pneumoscope.inference.features import Array, Extract
from pneumoscope.server import predictions
from pneumoscope.server.inference import decoding
from pneumoscope.server.inference.decoding import Decoders, read
from pneumoscope.server.problems import RequestError
from pneumoscope.server.settings import Limits, Settings

Send = Callable[[str], Future[httpx.Response]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Three processes decode, and an image may take six seconds."""
    return replace(settings, decoders=3, limits=replace(Limits(), decoding=6.0, stopping=2))


@contextmanager
def serve(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Send]]:
    """A service whose decoders do what the names of files say."""
    monkeypatch.setattr(predictions, "Decoders", partial(Decoders, work=work))
    with ThreadPoolExecutor(16) as pool, run_thread(settings) as url:

        def send(name: str) -> Future[httpx.Response]:
            files = {"files": (f"{name}.png", draw(1))}
            return pool.submit(lambda: httpx.post(f"{url}/v1/predictions?picture=true", files=files, timeout=60))

        yield url, send


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz", timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        (
            "end",
            422,
            "end.png: its decoding process ended: the file is damaged, or needs too much memory. "
            "Save it again, as PNG with 8 or 16 bits.",
        ),
        ("fail", 500, "Internal error: ZeroDivisionError. Please report it."),
        ("fill", 500, "Internal error: MemoryError. Please report it."),
        ("slow-9", 422, "slow-9.png: decoding it takes more than 6 seconds. Save it again, as PNG with 8 or 16 bits."),
    ],
)
def test_an_image_that_harms_its_process_is_refused_and_the_next_one_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, status: int,
    detail: str,
) -> None:  # fmt: skip
    with serve(replace(settings, decoders=2), monkeypatch) as (_, send):
        answers = [each.result() for each in [send(name), send(name)]]
        assert {answer.status_code for answer in answers} <= {status, 429}
        assert detail in [answer.json()["detail"] for answer in answers]
        good = [each.result() for each in [send("a"), send("b"), send("c")]]
        assert [answer.status_code for answer in good] == [201] * 3
        assert all(answer.json()["predictions"][0]["picture"] for answer in good)
    assert "FAIL" not in caplog.text


def test_slow_images_leave_a_process_for_the_others_and_the_service_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(replace(settings, limits=replace(Limits(), decoding=20.0)), monkeypatch) as (url, send):
        slow = [send("slow-14"), send("slow-14")]
        wait_until(lambda: not is_ready(url))
        assert "take long" in httpx.get(f"{url}/readyz").json()["detail"]
        others = [send(f"{i}") for i in range(8)]
        assert [each.result().status_code for each in others] == [201] * 8
        assert not any(each.done() for each in slow)
        third = send("slow-14").result()
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) > 0
        assert [each.result().status_code for each in slow] == [201, 201]
        wait_until(lambda: is_ready(url))


def test_a_service_that_is_stopped_does_not_wait_for_slow_images(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The last thread ends with the service: the test's limit of time would stop a service that waits.
    before = {thread.name for thread in threading.enumerate()}
    with serve(replace(settings, limits=replace(Limits(), decoding=600.0, stopping=2)), monkeypatch) as (_, send):
        slow = send("slow-500")
        time.sleep(3)
        assert not slow.done()
    assert slow.exception() is not None or slow.result().status_code >= 500
    wait_until(lambda: {thread.name for thread in threading.enumerate() if "decode" in thread.name} <= before)


def test_a_process_that_starts_while_the_service_stops_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, closing = threading.Event(), threading.Event()
    pipe = decoding._CONTEXT.Pipe

    def wait_and_open() -> object:
        begun.set()
        closing.wait(60)
        return pipe()

    monkeypatch.setattr(decoding._CONTEXT, "Pipe", wait_and_open)
    decoders = Decoders(InputSpec(), replace(Limits(), decoding=600.0), 2, work)
    image = ImageBytes(draw(1), "slow-500.png")
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(asyncio.run, decoders.decode(image))
        assert begun.wait(60)
        closed = pool.submit(decoders.close)
        time.sleep(1)  # `close` has found no process
        closing.set()
        closed.result(60)
        with pytest.raises(RequestError, match="stopping"):
            answer.result(60)
    assert count_decoders() == 0


def test_a_process_that_started_too_slowly_gives_no_image_the_answer_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = InputSpec()
    decoders = Decoders(spec, replace(Limits(), decoding=60.0), 2, work)
    monkeypatch.setattr(decoding, "_STARTING", 0.0)
    decoders.open()
    monkeypatch.setattr(decoding, "_STARTING", 60.0)
    time.sleep(5)  # by then it would be ready
    images = [ImageBytes(draw(seed), f"{seed}.png") for seed in range(5)]
    found = [asyncio.run(decoders.decode(image)).extract for image in images]
    decoders.close()
    for image, extract in zip(images, found, strict=True):
        assert np.array_equal(to_inputs(extract), to_inputs(read(image, False, spec).extract))


def to_inputs(extract: Extract) -> Array:
    assert extract.error is None
    assert extract.inputs is not None
    return extract.inputs


@pytest.mark.parametrize("part", ["poll", "recv"])
def test_a_process_whose_answer_was_not_read_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    spec = InputSpec()
    decoders = Decoders(spec, replace(Limits(), decoding=60.0), 1, work)
    decoders.open()
    images = [ImageBytes(draw(seed), f"{seed}.png") for seed in range(2)]

    def fail(*_: object) -> object:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Connection, part, fail)
        with pytest.raises(MemoryError):
            asyncio.run(decoders.decode(images[0]))
    extract = asyncio.run(decoders.decode(images[1])).extract
    decoders.close()
    assert np.array_equal(to_inputs(extract), to_inputs(read(images[1], False, spec).extract))


def test_processes_that_decode_end_with_the_service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(settings, monkeypatch) as (_, send):
        assert send("a").result().status_code == 201
        assert count_decoders() > 0
    assert count_decoders() == 0


def count_decoders() -> int:
    import multiprocessing

    return sum(child.name == "decoder" for child in multiprocessing.active_children())


def test_one_process_is_too_few(settings: Settings) -> None:
    with pytest.raises(UsageError, match="at least 2 are needed"):
        replace(settings, decoders=1).check()


def test_an_image_is_not_blamed_where_no_process_starts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_STARTING", 0.0)
    with serve(settings, monkeypatch) as (_, send):
        answer = send("a").result()
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "a.png" not in answer.json()["detail"]
        monkeypatch.setattr(decoding, "_STARTING", 60.0)
        assert send("a").result().status_code == 201
