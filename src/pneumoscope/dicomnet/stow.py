"""The node over HTTP: images by STOW-RS (PS3.18 10.5), health, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from pneumoscope.dicomnet.measurements import MEDIA_TYPE
from pneumoscope.dicomnet.receiver import CANNOT_UNDERSTAND, NO_RESOURCES, SUCCESS, Watcher, resolve_classes, store
from pneumoscope.dicomnet.spool import LARGEST_META, Arrival, Spool, read_meta
from pneumoscope.errors import ImageError
from pneumoscope.images.dicom import read_tags

if TYPE_CHECKING:
    from pneumoscope.dicomnet.node_settings import NodeSettings

_JSON = "application/dicom+json"
_NOT_SUPPORTED = 0x0122  # PS3.7 C: SOP class not supported
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_DICOM_TYPE = re.compile(rb"^content-type:\s*application/dicom\s*(;|$)", re.IGNORECASE | re.MULTILINE)
_PARTS = 10_000  # of a request


class Health(Protocol):
    """What the addresses for health and metrics ask."""

    def find_troubles(self) -> list[str]:
        """Why the node is not ready; empty where it is."""

    def find_failures(self) -> list[str]:
        """What has failed for good, so that the process should be started again; empty where nothing has."""

    def render_metrics(self) -> bytes:
        """All metrics, as Prometheus reads them."""


class RefusedError(Exception):
    """A request of which nothing is stored."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Outcome:
    """What became of one part of a request: 0 if it is stored, else the reason (PS3.18 10.5.3, PS3.7 C)."""

    sop_class: str
    sop_uid: str
    status: int


@dataclass(frozen=True)
class Place:
    """Where objects go: the spool, what is called, and the SOP classes that are received."""

    spool: Spool
    watcher: Watcher
    classes: frozenset[str]


def build_app(settings: NodeSettings, spool: Spool, watcher: Watcher, health: Health) -> FastAPI:
    """Build the addresses of a node."""
    app = FastAPI(title="pneumoscope node", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    def check(request: Request) -> Response | None:
        if settings.token is None:
            return None
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        valid = hmac.compare_digest(credentials.strip().encode(), settings.token.encode())
        if scheme.lower() == "bearer" and valid:
            return None
        return Response("A valid token is needed.\n", 401, {"www-authenticate": "Bearer"}, "text/plain")

    @app.get("/healthz")
    async def healthz() -> Response:
        failures = health.find_failures()
        content = {"status": "failed", "failures": failures} if failures else {"status": "ok"}
        return Response(json.dumps(content), 503 if failures else 200, media_type="application/json")

    @app.get("/readyz")
    async def readyz() -> Response:
        troubles = await asyncio.to_thread(health.find_troubles)
        content = json.dumps({"status": "not ready" if troubles else "ready", "troubles": troubles})
        return Response(content, 503 if troubles else 200, media_type="application/json")

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return check(request) or Response(await asyncio.to_thread(health.render_metrics), media_type=MEDIA_TYPE)

    if settings.stow:
        _add_stow(app, settings, spool, watcher, check)
    return app


def _add_stow(
    app: FastAPI, settings: NodeSettings, spool: Spool, watcher: Watcher, check: Callable[[Request], Response | None]
) -> None:
    places = asyncio.Semaphore(settings.limits.requests)
    place = Place(spool, watcher, frozenset(resolve_classes(settings.sop_classes)))

    async def receive(request: Request, study: str | None) -> Response:
        if (refusal := check(request)) is not None:
            return refusal
        if places.locked():
            return Response("Too many requests. Try again later.\n", 503, {"retry-after": "1"}, "text/plain")
        async with places:
            try:
                boundary = _find_boundary(request.headers.get("content-type", ""))
                body = await _receive_body(request, settings)
                results = await asyncio.to_thread(store_parts, body, boundary, settings, place, study)
            except RefusedError as problem:
                return Response(f"{problem}\n", problem.status, media_type="text/plain")
            except ClientDisconnect:
                return Response(status_code=400)
        stored = [each for each in results if each.status == SUCCESS]
        full = any(each.status == NO_RESOURCES for each in results)
        status = 200 if len(stored) == len(results) else 202 if stored else 507 if full else 409
        return Response(json.dumps(_describe(results)), status, media_type=_JSON)

    @app.post("/studies")
    async def studies(request: Request) -> Response:
        return await receive(request, None)

    @app.post("/studies/{study}")
    async def one_study(request: Request, study: str) -> Response:
        return await receive(request, study)


def _find_boundary(content_type: str) -> bytes:
    kind = content_type.partition(";")[0].strip().lower()
    match = _BOUNDARY.search(content_type)
    if kind != "multipart/related" or match is None:
        raise RefusedError(415, 'Send multipart/related; type="application/dicom" with a boundary.')
    return (match[1] or match[2]).encode("latin-1", "replace")


async def _receive_body(request: Request, settings: NodeSettings) -> bytearray:
    limits, body = settings.limits, bytearray()
    stream: AsyncIterator[bytes] = request.stream()
    try:
        async with asyncio.timeout(limits.object_seconds):
            while True:
                async with asyncio.timeout(limits.silence):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return body
                if len(body) + len(chunk) > limits.request_bytes:
                    raise RefusedError(413, f"The request is larger than {limits.request_bytes:,} bytes.")
                body += chunk
    except TimeoutError:
        raise RefusedError(408, "The request arrived too slowly.") from None


def _split_parts(body: bytearray, boundary: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Headers and content of each part (RFC 2046 5.1); an incomplete request is refused."""
    mark, view = b"--" + boundary, memoryview(body)
    start = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if start == 1:
        raise RefusedError(400, "The body has no part.")
    for _ in range(_PARTS):
        start += len(mark)
        if body[start : start + 2] == b"--":
            return
        head = body.find(b"\r\n", start)
        end = body.find(b"\r\n" + mark, head)
        blank = body.find(b"\r\n\r\n", head, end + 2 if end >= 0 else None)
        if min(head, end, blank) < 0:
            raise RefusedError(400, "The body is not whole.")
        yield bytes(view[head + 2 : blank]), view[blank + 4 : end] if blank + 4 <= end else view[:0]
        start = end + 2
    raise RefusedError(413, f"more than {_PARTS} parts")


def store_parts(
    body: bytearray, boundary: bytes, settings: NodeSettings, place: Place, study: str | None
) -> list[Outcome]:
    """Store the objects of a request; if it is incomplete or has a part of another type, nothing is stored."""
    parts = list(_split_parts(body, boundary))
    if not parts:
        raise RefusedError(400, "The body has no part.")
    if not all(_DICOM_TYPE.search(head) for head, _ in parts):
        raise RefusedError(415, "Each part has to be of type application/dicom.")
    return [_store_part(content, settings, place, study) for _, content in parts]


def _store_part(content: memoryview, settings: NodeSettings, place: Place, study: str | None) -> Outcome:
    try:
        if len(content) > settings.limits.object_bytes:
            raise ValueError("too large")
        meta = read_meta(bytes(content[:LARGEST_META]))
        stated = meta.arrival
        arrival = Arrival(stated.sop_class, stated.sop_uid, stated.syntax, "STOW")
        if study is not None and read_tags(bytes(content)).study != study:
            raise ValueError("of another study")
    except (ImageError, ValueError):
        place.watcher.refused("unreadable")
        return Outcome("", "", CANNOT_UNDERSTAND)
    if arrival.sop_class not in place.classes:
        place.watcher.refused("class")
        return Outcome(arrival.sop_class, arrival.sop_uid, _NOT_SUPPORTED)
    status = store(place.spool, arrival, content[meta.start :], place.watcher)
    return Outcome(arrival.sop_class, arrival.sop_uid, status)


def _describe(outcomes: list[Outcome]) -> dict[str, Any]:
    """The answer to a request, as DICOM JSON (PS3.18 10.5.3.2, F.2)."""
    stored, failed = [], []
    for each in outcomes:
        item: dict[str, Any] = {}
        if each.sop_uid:
            item["00081150"] = {"vr": "UI", "Value": [each.sop_class]}
            item["00081155"] = {"vr": "UI", "Value": [each.sop_uid]}
        if each.status == SUCCESS:
            stored.append(item)
        else:
            failed.append({**item, "00081197": {"vr": "US", "Value": [each.status]}})
    answer: dict[str, Any] = {}
    if failed:
        answer["00081198"] = {"vr": "SQ", "Value": failed}
    if stored:
        answer["00081199"] = {"vr": "SQ", "Value": stored}
    return answer
