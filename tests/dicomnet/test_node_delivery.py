"""How results get to their destinations: archives that are down, refuse, lie, or confirm in different ways."""

from __future__ import annotations

import json
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
import urllib3
from archives import Archive, find_port, run_orthanc
from node_process import CLASSES
from peers import (
    DICOM_WEB,
    NodeProcess,
    make_certificate,
    run_http,
    run_node,
    run_picky,
    storescu,
    to_dicom,
    to_web,
    wait_until,
    write_image,
)

from pneumoscope.dicomnet.identifiers import derive_uid

pytestmark = pytest.mark.timeout(120)
NODE_PORT = find_port()  # the archive reports on storage commitment here


@pytest.fixture(scope="module")
def one_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    modality = {"AET": "PNEUMOSCOPE", "Host": "127.0.0.1", "Port": NODE_PORT, "AllowStorageCommitment": True}
    plugins = [str(DICOM_WEB)] if DICOM_WEB.exists() else []
    folder = tmp_path_factory.mktemp("orthanc")
    with run_orthanc(folder, Plugins=plugins, DicomModalities={"node": modality}) as archive:
        yield archive


@pytest.fixture
def archive(one_archive: Archive) -> Archive:
    """An archive, empty."""
    one_archive.clear()
    return one_archive


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{number}.dcm", number // 2, number) for number in range(4)]


def uids_of(count: int) -> Counter[str]:
    return Counter(derive_uid(kind, f"1.2.3.{number // 2}.1.{number}") for number in range(count) for kind in CLASSES)


def uids_in(archive: Archive) -> Counter[str]:
    return Counter(each["SOPInstanceUID"] for each in archive.list_tags())


def read_deliveries(node: NodeProcess) -> list[Any]:
    engine = sql.create_engine(f"sqlite:///{node.settings['database']}")
    with engine.connect() as connection:
        rows = list(connection.execute(sql.text("SELECT state, attempts, error FROM node_deliveries")))
    engine.dispose()
    return rows


def states_of(node: NodeProcess) -> Counter[str]:
    return Counter(row.state for row in read_deliveries(node))


def test_an_archive_that_is_down_gets_everything_when_it_is_back(tmp_path: Path, images: list[Path]) -> None:
    port = find_port()
    to = {"host": "127.0.0.1", "port": port, "title": "ORTHANC"}
    retries = {"first": 0.2, "longest": 0.5, "refusals": 1}  # being out of reach does not count as being refused
    with run_node(tmp_path / "node", destinations=[to], retries=retries) as node:
        assert storescu(node.port, images).returncode == 0
        wait_until(lambda: "unreachable" in urllib3.request("GET", f"{node.url}/metrics").data.decode())
        wait_until(lambda: len(read_deliveries(node)) == 8)
        with run_orthanc(tmp_path / "orthanc", DicomPort=port) as late:
            wait_until(lambda: late.count() == 8)
            assert uids_in(late) == uids_of(4)
            wait_until(lambda: states_of(node) == {"delivered": 8})
        assert any("cannot be reached" in line for line in node.lines)
        wait_until(lambda: any("is reached again" in line for line in node.lines))


@pytest.mark.parametrize("verify", ["find", "commitment"])
def test_results_are_verified_by_dicom(verify: str, archive: Archive, tmp_path: Path, images: list[Path]) -> None:
    to = to_dicom(archive, verify=verify)
    with run_node(tmp_path / "node", destinations=[to], port=NODE_PORT) as node:
        assert storescu(node.port, images).returncode == 0
        wait_until(lambda: states_of(node) == {"delivered": 8})
        assert uids_in(archive) == uids_of(4)


@pytest.mark.skipif(not DICOM_WEB.exists(), reason="orthanc-dicomweb is not installed")
def test_results_are_stored_and_verified_over_http(archive: Archive, tmp_path: Path, images: list[Path]) -> None:
    with run_node(tmp_path / "node", destinations=[to_web(archive, verify="qido")]) as node:
        assert storescu(node.port, images).returncode == 0
        wait_until(lambda: states_of(node) == {"delivered": 8})
        assert uids_in(archive) == uids_of(4)


def test_every_destination_gets_every_result_and_rules_choose_among_them(
    archive: Archive, tmp_path: Path, images: list[Path]
) -> None:
    with run_orthanc(tmp_path / "other", DicomAet="OTHER") as other:
        destinations = [
            to_dicom(archive, name="first"),
            {"host": "127.0.0.1", "port": other.dicom_port, "title": "OTHER", "name": "second"},
        ]
        rules = [{"view": "LL", "answer": False}, {"body_part": "CHEST", "age_below": 18, "to": "first"}, {}]
        with run_node(tmp_path / "node", destinations=destinations, rules=rules) as node:
            child = write_image(tmp_path / "child.dcm", 5, 1, PatientAge="003Y")
            lateral = write_image(tmp_path / "lateral.dcm", 6, 1, ViewPosition="LL")
            assert storescu(node.port, [*images, child, lateral]).returncode == 0
            wait_until(lambda: (archive.count(), other.count()) == (10, 8))
            wait_until(lambda: states_of(node) == {"delivered": 18})
            assert any("not answered: rule 1" in line for line in node.lines)


@contextmanager
def run_liar(stores_from: int) -> Iterator[tuple[str, list[bytes]]]:
    """A DICOMweb server that answers 200 to every STOW, and stores nothing before the request of this number."""
    received: list[bytes] = []
    stored: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(body)
            if len(received) > stores_from:
                start = body.index(b"\2\0\3\0UI") + 8  # Media Storage SOP Instance UID
                length = int.from_bytes(body[start - 2 : start], "little")
                stored.add(body[start : start + length].decode().strip("\0"))
            self.answer({})

        def do_GET(self) -> None:
            uid = self.path.rpartition("SOPInstanceUID=")[2]
            self.answer([{"00080018": {"vr": "UI", "Value": [uid]}}] if uid in stored else [])

        def answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with run_http(Handler) as url:
        yield f"{url}/dicom-web", received


def test_what_an_archive_has_not_stored_in_spite_of_its_answer_is_sent_again_unchanged(
    tmp_path: Path, images: list[Path]
) -> None:
    retries = {"first": 0.1, "longest": 0.2, "verify_after": 0.1, "verify_within": 0.5}
    with (
        run_liar(stores_from=2) as (url, received),
        run_node(tmp_path / "node", destinations=[{"url": url, "verify": "qido"}], retries=retries) as node,
    ):
        assert storescu(node.port, images[:1]).returncode == 0
        wait_until(lambda: states_of(node) == {"delivered": 2})
    assert len(received) == 4
    contents = [body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0] for body in received]
    assert set(Counter(contents).values()) == {2}  # the same bytes, though they hold the time when they were made
    assert any("not there" in line for line in node.lines)


@pytest.mark.parametrize("accepted", ["1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.1.1"])
def test_what_is_refused_for_good_is_kept_and_sent_on_demand(accepted: str, tmp_path: Path, images: list[Path]) -> None:
    port, retries = find_port(), {"first": 0.1, "longest": 0.1, "refusals": 2}
    to = {"host": "127.0.0.1", "port": port, "title": "ORTHANC"}
    with run_node(tmp_path / "node", destinations=[to], retries=retries) as node:
        with run_picky(port, [accepted]) as received:
            assert storescu(node.port, images[:1]).returncode == 0
            wait_until(lambda: states_of(node)["failed"] == (1 if accepted.endswith("11") else 2))
            delivered = states_of(node)["delivered"]
            assert len(received) == delivered
        failed = 2 - delivered
        metrics = urllib3.request("GET", f"{node.url}/metrics").data.decode()
        assert f'state="failed"}} {failed}.0' in metrics
        assert {row.attempts for row in read_deliveries(node) if row.state == "failed"} == {2}
        node.end()
        node.start()
        assert states_of(node)["failed"] == failed
        node.end()
        with run_picky(port, list(CLASSES.values())) as again:
            node.start(retry_failed=True)
            wait_until(lambda: states_of(node) == {"delivered": 2})
            assert Counter(each.sop_uid for each in [*received, *again]) == uids_of(1)


@pytest.mark.parametrize("known", [True, False])
def test_results_are_sent_over_tls_with_certificates_of_both_sides(
    known: bool, tmp_path: Path, images: list[Path]
) -> None:
    authority = make_certificate(tmp_path, "authority")
    stranger = make_certificate(tmp_path, "stranger")
    certificate, key = make_certificate(tmp_path, "archive", authority)
    mine, my_key = make_certificate(tmp_path, "node", authority if known else stranger)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority[0])
    context.verify_mode = ssl.CERT_REQUIRED
    port = find_port()
    tls = {"certificate": str(mine), "key": str(my_key), "authorities": str(authority[0])}
    to = {"host": "127.0.0.1", "port": port, "title": "ORTHANC", "secure": True, "tls": tls}
    with (
        run_picky(port, list(CLASSES.values()), context) as received,
        run_node(tmp_path / "node", destinations=[to], retries={"first": 0.1, "longest": 0.2}) as node,
    ):
        assert storescu(node.port, images[:1]).returncode == 0
        if known:
            wait_until(lambda: Counter(each.sop_uid for each in received) == uids_of(1))
        else:
            wait_until(lambda: any("cannot be reached" in line for line in node.lines))
            assert states_of(node) == {"due": 2}


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    archive: Archive, tmp_path: Path, images: list[Path]
) -> None:
    with run_node(tmp_path / "node", destinations=[to_dicom(archive)], dry_run=True, quiet=2.0) as node:
        assert storescu(node.port, images).returncode == 0
        wait_until(lambda: len(read_deliveries(node)) == 8)
        node.end()
        assert sum("4 results would be sent to ORTHANC@" in line for line in node.lines) == 2
        node.start(dry_run=False)  # what was held stays held
        assert storescu(node.port, [write_image(tmp_path / "new.dcm", 7, 1)]).returncode == 0
        wait_until(lambda: states_of(node) == {"held": 8, "delivered": 2})
        assert archive.count() == 2
