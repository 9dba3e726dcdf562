"""The OpenAPI document: what the routes do not say themselves."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from fastapi import FastAPI

from pneumoscope.server.messages.predictions import ProblemMessage
from pneumoscope.server.problems import MEDIA_TYPE, RequestError
from pneumoscope.server.uploads import RAW_TYPES

TAGS = [
    {"name": "predictions", "description": "Predict images, and read what is stored."},
    {"name": "reviews", "description": "What readers say about predictions."},
    {"name": "readings", "description": "What readers see before and after they know the model's answer."},
    {"name": "teaching", "description": "Images of known truth to learn with."},
    {"name": "models", "description": "The model that is served."},
    {"name": "examples", "description": "Simulated images to try the service with."},
    {"name": "operations", "description": "Monitoring, health and metrics."},
]
_OPEN = ("/healthz", "/readyz")  # need no token
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"files": {"type": "array", "items": _FILE}}, "required": ["files"]}
_CONTENT = {"multipart/form-data": {"schema": _FORM}, **{name: {"schema": _FILE} for name in RAW_TYPES}}
FILES: dict[str, Any] = {"requestBody": {"required": True, "content": _CONTENT}}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "description": "Names the request in the service's log; every answer has it. Without it the service makes one.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer with, for its `responses`."""
    return {
        status: {
            "description": "A problem document.",
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemMessage"},
                    "example": RequestError(status, "What was found, and what to do about it.").to_document(),
                }
            },
        }
        for status in statuses
    }


def complete_document(app: FastAPI) -> None:
    """Make the application's document name the token, the request's id, and the parameters' examples.

    The document is built when it is first asked for: at the start of a service, this was the slowest step.
    """
    plain, lock = app.openapi, threading.Lock()
    build = cache(lambda: _complete(plain()))

    def openapi() -> dict[str, Any]:
        with lock:  # `_complete` changes the document that FastAPI keeps, so it runs once
            return build()

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token, if the service needs one: `Authorization: Bearer TOKEN`.",
        }
    }
    schema = ProblemMessage.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= {**schema.pop("$defs"), "ProblemMessage": schema}
    components.setdefault("parameters", {})["RequestId"] = _REQUEST_ID
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/RequestId"})
            if path not in _OPEN:
                operation["security"] = [{"bearer": []}, {}]
    return document
