"""Hostile uploads neither crash the service, nor delay others, nor fill its memory."""

from __future__ import annotations

import io
import socket
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image
from services import Process, draw, run_process

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

BOUNDARY = "frontier"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
MIB = 1024**2


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A service whose memory is watched; it keeps images, so that harmful names could have an effect."""
    folder = tmp_path_factory.mktemp("hostile")
    with run_process(run.model, str(folder / "predictions.sqlite"), "--keep-images", str(folder / "kept")) as process:
        with process.client() as client:
            for seed in range(4):
                client.post("/v1/predictions", files={"files": ("a.png", draw(seed))}, params={"heatmap": True})
        yield process


@contextmanager
def unharmed(service: Process, growth: int = 256 * MIB) -> Iterator[None]:
    """What is done inside leaves the service answering, and its memory within bounds."""
    before = memory_of(service)
    yield
    answer = httpx.post(f"{service.url}/v1/predictions", files={"files": ("a.png", draw(3))}, timeout=30)
    assert answer.status_code == 201
    assert memory_of(service) < before + growth


def memory_of(service: Process) -> int:
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def peak_of(service: Process) -> int:
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def png_header(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that would become large ones."""
    squeezed = zlib.compress(bytes(50_000 * 3_000), 9)  # what 50,000 x 50,000 pixels would begin with
    flat = io.BytesIO()
    Image.new("L", (9_900, 9_900)).save(flat, "PNG", compress_level=9)  # just below what is read
    many = io.BytesIO()
    frames = [Image.new("L", (2_000, 2_000), shade) for shade in range(40)]
    frames[0].save(many, "GIF", save_all=True, append_images=frames[1:])
    return {
        "wide png": png_header(50_000, 50_000, squeezed),
        "claimed png": png_header(2**31 - 1, 2**31 - 1, b""),
        "largest png": flat.getvalue(),
        "gif of many frames": many.getvalue(),
        "text chunk": b"\x89PNG\r\n\x1a\n" + png_header(4, 4, zlib.compress(bytes(20)))[8:33] + text_bomb(),
    }


def text_bomb() -> bytes:
    content = b"Comment\0\0" + zlib.compress(bytes(200 * MIB), 9)
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


@pytest.mark.parametrize("name", ["wide png", "claimed png", "largest png", "gif of many frames", "text chunk"])
def test_a_bomb_is_refused_or_read_within_bounds(service: Process, name: str) -> None:
    content = bombs()[name]
    assert len(content) < 2 * MIB
    with unharmed(service):
        answer = httpx.post(f"{service.url}/v1/predictions", files={"files": ("b", content)}, timeout=60)
        assert answer.status_code in (201, 415, 422)


def test_many_bombs_at_once_stay_within_bounds(service: Process) -> None:
    content = bombs()["largest png"]

    def send() -> None:
        httpx.post(f"{service.url}/v1/predictions", files={"files": ("b", content)}, timeout=120)

    def send_eight() -> int:
        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return memory_of(service)

    # Two are decoded at a time: 98 million pixels each, as bytes and twice as float32. The allocator may keep what was
    # needed once, and an image or two may still be on its way out; but a second round must not keep eight more.
    pixels = 98 * 10**6
    most = 2 * pixels * 9
    with unharmed(service, most):
        before = peak_of(service)
        after = send_eight()
        assert peak_of(service) < before + most
        assert send_eight() < after + 8 * pixels // 2


def test_a_file_of_two_formats_is_read_as_the_first_or_refused(service: Process) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("evil.html", "<script>alert(1)</script>")
    page = b"<html><script>alert(1)</script></html>"
    with unharmed(service):
        for content in (
            draw(1) + packed.getvalue(),
            draw(1) + page,
            page + draw(1),
            packed.getvalue(),
            b"GIF89a/*" + page,
        ):
            answer = httpx.post(
                f"{service.url}/v1/predictions", params={"picture": True}, files={"files": ("p.html", content)}
            )
            assert answer.status_code in (201, 415, 422)
            assert answer.headers["content-type"] in ("application/json", "application/problem+json")
            assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "../../../../tmp/escaped.png",
        "..\\..\\escaped.png",
        "/etc/passwd",
        "C:\\boot.ini",
        "a\0b.png",
        "\u202egnp.exe",
        "x" * 5000,
    ],
)
def test_file_names_cannot_leave_the_folder(service: Process, name: str) -> None:
    kept = Path(service.database).with_name("kept")
    with unharmed(service):
        part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = part + draw(5) + f"\r\n--{BOUNDARY}--\r\n".encode()
        answer = httpx.post(f"{service.url}/v1/predictions", content=body, headers=FORM)
        assert answer.status_code in (201, 422)
        if answer.status_code == 201:
            shown = answer.json()["predictions"][0]["name"]
            assert "/" not in shown
            assert "\\" not in shown
            assert shown.isprintable()
            assert len(shown) <= 200
    assert all(len(path.stem) == 64 for path in kept.iterdir())
    assert {path.name for path in kept.parent.iterdir()} <= {
        "kept",
        "predictions.sqlite",
        "predictions.sqlite-wal",
        "predictions.sqlite-shm",
    }


@pytest.mark.parametrize("filed", [True, False])
def test_ten_thousand_parts_are_refused_quickly(service: Process, filed: bool) -> None:
    disposition = 'form-data; name="f"; filename="a.png"' if filed else 'form-data; name="f"'
    part = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n".encode()
    with unharmed(service):
        answer = httpx.post(
            f"{service.url}/v1/predictions", content=part * 10_000 + f"--{BOUNDARY}--\r\n".encode(), headers=FORM
        )
        assert answer.status_code == 413
        assert answer.elapsed.total_seconds() < 10


@pytest.mark.parametrize(
    "body",
    [
        b"--frontier",
        b"--frontier\r\n" + b"X-Header: y\r\n" * 5_000,
        b"--frontier\r\nContent-Disposition: form-data; name=f; filename*=utf-16''%ff%fe\r\n\r\nx\r\n--frontier--\r\n",
        b"\r\n" * 100_000,
        bytes(range(256)) * 400,
    ],
)
def test_malformed_forms_are_refused(service: Process, body: bytes) -> None:
    with unharmed(service):
        answer = httpx.post(f"{service.url}/v1/predictions", content=body, headers=FORM)
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"


def test_connections_without_http_or_with_an_endless_head_are_closed(service: Process) -> None:
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with unharmed(service):
        for content in (
            b"\x16\x03\x01\x02\0" + bytes(500),
            b"GET / HTTP/1.1\r\nX: " + b"y" * MIB,
            b"POST " + b"/" * MIB,
        ):
            with socket.create_connection(address) as sender:
                sender.settimeout(20)
                try:
                    sender.sendall(content)
                    found = sender.recv(4096)
                except ConnectionError:
                    continue
                assert found == b"" or found.startswith(b"HTTP/1.1 4")


def test_a_hundred_slow_senders_delay_nobody(service: Process) -> None:
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    head = f"POST /v1/predictions HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: image/png\r\n"
    senders = [socket.create_connection(address) for _ in range(100)]
    try:
        for i, sender in enumerate(senders):
            sender.sendall(head.encode() + (b"Content-Length: 5000\r\n\r\nxx" if i % 2 else b""))
        with unharmed(service):
            answer = httpx.post(f"{service.url}/v1/predictions", files={"files": ("a.png", draw(3))}, timeout=10)
            assert answer.status_code == 201
    finally:
        for sender in senders:
            sender.close()


def test_aborted_uploads_leave_nothing_in_memory(service: Process) -> None:
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    head = f"POST /v1/predictions HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: image/png\r\n"
    with unharmed(service):
        for _ in range(50):
            with socket.create_connection(address) as sender:
                sender.sendall(f"{head}Content-Length: 9000000\r\n\r\n".encode() + bytes(100_000))
    with service.client() as client:
        lines = client.get("/metrics").text.splitlines()
    assert "pneumoscope_buffered_bytes 0.0" in lines


def test_damaged_images_of_every_kind_are_refused_and_nothing_else_happens(service: Process) -> None:
    rng = np.random.default_rng(0)
    contents = [path.read_bytes() for path in sorted(Path(__file__).parents[2].glob("images/corpus/*"))[:40]]
    for content in [draw(1), draw(2)] * 10:
        damaged = bytearray(content)
        for place in rng.integers(8, len(damaged), 20):
            damaged[place] = rng.integers(256)
        contents.append(bytes(damaged))
    with unharmed(service), service.client() as client:
        for content in contents:
            answer = client.post(
                "/v1/predictions", files={"files": ("d", content)}, params={"heatmap": True, "picture": True}
            )
            assert answer.status_code in (201, 415, 422), answer.text
