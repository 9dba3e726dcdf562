"""Who gets in: unknown callers cannot keep out those with a token, guesses are slowed, weak tokens are refused."""

from __future__ import annotations

import http.client
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from services import run_thread

from pneumoscope.errors import UsageError
from pneumoscope.server.access.callers import needs
from pneumoscope.server.access.strength import estimate_bits, make_token
from pneumoscope.server.security.requests import SecurityMiddleware
from pneumoscope.server.security.throttle import Throttle
from pneumoscope.server.settings import Limits, Settings
from pneumoscope.server.storage.audit import AuditLog
from pneumoscope.server.storage.store import Store
from pneumoscope.server.telemetry import Telemetry

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

TOKEN = "9c1f0b7ad25e4886b3f2"
HOLDER = {"authorization": f"Bearer {TOKEN}"}
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def guarded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a token."""
    database = str(tmp_path_factory.mktemp("guarded") / "predictions.sqlite")
    with run_thread(Settings(model=run.model, database=database, token=TOKEN)) as url:
        yield url


def place_of(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rpartition(":")[2])


def talk(url: str, request: bytes, seconds: float = 10) -> bytes:
    """Send bytes, and return all that comes back until the service closes or falls silent."""
    with socket.create_connection(place_of(url)) as sender:
        sender.settimeout(seconds)
        sender.sendall(request)
        answer = b""
        with suppress(TimeoutError, ConnectionResetError):
            while part := sender.recv(65536):
                answer += part
        return answer


@pytest.mark.parametrize(
    "head",
    ["POST /nothing", "POST /v1/nothing", "POST /v1/predictions", "POST /v1/predictions/x/reviews", "PUT /", "POST /"],
)
def test_unfinished_bodies_of_unknown_callers_keep_no_holder_of_a_token_out(guarded: str, head: str) -> None:
    request = f"{head} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\nxx"
    with ExitStack() as stack:
        for _ in range(800):
            sender = stack.enter_context(socket.create_connection(place_of(guarded)))
            with suppress(ConnectionError):
                sender.sendall(request.encode())
        for _ in range(5):
            assert httpx.get(f"{guarded}/v1/models", headers=HOLDER, timeout=20).status_code == 200


@pytest.mark.parametrize("head", ["POST /nothing", "POST /v1/predictions", "POST /v1/predictions/x/reviews", "PUT /"])
def test_no_body_is_waited_for_before_route_and_token_are_known(guarded: str, head: str) -> None:
    with socket.create_connection(place_of(guarded)) as sender:
        sender.settimeout(10)
        sender.sendall(f"{head} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n".encode())
        assert re.match(rb"HTTP/1.1 (401|404|405) ", sender.recv(4096))


def test_idle_connections_of_unknown_callers_are_closed_before_those_of_known_ones(settings: Settings) -> None:
    few = replace(settings, token=TOKEN, limits=Limits(unknown=8, silence=60.0))
    with run_thread(few) as url, ExitStack() as stack:
        known = http.client.HTTPConnection(*place_of(url), timeout=10)
        stack.callback(known.close)
        assert ask(known) == 200
        place = known.sock
        others = [stack.enter_context(socket.create_connection(place_of(url))) for _ in range(40)]
        others[0].settimeout(10)
        with suppress(ConnectionResetError):
            assert others[0].recv(10) == b""
        assert ask(known) == 200
        assert known.sock is place  # it was not opened again


def ask(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v1/models", headers=HOLDER)
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 0\r\nTransfer-Encoding: Chunked",
    ],
)
@pytest.mark.parametrize("path", ["/v1/predictions", "/", "/nothing"])
def test_a_request_with_two_lengths_is_refused_and_nothing_after_it_is_answered(
    guarded: str, lengths: str, path: str
) -> None:
    smuggled = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n{lengths}\r\n\r\n"
    answer = talk(guarded, f"{head}0\r\n\r\n{smuggled}".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


def test_a_chunked_body_in_http_1_0_is_refused(guarded: str) -> None:
    head = "POST /v1/predictions HTTP/1.0\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert re.match(rb"HTTP/1.1 400 ", talk(guarded, head.encode()))


@pytest.mark.parametrize(
    "host",
    [
        "[::1].evil.com", "[::1]evil.com", "[::1]:8000.evil.com", "[::1", "::1", "[::g]", "[]", "[::1]:", "127.0.0.1:",
        "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:８０", "127.0.0.256", "127.1", "0x7f.0x1",
        "127.0.0.1.", "a..b", ".a", "-a.b", "a_b-.c", "user@127.0.0.1", "127.0.0.1/", "127.0.0.1#", "127.0.0.1?x",
        "127.0.0.1 evil.com", "127.0.0.1,evil.com", "evil.com\\127.0.0.1", "<b>", "%31", "http://127.0.0.1", "é.com",
        "a" * 64, ".".join(["a" * 60] * 5), "",
    ],
)  # fmt: skip
def test_a_malformed_host_never_passes(guarded: str, host: str) -> None:
    for path in ("/", "/v1/models", "/healthz"):
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        assert re.match(rb"HTTP/1.1 40[03] ", talk(guarded, head.encode())), host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:80", "[0:0:0:0:0:0:0:1]", "a.example", "my_pc"])
def test_with_a_token_any_proper_host_passes(guarded: str, host: str) -> None:
    assert httpx.get(f"{guarded}/v1/models", headers={**HOLDER, "host": host}).status_code == 200


def test_two_hosts_or_none_are_refused(guarded: str) -> None:
    for hosts in ("Host: 127.0.0.1\r\nHost: evil.com\r\n", ""):
        answer = talk(guarded, f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "x"])
def test_a_compressed_body_is_refused(guarded: str, coding: str, image: bytes) -> None:
    headers = {**HOLDER, **PNG, "content-encoding": coding}
    answer = httpx.post(f"{guarded}/v1/predictions", content=image, headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert httpx.post(f"{guarded}/v1/predictions/x/reviews", content=b"x", headers=headers).status_code == 415
    headers["content-encoding"] = "identity"
    assert httpx.post(f"{guarded}/v1/predictions", content=image, headers=headers).status_code in (200, 201)


def test_routes_whose_role_cannot_be_known_are_refused(settings: Settings) -> None:
    app, router = FastAPI(), APIRouter()

    @router.get("/v1/audit")
    @needs("admin")
    async def audit() -> None: ...

    app.include_router(router)
    with Store(settings.database) as store, pytest.raises(TypeError, match="Add them to the app itself"):
        SecurityMiddleware(app, settings, Telemetry(), AuditLog(store))


def test_guesses_are_slowed_and_the_wait_is_named(settings: Settings) -> None:
    with run_thread(replace(settings, token=TOKEN)) as url, httpx.Client(base_url=url) as client:
        statuses = []
        for _ in range(40):
            answer = client.get("/v1/models", headers={"authorization": f"Bearer {secrets.token_hex(16)}"})
            statuses.append(answer.status_code)
        assert statuses[:10] == [401] * 10
        assert set(statuses[10:]) <= {401, 429}
        assert statuses.count(429) > 20
        assert int(answer.headers["retry-after"]) >= 1
        assert "Try again in" in answer.json()["detail"]


def test_a_wrong_token_that_is_sent_again_and_again_locks_nobody_out(settings: Settings) -> None:
    with run_thread(replace(settings, token=TOKEN)) as url, httpx.Client(base_url=url) as client:
        for _ in range(50):
            assert client.get("/v1/models", headers={"authorization": "Bearer an-old-one"}).status_code == 401
            assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers=HOLDER).status_code == 200


def test_the_wait_grows_ends_and_is_one_per_address() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    waits = []
    for number in range(30):
        throttle.count("192.0.2.1", f"guess {number}")
        waits.append(throttle.find_wait("192.0.2.1"))
        now[0] += waits[-1]
    assert waits[:9] == [0.0] * 9
    assert waits[9:13] == [1.0, 2.0, 4.0, 8.0]
    assert waits == sorted(waits)
    assert waits[-1] == 300.0
    assert throttle.find_wait("192.0.2.2") == 0
    now[0] += 1000
    throttle.count("192.0.2.1", "later")
    assert throttle.find_wait("192.0.2.1") == 0


def test_a_network_of_ipv6_addresses_counts_as_one_and_an_ipv4_address_in_either_form() -> None:
    throttle = Throttle(lambda: 0.0)
    for number in range(12):
        throttle.count(f"2001:db8::{number:x}", f"guess {number}")
        throttle.count("::ffff:192.0.2.1", f"guess {number}")
    assert throttle.find_wait("2001:db8::ffff") > 0
    assert throttle.find_wait("2001:db8:0:1::1") == 0
    assert throttle.find_wait("192.0.2.1") > 0


def test_guesses_from_everywhere_use_bounded_memory() -> None:
    throttle = Throttle(lambda: 0.0)
    for number in range(20_000):
        throttle.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "x" * 1000)
    assert len(throttle) < 5_000


@pytest.mark.parametrize(
    "token",
    [
        "a" * 16, "a" * 64, "ab" * 16, "0123456789abcdef", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfgh",
        "passwordpassword", "Password12345678", "correct-horse-battery-staple", "long-enough-to-be-safe",
        "hospital-radiology-2025", "Zx9$Zx9$Zx9$Zx9$", "1111111122222222", "pneumoscope-token", "my-secret-token-2024!",
    ],
)  # fmt: skip
def test_a_token_that_is_easily_guessed_is_refused_with_a_way_to_make_one(settings: Settings, token: str) -> None:
    with pytest.raises(UsageError, match=r"could be guessed.*openssl rand -hex 32.*pneumoscope tokens add"):
        replace(settings, token=token).check()


def test_random_tokens_pass(settings: Settings) -> None:
    for _ in range(200):
        assert estimate_bits(make_token()) > 200
        for token in (make_token(), secrets.token_hex(12), secrets.token_urlsafe(24)):
            replace(settings, token=token).check()
