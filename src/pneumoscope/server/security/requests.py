"""What every request passes: who may call, how many at a time, and the headers that every answer carries."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from pneumoscope.server.access.callers import CALLER, Role, find_role
from pneumoscope.server.access.hosts import Host, name_address, parse_host
from pneumoscope.server.problems import RequestError, log_internal_error, logger, to_internal_error
from pneumoscope.server.readings.blinding import refuse_open
from pneumoscope.server.security.connections import recognise
from pneumoscope.server.security.permissions import Access
from pneumoscope.server.security.proxies import Identity, Proxies
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.audit import TRAIL, Actor, AuditLog, Trail, find_action, make_actor
from pneumoscope.server.telemetry import Telemetry

UPLOADS = "/v1/predictions"  # whose bodies are images, and bounded where they are received
_PROTECTED = ("/v1/", "/metrics")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID, _ID = "x-request-id", re.compile(r"[A-Za-z0-9_-]{1,64}")
_PORTS = {"http": 80, "https": 443}
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


@dataclass(frozen=True)
class _Prepared:
    """A request before its caller is known; `role` is None if the route answers everybody."""

    scope: Scope
    identity: Identity | None
    role: Role | None
    endpoint: object  # None if there is no such route
    prediction_id: str | None  # that its path names


class SecurityMiddleware:
    """Wraps the whole service.

    Callers must show a token, or come through a proxy that says who they are. If neither is set up, only this machine
    can call, by one of its own names: other names may be those of sites that point here (DNS rebinding). Pages of
    other sites are refused in any case. No body is read before route and caller are known. The log has the method,
    route, status and time of each request, never names or values.
    """

    def __init__(self, app: Starlette, settings: Settings, telemetry: Telemetry, audit: AuditLog) -> None:
        if hidden := [route for route in app.routes if getattr(route, "endpoint", None) is None]:
            # FastAPI does not say which function of an included router answers, and so not which role it needs.
            raise TypeError(f"{hidden[0]!r}: the roles of its routes are not known. Add them to the app itself.")
        self._app, self._limits, self._telemetry = app, settings.limits, telemetry
        self._audit = audit
        self._proxies, self._access = Proxies(settings), Access(settings)
        self._root, public = settings.root, settings.address
        self._mode = settings.mode
        self._names = list(dict.fromkeys([*_LOCAL, name_address(settings.host)]))
        self._public = "" if public is None else public.origin
        self._public_name = "" if public is None else public.host.name
        self._requests = {"known": 0, "unknown": 0}  # in progress, by caller
        self._most = {"known": settings.limits.requests, "unknown": settings.limits.unknown}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, request, path = time.perf_counter(), 0, _name_request(scope), self._find_path(scope)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # uvicorn leaves the body out
        prepared: _Prepared | None = None
        scope = {**scope, "method": method, "root_path": self._root, "path": self._root + path}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), request, path)
            await send(message)

        try:
            prepared = self._prepare(scope, path)
            scope = prepared.scope
            with self._admit(prepared, request):
                if prepared.endpoint is not None and method not in _SAFE_METHODS:
                    _check_coding(scope)
                    receive = receive if path == UPLOADS else await self._receive_whole(receive)
                await self._app(scope, receive, answer)
        except RequestError as problem:
            await problem.to_response()(scope, receive, answer)
        except Exception as problem:
            log_internal_error(problem)
            if not status:
                await to_internal_error(problem).to_response()(scope, receive, answer)
        finally:
            self._log_audit(prepared, status, request)
            route, seconds = getattr(scope.get("route"), "path", "other"), time.perf_counter() - start
            self._telemetry.count_request(method, route, status, seconds)
            caller = f" from {scope['client'][0]}" if status in (400, 401, 403, 429) and scope["client"] else ""
            about = {"request": request}
            logger.info("%s %s %d %.0f ms%s", method, route, status, seconds * 1000, caller, extra=about)

    def _log_audit(self, prepared: _Prepared | None, status: int, request: str) -> None:
        """Give the audit log what a request did, and refused tokens and logins."""
        if prepared is None or prepared.role is None:
            return
        scope, action = prepared.scope, find_action(prepared.endpoint)
        trail: Trail | None = scope["state"].get(TRAIL)
        if trail is not None:
            if action is not None:
                self._audit.add_request(action, trail, status, prepared.prediction_id)
        elif status in (401, 403) and (prepared.identity is not None or "authorization" in Headers(scope=scope)):
            name = prepared.identity.name if prepared.identity is not None else ""
            address = scope["client"][0] if scope.get("client") else ""
            source = "proxy" if prepared.identity is not None else "token"
            self._audit.add_refused(Actor(name, "", source, address, request), status)

    def _find_path(self, scope: Scope) -> str:
        """The path of a route; proxies may pass the root path on or remove it."""
        path: str = scope["path"]
        return path[len(self._root) :] if path == self._root or path.startswith(f"{self._root}/") else path

    def _add_headers(self, headers: MutableHeaders, request: str, path: str) -> None:
        for name, value in (*_HEADERS.items(), (_REQUEST_ID, request)):
            headers.setdefault(name, value)
        if path.startswith(_PROTECTED):
            headers.setdefault("cache-control", "no-store")
        location = headers.get("location", "")  # routes do not know the root path
        if location.startswith("/") and not location.startswith(f"{self._root}/"):
            headers["location"] = self._root + location

    def _prepare(self, scope: Scope, path: str) -> _Prepared:
        """Read what a proxy adds, check what every request must have, and find the route and the role it needs."""
        headers = Headers(scope=scope)
        # RFC 9112, 6.1 and 6.3: two lengths of one body are how requests are smuggled past a proxy.
        if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            detail = "A request has Content-Length or, in HTTP/1.1, Transfer-Encoding, and not both."
            raise RequestError(400, detail, {"connection": "close"}, code="request-malformed")
        scope, identity = self._proxies.resolve(scope)
        scope["state"] = {**scope.get("state", {})}
        protected, (endpoint, prediction_id) = path.startswith(_PROTECTED), self._find_endpoint(scope)
        self._check_origin(scope, protected)
        if not path:  # without the slash at its end, the addresses on the page would lead elsewhere
            raise RequestError(308, "The address ends with a slash.", {"location": f"{self._root}/"})
        role = find_role(endpoint, scope["method"]) if protected else None
        return _Prepared(scope, identity, role, endpoint, prediction_id)

    def _find_endpoint(self, scope: Scope) -> tuple[object, str | None]:
        for route in self._app.routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                of_prediction = getattr(route, "path", "").startswith("/v1/predictions/{id}")
                return child["endpoint"], child["path_params"]["id"] if of_prediction else None
        return None, None

    def _check_origin(self, scope: Scope, protected: bool) -> None:
        """Check that callers use a name of this service, and are not pages of another site."""
        headers = Headers(scope=scope)
        host = parse_host(headers.get("host", ""))
        if self._access.open or self._public_name:
            names = [*self._names, *([self._public_name] if self._public_name else [])]
            if host is None or host.name not in names:
                hint = "Set the public address to use another name." if self._public_name else (
                    "Start it with a token to use another name."
                )  # fmt: skip
                raise RequestError(403, f"This service answers only to {', '.join(names)}. {hint}", code="host-refused")
        elif host is None:
            raise RequestError(400, "The header Host is missing or malformed.", code="request-malformed")
        if not protected and scope["method"] in _SAFE_METHODS:
            return
        origin = headers.get("origin")
        own = origin is None or origin == self._public
        if origin is not None and not own and host.name != self._public_name:
            own = _is_same(origin, host)
        if not own or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            hint = f" Its own address is {self._public}." if self._public else ""
            raise RequestError(403, f"Pages of other sites may not call this service.{hint}")

    @contextmanager
    def _admit(self, request: _Prepared, request_id: str) -> Iterator[None]:
        """Find out who calls, and count the request while it is in progress: known callers apart from all others."""
        scope, role = request.scope, request.role
        kind, caller = "known" if role is not None or self._access.open else "unknown", None
        if role is not None:
            address = scope["client"][0] if scope.get("client") else ""
            caller = self._access.identify(Headers(scope=scope), address, request.identity)
            scope["state"] |= {CALLER: caller, TRAIL: Trail(make_actor(caller, request_id))}
        if kind == "known":
            recognise(scope)
        if self._requests[kind] >= self._most[kind]:
            detail = f"{self._most[kind]} requests are in progress. Try again in 1 s."
            raise RequestError(503, detail, {"retry-after": "1"})
        self._requests[kind] += 1
        try:
            if caller is not None and role is not None and not caller.may(role):
                raise RequestError(403, f"This needs the role {role}. {caller.name} has the role {caller.role}.")
            refuse_open(self._mode, request.endpoint, caller)
            yield
        finally:
            self._requests[kind] -= 1

    async def _receive_whole(self, receive: Receive) -> Receive:
        """Receive a small body whole, and pass it on in one piece."""
        limits, body, more = self._limits, b"", True
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


def _check_coding(scope: Scope) -> None:
    coding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        detail = f"The body has the encoding {coding[:40]!r}, which is not supported. Send it without."
        raise RequestError(415, detail, {"accept-encoding": "identity"})


def _is_same(origin: str, host: Host) -> bool:
    """Whether an origin is that of the host which the request names; the scheme is not known for certain."""
    scheme, _, netloc = origin.partition("://")
    theirs, default = parse_host(netloc), _PORTS.get(scheme)
    return theirs is not None and default is not None and (
        theirs.name == host.name and (theirs.port or default) == (host.port or default)
    )  # fmt: skip
