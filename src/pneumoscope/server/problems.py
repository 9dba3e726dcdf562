"""Every answer that is not a success is a problem document (RFC 9457) that says what to change.

Exceptions, answered with a line of text: bytes that are not HTTP, and too many connections.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from pneumoscope.server.problem_types import OF_STATUS, PROBLEMS

MEDIA_TYPE = "application/problem+json"
logger = logging.getLogger("pneumoscope.server")
# Messages of decoders about a damaged file come from other libraries, and may quote the file.
_QUOTED_REASON = re.compile(r"(?<=damaged or truncated)( DICOM)? \(.*\)(?=\. Copy it again)", re.DOTALL)
_FILE_CODES = (  # the first that is found in an error of `images` or `inference`
    ("outside the intended use", "out-of-scope"),
    ("`any_modality=True`", "not-a-radiograph"),
    ("damaged or truncated", "image-damaged"),
    ("unknown format", "not-an-image"),
    ("not a DICOM file", "not-an-image"),
    ("the file is empty", "image-damaged"),
    ("the limit is", "image-too-large"),
    ("does not fit in memory", "image-too-large"),
    ("a number that is not finite", "internal-error"),
)
_OTHERWISE = "is not valid"
_WORDS = {  # by pydantic's type of an error; its own messages are not passed on
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large",
    "string_type": "must be a text",
    "string_too_long": "is longer than {max_length} characters",
    "string_too_short": "is shorter than {min_length} characters",
    "string_pattern_mismatch": "has characters that are not allowed",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "greater_than": "must be more than {gt}",
    "extra_forbidden": "is not known here",
    "missing": "is missing",
    "json_invalid": "is not valid JSON",
    "model_attributes_type": "must be a JSON object with content type application/json",
    "model_type": "must be a JSON object",
    "datetime_from_date_parsing": "must be a moment, such as 2026-01-31T12:00:00Z",
    "datetime_parsing": "must be a moment, such as 2026-01-31T12:00:00Z",
    "datetime_type": "must be a moment, such as 2026-01-31T12:00:00Z",
}


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        detail: what was found, and what to do about it.
        headers: additional headers of the answer.
        code: which of `PROBLEMS` it is; empty: the one that is usual for the status.
        **members: additional members of the document.
    """

    def __init__(
        self, status: int, detail: str, headers: dict[str, str] | None = None, *, code: str = "", **members: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.code = code or OF_STATUS.get(status, "")
        self.headers, self.members = headers or {}, members

    def to_document(self, root: str = "") -> dict[str, Any]:
        """The problem document; `root`: the path below which the service is reached."""
        known = PROBLEMS.get(self.code)
        kind = f"{root}/docs#{self.code}" if known else "about:blank"  # the API's page describes it there
        title = known.title if known else HTTPStatus(self.status).phrase
        own = {"code": self.code} if known else {}
        return {"type": kind, "title": title, "status": self.status, "detail": self.detail, **own, **self.members}

    def to_response(self, scope: Scope) -> Response:
        """The answer to the request with this scope."""
        document = json.dumps(self.to_document(scope.get("root_path", "")), ensure_ascii=False)
        return Response(document, self.status, self.headers, MEDIA_TYPE)


def to_file_problem(error: str, recognised: bool, lacks_extra: bool = False) -> RequestError:
    """Make the problem of one file that cannot be predicted, in words for callers of the service.

    Args:
        error: as `inference` gives it.
        recognised: whether the file begins as one of a supported format.
        lacks_extra: whether a package is not installed.
    """
    if lacks_extra:
        return RequestError(415, f"The service lacks a package to read this file: {error}", code="package-missing")
    text = _QUOTED_REASON.sub(r"\1", error)
    code = next((code for words, code in _FILE_CODES if words in text), "image-unsupported")
    for python, http in (
        ("`any_modality=True`", "any_modality=true"),
        ("`refuse_out_of_scope=True`", "the service's setting (`pneumoscope serve --refuse-out-of-scope`)"),
    ):
        text = text.replace(python, http)
    if not recognised and code != "internal-error":
        code = "not-an-image"
    elif code == "not-an-image":
        code = "image-unsupported"
    return RequestError(PROBLEMS[code].status, text, code=code)


def to_validation_error(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """Make the problem of parameters or fields that are not valid, from what pydantic found."""
    found = [{"where": ".".join(map(str, each["loc"]))[:100], "what": _describe(each)} for each in errors]
    detail = "; ".join(f"{each['where']}: {each['what']}" for each in found[:5])
    return RequestError(422, f"{detail}.", code="parameter-invalid", errors=found)


def _describe(error: Mapping[str, Any]) -> str:
    context = error.get("ctx", {})
    if error["type"] in ("literal_error", "enum"):
        return f"must be {context['expected']}"
    if error["type"] == "value_error":  # raised by a validator of ours
        return str(context["error"])
    try:
        return _WORDS[error["type"]].format(**context)
    except KeyError:
        return _OTHERWISE


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
