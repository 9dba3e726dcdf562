"""What every request passes: who may call, how many at a time, and the headers that every answer carries."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.server.problems import RequestError, log_internal_error, logger, to_internal_error
from pneumoscope.server.settings import Settings
from pneumoscope.server.telemetry import Telemetry

UPLOADS = "/v1/predictions"  # whose bodies are images, and bounded where they are received
_PROTECTED = ("/v1/", "/metrics")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID, _ID = "x-request-id", re.compile(r"[A-Za-z0-9_-]{1,64}")
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


def _name_request(scope: Scope) -> str:
    """The id of a request: that of the caller or the proxy if it is harmless, else a new one."""
    given = Headers(scope=scope).get(_REQUEST_ID, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


class SecurityMiddleware:
    """Wraps the whole service.

    If there is a token, callers must send it. Without one, only this machine can call, by one of its own names: other
    names may be those of sites that point here (DNS rebinding). Pages of other sites are refused in any case. The log
    has the method, route, status and time of each request, never names or values.
    """

    def __init__(self, app: ASGIApp, settings: Settings, telemetry: Telemetry) -> None:
        self._app, self._settings, self._telemetry = app, settings, telemetry
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        start, status, request = time.perf_counter(), 0, _name_request(scope)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in (*_HEADERS.items(), (_REQUEST_ID, request)):
                    headers.setdefault(name, value)
                if scope["path"].startswith(_PROTECTED):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        self._requests += 1
        try:
            self._check(scope)
            if scope["path"] != UPLOADS and scope["method"] not in _SAFE_METHODS:
                receive = await self._receive_whole(receive)
            await self._app(scope, receive, answer)
        except RequestError as problem:
            await problem.to_response()(scope, receive, answer)
        except Exception as problem:
            log_internal_error(problem)
            if not status:
                await to_internal_error(problem).to_response()(scope, receive, answer)
        finally:
            self._requests -= 1
            route, seconds = getattr(scope.get("route"), "path", "other"), time.perf_counter() - start
            self._telemetry.count_request(scope["method"], route, status, seconds)
            caller = f" from {scope['client'][0]}" if status in (401, 403) and scope["client"] else ""
            about = {"request": request}
            logger.info("%s %s %d %.0f ms%s", scope["method"], route, status, seconds * 1000, caller, extra=about)

    def _check(self, scope: Scope) -> None:
        limits, token = self._settings.limits, self._settings.token
        if self._requests > limits.requests:
            detail = f"{limits.requests} requests are in progress. Try again in 1 s."
            raise RequestError(503, detail, {"retry-after": "1"})
        headers, protected = Headers(scope=scope), scope["path"].startswith(_PROTECTED)
        name, host = re.sub(r":[0-9]+$", "", headers.get("host", "")).lower(), self._settings.host.lower()
        names = dict.fromkeys([*_LOCAL, f"[{host}]" if ":" in host else host])
        if token is None and name not in names:
            raise RequestError(
                403, f"This service answers only to {', '.join(names)}. Start it with a token to use another name."
            )
        if protected or scope["method"] not in _SAFE_METHODS:
            origin = headers.get("origin")
            elsewhere = origin is not None and origin.partition("://")[2] != headers.get("host", "")
            if elsewhere or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise RequestError(403, "Pages of other sites may not call this service.")
        if token is not None and protected:
            scheme, _, credentials = headers.get("authorization", "").partition(" ")
            valid = hmac.compare_digest(credentials.strip().encode(), token.encode())
            if scheme.lower() != "bearer" or not valid:
                text = "A valid token is needed. Send the header Authorization: Bearer TOKEN with the service's token."
                raise RequestError(401, text, {"www-authenticate": "Bearer"})

    async def _receive_whole(self, receive: Receive) -> Receive:
        """Receive a small body whole, and pass it on in one piece."""
        limits, body, more = self._settings.limits, b"", True
        try:
            async with asyncio.timeout(limits.silence):
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message["type"] == "http.request" and message.get("more_body", False)
                    if len(body) > limits.message_bytes:
                        raise RequestError(413, f"The body is larger than {limits.message_bytes // 1024} KiB.")
        except TimeoutError:
            raise RequestError(408, "The body arrived too slowly. Send it again.") from None
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return pending.pop() if pending else await receive()

        return receive_again
