"""The service's routes, and how it is run."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from pneumoscope import __version__
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.read import Reading
from pneumoscope.server.connections import configure_uvicorn
from pneumoscope.server.hosts import parse_networks
from pneumoscope.server.messages import (
    ListQuery,
    ModelMessage,
    MonitoringQuery,
    NodeMessage,
    NodeQuery,
    PredictionQuery,
    PredictionsMessage,
    ProblemMessage,
    ReviewMessage,
    ReviewRequest,
)
from pneumoscope.server.pages import add_pages
from pneumoscope.server.pictures import EXAMPLES, render_example
from pneumoscope.server.predictions import INTENDED_USE, PredictionService
from pneumoscope.server.problems import MEDIA_TYPE, RequestError, logger, to_internal_error
from pneumoscope.server.security import UPLOADS, SecurityMiddleware
from pneumoscope.server.settings import Settings
from pneumoscope.server.uploads import RAW_TYPES

_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"files": {"type": "array", "items": _FILE}}, "required": ["files"]}
_CONTENT = {"multipart/form-data": {"schema": _FORM}, **{name: {"schema": _FILE} for name in RAW_TYPES}}
_BODY = {"requestBody": {"required": True, "content": _CONTENT}}


def build_app(settings: Settings, service: PredictionService) -> ASGIApp:
    """Build the service as an ASGI application; `service` does the work and is closed with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.open()
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        description=f"Classifies chest radiographs. {INTENDED_USE}",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_predictions(app, service)
    _add_examples(app)
    _add_operations(app, service)
    add_pages(app)
    _add_errors(app)
    return SecurityMiddleware(app, settings, service.telemetry)


def serve(settings: Settings, ready: Callable[[str, PredictionService], None] | None = None) -> None:
    """Run the service until a signal stops it; requests in progress are finished first.

    Args:
        settings: how to run it.
        ready: called with the service's address and the service, before the first request.

    Raises:
        PneumoscopeError: invalid settings, an address that cannot be used, or a model or database that cannot be used.
    """
    settings.check()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except (OSError, OverflowError) as problem:
        reason = str(getattr(problem, "strerror", None) or problem).partition(" (while")[0]
        raise UsageError(
            f"Cannot listen on {settings.host}, port {settings.port}: {reason}. Choose another `host` or `port`."
        ) from None
    with listener:
        service = PredictionService(settings)
        trusted = parse_networks(settings.trusted_proxies, "trusted_proxies")
        config = configure_uvicorn(build_app(settings, service), settings.limits, trusted)
        host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        if ready is not None:
            ready(f"http://{host}:{listener.getsockname()[1]}/", service)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        _raise_file_limit(4 * settings.limits.requests + settings.limits.unknown + 512)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has ended
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _raise_file_limit(wanted: int) -> None:
    """Raise the limit of open files, so that idle connections do not use up those that are needed."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": ProblemMessage.model_json_schema()}
    return {status: {"description": "A problem document.", "content": {MEDIA_TYPE: schema}} for status in statuses}


def _to_json(message: BaseModel, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")


def _add_predictions(app: FastAPI, service: PredictionService) -> None:
    @app.post(
        UPLOADS,
        response_model=PredictionsMessage,
        responses=_problems(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra=_BODY,
        tags=["predictions"],
    )
    async def predict(request: Request, query: Annotated[PredictionQuery, Query()]) -> Response:
        """Predict one or more image files. Send them as parts of a form, or send one file as the body."""
        reading = Reading(query.invert, query.any_modality)
        async with service.budget.receive(request, reading) as images:
            answer = await service.predict(images, query)
        if query.heatmap or query.picture:  # megabytes of text
            return service.budget.send(await asyncio.to_thread(lambda: answer.model_dump_json().encode()))
        return _to_json(answer)

    @app.get(UPLOADS, response_model=PredictionsMessage, responses=_problems(401, 403, 422, 503), tags=["predictions"])
    async def list_predictions(query: Annotated[ListQuery, Query()]) -> Response:
        """List the latest predictions with their reviews."""
        return _to_json(await service.list_predictions(query.limit))

    @app.post(
        "/v1/predictions/{id}/reviews",
        response_model=ReviewMessage,
        status_code=201,
        responses=_problems(400, 401, 403, 404, 408, 413, 422, 503),
        tags=["predictions"],
    )
    async def review(prediction_id: Annotated[str, Path(alias="id", max_length=64)], review: ReviewRequest) -> Response:
        """Agree or disagree with a prediction. The review is stored before the answer is sent."""
        return _to_json(await service.review(prediction_id, review), 201)

    @app.get("/v1/models", responses=_problems(401, 403), tags=["predictions"])
    async def list_models() -> list[ModelMessage]:
        """Describe the model that is served."""
        return [service.model]


def _add_examples(app: FastAPI) -> None:
    @app.get("/v1/examples", responses=_problems(401, 403), tags=["examples"])
    async def list_examples() -> list[dict[str, Any]]:
        """List simulated images to try the service with."""
        return [
            {"number": number, "label": "PNEUMONIA" if pneumonia else "NORMAL", "simulated": True}
            for number, (_, pneumonia) in enumerate(EXAMPLES)
        ]

    @app.get(
        "/v1/examples/{number}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **_problems(401, 403, 422)},
        tags=["examples"],
    )
    async def example(number: Annotated[int, Path(ge=0, lt=len(EXAMPLES))]) -> Response:
        """Get a simulated image as a PNG."""
        return Response(await asyncio.to_thread(render_example, number), media_type="image/png")


def _add_operations(app: FastAPI, service: PredictionService) -> None:
    @app.get("/v1/monitoring", responses=_problems(401, 403, 422, 503), tags=["operations"])
    async def monitoring(query: Annotated[MonitoringQuery, Query()]) -> dict[str, Any]:
        """Summarise volume, decisions, drift of the probabilities from validation, and agreement with reviewers."""
        return await service.summarise(query.days)

    @app.get("/v1/node", response_model=NodeMessage, responses=_problems(401, 403, 409, 422, 503), tags=["operations"])
    async def node(query: Annotated[NodeQuery, Query()]) -> Response:
        """Show what DICOM nodes have in this database: images, their answers, and where their results are."""
        message = await service.read_node(query.limit)
        return Response(message.model_dump_json(exclude_unset=True), media_type="application/json")

    @app.get("/healthz", responses=_problems(403), tags=["operations"])
    async def healthz() -> dict[str, str]:
        """Check that the process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", responses=_problems(403, 503), tags=["operations"])
    async def readyz() -> dict[str, str]:
        """Check that images can be predicted and the database answers."""
        await service.check_ready()
        return {"status": "ready", "model": service.name}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems(401, 403)},
        tags=["operations"],
    )
    async def metrics() -> Response:
        """Get counters for Prometheus."""
        return Response(service.telemetry.render(), media_type=service.telemetry.media_type)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def request_error(_: Request, problem: RequestError) -> Response:
        return problem.to_response()

    @app.exception_handler(DataError)
    async def storage_error(_: Request, problem: DataError) -> Response:
        logger.error("%s", problem)
        detail = "The service cannot access its storage. Try again later; the reason is in the service's log."
        return RequestError(503, detail, {"retry-after": "5"}).to_response()

    @app.exception_handler(Exception)
    async def internal_error(_: Request, problem: Exception) -> Response:
        return to_internal_error(problem).to_response()

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, problem: HTTPException) -> Response:
        details = {404: "There is nothing at this address.", 405: "This method is not allowed here."}
        known = details.get(problem.status_code)
        detail = f"{known} See /docs." if known else str(problem.detail)
        return RequestError(problem.status_code, detail, dict(problem.headers or {})).to_response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, problem: RequestValidationError) -> Response:
        errors = [{"where": ".".join(map(str, each["loc"])), "what": each["msg"]} for each in problem.errors()]
        detail = "; ".join(f"{each['where']}: {each['what']}" for each in errors[:5])
        return RequestError(422, detail, errors=errors).to_response()
