"""Models, examples, monitoring, and what those who run the service need."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import FastAPI, Path, Query, Response

from pneumoscope.server.inference.pictures import EXAMPLES, render_example
from pneumoscope.server.messages.monitoring import MonitoringMessage, MonitoringQuery
from pneumoscope.server.messages.node import NodeMessage, NodeQuery
from pneumoscope.server.messages.predictions import ExampleMessage, HealthMessage, ModelMessage, ReadyMessage
from pneumoscope.server.openapi import problems
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import RequestError
from pneumoscope.server.readings.agreement import ReaderAgreementMessage
from pneumoscope.server.readings.blinding import withholds
from pneumoscope.server.storage.audit import audits


def add_models(app: FastAPI, service: PredictionService) -> None:
    """Add the routes of models and of simulated images."""

    @app.get("/v1/models", operation_id="listModels", responses=problems(401, 403), tags=["models"])
    @withholds
    async def list_models() -> list[ModelMessage]:
        """Describe the models that are served, and whom they are meant for; a second one may answer for some images."""
        return [model.message for model in service.models]

    @app.get("/v1/models/{name}", operation_id="getModel", responses=problems(401, 403, 404, 422), tags=["models"])
    @withholds
    async def get_model(
        name: Annotated[str, Path(max_length=200, description="A name or fingerprint.")],
    ) -> ModelMessage:
        """Describe a model by its name or its fingerprint."""
        for model in service.models:
            if name in (model.name, model.fingerprint):
                return model.message
        raise RequestError(404, f"No such model is served; {service.model.name} is.", code="model-not-found")

    @app.get("/v1/examples", operation_id="listExamples", responses=problems(401, 403), tags=["examples"])
    @withholds
    async def list_examples() -> list[ExampleMessage]:
        """List simulated images to try the service with."""
        return [
            ExampleMessage(number=number, label="PNEUMONIA" if pneumonia else "NORMAL", simulated=True)
            for number, (_, pneumonia) in enumerate(EXAMPLES)
        ]

    @app.get(
        "/v1/examples/{number}",
        operation_id="getExample",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **problems(401, 403, 422)},
        tags=["examples"],
    )
    @withholds
    async def example(number: Annotated[int, Path(ge=0, lt=len(EXAMPLES))]) -> Response:
        """Get a simulated image as a PNG."""
        return Response(await asyncio.to_thread(render_example, number), media_type="image/png")


def add_operations(app: FastAPI, service: PredictionService) -> None:
    """Add the routes of monitoring and health."""
    _add_agreement(app, service)

    @app.get(
        "/v1/monitoring",
        operation_id="getMonitoring",
        response_model=MonitoringMessage,
        responses=problems(401, 403, 422, 503),
        tags=["operations"],
    )
    async def monitoring(query: Annotated[MonitoringQuery, Query()]) -> Response:
        """Summarise volume, decisions, drift of the probabilities from validation, and agreement with reviewers."""
        message = await service.summarise(query.days)
        return Response(message.model_dump_json(), media_type="application/json")

    @app.get(
        "/v1/node",
        operation_id="getNode",
        response_model=NodeMessage,
        responses=problems(401, 403, 409, 422, 503),
        tags=["operations"],
    )
    @audits("view_node")
    async def node(query: Annotated[NodeQuery, Query()]) -> Response:
        """Show what DICOM nodes have in this database: images, their answers, and where their results are."""
        message = await service.read_node(query.limit)
        return Response(message.model_dump_json(exclude_unset=True), media_type="application/json")

    @app.get("/healthz", operation_id="getHealth", responses=problems(403), tags=["operations"])
    async def healthz() -> HealthMessage:
        """Check that the process is alive."""
        return HealthMessage(status="ok")

    @app.get("/readyz", operation_id="getReadiness", responses=problems(403, 503), tags=["operations"])
    async def readyz() -> ReadyMessage:
        """Check that images can be predicted and the database answers."""
        await service.check_ready()
        return ReadyMessage(status="ready", model=service.name)

    @app.get(
        "/metrics",
        operation_id="getMetrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 403)},
        tags=["operations"],
    )
    async def metrics() -> Response:
        """Get counters for Prometheus."""
        return Response(service.telemetry.render(), media_type=service.telemetry.media_type)


def _add_agreement(app: FastAPI, service: PredictionService) -> None:
    @app.get(
        "/v1/agreement",
        operation_id="getAgreement",
        response_model=ReaderAgreementMessage,
        responses=problems(401, 403, 422, 503),
        tags=["operations"],
    )
    async def agreement(query: Annotated[MonitoringQuery, Query()]) -> Response:
        """Measure how far readers agree with each other: Cohen's and Fleiss' kappa, and Krippendorff's alpha."""
        message = await service.measure_readers(query.days)
        return Response(message.model_dump_json(), media_type="application/json")
