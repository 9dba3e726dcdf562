"""The service, called as programs call it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import signal
import socket
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from dicom_files import dicom
from dicom_files import image as levels
from PIL import Image
from services import Process, draw, run_process, run_thread, wait_until

import pneumoscope
from pneumoscope.errors import UsageError
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.overlays import render_heatmap
from pneumoscope.inference.predictor import Predictor
from pneumoscope.server.settings import Limits, Settings
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

PNG = {"content-type": "image/png"}


def post(url: str, content: bytes, **query: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/predictions", params=query, content=content, headers=PNG, timeout=60)


def test_the_service_predicts_what_predict_predicts(service: Process, run: Run, images: Path) -> None:
    predictor = pneumoscope.load(run.model)
    with service.client() as client:
        for path in sorted(images.glob("test/*/*"))[:6]:
            expected = predictor.predict(path)[0]
            answer = client.post("/v1/predictions", files={"files": (path.name, path.read_bytes())})
            assert answer.status_code == 201
            (one,) = answer.json()["predictions"]
            assert one["name"] == path.name
            assert one["decision"] == expected.decision
            assert one["prediction_set"] == list(expected.prediction_set)
            assert one["probabilities"] == pytest.approx(expected.probabilities)
            assert one["ood_score"] == pytest.approx(expected.ood_score)
            assert one["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert one["explanation"]
            assert one["heatmap"] is None


def test_the_rule_that_gave_a_decision_is_stated_with_its_numbers(service: Process) -> None:
    with service.client() as client:
        for seed in range(20):
            (one,) = client.post("/v1/predictions", content=draw(seed), headers=PNG).json()["predictions"]
            said, decision = one["explanation"], one["decision"]
            if decision == "out_of_distribution":
                assert f"The OOD score, {one['ood_score']:.2f}, is above 1" in said
                assert one["uncertain_range"] is None
                continue
            low, high = one["uncertain_range"]
            side = {"PNEUMONIA": "above", "NORMAL": "below", "uncertain": "in"}[decision]
            assert f", is {side} the uncertain range, {low:.3f} to {high:.3f}" in said
            assert (one["probability"] > high, one["probability"] < low) == (side == "above", side == "below")
            assert client.get(f"/v1/predictions/{one['id']}").json()["explanation"] == said


def test_many_images_of_one_request_are_answered_in_their_order_and_a_bad_one_says_why(service: Process) -> None:
    images = [("files", (f"{seed}.png", draw(seed), "image/png")) for seed in range(5)]
    images.insert(2, ("files", ("bad.png", draw(9)[:300], "image/png")))
    with service.client() as client:
        answer = client.post("/v1/predictions", files=images).json()["predictions"]
    assert [one["name"] for one in answer] == ["0.png", "1.png", "bad.png", "2.png", "3.png", "4.png"]
    assert "damaged" in answer[2]["error"]
    assert answer[2]["id"] is None
    assert all(one["error"] is None for one in answer if one["name"] != "bad.png")


@pytest.mark.parametrize(
    "place",
    [
        "inference.features.read_radiograph",
        "inference.features.prepare_grey",
        "server.inference.decoding.render_picture",
    ],
)
@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError])
def test_an_internal_error_at_one_image_fails_only_its_own_answer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str, error: type
) -> None:
    module, _, function = f"pneumoscope.{place}".rpartition(".")
    original, secret = getattr(import_module(module), function), "MUELLER_HANS"

    def fail(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if any(is_black(getattr(each, "pixels", each)) for each in (arguments[0], result)):
            raise error(secret)
        return result

    monkeypatch.setattr(f"{module}.{function}", fail)
    black = io.BytesIO()
    Image.new("L", (128, 128)).save(black, "PNG")
    contents = [draw(1), black.getvalue(), draw(2)]
    files = [("files", (f"{i}.png", content)) for i, content in enumerate(contents)]
    expected = f"Internal error: {error.__name__}. Please report it."
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/v1/predictions", params={"picture": True}, files=files)
        assert answer.status_code == 201
        assert [each["error"] for each in answer.json()["predictions"]] == [None, expected, None]
        assert read_metrics(client)['pneumoscope_images_total{decision="error"}'] == 1
        assert len(client.get("/v1/predictions").json()["predictions"]) == 2
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda content: post(url, content, picture=True), contents * 2))
        assert [answer.status_code for answer in answers] == [201, 500, 201] * 2
        assert answers[1].json()["detail"] == expected
        assert answers[1].headers["content-type"] == "application/problem+json"
    assert f"Internal error: {error.__name__}" in caplog.text
    assert secret not in caplog.text


def test_an_error_of_a_whole_batch_is_logged_once_even_if_its_images_succeed_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, secret = Predictor.run, "MUELLER_HANS"

    def run_alone(self: Predictor, images: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        if len(images) > 1:
            raise MemoryError(secret)
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(Predictor, "run", run_alone)
    files = [("files", (f"{seed}.png", draw(seed))) for seed in range(3)]
    with run_thread(settings) as url:
        answer = httpx.post(f"{url}/v1/predictions", files=files, timeout=60)
    assert [each["error"] for each in answer.json()["predictions"]] == [None] * 3
    (logged,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "MemoryError" in logged.getMessage()
    assert "run_alone" in logged.getMessage()
    assert secret not in caplog.text


def test_internal_errors_at_all_files_do_not_blame_the_files(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    files = [("files", (f"{seed}.png", draw(seed))) for seed in range(2)]
    with run_thread(settings) as url:
        monkeypatch.setattr("pneumoscope.inference.features.prepare_grey", fail)
        answer = httpx.post(f"{url}/v1/predictions", files=files, timeout=60)
        described = httpx.get(f"{url}/openapi.json").json()["paths"]["/v1/predictions"]["post"]["responses"]
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith("None of the files can be predicted: Internal error: ZeroDivisionError.")
    assert "500" in described


def test_a_package_that_the_service_lacks_is_not_the_fault_of_a_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = dicom(levels())
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    needed = "The service lacks a package to read this file: a.dcm: reading DICOM needs an extra: "
    with run_thread(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        alone = client.post("/v1/predictions", files={"files": ("a.dcm", content)})
        assert alone.status_code == 415
        assert alone.json()["detail"].startswith(needed)
        files = [("files", ("a.dcm", content)), ("files", ("b.png", draw(1)))]
        (one, other) = client.post("/v1/predictions", files=files).json()["predictions"]
        assert one["error"].startswith(needed)
        assert other["error"] is None


def is_black(pixels: Any) -> bool:
    return isinstance(pixels, np.ndarray) and not pixels.any()


def test_images_computed_together_are_answered_as_those_computed_alone(service: Process) -> None:
    contents = [draw(seed) for seed in range(12)]
    alone = [post(service.url, each).json()["predictions"][0]["probabilities"] for each in contents]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda each: post(service.url, each).json()["predictions"][0], contents))
    for one, other in zip(alone, together, strict=True):
        assert other["probabilities"] == pytest.approx(one, abs=1e-5)


def test_a_heatmap_is_that_of_explain_and_a_picture_holds_every_level(service: Process, run: Run, image: bytes) -> None:
    (one,) = post(service.url, image, heatmap=True, picture=True).json()["predictions"]
    evidence = pneumoscope.explain(image, run.model).evidence
    assert evidence is not None
    assert one["heatmap"]["logit"] == pytest.approx(evidence.logit, abs=1e-4)
    assert one["heatmap"]["label"] == evidence.label
    drawn, own = (
        np.asarray(Image.open(io.BytesIO(png)), int)
        for png in (base64.b64decode(one["heatmap"]["png"]), render_heatmap(evidence, one["heatmap"]["limit"]))
    )
    assert drawn.shape == own.shape
    assert np.abs(drawn - own).max() <= 2
    picture = Image.open(io.BytesIO(base64.b64decode(one["picture"])))
    assert (np.asarray(picture) == np.rint(read_pixels(image) * 255)).all()


def test_a_picture_of_16_bits_is_a_grey_png_of_16_bits(service: Process) -> None:
    levels = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    (one,) = post(service.url, stream.getvalue(), picture=True).json()["predictions"]
    picture = Image.open(io.BytesIO(base64.b64decode(one["picture"])))
    assert picture.mode == "I;16"
    assert (np.asarray(picture, int) == levels).all()
    assert json.loads(picture.info["pneumoscope"])["full"] == [0, 65535]


def test_dicom_is_read_and_its_patient_becomes_a_pseudonym(service: Process) -> None:
    number = "4711-0815-4711"  # four digits alone may be in a hash by chance
    content = dicom(levels(), PatientID=number)
    answer = httpx.post(f"{service.url}/v1/predictions", content=content, headers={"content-type": "application/dicom"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["predictions"][0]["format"] == "DICOM"
    with sqlite3.connect(service.database) as database:
        sha256 = answer.json()["predictions"][0]["sha256"]
        (pseudonym,) = database.execute("SELECT patient FROM predictions WHERE sha256 = ?", (sha256,)).fetchone()
    assert len(pseudonym) == 16
    database.close()
    stored = b"".join(path.read_bytes() for path in Path(service.database).parent.glob("predictions.sqlite*"))
    assert pseudonym.encode() in stored  # in the file or in its log
    assert number.encode() not in stored


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"no image at all", PNG, 415, "unknown format"),
        (b"", PNG, 422, "no file"),
        (b"x", {"content-type": "text/plain"}, 415, "multipart/form-data"),
        (b"x", {}, 415, "multipart/form-data"),
        (b"x", {"content-type": "multipart/form-data"}, 422, "boundary"),
        (b"\x89PNG\r\n\x1a\nbroken", PNG, 422, "Save it"),
    ],
)
def test_an_unreadable_upload_is_a_problem_that_says_what_to_change(
    service: Process, content: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = httpx.post(f"{service.url}/v1/predictions", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert words in problem["detail"]
    assert {"type", "title"} <= set(problem)


def test_an_out_of_distribution_image_gets_nothing_that_the_network_says(service: Process) -> None:
    blank = io.BytesIO()
    Image.new("L", (128, 128), 255).save(blank, "PNG")
    (one,) = post(service.url, blank.getvalue(), heatmap=True).json()["predictions"]
    assert one["decision"] == "out_of_distribution"
    assert (one["probability"], one["predicted_label"], one["probabilities"], one["prediction_set"]) == (
        None,
        None,
        {},
        [],
    )
    assert one["heatmap"] is None
    (listed,) = httpx.get(f"{service.url}/v1/predictions?limit=1").json()["predictions"]
    assert (listed["probability"], listed["predicted_label"], listed["prediction_set"]) == (None, None, [])
    assert listed["probabilities"] == {}


def test_of_several_frames_the_first_is_read_with_a_warning(service: Process) -> None:
    headers = {"content-type": "application/dicom"}
    answer = httpx.post(f"{service.url}/v1/predictions", content=dicom(levels(), frames=3), headers=headers)
    (warning,) = answer.json()["predictions"][0]["warnings"]
    assert "3 frames (the first was read)" in warning


def test_another_modality_is_read_if_the_caller_asks_for_it(service: Process) -> None:
    headers, content = {"content-type": "application/dicom"}, dicom(levels(), Modality="CT")
    answer = httpx.post(f"{service.url}/v1/predictions", content=content, headers=headers)
    assert answer.status_code == 422
    assert "any_modality=true" in answer.json()["detail"]
    query = {"any_modality": True}
    answer = httpx.post(f"{service.url}/v1/predictions", params=query, content=content, headers=headers)
    assert answer.status_code == 201


def test_other_addresses_methods_and_parameters_are_problems_too(service: Process) -> None:
    with service.client() as client:
        for answer, status in (
            (client.get("/nothing"), 404),
            (client.get("/page/../app.py"), 404),
            (client.get("/page/%2e%2e%2fapp.py"), 404),
            (client.delete("/v1/predictions"), 405),
            (client.get("/v1/predictions", params={"limit": "many"}), 422),
            (client.get("/v1/examples/99"), 422),
            (client.post("/v1/predictions?heatmaps=true", content=b"x", headers=PNG), 422),
            (client.get("/v1/monitoring?month=1"), 422),
            (client.post("/v1/predictions/none/reviews", json={"agrees": True}), 404),
            (
                client.post("/v1/predictions/none/reviews", content=b"{", headers={"content-type": "application/json"}),
                422,
            ),
        ):
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"


def test_files_beyond_the_limits_are_refused_by_what_is_too_much(settings: Settings, image: bytes) -> None:
    small = Limits(file_bytes=20_000, request_bytes=60_000, request_files=3)
    with run_thread(replace(settings, limits=small)) as url:
        files = [("files", (f"{i}.png", b"x" * 100)) for i in range(4)]
        for answer, words in (
            (post(url, b"x" * 30_000), "larger than"),
            (post(url, b"x" * 70_000), "request is larger"),
            (httpx.post(f"{url}/v1/predictions", content=iter([b"x" * 40_000] * 2), headers=PNG), "request is larger"),
            (httpx.post(f"{url}/v1/predictions", files=files), "More than 3 files"),
        ):
            assert answer.status_code == 413
            assert words in answer.json()["detail"]
        assert post(url, image).status_code == 201


def test_images_beyond_the_capacity_are_answered_429_and_the_others_predicted(settings: Settings) -> None:
    with run_thread(replace(settings, limits=Limits(images=4))) as url:
        contents = [draw(seed, 512) for seed in range(24)]
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda each: post(url, each), contents))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {201, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) > 0
        assert post(url, contents[0]).status_code == 201


def test_a_request_is_accepted_whole_or_not_at_all(settings: Settings) -> None:
    files = [("files", (f"{seed}.png", draw(seed, 512))) for seed in range(6)]
    with run_thread(replace(settings, limits=Limits(images=8))) as url:
        codes: list[int] = []
        while 429 not in codes and len(codes) < 20:  # on a busy machine, one may be over before the other begins
            with ThreadPoolExecutor(2) as pool:
                both = pool.map(lambda _: httpx.post(f"{url}/v1/predictions", files=files, timeout=60), range(2))
                codes += [answer.status_code for answer in both]
        assert set(codes) == {201, 429}
        stored = httpx.get(f"{url}/v1/predictions", params={"limit": 200}).json()["predictions"]
        assert len(stored) == 6 * codes.count(201)


def test_pictures_of_many_images_need_several_requests(settings: Settings) -> None:
    files = [("files", (f"{seed}.png", draw(seed))) for seed in range(4)]
    with run_thread(replace(settings, limits=Limits(pictured_files=3))) as url:
        for query in ({"picture": True}, {"heatmap": True}):
            answer = httpx.post(f"{url}/v1/predictions", params=query, files=files)
            assert answer.status_code == 422
            assert "3 images" in answer.json()["detail"]
            assert httpx.post(f"{url}/v1/predictions", params=query, files=files[:3]).status_code == 201
        assert httpx.post(f"{url}/v1/predictions", files=files).status_code == 201


def test_a_review_that_is_too_large_or_too_slow_is_refused(settings: Settings) -> None:
    json_ = {"content-type": "application/json"}
    with run_thread(replace(settings, limits=Limits(silence=0.5))) as url:
        where = f"{url}/v1/predictions/x/reviews"
        for body in (b" " * 1_000_000, iter([b" " * 100_000] * 10)):
            answer = httpx.post(where, content=body, headers=json_)
            assert answer.status_code == 413
            assert answer.headers["content-type"] == "application/problem+json"
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as sender:
            sender.settimeout(10)
            head = f"POST /v1/predictions/x/reviews HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n"
            sender.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
            assert b"408" in sender.recv(4096)


def test_uploads_stay_in_memory_however_large(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", moved.append)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1600, 1600), np.uint8)).save(stream, "PNG")
    assert len(stream.getvalue()) > 2 * 1024**2
    with run_thread(settings) as url:
        answer = httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", stream.getvalue())})
        assert answer.status_code == 201
    assert moved == []


def test_an_unknown_charset_is_refused(service: Process) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n--x--\r\n'
    for charset in ("undefined", "nothing"):
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        assert httpx.post(f"{service.url}/v1/predictions", content=body, headers=headers).status_code in (415, 422)


def test_a_slow_sender_is_dropped_and_delays_nobody(settings: Settings, image: bytes) -> None:
    with run_thread(replace(settings, limits=Limits(silence=0.5, sending=1.0))) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        head = f"POST /v1/predictions HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: image/png\r\n"
        with socket.create_connection(address) as body, socket.create_connection(address) as unfinished:
            body.sendall(f"{head}Content-Length: 1000\r\n\r\nxxx".encode())
            unfinished.sendall(head.encode())
            assert post(url, image).status_code == 201
            body.settimeout(10)
            unfinished.settimeout(10)
            assert b"408" in body.recv(4096)
            with suppress(ConnectionResetError):
                assert unfinished.recv(4096) == b""
        with socket.create_connection(address) as drop:
            drop.settimeout(10)
            drop.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
            began = time.monotonic()
            answer = b""
            while not answer and time.monotonic() - began < 10:  # a little now and then is no silence
                drop.sendall(b"x")
                drop.settimeout(0.2)
                try:
                    answer = drop.recv(4096)
                except TimeoutError:
                    continue
            assert b"408" in answer


def test_a_client_that_does_not_take_its_answer_is_dropped(settings: Settings) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (1800, 1800), np.uint16)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG", compress_level=0)
    body = stream.getvalue()
    with run_thread(replace(settings, limits=Limits(silence=0.5))) as url, socket.socket() as taker:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        taker.settimeout(30)
        taker.connect(address)
        head = (
            f"POST /v1/predictions?picture=true HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: image/png\r\n"
        )
        taker.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        first = taker.recv(2048)
        promised = int(re.findall(rb"content-length: (\d+)", first)[0])
        assert promised > 8 * 1024**2  # more than the sockets' own buffers hold
        held = [value for name, value in read_metrics_at(url).items() if name == "pneumoscope_buffered_bytes"]
        assert held == [promised]
        time.sleep(1.5)
        assert read_metrics_at(url)["pneumoscope_buffered_bytes"] == 0
        taken = len(first)
        with suppress(ConnectionResetError):
            while part := taker.recv(1024**2):
                taken += len(part)
        assert taken < promised


@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1"])
def test_a_service_on_an_ipv6_address_accepts_its_own_host_in_brackets(settings: Settings, host: str) -> None:
    with run_thread(replace(settings, host=host)) as url:
        for name, status in ((f"[{host}]:8000", 200), (f"[{host}]", 200), (host, 403), ("[::2]:8000", 403)):
            assert httpx.get(f"{url}/v1/models", headers={"host": name}).status_code == status, name


def test_without_the_token_nothing_is_answered(settings: Settings, image: bytes) -> None:
    token = "4f9a1c7be2d0835664b1"
    with run_thread(replace(settings, token=token)) as url, httpx.Client(base_url=url) as client:
        for path in ("/v1/models", "/v1/predictions", "/v1/monitoring", "/metrics", "/v1/examples/0"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {token}"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.post("/v1/predictions", content=image, headers=PNG).status_code == 401
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200


def test_other_addresses_than_loopback_need_a_token_that_is_hard_to_guess(settings: Settings) -> None:
    with pytest.raises(UsageError, match="PNEUMOSCOPE_TOKEN"):
        replace(settings, host="0.0.0.0").check()
    with pytest.raises(UsageError, match="16 characters"):
        replace(settings, host="0.0.0.0", token="short").check()
    with pytest.raises(UsageError, match="no spaces"):
        replace(settings, token="two words, though long enough").check()
    replace(settings, host="0.0.0.0", token="4f9a1c7be2d0835664b1").check()
    for host in ("localhost", "127.0.0.1", "::1"):
        replace(settings, host=host).check()


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_pages_of_other_sites_cannot_use_it(service: Process, image: bytes, headers: dict[str, str]) -> None:
    for answer in (
        httpx.post(f"{service.url}/v1/predictions", content=image, headers={**PNG, **headers}),
        httpx.get(f"{service.url}/v1/monitoring", headers=headers),
    ):
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_this_machines_own_names_are_answered_with_any_port(service: Process, name: str) -> None:
    for host in (name, f"{name}:80"):
        assert httpx.get(f"{service.url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "evil.example#localhost", "[::1", ""])
def test_every_page_refuses_other_names_than_this_machines(service: Process, host: str) -> None:
    for path in ("/", "/healthz", "/v1/models"):
        answer = httpx.get(f"{service.url}{path}", headers={"host": host})
        assert answer.status_code == 403
        assert "localhost" in answer.json()["detail"]


def test_every_answer_carries_the_security_headers(service: Process) -> None:
    with service.client() as client:
        for path in ("/", "/monitoring", "/docs", "/page/reading_room.js", "/v1/models", "/nothing", "/healthz"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "server" not in headers
        assert client.get("/v1/models").headers["cache-control"] == "no-store"


def test_head_is_answered_as_get_without_the_body(service: Process) -> None:
    with service.client() as client:
        for path in ("/", "/healthz", "/v1/models"):
            answer = client.head(path)
            assert answer.status_code == 200
            assert answer.content == b""


def test_a_page_that_has_not_changed_is_not_sent_again(service: Process) -> None:
    with service.client() as client:
        tag = client.get("/").headers["etag"]
        assert client.get("/", headers={"if-none-match": tag}).status_code == 304


def test_a_review_is_stored_and_listed_with_its_prediction(service: Process, image: bytes) -> None:
    with service.client() as client:
        (one,) = client.post("/v1/predictions", content=image, headers=PNG).json()["predictions"]
        where = f"/v1/predictions/{one['id']}/reviews"
        other = "NORMAL" if one["decision"] == "PNEUMONIA" else "PNEUMONIA"
        stored = client.post(where, json={"agrees": False, "label": other, "comment": "rotated", "reviewer": "ab"})
        assert stored.status_code == 201
        assert stored.json()["label"] == other
        listed = client.get("/v1/predictions").json()["predictions"]
        again = next(each for each in listed if each["id"] == one["id"])
        assert again["reviews"] == [stored.json()]
        left_out = ("reviews", "review_count", "image_reviews", "explanation")
        assert {key: again[key] for key in one if key not in left_out} == {
            key: one[key] for key in one if key not in left_out
        }


def test_a_review_that_contradicts_itself_is_refused(service: Process) -> None:
    with service.client() as client:
        for seed in range(20):
            (one,) = client.post("/v1/predictions", content=draw(seed), headers=PNG).json()["predictions"]
            where, decision = f"/v1/predictions/{one['id']}/reviews", one["decision"]
            assert client.post(where, json={"agrees": False, "label": "CAT"}).status_code == 422
            if decision in ("NORMAL", "PNEUMONIA"):
                other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[decision]
                assert client.post(where, json={"agrees": True, "label": other}).status_code == 422
                assert client.post(where, json={"agrees": False, "label": decision}).status_code == 422
                assert client.post(where, json={"agrees": False}).json()["label"] == other
                assert client.post(where, json={"agrees": True}).json()["label"] == decision
            else:
                assert client.post(where, json={"agrees": False}).status_code == 422
                assert client.post(where, json={"agrees": True}).json()["label"] is None


def test_metrics_count_requests_images_and_batches(service: Process, image: bytes) -> None:
    with service.client() as client:
        before = read_metrics(client)
        client.post("/v1/predictions", files=[("files", ("a.png", image)), ("files", ("b.png", b"bad"))])
        after = read_metrics(client)

    def gained(start: str) -> float:
        return sum(value - before.get(name, 0) for name, value in after.items() if name.startswith(start))

    assert gained("pneumoscope_images_total{") == 2
    assert gained('pneumoscope_images_total{decision="error"}') == 1
    assert gained('pneumoscope_requests_total{method="POST",route="/v1/predictions",status="201"}') == 1
    assert gained("pneumoscope_batch_images_count") == 1
    assert after["pneumoscope_buffered_bytes"] == 0
    assert after["pneumoscope_images_in_progress"] == 0


def read_metrics_at(url: str) -> dict[str, float]:
    with httpx.Client(base_url=url) as client:
        return read_metrics(client)


def count_accepted(client: httpx.Client) -> float:
    """Images in progress, and those that are done."""
    metrics = read_metrics(client)
    done = sum(value for name, value in metrics.items() if name.startswith("pneumoscope_images_total{"))
    return metrics["pneumoscope_images_in_progress"] + done


def read_metrics(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_logs_show_no_file_no_query_and_no_comment(service: Process, image: bytes) -> None:
    with service.client() as client:
        files = {"files": ("MUELLER_HANS_1950.png", image)}
        (one,) = client.post("/v1/predictions?picture=true", files=files).json()["predictions"]
        client.post(f"/v1/predictions/{one['id']}/reviews", json={"agrees": True, "comment": "Herr Mueller"})
        client.post("/v1/predictions", files={"files": ("MUELLER_HANS_1950.png", image[:200])})
    wait_until(lambda: sum("/v1/predictions 4" in line for line in service.lines) > 0)
    log = "".join(service.lines)
    assert "POST /v1/predictions 201" in log
    for secret in ("MUELLER", "Mueller", "picture=", one["id"]):
        assert secret not in log


def test_a_service_that_has_stopped_leaves_no_threads(settings: Settings, image: bytes) -> None:
    before = set(threading.enumerate())
    with run_thread(settings) as url:
        assert post(url, image, heatmap=True, picture=True).status_code == 201
        assert httpx.get(f"{url}/v1/monitoring").status_code == 200
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


def test_shutting_down_finishes_what_was_accepted(run: Run, tmp_path: Path) -> None:
    contents = [draw(seed, 1536) for seed in range(4)] * 10
    with run_process(run.model, str(tmp_path / "predictions.sqlite")) as process:
        answers: list[int] = []

        def send(content: bytes) -> None:
            answers.append(post(process.url, content, heatmap=True).status_code)

        threads = [threading.Thread(target=send, args=(content,)) for content in contents]
        for thread in threads:
            thread.start()
        with process.client() as client:
            wait_until(lambda: count_accepted(client) == len(contents))
            assert read_metrics(client)["pneumoscope_images_in_progress"] > 0
        process.process.end(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert process.process.wait(60) == 0
        assert answers == [201] * len(contents)
        with sqlite3.connect(process.database) as database:
            assert database.execute("SELECT count(*) FROM predictions").fetchone() == (len(contents),)
        database.close()


def test_a_port_that_is_taken_is_a_usage_error(service: Process, run: Run) -> None:
    import subprocess
    import sys

    port = service.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pneumoscope", "serve", "--model", str(run.model), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Cannot listen on" in done.stderr


def test_examples_are_simulated_images(service: Process) -> None:
    with service.client() as client:
        examples = client.get("/v1/examples").json()
        assert len(examples) >= 4
        assert {example["label"] for example in examples} == {"NORMAL", "PNEUMONIA"}
        image = client.get(f"/v1/examples/{examples[0]['number']}")
        assert image.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(image.content)).mode == "L"


def test_images_are_kept_only_if_asked_for(settings: Settings, image: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with run_thread(settings) as url:
        assert post(url, image).status_code == 201
    assert not any(image[:64] in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with run_thread(replace(settings, keep_images=folder, keep_names=False)) as url:
        headers = {**PNG, "content-disposition": 'attachment; filename="../../escaped.png"'}
        answer = httpx.post(f"{url}/v1/predictions", content=image, headers=headers).json()["predictions"][0]
        assert answer["name"] == "escaped.png"
        assert [each["name"] for each in httpx.get(f"{url}/v1/predictions").json()["predictions"]] == ["", "image"]
    (kept,) = folder.iterdir()
    assert kept.name == f"{answer['sha256']}.png"
    assert kept.read_bytes() == image
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, kept)] == [0o700, 0o600]


def test_a_service_recovers_with_its_folder_of_kept_images(settings: Settings, image: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with run_thread(replace(settings, keep_images=folder)) as url:
        folder.rmdir()
        assert post(url, image).status_code == 503
        folder.mkdir()
        assert post(url, image).status_code == 201


def test_an_image_keeps_its_patient_and_its_polarity(settings: Settings) -> None:
    with run_thread(replace(settings, keep_names=False)) as url:
        for name in ("person7_bacteria_25.jpeg", "person7_bacteria_26.jpeg", "person8_virus_1.jpeg", "unknown.png"):
            httpx.post(f"{url}/v1/predictions", params={"invert": True}, files={"files": (name, draw(len(name)))})
    with Store(settings.database) as store:
        records = store.list_predictions(10)
    patients = [record.patient for record in reversed(records)]
    assert all(record.invert for record in records)
    assert patients[0] == patients[1] != patients[2]
    assert patients[2] != ""
    assert patients[3] == ""


def test_images_outside_the_intended_use_have_a_warning_or_are_refused(settings: Settings) -> None:
    content = dicom(levels(), ViewPosition="LL", PresentationIntentType="FOR PROCESSING")
    files = [("files", ("a.dcm", content)), ("files", ("b.png", draw(1)))]
    with run_thread(settings) as url:
        warned, other = httpx.post(f"{url}/v1/predictions", files=files, timeout=60).json()["predictions"]
    assert warned["decision"]
    assert warned["warnings"][:2] == [
        "outside the intended use: view LL (meant for frontal views)",
        "outside the intended use: raw data before processing (FOR PROCESSING; meant for images FOR PRESENTATION)",
    ]
    assert other["warnings"] == []
    with run_thread(replace(settings, refuse_out_of_scope=True)) as url:
        refused, other = httpx.post(f"{url}/v1/predictions", files=files, timeout=60).json()["predictions"]
        alone = httpx.post(f"{url}/v1/predictions", files=files[:1], timeout=60)
    assert refused["error"].startswith("a.dcm: outside the intended use: view LL (meant for frontal views); ")
    assert "the service's setting (`pneumoscope serve --refuse-out-of-scope`)" in refused["error"]
    assert (refused["id"], refused["decision"], refused["probabilities"]) == (None, None, {})
    assert other["error"] is None
    assert (alone.status_code, alone.json()["detail"]) == (422, refused["error"])


def test_the_log_may_be_json_with_the_id_of_each_request(run: Run, tmp_path: Path) -> None:
    database = str(tmp_path / "predictions.sqlite")
    with run_process(run.model, database, "--log-format", "json") as service, service.client() as client:
        own = client.get("/healthz", headers={"x-request-id": "from-the-proxy-7"}).headers["x-request-id"]
        made = client.get("/healthz", headers={"x-request-id": "no id"}).headers["x-request-id"]
        assert service.end() == 0
        lines = [json.loads(line) for line in service.lines if line.startswith("{")]
    assert own == "from-the-proxy-7"
    assert re.fullmatch("[0-9a-f]{16}", made)
    requests = {line["request"]: line["message"] for line in lines if "request" in line}
    assert requests[own].startswith("GET /healthz 200")
    assert made in requests
