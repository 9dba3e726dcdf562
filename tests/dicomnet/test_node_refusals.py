"""What the node refuses, and what it bears: wrong names, no certificate, a full disk, senders that stall."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import urllib3
from peers import make_certificate, require, run_node, storescu, wait_until, write_image

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{number}.dcm", number // 2, number) for number in range(4)]


def count_images(folder: Path) -> int:
    return len(list((folder / "spool" / "images").rglob("*.dcm")))


def test_another_ae_title_is_refused(tmp_path: Path, images: list[Path]) -> None:
    with run_node(tmp_path / "node", dry_run=True, allowed=["MODALITY"]) as node:
        wrong = storescu(node.port, images, called="OTHER")
        assert "Called AE Title Not Recognized" in wrong.stderr
        stranger = storescu(node.port, images, "-aet", "SOMEONE")
        assert "Calling AE Title Not Recognized" in stranger.stderr
        assert count_images(tmp_path / "node") == 0
        assert storescu(node.port, images).returncode == 0
        assert count_images(tmp_path / "node") == 4


def test_echo_is_answered_and_other_objects_are_not_accepted(tmp_path: Path) -> None:
    require("echoscu")
    with run_node(tmp_path / "node", dry_run=True) as node:
        command = ["/usr/bin/echoscu", "-aec", "PNEUMOSCOPE", "127.0.0.1", str(node.port)]
        assert subprocess.run(command, check=False, timeout=30).returncode == 0
        ct = write_image(tmp_path / "ct.dcm", 1, 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
        sent = storescu(node.port, [ct])
        assert sent.returncode != 0
        assert "No presentation context" in sent.stderr or "No Acceptable Presentation" in sent.stderr
        assert count_images(tmp_path / "node") == 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("certificates")
    authority = make_certificate(folder, "authority")
    other = make_certificate(folder, "other")
    return {
        "authority": authority,
        "node": make_certificate(folder, "node", authority),
        "modality": make_certificate(folder, "modality", authority),
        "other": other,
    }


def test_tls_needs_a_certificate_of_the_right_authority(
    tmp_path: Path, images: list[Path], certificates: dict[str, tuple[Path, Path]]
) -> None:
    authority, (certificate, key) = certificates["authority"][0], certificates["node"]
    tls = {"certificate": str(certificate), "key": str(key), "authorities": str(authority)}
    with run_node(tmp_path / "node", dry_run=True, tls=tls, limits={"free_bytes": 0, "silence": 5}) as node:
        stalled = socket.create_connection(("127.0.0.1", node.port))  # no handshake: it blocks no other
        assert storescu(node.port, images).returncode != 0  # no TLS at all
        assert storescu(node.port, images, "+tla", "+cf", str(authority)).returncode != 0  # no certificate
        mine, my_key = certificates["other"]
        assert storescu(node.port, images, "+tls", str(my_key), str(mine), "+cf", str(authority)).returncode != 0
        assert count_images(tmp_path / "node") == 0
        mine, my_key = certificates["modality"]
        sent = storescu(node.port, images, "+tls", str(my_key), str(mine), "+cf", str(authority))
        assert sent.returncode == 0, sent.stderr
        assert count_images(tmp_path / "node") == 4
        stalled.close()


def test_connections_that_never_make_their_handshake_are_few_and_end(
    tmp_path: Path, images: list[Path], certificates: dict[str, tuple[Path, Path]]
) -> None:
    certificate, key = certificates["node"]
    tls, limits = {"certificate": str(certificate), "key": str(key)}, {"associations": 2, "silence": 5, "free_bytes": 0}
    with run_node(tmp_path / "node", dry_run=True, tls=tls, limits=limits) as node, ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", node.port))) for _ in range(60)]
        for each in idle:
            each.settimeout(0.01)
        wait_until(lambda: sum(map(is_closed, idle)) >= 60 - 2 - 16, 4)  # at once
        assert node.process is not None
        assert int(Path(f"/proc/{node.process.pid}/status").read_text().split("Threads:")[1].split()[0]) < 45
        wait_until(lambda: all(map(is_closed, idle)), 20)
        sent = storescu(node.port, images, "+tla", "+cf", str(certificates["authority"][0]))
        assert sent.returncode == 0, sent.stderr


def is_closed(link: socket.socket) -> bool:
    """Whether the other side has closed a connection."""
    try:
        return not link.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_images_and_leaves_no_partial_file(tmp_path: Path, tmpfs: Path) -> None:
    images = [write_image(tmp_path / f"{number}.dcm", number, number, size=800) for number in range(4)]  # 1.3 MB each
    with run_node(tmp_path / "node", dry_run=True, quiet=600.0, spool=str(tmpfs / "spool")) as node:
        sent = storescu(node.port, images)
        assert sent.stderr.count("Received Store Response (Success)") == 2
        assert "Refused: OutOfResources" in sent.stderr
        stored = list((tmpfs / "spool" / "images").rglob("*.dcm"))
        assert len(stored) == 2
        assert not list((tmpfs / "spool" / "incoming").iterdir())
        metrics = urllib3.request("GET", f"{node.url}/metrics").data.decode()
        assert 'pneumoscope_node_refused_total{reason="full"} 1.0' in metrics
        stored[0].unlink()
        assert storescu(node.port, images[2:3]).returncode == 0  # it goes on where there is space again


def test_a_full_disk_sets_no_acknowledged_image_aside(tmp_path: Path, tmpfs: Path) -> None:
    image = write_image(tmp_path / "1.dcm", 1, 1)
    with run_node(tmp_path / "node", dry_run=True, quiet=1.0, spool=str(tmpfs / "spool")) as node:
        assert storescu(node.port, [image]).returncode == 0
        ballast = tmpfs / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        metrics = f"{node.url}/metrics"
        tries = 'refused_total{reason="result"} 4.0'
        wait_until(lambda: tries in urllib3.request("GET", metrics).data.decode())  # it would have been set aside
        assert 'images{state="waiting"} 1.0' in urllib3.request("GET", metrics).data.decode()
        ballast.unlink()
        wait_until(lambda: 'images{state="answered"} 1.0' in urllib3.request("GET", metrics).data.decode())
        assert not list((tmpfs / "spool" / "set-aside").iterdir())


def test_too_little_free_space_refuses_images_and_is_said(tmp_path: Path, images: list[Path]) -> None:
    free = shutil.disk_usage(tmp_path).free
    with run_node(tmp_path / "node", dry_run=True, limits={"free_bytes": 2 * free}) as node:
        assert "Refused: OutOfResources" in storescu(node.port, images).stderr
        assert count_images(tmp_path / "node") == 0
        answer = urllib3.request("GET", f"{node.url}/readyz")
        assert answer.status == 503
        assert json.loads(answer.data)["troubles"] == ["too little space on the disk of the spool"]
        assert urllib3.request("GET", f"{node.url}/healthz").status == 200


def associate(calling: bytes = b"MODALITY") -> bytes:
    """An A-ASSOCIATE-RQ for CR images (PS3.8 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    context = struct.pack(">Bxxx", 1) + item(0x30, b"1.2.840.10008.5.1.4.1.1.1") + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3")
    fields = struct.pack(">HH16s16s32x", 1, 0, b"PNEUMOSCOPE".ljust(16), calling.ljust(16))
    body = fields + item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BxI", 1, len(body)) + body


@pytest.mark.parametrize("beginning", [b"", associate()[:40], associate(), associate() + b"\x04\0\0\0\x10\0half"])
def test_a_stalled_sender_is_dropped_and_stops_no_other(beginning: bytes, tmp_path: Path, images: list[Path]) -> None:
    limits = {"free_bytes": 0, "silence": 1, "idle": 1, "associations": 2}
    with run_node(tmp_path / "node", dry_run=True, limits=limits) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as stalled:
            stalled.sendall(beginning)
            assert storescu(node.port, images).returncode == 0
            stalled.settimeout(20)
            while stalled.recv(4096):  # until the node closes it
                pass
        assert count_images(tmp_path / "node") == 4


def test_a_pdu_without_end_is_refused(tmp_path: Path, images: list[Path]) -> None:
    with run_node(tmp_path / "node", dry_run=True) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as hostile:
            hostile.sendall(associate() + b"\x04\0\xff\xff\xff\xff" + bytes(1000))
            hostile.settimeout(20)
            while hostile.recv(4096):
                pass
        assert storescu(node.port, images).returncode == 0


def test_more_associations_than_allowed_are_refused(tmp_path: Path, images: list[Path]) -> None:
    with run_node(tmp_path / "node", dry_run=True, limits={"free_bytes": 0, "associations": 1}) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as first:
            first.sendall(associate())
            assert first.recv(1) == b"\x02"  # accepted
            refused = storescu(node.port, images)
            assert "Local Limit Exceeded" in refused.stderr
            first.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")  # A-ABORT
        wait_until(lambda: storescu(node.port, images).returncode == 0)


def test_an_object_larger_than_allowed_ends_the_association(tmp_path: Path) -> None:
    large = write_image(tmp_path / "large.dcm", 1, 1, size=1500)  # 4.5 MB
    with run_node(tmp_path / "node", dry_run=True, limits={"free_bytes": 0, "object_bytes": 100_000}) as node:
        assert storescu(node.port, [large]).returncode != 0
        assert count_images(tmp_path / "node") == 0
