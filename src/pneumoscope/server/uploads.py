"""Receives files from requests, in memory only; their number, size and time are limited while they arrive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from pneumoscope.images.read import MEDIA_TYPES, ImageBytes, Reading
from pneumoscope.server.problems import RequestError, too_busy
from pneumoscope.server.settings import Limits
from pneumoscope.text import to_line

RAW_TYPES = ("application/dicom", "application/octet-stream", *sorted(MEDIA_TYPES))
# Names that clients send although they were never registered.
_OTHER_TYPES = ("image/jpg", "image/pjpeg", "image/x-png", "image/tif", "image/x-ms-bmp", "image/x-bmp", "image/jpx")
# Possessive, so that a header of many spaces or backslashes takes no longer than another.
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*+"?')
_EXTENDED = re.compile(r"(?:^|;)\s*+filename\*\s*+=\s*+([^';]*+)'[^';]*+'([^;]*)", re.IGNORECASE)
_FIELDS = 16  # parts of a form that are not files
_PIECE = 256 * 1024  # bytes of an answer that are sent at a time


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # nothing is ever moved to disk

    def on_headers_finished(self) -> None:
        """Take a file name of RFC 8187, which browsers do not send but other clients do; the parser ignores it."""
        part = self._current_part
        try:
            name = _find_extended_name((part.content_disposition or b"").decode("latin-1"))
        except ValueError as problem:
            raise MultiPartException(str(problem)) from None
        if name is not None:
            part.content_disposition = (part.content_disposition or b"") + b'; filename="image"'
        super().on_headers_finished()
        if name is not None and part.file is not None:
            part.file.filename = name


class UploadBudget:
    """Receives files, and keeps count of the bytes in memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffered_bytes = 0

    def send(self, content: bytes, status: int) -> Response:
        """Make a JSON answer whose bytes count as buffered until the client has received nearly all of them."""
        headers = {"content-length": str(len(content))}
        return StreamingResponse(self._send(content), status, headers, "application/json")

    async def _send(self, content: bytes) -> AsyncIterator[bytes]:
        self.buffered_bytes += len(content)
        try:
            for start in range(0, len(content), _PIECE):
                yield content[start : start + _PIECE]
        finally:
            self.buffered_bytes -= len(content)

    @asynccontextmanager
    async def receive(self, request: Request, reading: Reading) -> AsyncIterator[list[ImageBytes]]:
        """Receive the files of a request; their bytes count as buffered until the block ends.

        Raises:
            RequestError: 400, 408, 413, 415, 422 or 429.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "multipart/form-data" and media_type not in RAW_TYPES + _OTHER_TYPES:
            raise RequestError(
                415, f"Content type {media_type[:80] or 'none'!r} is not supported. Send multipart/form-data with one "
                f"or more files, or one file as {', '.join(RAW_TYPES)}."
            )  # fmt: skip
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.limits.request_bytes:
            raise self._too_large()
        body = _Body(self, request)
        parse = self._parse_form if media_type == "multipart/form-data" else self._parse_raw
        try:
            try:
                async with asyncio.timeout(self.limits.sending):
                    images = await parse(request, body, reading)
            except TimeoutError:
                raise RequestError(408, "The body arrived too slowly. Send it again, in smaller requests.") from None
            except ClientDisconnect:
                raise RequestError(400, "The connection was closed before the whole body had arrived.") from None
            if not images:
                detail = "The request contains no file. Send files as form parts that have a file name."
                raise RequestError(422, detail, code="no-file")
            for image in images:
                if len(image.content) > self.limits.file_bytes:
                    most = self.limits.file_bytes // 1024**2
                    detail = f"{image.name}: larger than {most} MiB. Reduce or compress it."
                    raise RequestError(413, detail, code="file-too-large")
            yield images
        finally:
            self.buffered_bytes -= body.size

    def _too_large(self) -> RequestError:
        most = self.limits.request_bytes // 1024**2
        return RequestError(413, f"The request is larger than {most} MiB. Send its files in several requests.")

    async def _parse_raw(self, request: Request, body: _Body, reading: Reading) -> list[ImageBytes]:
        content = b"".join([part async for part in body.stream()])
        disposition = request.headers.get("content-disposition", "")
        try:
            name = _find_extended_name(disposition)
        except ValueError as problem:
            raise RequestError(422, str(problem), code="name-invalid") from None
        if name is None:
            _, options = parse_options_header(disposition)
            name = options.get(b"filename", b"").decode("utf-8", "replace")
        return [ImageBytes(content, _clean(name), reading)] if content else []

    async def _parse_form(self, request: Request, body: _Body, reading: Reading) -> list[ImageBytes]:
        most = self.limits.request_files
        parser = _MemoryParser(
            request.headers, body.stream(), max_files=most, max_fields=_FIELDS, max_part_size=64 * 1024
        )
        try:
            form = await parser.parse()
        except MultiPartException as problem:
            if "Too many files" in problem.message:
                raise RequestError(413, f"More than {most} files. Send them in several requests.") from None
            if "Too many fields" in problem.message:
                raise RequestError(413, f"More than {_FIELDS} fields without a file. Send only files.") from None
            if "Send it in UTF-8" in problem.message:  # of ours
                raise RequestError(422, problem.message, code="name-invalid") from None
            reason = "its parts are not separated by the boundary that it names"
            if "boundary" in problem.message:
                reason = "its content type names no boundary"
            elif "maximum size" in problem.message:
                reason = "a field without a file name is too large"
            detail = f"The form cannot be parsed: {reason}. Let your HTTP library write it."
            raise RequestError(422, detail, code="form-invalid") from None
        except (LookupError, UnicodeError):
            detail = "The charset of the form is unknown. Leave it out."
            raise RequestError(422, detail, code="form-invalid") from None
        try:
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            return [ImageBytes(await part.read(), _clean(part.filename or ""), reading) for part in parts]
        finally:
            await form.close()


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, budget: UploadBudget, request: Request) -> None:
        self.size = 0
        self._budget = budget
        self._request = request

    async def stream(self) -> AsyncGenerator[bytes, None]:
        budget, limits, parts = self._budget, self._budget.limits, self._request.stream()
        while True:
            async with asyncio.timeout(limits.silence):
                part = await anext(parts, None)
            if part is None:
                return
            self.size += len(part)
            budget.buffered_bytes += len(part)
            if self.size > limits.request_bytes:
                raise budget._too_large()
            if budget.buffered_bytes > limits.buffered_bytes:
                raise too_busy(f"More than {limits.buffered_bytes // 1024**2} MiB are waiting.", 2)
            yield part


def _find_extended_name(disposition: str) -> str | None:
    """The file name that `filename*=` gives (RFC 6266, 4.3, and RFC 8187, 3.2.1); it counts more than `filename=`.

    Raises:
        ValueError: its character set is neither of the two that RFC 5987 names, or does not decode it.
    """
    found = _EXTENDED.search(_QUOTED.sub("", disposition))
    if found is None:
        return None
    try:
        if found[1].strip().lower() not in ("utf-8", "iso-8859-1"):
            raise ValueError
        return unquote(found[2].strip(), found[1].strip(), "strict")
    except ValueError:
        raise ValueError(f"A file name in {to_line(found[1])[:40]!r} cannot be decoded. Send it in UTF-8.") from None


def _clean(name: str) -> str:
    """Return a file's name without folders, whatever the system, and without unprintable characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return to_line(last)[:200].strip() or "image"
