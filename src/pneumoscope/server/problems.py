"""Answers that are no success are problem documents (RFC 9457) that say what to change.

Only what is no HTTP at all, and a connection too many, is answered before the service sees it, in a line of text.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class RequestError(Exception):
    """A request that cannot be answered as it was meant.

    Args:
        status: of HTTP.
        detail: what was found, and what to do about it.
        headers: to be sent besides.
        **more: members of the document besides.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.more = more

    def to_response(self) -> Response:
        """The document."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(
            json.dumps(document, ensure_ascii=False), self.status, {**self.headers, "content-type": MEDIA_TYPE}
        )


def to_fault(problem: Exception) -> RequestError:
    """What nobody foresaw: 500, without what it said, which could be a patient's name."""
    return RequestError(500, f"A fault of ours: {type(problem).__name__}. Please report it.")


def too_busy(detail: str, seconds: int = 1) -> RequestError:
    """Too many images are waiting: 429, with a time to try again."""
    return RequestError(
        429, f"{detail} Try again in {seconds} s, and send fewer at a time.", {"retry-after": str(seconds)}
    )
