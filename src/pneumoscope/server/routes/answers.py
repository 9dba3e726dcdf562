"""Answers to requests, and what their headers say."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Request, Response
from pydantic import BaseModel

from pneumoscope.server.messages.predictions import PageMessage

IdempotencyKey = Annotated[
    str,
    Header(
        max_length=255,
        pattern=r"^[\x20-\x7e]*$",
        description="Names the request, so that it can be sent again after a lost answer: it gets the same answer, and "
        "nothing is stored twice. Kept for a day.",
    ),
]
LOCATION: dict[str, Any] = {
    "Location": {"description": "Its address, relative to that of the request.", "schema": {"type": "string"}}
}


def to_json(message: BaseModel, status: int = 200, **headers: str) -> Response:
    """An answer with a message."""
    named = {name.replace("_", "-"): value for name, value in headers.items() if value}
    return Response(message.model_dump_json(), status, named, media_type="application/json")


def to_page(page: PageMessage, request: Request) -> Response:
    """An answer with a page of a list, and the address of the next one in `Link` (RFC 8288)."""
    following = request.url.include_query_params(cursor=page.next or "").query
    return to_json(page, link=f'<?{following}>; rel="next"' if page.next else "")


def name_caller(request: Request) -> str:
    """The caller's name, because an Idempotency-Key is valid for one caller; empty if unknown."""
    return str(getattr(getattr(request.state, "caller", None), "name", ""))
