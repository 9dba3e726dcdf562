"""The service's addresses, and how it is run."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pneumoscope import __version__
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.messages import (
    KeptVerdict,
    Lately,
    Latest,
    ModelMessage,
    Predictions,
    ProblemMessage,
    Reads,
    VerdictMessage,
    Wanted,
)
from pneumoscope.server.pages import render_pages
from pneumoscope.server.predictions import USE, Room
from pneumoscope.server.problems import MEDIA_TYPE, RequestError, to_fault
from pneumoscope.server.routes import EXAMPLES, render_example
from pneumoscope.server.security import Gate, PatientProtocol
from pneumoscope.server.uploads import RAW_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from pneumoscope.server.settings import Settings

_KINDS = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["files"],
                }
            },
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW_TYPES},
        },
    }
}


def build_app(settings: Settings, room: Room) -> ASGIApp:
    """The service as an ASGI application.

    Args:
        settings: who may come in.
        room: what does the work; it is closed with the application.
    """

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        await room.open()
        yield
        await room.close()

    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        description=f"Reads chest radiographs. {USE}",
        lifespan=live,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_answers(app, room)
    _add_watching(app, room)
    _add_pages(app)
    _add_errors(app)
    return Gate(app, settings, room.measures)


def serve(settings: Settings, ready: Callable[[str, Room], None] | None = None) -> None:
    """Run the service until it is told to end; what it took is finished first.

    Args:
        settings: how.
        ready: called with the service's address, and what it serves, before the first request is taken.

    Raises:
        PneumoscopeError: settings that cannot be meant, an address that is taken, or a model or database that cannot be
            used.
    """
    settings.check()
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except (OSError, OverflowError) as problem:
        why = str(getattr(problem, "strerror", None) or problem).partition(" (while")[0]
        raise UsageError(
            f"--host {settings.host} --port {settings.port}: cannot be listened on: {why}. Choose another."
        ) from None
    with listener:
        room = Room(settings)
        app = build_app(settings, room)
        host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        if ready is not None:
            ready(f"http://{host}:{listener.getsockname()[1]}/", room)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        _allow_connections(4 * settings.limits.requests)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has ended
        try:
            uvicorn.Server(configure(app, settings)).run(sockets=[listener])
        except KeyboardInterrupt:
            return


def _allow_connections(count: int) -> None:
    """Ask the system for as many open files, so that idle connections do not use up those that work needs."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def configure(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the service: with patience for slow senders that ends, and no log of what is sent."""
    return uvicorn.Config(
        app,
        http=type("Protocol", (PatientProtocol,), {"silence": settings.limits.silence}),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=4 * settings.limits.requests,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=60,
    )


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": ProblemMessage.model_json_schema()}
    return {status: {"description": "A problem document.", "content": {MEDIA_TYPE: schema}} for status in statuses}


def _to_json(message: Any, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")


def _add_answers(app: FastAPI, room: Room) -> None:
    @app.post(
        "/v1/predictions",
        response_model=Predictions,
        responses=_problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
        openapi_extra=_BODY,
        tags=["reading"],
    )
    async def predict(
        request: Request,
        wanted: Annotated[Wanted, Query()],
    ) -> Response:
        """Read one or many files: as parts of a form, or one as the body itself."""
        async with room.desk.receive(request) as uploads:
            answer = await room.read(uploads, wanted)
        if wanted.heatmap or wanted.view:  # megabytes, in text
            return room.desk.hand_out(await asyncio.to_thread(lambda: answer.model_dump_json().encode()))
        return _to_json(answer)

    @app.get("/v1/models", response_model=list[ModelMessage], responses=_problems(401, 403), tags=["reading"])
    async def models() -> list[ModelMessage]:
        """The model that is served."""
        return [room.model]

    @app.get("/v1/reads", response_model=Reads, responses=_problems(401, 403, 422, 503), tags=["reviewing"])
    async def reads(latest: Annotated[Latest, Query()]) -> Response:
        """The latest images that were read, with reviewers' verdicts."""
        return _to_json(await room.list_reads(latest.limit))

    @app.post(
        "/v1/reads/{read_id}/verdicts",
        response_model=KeptVerdict,
        status_code=201,
        responses=_problems(400, 401, 403, 404, 422, 503),
        tags=["reviewing"],
    )
    async def judge(read_id: Annotated[str, Path(max_length=64)], verdict: VerdictMessage) -> Response:
        """Agree or disagree; once answered, the verdict is on disk."""
        return _to_json(await room.judge(read_id, verdict), 201)

    @app.get("/v1/examples", responses=_problems(401, 403), tags=["reading"])
    async def examples() -> list[dict[str, Any]]:
        """Simulated images to try the service with."""
        return [
            {"number": number, "label": "PNEUMONIA" if pneumonia else "NORMAL", "simulated": True}
            for number, (_, pneumonia) in enumerate(EXAMPLES)
        ]

    @app.get(
        "/v1/examples/{number}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **_problems(401, 403, 422)},
        tags=["reading"],
    )
    async def example(number: Annotated[int, Path(ge=0, lt=len(EXAMPLES))]) -> Response:
        """A simulated image, as a PNG."""
        return Response(await asyncio.to_thread(render_example, number), media_type="image/png")


def _add_watching(app: FastAPI, room: Room) -> None:
    @app.get("/v1/monitoring", responses=_problems(401, 403, 422, 503), tags=["watching"])
    async def monitoring(lately: Annotated[Lately, Query()]) -> dict[str, Any]:
        """Volume, decisions, drift of the scores against validation, and agreement with reviewers."""
        return await room.summarise(lately.days)

    @app.get("/healthz", responses=_problems(403), tags=["watching"])
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses=_problems(403, 503), tags=["watching"])
    async def readyz() -> dict[str, str]:
        """Whether it can read images, and the database answers."""
        await room.require_ready()
        return {"status": "ready", "model": room.name}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems(401, 403)},
        tags=["watching"],
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(room.measures.render(), media_type=room.measures.media_type)


def _add_pages(app: FastAPI) -> None:
    folder = files("pneumoscope.deploy.server") / "page"
    parts = {part.name: part.read_bytes() for part in folder.iterdir() if "." in part.name}

    def answer(request: Request, content: bytes, suffix: str) -> Response:
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_KINDS[suffix], headers=headers)

    for path, content in render_pages(app.openapi()).items():
        app.add_api_route(path, _to_page(answer, content), include_in_schema=False)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        if name not in parts:
            raise RequestError(404, "There is no such part of the page.")
        return answer(request, parts[name], f".{name.rpartition('.')[2]}")


def _to_page(answer: Callable[[Request, bytes, str], Response], content: bytes) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        return answer(request, content, ".html")

    return page


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def problem(_: Request, found: RequestError) -> Response:
        return found.to_response()

    @app.exception_handler(DataError)
    async def unavailable(_: Request, found: DataError) -> Response:
        logging.getLogger("pneumoscope.server").error("%s", found)
        said = "What was read cannot be kept, or looked up. Try again later; the service's log says why."
        return RequestError(503, said, {"retry-after": "5"}).to_response()

    @app.exception_handler(Exception)
    async def fault(_: Request, found: Exception) -> Response:
        return to_fault(found).to_response()

    @app.exception_handler(HTTPException)
    async def refused(_: Request, found: HTTPException) -> Response:
        said = {404: "There is nothing at this address. See /docs.", 405: "Not with this method. See /docs."}
        detail = said.get(found.status_code, str(found.detail))
        return RequestError(found.status_code, detail, dict(found.headers or {})).to_response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, found: RequestValidationError) -> Response:
        errors = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in found.errors()]
        said = "; ".join(f"{one['where']}: {one['what']}" for one in errors[:5])
        return RequestError(422, said, errors=errors).to_response()
