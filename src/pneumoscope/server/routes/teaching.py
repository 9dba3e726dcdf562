"""`/v1/teaching`: images of known truth to learn with."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response

from pneumoscope.errors import ImageError
from pneumoscope.images.read import ImageBytes
from pneumoscope.server.messages.predictions import PredictionMessage, PredictionQuery
from pneumoscope.server.messages.readings import (
    ReadingRequest,
    TaughtMessage,
    TeachingCaseMessage,
    TeachingMessage,
    TeachingRequest,
)
from pneumoscope.server.openapi import problems
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import RequestError
from pneumoscope.server.readings import readings
from pneumoscope.server.readings.teaching import TeachingCases
from pneumoscope.server.routes.answers import to_json
from pneumoscope.server.routes.readings import name_reader
from pneumoscope.server.storage.audit import audits

Number = Annotated[int, Path(ge=0, lt=2**31, description="Of a case.")]


def add_teaching(app: FastAPI, service: PredictionService) -> None:
    """Add the routes.

    Raises:
        PneumoscopeError: the setting `cases` names images that cannot be used.
    """
    model = service.predictor.model
    cases = TeachingCases(service.settings.cases, tuple(model.labels))

    _add_answers(app, service, cases)

    @app.get("/v1/teaching", operation_id="listTeachingCases", responses=problems(401, 403), tags=["teaching"])
    async def list_cases() -> TeachingMessage:
        """List the cases to learn with. Their truth is shown after the answer."""
        return TeachingMessage(
            source=cases.source,
            labels=list(model.labels),
            positive=model.positive,
            cases=[TeachingCaseMessage(number=number) for number in range(len(cases.truths))],
        )

    @app.get(
        "/v1/teaching/{number}/image",
        operation_id="getTeachingImage",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **problems(401, 403, 404, 422, 429, 500, 503)},
        tags=["teaching"],
    )
    @audits("view_image")
    async def image(number: Number) -> Response:
        """Get the image of a case as a PNG of its stored levels, as `picture` of a prediction."""
        answer = await _predict(service, await _read(cases, number), PredictionQuery(picture=True, store=False))
        return Response(base64.b64decode(answer.picture or ""), media_type="image/png")


def _add_answers(app: FastAPI, service: PredictionService, cases: TeachingCases) -> None:
    model = service.predictor.model

    @app.post(
        "/v1/teaching/{number}/answers",
        operation_id="answerTeachingCase",
        response_model=TaughtMessage,
        responses=problems(400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503),
        tags=["teaching"],
    )
    @audits("predict")
    async def answer(request: Request, number: Number, given: TeachingRequest) -> Response:
        """Answer a case, and learn its truth and what the model says. Nothing is stored unless asked for."""
        file, truth = await _read(cases, number), cases.truths[number]
        if given.label is not None and given.label not in model.labels:
            detail = f"label {given.label!r}: unknown class. The classes are {', '.join(model.labels)}."
            raise RequestError(422, detail, code="reading-invalid")
        store = given.store and cases.source == "own"
        query = PredictionQuery(heatmap=service.model.heatmaps, store=store, reuse=store)
        prediction = await _predict(service, file, query)
        stored = False
        if store and prediction.id is not None:
            named = given.model_dump(exclude={"store", "reader"})
            reading = ReadingRequest(**named, reader=name_reader(request, given.reader))
            found = await service.stored.find(prediction.id)
            try:
                await service.stored.call(readings.commit, service.store, found.record, reading, model.labels, truth)
                stored = True
            except RequestError as problem:
                if problem.code != "reading-committed":  # answered before: the first answer counts
                    raise
        return to_json(TaughtMessage(truth=truth, correct=given.label == truth, stored=stored, prediction=prediction))


async def _read(cases: TeachingCases, number: int) -> ImageBytes:
    if number >= len(cases.truths):
        raise RequestError(404, f"There are {len(cases.truths)} teaching cases.", code="case-not-found")
    try:
        return await asyncio.to_thread(cases.read, number)
    except ImageError:
        detail = f"The file of case {number + 1} can no longer be read."
        raise RequestError(404, detail, code="case-not-found") from None


async def _predict(service: PredictionService, image: ImageBytes, query: PredictionQuery) -> PredictionMessage:
    (answer,) = await service.predict([image], query)
    if isinstance(answer, RequestError):
        raise answer
    return answer
