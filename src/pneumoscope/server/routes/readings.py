"""`/v1/readings` and what belongs to it: readings without and with the model's answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Query, Request, Response

from pneumoscope.server.access.callers import find_caller
from pneumoscope.server.messages.predictions import NO_NUL
from pneumoscope.server.messages.readings import (
    CommittedMessage,
    PerformanceMessage,
    ReadingMessage,
    ReadingPage,
    ReadingQuery,
    ReadingRequest,
)
from pneumoscope.server.openapi import problems
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import RequestError
from pneumoscope.server.readings import readings
from pneumoscope.server.readings.blinding import withholds
from pneumoscope.server.readings.performance import measure_readers
from pneumoscope.server.routes.answers import LOCATION, to_json, to_page
from pneumoscope.server.storage.audit import audits


def add_readings(app: FastAPI, service: PredictionService) -> None:
    """Add the routes."""
    _add_lists(app, service)

    @app.post(
        "/v1/predictions/{id}/readings",
        operation_id="createReading",
        response_model=CommittedMessage,
        status_code=201,
        responses={
            200: {"description": "The same reading was stored before.", "model": CommittedMessage},
            201: {"headers": LOCATION},
            **problems(400, 401, 403, 404, 408, 409, 413, 422, 503),
        },
        tags=["readings"],
    )
    @audits("review")
    @withholds
    async def create_reading(
        request: Request,
        prediction_id: Annotated[str, Path(alias="id", max_length=64, pattern=NO_NUL, description="Of a prediction.")],
        reading: ReadingRequest,
    ) -> Response:
        """Commit a reading. It is on disk before the answer is sent, which then shows what the model says."""
        reading = reading.model_copy(update={"reader": name_reader(request, reading.reader)})
        found = await service.stored.find(prediction_id)
        labels = service.predictor.model.labels
        committed = await service.stored.call(readings.commit, service.store, found.record, reading, labels)
        prediction = await service.stored.call(service.stored.to_message, found)
        message = CommittedMessage(reading=ReadingMessage.model_validate(committed.row), prediction=prediction)
        where = f"../../readings?prediction={found.record.id}"
        return to_json(message, 200 if committed.repeated else 201, location="" if committed.repeated else where)


def _add_lists(app: FastAPI, service: PredictionService) -> None:
    @app.get(
        "/v1/readings",
        operation_id="listReadings",
        response_model=ReadingPage,
        responses=problems(401, 403, 422, 503),
        tags=["readings"],
    )
    @audits("view_reviews")
    @withholds
    async def list_readings(request: Request, query: Annotated[ReadingQuery, Query()]) -> Response:
        """List readings, the newest first; in blind mode, only one's own."""
        if service.blinding.binds(request):
            name = find_caller(request).name
            if query.reader not in (None, name):
                detail = "This service is in blind mode. List only your own readings."
                raise RequestError(403, detail, code="answer-withheld")
            query = query.model_copy(update={"reader": name})
        page = await service.stored.call(readings.list_readings, service.store, query)
        found = [ReadingMessage.model_validate(each) for each in page.entries]
        return to_page(ReadingPage(readings=found, next=page.next), request)

    @app.get(
        "/v1/reading-performance",
        operation_id="getReadingPerformance",
        response_model=PerformanceMessage,
        responses=problems(401, 403, 503),
        tags=["readings"],
    )
    async def reading_performance() -> Response:
        """Compare readers without and with the model's answer, and the model; truth comes from teaching cases.

        `pneumoscope reviews performance` measures with any truth.
        """
        rows = await service.stored.call(readings.list_all, service.store)
        found = await service.stored.call(measure_readers, rows, None)
        return to_json(PerformanceMessage(readers=[each.to_json() for each in found]))


def name_reader(request: Request, given: str) -> str:
    """The reader's name: the caller's if it is known, else the one that they give."""
    caller = find_caller(request)
    return caller.name if caller.named else given
