"""Requests become files, held in memory alone: bounded in count, bytes and time while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from pneumoscope.server.problems import RequestError, too_busy
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pneumoscope.server.settings import Limits

RAW_TYPES = (
    "application/dicom", "application/octet-stream", "image/bmp", "image/gif", "image/jp2", "image/jpeg", "image/png",
    "image/tiff", "image/webp",
)  # fmt: skip
_FIELDS = 16  # parts of a form that are no files
_PIECE = 256 * 1024  # of an answer, after which it waits for the other side


@dataclass(frozen=True)
class Upload:
    """A file that was sent.

    Attributes:
        name: as the sender calls it, without folders and without what cannot be printed.
        content: its bytes.
    """

    name: str
    content: bytes


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # nothing is ever moved to disk


class Desk:
    """Takes requests' bodies.

    Args:
        limits: what is taken.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    def hand_out(self, content: bytes) -> Response:
        """An answer of JSON whose bytes count as held until the other side has taken all but the last of them."""
        return _Handout(self, content)

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[list[Upload]]:
        """The files of a request; their bytes count as held until the block ends.

        Raises:
            RequestError: 408, 413, 415, 422 or 429.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data" and kind not in RAW_TYPES:
            raise RequestError(
                415,
                f"Content type {kind[:80] or 'none'!r} is not taken. Send multipart/form-data with one or many files, "
                f"or a file itself as one of {', '.join(RAW_TYPES)}.",
            )
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.limits.request_bytes:
            raise self._too_large()
        body = _Body(self, request)
        take = self._parse if kind == "multipart/form-data" else self._join
        try:
            try:
                async with asyncio.timeout(self.limits.sending):
                    uploads = await take(request, body)
            except TimeoutError:
                raise RequestError(408, "The body came too slowly. Send it again, in smaller requests.") from None
            except ClientDisconnect:
                raise RequestError(400, "The connection was closed before the whole body had come.") from None
            self._check(uploads)
            yield uploads
        finally:
            self.held -= body.size

    def _too_large(self) -> RequestError:
        most = self.limits.request_bytes // 1024**2
        return RequestError(413, f"The request is larger than {most} MiB. Send its files in several requests.")

    def _check(self, uploads: list[Upload]) -> None:
        if not uploads:
            raise RequestError(
                422, "No file in the request. Send one or many as parts of a form that have a file name."
            )
        for upload in uploads:
            if len(upload.content) > self.limits.file_bytes:
                most = self.limits.file_bytes // 1024**2
                raise RequestError(413, f"{upload.name}: larger than {most} MiB. Save it smaller, or compressed.")

    async def _join(self, request: Request, body: _Body) -> list[Upload]:
        parts = [part async for part in body.stream()]
        _, options = parse_options_header(request.headers.get("content-disposition"))
        given = options.get(b"filename", b"").decode("utf-8", "replace")
        content = b"".join(parts)
        return [Upload(_plain(given), content)] if content else []

    async def _parse(self, request: Request, body: _Body) -> list[Upload]:
        files = self.limits.request_files
        parser = _MemoryParser(
            request.headers, body.stream(), max_files=files, max_fields=_FIELDS, max_part_size=64 * 1024
        )
        try:
            form = await parser.parse()
        except MultiPartException as problem:
            if "Too many files" in problem.message:
                raise RequestError(
                    413, f"More than {files} files in a request. Send them in several requests."
                ) from None
            if "Too many fields" in problem.message:
                raise RequestError(413, f"More than {_FIELDS} fields without a file. Send files alone.") from None
            raise RequestError(422, f"The form cannot be read: {problem.message[:200]}") from None
        except (LookupError, UnicodeError):
            raise RequestError(422, "The form names a charset that is none. Leave it out.") from None
        try:
            found = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            return [Upload(_plain(one.filename or ""), await one.read()) for one in found]
        finally:
            await form.close()


class _Handout(StreamingResponse):
    def __init__(self, desk: Desk, content: bytes) -> None:
        self._desk = desk
        self._content = content
        headers = {"content-length": str(len(content))}
        super().__init__(self._cut(), media_type="application/json", headers=headers)

    async def _cut(self) -> AsyncIterator[bytes]:
        self._desk.held += len(self._content)
        try:
            for start in range(0, len(self._content), _PIECE):
                yield self._content[start : start + _PIECE]
        finally:
            self._desk.held -= len(self._content)


class _Body:
    """A request's body as it arrives."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self.size = 0
        self._desk = desk
        self._request = request

    async def stream(self) -> AsyncGenerator[bytes, None]:
        desk, parts = self._desk, self._request.stream()
        while True:
            try:
                async with asyncio.timeout(desk.limits.silence):
                    part = await anext(parts, None)
            except TimeoutError:
                raise RequestError(408, "The body came too slowly. Send it again, in smaller requests.") from None
            if part is None:
                return
            self.size += len(part)
            desk.held += len(part)
            if self.size > desk.limits.request_bytes:
                raise desk._too_large()
            if desk.held > desk.limits.waiting_bytes:
                raise too_busy(f"More than {desk.limits.waiting_bytes // 1024**2} MiB are waiting to be read.", 2)
            yield part


def _plain(name: str) -> str:
    """A file's name without its folders, on any system, and without what cannot be printed."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return to_line(last)[:200].strip() or "image"
