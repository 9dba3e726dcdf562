"""The service's routes, and how it is run."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from pneumoscope import __version__
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.access.hosts import parse_networks
from pneumoscope.server.identity import add_identity
from pneumoscope.server.jobs.jobs import Jobs
from pneumoscope.server.models.served import INTENDED_USE
from pneumoscope.server.openapi import TAGS, complete_document
from pneumoscope.server.pages import add_pages
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import RequestError, logger, to_internal_error, to_validation_error
from pneumoscope.server.routes.audit import add_audit
from pneumoscope.server.routes.jobs import add_jobs
from pneumoscope.server.routes.operations import add_models, add_operations
from pneumoscope.server.routes.predictions import add_predictions
from pneumoscope.server.routes.readings import add_readings
from pneumoscope.server.routes.teaching import add_teaching
from pneumoscope.server.security.connections import configure_uvicorn
from pneumoscope.server.security.requests import SecurityMiddleware
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.store import Store


def build_app(settings: Settings, service: PredictionService) -> ASGIApp:
    """Build the service as an ASGI application; it closes `service`, which does the work, when it ends."""
    jobs = Jobs(service.stored, service.predict, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.open()
            jobs.open()
            yield
        finally:
            await jobs.close()
            await service.close()

    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        description=f"Classifies chest radiographs. {INTENDED_USE}",
        lifespan=lifespan,
        docs_url=None,
        openapi_url=None,  # `add_pages` serves it
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=TAGS,
    )
    add_predictions(app, service, jobs)
    add_jobs(app, jobs, service.blinding)
    add_readings(app, service)
    add_teaching(app, service)
    add_models(app, service)
    add_operations(app, service)
    add_audit(app, service)
    add_identity(app, settings.mode)
    complete_document(app)
    add_pages(app)
    _add_errors(app)
    return SecurityMiddleware(app, settings, service.telemetry, service.audit, service.tracing)


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
            _Server(config, service.store).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server whose requests do not wait long for a locked database once it is to end."""

    def __init__(self, config: uvicorn.Config, store: Store) -> None:
        super().__init__(config)
        self._store = store

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests in progress, and end."""
        self._store.hasten()
        await super().shutdown(sockets)


def _raise_file_limit(wanted: int) -> None:
    """Raise the limit of open files, so that idle connections do not use up the files that are needed."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def request_error(request: Request, problem: RequestError) -> Response:
        return problem.to_response(request.scope)

    @app.exception_handler(DataError)
    async def storage_error(request: Request, problem: DataError) -> Response:
        logger.error("%s", problem)
        detail = "The service cannot access its storage. Try again later; the reason is in the service's log."
        return RequestError(503, detail, {"retry-after": "5"}, code="storage-unavailable").to_response(request.scope)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, problem: Exception) -> Response:
        return to_internal_error(problem).to_response(request.scope)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, problem: HTTPException) -> Response:
        details = {404: "There is nothing at this address.", 405: "This method is not allowed here."}
        detail = details.get(problem.status_code, "The request cannot be answered as it is.")
        return RequestError(problem.status_code, f"{detail} See /docs.", dict(problem.headers or {})).to_response(
            request.scope
        )

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, problem: RequestValidationError) -> Response:
        return to_validation_error(problem.errors()).to_response(request.scope)
