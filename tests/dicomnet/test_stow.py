"""The node over HTTP: STOW-RS from an independent client, hostile requests, health and metrics."""

from __future__ import annotations

import io
import json
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from fastapi.testclient import TestClient
from peers import write_image
from pydicom import dcmread

from pneumoscope.dicomnet.node_settings import Limits, NodeSettings
from pneumoscope.dicomnet.receiver import resolve_classes
from pneumoscope.dicomnet.spool import Arrival, Spool, Stored, read_arrival
from pneumoscope.dicomnet.stow import Place, build_app, store_parts
from pneumoscope.dicomnet.web import serve_web

TYPE = 'multipart/related; type="application/dicom"; boundary=xyz'
TOKEN = "0123456789abcdef0123456789abcdef"


class Notes:
    """A watcher and a health check that take notes."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []
        self.reasons: list[str] = []
        self.troubles: list[str] = []
        self.failures: list[str] = []

    def received(self, stored: Stored, arrival: Arrival) -> None:
        assert arrival.calling == "STOW"
        self.stored.append(stored)

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)

    def committed(self, transaction: str, stored: Any, failed: Any) -> None:
        raise AssertionError

    def find_troubles(self) -> list[str]:
        return self.troubles

    def find_failures(self) -> list[str]:
        return self.failures

    def render_metrics(self) -> bytes:
        return b"metric 1\n"


@contextmanager
def run_app(folder: Path, free_bytes: int = 0, **settings: Any) -> Iterator[tuple[TestClient, Spool, Notes]]:
    notes = Notes()
    with Spool(folder / "spool", free_bytes).open() as spool:
        values = NodeSettings(**{"stow": True, "dry_run": True, **settings})
        with TestClient(build_app(values, spool, notes, notes)) as client:
            yield client, spool, notes


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    return write_image(tmp_path / "1.dcm", 1, 1).read_bytes()


def parts(*contents: bytes, kind: bytes = b"application/dicom") -> bytes:
    return b"".join(b"--xyz\r\nContent-Type: " + kind + b"\r\n\r\n" + each + b"\r\n" for each in contents) + b"--xyz--"


def test_an_independent_client_stores_several_images(tmp_path: Path) -> None:
    notes = Notes()
    settings = NodeSettings(stow=True, dry_run=True, http_port=0)
    datasets = [dcmread(write_image(tmp_path / f"{number}.dcm", 1, number, 300)) for number in range(5)]
    with Spool(tmp_path / "spool", 0).open() as spool, serve_web(settings, spool, notes, notes) as port:
        answer = DICOMwebClient(f"http://127.0.0.1:{port}").store_instances(datasets)
        assert len(answer.ReferencedSOPSequence) == 5
        assert len(notes.stored) == 5
        for stored, dataset in zip(notes.stored, datasets, strict=True):
            kept = dcmread(spool.path_of(stored.key))
            assert kept == dataset
            assert read_arrival(spool.path_of(stored.key)).calling == "STOW"


def test_what_is_not_stored_is_said_for_each_object(tmp_path: Path, image: bytes) -> None:
    ct = write_image(tmp_path / "ct.dcm", 1, 2, SOPClassUID="1.2.840.10008.5.1.4.1.1.2").read_bytes()
    with run_app(tmp_path) as (client, spool, notes):
        answer = client.post("/studies", content=parts(image, ct, b"no DICOM"), headers={"content-type": TYPE})
        assert answer.status_code == 202
        assert answer.headers["content-type"] == "application/dicom+json"
        (stored,) = answer.json()["00081199"]["Value"]
        assert stored["00081155"]["Value"] == ["1.2.3.1.1.1"]
        failed = answer.json()["00081198"]["Value"]
        assert [each["00081197"]["Value"] for each in failed] == [[0x0122], [0xC000]]
        assert len(list(spool.list_keys())) == len(notes.stored) == 1
        assert client.post("/studies", content=parts(ct), headers={"content-type": TYPE}).status_code == 409


def test_images_of_another_study_than_the_address_names_are_refused(tmp_path: Path, image: bytes) -> None:
    with run_app(tmp_path) as (client, _, notes):
        assert client.post("/studies/1.2.9", content=parts(image), headers={"content-type": TYPE}).status_code == 409
        assert client.post("/studies/1.2.3.1", content=parts(image), headers={"content-type": TYPE}).status_code == 200
        assert len(notes.stored) == 1


def test_a_full_disk_is_answered_507(tmp_path: Path, image: bytes) -> None:
    with run_app(tmp_path, free_bytes=2**60) as (client, _, notes):
        answer = client.post("/studies", content=parts(image), headers={"content-type": TYPE})
        assert answer.status_code == 507
        assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA700]
        assert notes.reasons == ["full"]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", TYPE, 400),
        (b"--xyz--", TYPE, 400),
        (b"--xyz", TYPE, 400),
        (b"--xyz\r\nContent-Type: application/dicom\r\n\r\nDICM", TYPE, 400),  # cut off
        (b"--xyz\r\n\r\n\r\n--xyz--", TYPE, 415),
        (parts(b"x", kind=b"application/dicom+xml"), TYPE, 415),
        (parts(b"x"), "application/dicom", 415),
        (parts(b"x"), "multipart/related", 415),
        (parts(b"x" * 5000), TYPE, 413),
    ],
)
def test_hostile_requests_store_nothing(body: bytes, content_type: str, status: int, tmp_path: Path) -> None:
    with run_app(tmp_path, limits=Limits(request_bytes=4000)) as (client, spool, _):
        answer = client.post("/studies", content=body, headers={"content-type": content_type})
        assert answer.status_code == status
        assert not list(spool.list_keys())


@pytest.mark.parametrize("study", ["", "/1.2.3.1"])
def test_nothing_of_a_request_is_stored_if_a_later_part_is_of_another_type(
    study: str, tmp_path: Path, image: bytes
) -> None:
    body = parts(image).removesuffix(b"--xyz--") + parts(b"text", kind=b"text/plain")
    with run_app(tmp_path) as (client, spool, notes):
        answer = client.post(f"/studies{study}", content=body, headers={"content-type": TYPE})
        assert answer.status_code == 415
        assert not list(spool.list_keys())
        assert not notes.stored


def test_a_request_is_held_in_memory_once(tmp_path: Path, image: bytes) -> None:
    large = image + bytes(20_000_000)
    with run_app(tmp_path) as (_, spool, notes):
        place = Place(spool, notes, frozenset(resolve_classes(NodeSettings().sop_classes)))
        body = bytearray(parts(large))
        tracemalloc.start()
        try:
            (outcome,) = store_parts(body, b"xyz", NodeSettings(), place, None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert outcome.status == 0
        assert peak < 10_000_000  # beside the body itself
        assert spool.path_of(notes.stored[0].key).stat().st_size > len(large) - 1000


@pytest.mark.parametrize("place", range(132, 330, 6))
def test_damaged_meta_information_is_refused_or_stored_whole(place: int, tmp_path: Path, image: bytes) -> None:
    damaged = image[:place] + b"\xff\xff\xff" + image[place + 3 :]
    with run_app(tmp_path) as (client, spool, _):
        answer = client.post("/studies", content=parts(damaged), headers={"content-type": TYPE})
        assert answer.status_code in (200, 409)
        assert len(list(spool.list_keys())) == (answer.status_code == 200)


def test_a_token_is_needed_where_there_is_one(tmp_path: Path, image: bytes) -> None:
    with run_app(tmp_path, token=TOKEN) as (client, spool, _):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            answer = client.post("/studies", content=parts(image), headers={"content-type": TYPE, **headers})
            assert answer.status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        assert not list(spool.list_keys())
        assert client.get("/healthz").status_code == 200
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/studies", content=parts(image), headers={"content-type": TYPE, **headers}).is_success
        assert client.get("/metrics", headers=headers).text == "metric 1\n"


def test_readiness_says_what_is_wrong(tmp_path: Path) -> None:
    with run_app(tmp_path, stow=False) as (client, _, notes):
        assert client.get("/readyz").json() == {"status": "ready", "troubles": []}
        notes.troubles.append("the database does not answer")
        assert client.get("/readyz").status_code == 503
        assert client.post("/studies", content=b"").status_code == 404  # STOW is off


def test_health_is_not_ok_when_something_has_failed(tmp_path: Path) -> None:
    with run_app(tmp_path) as (client, _, notes):
        assert client.get("/healthz").json() == {"status": "ok"}
        notes.failures.append("the thread 'answer' has died")
        answer = client.get("/healthz")
        assert answer.status_code == 503
        assert answer.json() == {"status": "failed", "failures": ["the thread 'answer' has died"]}


def test_a_slow_sender_gets_408_and_blocks_no_other(tmp_path: Path, image: bytes) -> None:
    notes = Notes()
    settings = NodeSettings(stow=True, dry_run=True, http_port=0, limits=Limits(silence=0.5, requests=2))
    with (
        Spool(tmp_path / "spool", 0).open() as spool,
        serve_web(settings, spool, notes, notes) as port,
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\nContent-Length: 1000000\r\n\r\n"
        slow.sendall(head.encode() + b"--xyz\r\n")
        answer = httpx.post(f"http://127.0.0.1:{port}/studies", content=parts(image), headers={"content-type": TYPE})
        assert answer.status_code == 200
        slow.settimeout(20)
        assert b" 408 " in slow.recv(4096)


def test_the_answer_is_json_of_dicom(tmp_path: Path, image: bytes) -> None:
    from pydicom.dataset import Dataset

    with run_app(tmp_path) as (client, _, _notes):
        answer = client.post("/studies", content=parts(image), headers={"content-type": TYPE})
        assert Dataset.from_json(io.StringIO(json.dumps(answer.json())).read()).ReferencedSOPSequence
