"""What every request passes: who may come in, how many, and what every answer carries."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
import traceback
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from pneumoscope.server.problems import RequestError, to_fault

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pneumoscope.server.settings import Settings
    from pneumoscope.server.telemetry import Measures

READING = "/v1/predictions"  # whose bodies are images, and bounded where they are taken
_GUARDED = ("/v1/", "/metrics")
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Gate:
    """Wraps the whole service.

    Requests are let in by token, or from this machine by a browser's own word for where they come from: a page of
    another site, or one whose name was made to point here, is refused. Logs say what was asked and how it ended, never
    with which names or values.

    Args:
        app: the service.
        settings: who may come in.
        measures: what is counted.
    """

    def __init__(self, app: ASGIApp, settings: Settings, measures: Measures) -> None:
        self._app = app
        self._settings = settings
        self._measures = measures
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        begun, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_list_headers(scope["path"], message["headers"])]
            await send(message)

        self._under_way += 1
        try:
            self._check(scope)
            if scope["path"] != READING and scope["method"] not in _SAFE:
                receive = await self._take(receive)
            await self._app(scope, receive, answer)
        except RequestError as problem:
            await problem.to_response()(scope, receive, answer)
        except asyncio.CancelledError:
            raise
        except Exception as problem:
            where = "".join(traceback.format_tb(problem.__traceback__)[-4:])
            _logger().error("A fault of ours: %s\n%s", type(problem).__name__, where)
            if not status:
                await to_fault(problem).to_response()(scope, receive, answer)
        finally:
            self._under_way -= 1
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            self._measures.count_request(scope["method"], route, status, seconds)
            caller = f" from {scope['client'][0]}" if status in (401, 403) and scope["client"] else ""
            _logger().info("%s %s %d %.0f ms%s", scope["method"], route, status, seconds * 1000, caller)

    def _check(self, scope: Scope) -> None:
        limits, settings = self._settings.limits, self._settings
        if self._under_way > limits.requests:
            raise RequestError(
                503, f"{limits.requests} requests are under way. Try again in 1 s.", {"retry-after": "1"}
            )
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if settings.token is None and _strip_port(host) not in (*_LOCAL, settings.host):
            raise RequestError(
                403, f"This service answers to {', '.join(_LOCAL)} alone. Run it with a token for any other."
            )
        detect_ood = scope["method"] not in _SAFE or scope["path"].startswith(_GUARDED)
        if detect_ood and headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise RequestError(403, "A page of another site may not call this service.")
        if detect_ood and (origin := headers.get(b"origin")) is not None and origin.partition("://")[2] != host:
            raise RequestError(403, "A page of another site may not call this service.")
        if settings.token is not None and scope["path"].startswith(_GUARDED):
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), settings.token.encode())
            if scheme.lower() != "bearer" or not right:
                raise RequestError(
                    401,
                    "A token is needed: send Authorization: Bearer TOKEN, with the one that the service was given.",
                    {"www-authenticate": "Bearer"},
                )

    async def _take(self, receive: Receive) -> Receive:
        """Read a small body whole, and give it to the service as if it had come at once."""
        limits, body, more = self._settings.limits, b"", True
        try:
            async with asyncio.timeout(limits.silence):
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message["type"] == "http.request" and message.get("more_body", False)
                    if len(body) > limits.message_bytes:
                        raise RequestError(413, f"More than {limits.message_bytes // 1024} KiB. Send less.")
        except TimeoutError:
            raise RequestError(408, "The body came too slowly. Send it again.") from None
        whole: Message = {"type": "http.request", "body": body, "more_body": False}
        rest = iter([whole])

        async def give() -> Message:
            return next(rest, None) or await receive()

        return give


class PatientProtocol(H11Protocol):
    """HTTP, with patience that ends: for a request's head that dribbles in, and for an answer that nobody takes."""

    silence = 10.0
    _due: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection begins; its first request is due."""
        super().connection_made(transport)
        # asyncio does so itself only for sockets that say TCP, which inherited ones don't: 40 ms an answer otherwise.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Bytes come in; while they belong to no request that is whole to its head, one is due."""
        super().data_received(data)
        if self._idle:
            self._expect()
        elif self._due is not None:
            self._due.cancel()
            self._due = None

    def pause_writing(self) -> None:
        """The other side does not take what it is sent."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.silence, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ends."""
        for timer in (self._due, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(self.silence, self._give_up)

    def _give_up(self) -> None:
        self._due = None
        if self._idle and not self.transport.is_closing():
            self.transport.abort()


def _strip_port(host: str) -> str:
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _list_headers(path: str, given: Any) -> list[tuple[bytes, bytes]]:
    names = {name.lower() for name, _ in given}
    headers = dict(_HEADERS)
    if path.startswith(_GUARDED):
        headers["cache-control"] = "no-store"
    return [(key.encode(), value.encode()) for key, value in headers.items() if key.encode() not in names]


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope.server")
