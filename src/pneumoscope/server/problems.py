"""Every answer that is not a success is a problem document (RFC 9457) that says what to change.

Exceptions, answered with a line of text: bytes that are not HTTP, and too many connections.
"""

from __future__ import annotations

import json
import logging
import traceback
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
logger = logging.getLogger("pneumoscope.server")


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        detail: what was found, and what to do about it.
        headers: additional headers of the answer.
        **members: additional members of the document.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers, self.members = headers or {}, members

    def to_response(self) -> Response:
        """Return the problem document."""
        title = HTTPStatus(self.status).phrase
        document = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.members}
        return Response(json.dumps(document, ensure_ascii=False), self.status, self.headers, MEDIA_TYPE)


def to_internal_error(problem: Exception) -> RequestError:
    """Make the problem of an unforeseen error: 500, without its message, which could contain a patient's name."""
    return RequestError(500, f"Internal error: {type(problem).__name__}. Please report it.")


def log_internal_error(problem: Exception, consequence: str = "Internal error") -> None:
    """Log where an unforeseen error occurred, and its consequence, without the error's message."""
    where = "".join(traceback.format_tb(problem.__traceback__)[-4:])
    logger.error("%s: %s\n%s", consequence, type(problem).__name__, where)


def too_busy(detail: str, seconds: int = 1) -> RequestError:
    """Make the problem of too many waiting images: 429, with the time to try again."""
    detail = f"{detail} Try again in {seconds} s, and send fewer at a time."
    return RequestError(429, detail, {"retry-after": str(seconds)})
