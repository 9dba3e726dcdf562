"""`/v1/predictions` and what belongs to a prediction."""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import Annotated
from urllib.parse import quote

from fastapi import FastAPI, Header, Path, Query, Request, Response

from pneumoscope.images.read import Reading
from pneumoscope.server.access.callers import find_caller
from pneumoscope.server.jobs.jobs import Jobs
from pneumoscope.server.messages.predictions import (
    NO_NUL,
    ImageQuery,
    JobMessage,
    ListQuery,
    PageQuery,
    PredictionMessage,
    PredictionPage,
    PredictionQuery,
    PredictionsMessage,
    ReviewMessage,
    ReviewPage,
    ReviewRequest,
    StudyPage,
    UploadQuery,
)
from pneumoscope.server.openapi import FILES, problems
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import RequestError
from pneumoscope.server.readings.blinding import withholds
from pneumoscope.server.routes.answers import LOCATION, IdempotencyKey, name_caller, to_json, to_page
from pneumoscope.server.storage import idempotency
from pneumoscope.server.storage.audit import audits, find_trail
from pneumoscope.server.storage.kept_images import MEDIA_TYPES
from pneumoscope.server.submissions import Wish, submit

Identifier = Annotated[str, Path(alias="id", max_length=64, pattern=NO_NUL, description="Of a prediction.")]
_PNG = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_FILE_TYPES = {name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES.values()}


def add_predictions(app: FastAPI, service: PredictionService, jobs: Jobs) -> None:
    """Add the routes."""
    _add_uploads(app, service, jobs)
    _add_stored(app, service)
    _add_studies(app, service)
    _add_images(app, service)
    _add_reviews(app, service)


def _add_uploads(app: FastAPI, service: PredictionService, jobs: Jobs) -> None:
    @app.post(
        "/v1/predictions",
        operation_id="createPredictions",
        response_model=PredictionsMessage,
        status_code=201,
        responses={
            200: {"description": "Predicted; nothing new is stored.", "model": PredictionsMessage},
            201: {"description": "Predicted and stored. `Location` is given for one file.", "headers": LOCATION},
            202: {"description": "The files will be predicted.", "model": JobMessage, "headers": LOCATION},
            **problems(400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503),
        },
        openapi_extra=FILES,
        tags=["predictions"],
    )
    @audits("predict")
    @withholds
    async def predict(
        request: Request,
        query: Annotated[UploadQuery, Query()],
        prefer: Annotated[str, Header(max_length=200, description="`respond-async` makes a job of it.")] = "",
        idempotency_key: IdempotencyKey = "",
    ) -> Response:
        """Predict one or more image files. Send them as parts of a form, or send one file as the body."""
        wanted = PredictionQuery.model_validate(query.model_dump(exclude={"callback", "blind"}))
        later = "respond-async" in (each.partition(";")[0].strip().lower() for each in prefer.split(","))
        trail = find_trail(request)
        wish = Wish(wanted, name_caller(request), idempotency_key, later, query.callback, trail.actor)
        if query.callback and not later:
            detail = "callback: only a job calls it. Send the header Prefer: respond-async, too."
            raise RequestError(422, detail, code="callback-refused")
        async with AsyncExitStack() as held:
            reading = Reading(query.invert, query.any_modality)
            images = await held.enter_async_context(service.budget.receive(request, reading))
            reply = await submit(service, jobs, images, wish, held)
        trail.count, trail.written = reply.unlogged, reply.unlogged == 0
        message = await service.blinding.cover(request, reply.message, query.blind)
        headers = {"location": reply.location, "idempotency_replayed": "true" if reply.replayed else ""}
        if reply.status == 202:
            return to_json(message, 202, **headers, preference_applied="respond-async", retry_after="1")
        if query.heatmap or query.picture:  # megabytes of text
            content = await asyncio.to_thread(lambda: message.model_dump_json().encode())
            answer = service.budget.send(content, reply.status)
            answer.headers.update({name.replace("_", "-"): value for name, value in headers.items() if value})
            return answer
        return to_json(message, reply.status, **headers)


def _add_stored(app: FastAPI, service: PredictionService) -> None:
    @app.get(
        "/v1/predictions",
        operation_id="listPredictions",
        response_model=PredictionPage,
        responses=problems(401, 403, 422, 503),
        tags=["predictions"],
    )
    @audits("list_predictions")
    @withholds
    async def list_predictions(request: Request, query: Annotated[ListQuery, Query()]) -> Response:
        """List stored predictions with the latest of their reviews, the newest first."""
        trail = find_trail(request)
        trail.patient, trail.study = query.patient, service.store.pseudonymise_study(query.study)
        service.blinding.refuse_filter(request, query)
        page = await service.stored.list_predictions(query, find_caller(request))
        trail.count = len(page.predictions)
        return to_page(await service.blinding.cover(request, page), request)

    @app.get(
        "/v1/predictions/{id}",
        operation_id="getPrediction",
        response_model=PredictionMessage,
        responses=problems(401, 403, 404, 422, 503),
        tags=["predictions"],
    )
    @audits("view_prediction")
    @withholds
    async def get_prediction(request: Request, prediction_id: Identifier) -> Response:
        """Get a stored prediction with the latest of its reviews."""
        stored = service.stored
        found = await stored.call(stored.to_message, await stored.find(prediction_id))
        return to_json(await service.blinding.cover(request, found))

    @app.delete(
        "/v1/predictions/{id}",
        operation_id="deletePrediction",
        status_code=204,
        response_class=Response,
        responses=problems(401, 403, 404, 422, 503),
        tags=["predictions"],
    )
    @audits("delete")
    @withholds
    async def delete_prediction(request: Request, prediction_id: Identifier) -> Response:
        """Delete a prediction, its reviews, and its kept image unless another prediction is of the same file."""
        await service.stored.delete(prediction_id, find_trail(request))
        return Response(status_code=204)


def _add_studies(app: FastAPI, service: PredictionService) -> None:
    @app.get(
        "/v1/studies",
        operation_id="listStudies",
        response_model=StudyPage,
        responses=problems(401, 403, 422, 503),
        tags=["predictions"],
    )
    @audits("list_studies")
    @withholds
    async def list_studies(request: Request, query: Annotated[PageQuery, Query()]) -> Response:
        """List the studies of stored predictions; those that came last are first."""
        page = await service.stored.list_studies(query)
        find_trail(request).count = sum(study.predictions for study in page.studies)
        return to_page(service.blinding.cover_studies(request, page), request)


def _add_images(app: FastAPI, service: PredictionService) -> None:
    @app.get(
        "/v1/predictions/{id}/image",
        operation_id="getImage",
        response_class=Response,
        responses={200: {"content": {**_PNG["content"], **_FILE_TYPES}}, **problems(401, 403, 404, 422, 429, 500, 503)},
        tags=["predictions"],
    )
    @audits("view_image")
    @withholds
    async def image(
        prediction_id: Identifier, query: Annotated[ImageQuery, Query()], accept: Annotated[str, Header()] = "*/*"
    ) -> Response:
        """Get the kept image of a prediction: a picture for a browser, or with `original=true` the file itself.

        `Accept: application/dicom` or `application/octet-stream` also gives the file.
        """
        wanted = {each.partition(";")[0].strip().lower() for each in accept.split(",")}
        if query.original or wanted <= {"application/dicom", "application/octet-stream"}:
            record, content = await service.stored.read_image(prediction_id)
            media_type = MEDIA_TYPES.get(record.format, "application/octet-stream")
            return Response(content, media_type=media_type, headers={"content-disposition": "attachment"})
        return Response(await service.render_image(prediction_id), media_type="image/png")

    @app.get(
        "/v1/predictions/{id}/evidence.png",
        operation_id="getEvidence",
        response_class=Response,
        responses={200: _PNG, **problems(401, 403, 404, 409, 422, 429, 500, 503)},
        tags=["predictions"],
    )
    @audits("view_evidence")
    @withholds
    async def evidence(request: Request, prediction_id: Identifier) -> Response:
        """Get the evidence as colours to lay over the image; it is computed from the kept image.

        The headers `Evidence-Label`, `-Logit`, `-Bias` and `-Limit` say what the fields of a heatmap say.
        """
        await service.blinding.check(request, prediction_id)
        found = await service.find_evidence(prediction_id)
        numbers = {"logit": found.logit, "bias": found.bias, "limit": found.limit}
        headers = {
            "evidence-label": quote(found.label),
            **{f"evidence-{name}": f"{numbers[name]:.6g}" for name in numbers},
        }
        return Response(base64.b64decode(found.png), media_type="image/png", headers=headers)


def _add_reviews(app: FastAPI, service: PredictionService) -> None:
    @app.get(
        "/v1/predictions/{id}/reviews",
        operation_id="listReviews",
        response_model=ReviewPage,
        responses=problems(401, 403, 404, 422, 503),
        tags=["reviews"],
    )
    @audits("view_reviews")
    @withholds
    async def list_reviews(
        request: Request, prediction_id: Identifier, query: Annotated[PageQuery, Query()]
    ) -> Response:
        """List the reviews of a prediction, the newest first."""
        await service.blinding.check(request, prediction_id)
        return to_page(await service.stored.list_reviews(prediction_id, query), request)

    @app.post(
        "/v1/predictions/{id}/reviews",
        operation_id="createReview",
        response_model=ReviewMessage,
        status_code=201,
        responses={201: {"headers": LOCATION}, **problems(400, 401, 403, 404, 408, 409, 413, 422, 503)},
        tags=["reviews"],
    )
    @audits("review")
    @withholds
    async def review(
        request: Request, prediction_id: Identifier, review: ReviewRequest, idempotency_key: IdempotencyKey = ""
    ) -> Response:
        """Agree or disagree with a prediction. The review is stored before the answer is sent."""
        await service.blinding.check(request, prediction_id)
        key = None
        if idempotency_key:
            where, digest = f"reviews of {prediction_id}", idempotency.digest_review(review)
            key = idempotency.make_key(name_caller(request), where, idempotency_key, digest)
        answered = await service.stored.review(prediction_id, review, find_caller(request), find_trail(request), key)
        headers = {"location": answered.location, **({"idempotency-replayed": "true"} if answered.replayed else {})}
        return Response(answered.content, answered.status, headers, media_type="application/json")

    @app.get(
        "/v1/predictions/{id}/reviews/{number}",
        operation_id="getReview",
        response_model=ReviewMessage,
        responses=problems(401, 403, 404, 422, 503),
        tags=["reviews"],
    )
    @audits("view_reviews")
    @withholds
    async def get_review(
        request: Request,
        prediction_id: Identifier,
        number: Annotated[int, Path(ge=1, lt=2**31, description="Of a review.")],
    ) -> Response:
        """Get a review."""
        await service.blinding.check(request, prediction_id)
        return to_json(await service.stored.find_review(prediction_id, number))
