"""One file over HTTP, taken up again where an earlier attempt broke off."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO

from pneumoscope import __version__
from pneumoscope.errors import DownloadError, UsageError
from pneumoscope.files import write_text

_PASSING = {408, 425, 429, 500, 502, 503, 504}  # RFC 9110, 6585, 8470: may go well the next time
_MAX_BYTES = 16 << 30
_MAX_WAIT = 60.0
_BLOCK = 1 << 16
_ENOUGH = 1 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        attempts: in a row that bring next to nothing; one that brings a mebibyte starts the count anew.
        timeout: seconds without a byte.
        pause: seconds before the second attempt, doubled before each further one.
    """

    attempts: int = 5
    timeout: float = 30.0
    pause: float = 1.0


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    patience: Patience | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Bring a file here, whole; a second call goes on where the first was interrupted.

    Ranges are asked for on the condition that the file is still the same (RFC 9110, section 13.1.5). Beside `path` lies
    `path.json`, by which it is known again.

    Args:
        url: http or https; a redirection leads nowhere else, and from https not back to http.
        path: where to, in an existing folder.
        size: bytes, where known.
        patience: with the server.
        progress: called with the bytes that are here and all bytes, 0 where not known.

    Raises:
        DownloadError: out of reach, or not of the size that was announced or is known.
        UsageError: no such address can be, or `path` cannot be written.
    """
    patience = patience or Patience()
    if not re.fullmatch(r"https?://[a-z0-9.:-]+/[!-~]*", url, re.IGNORECASE):
        raise UsageError(f"--url {url}: no address of a file that begins with http:// or https://.")
    shown = show_address(url)
    held = _Held(path, shown)
    opener, failures = _make_opener(), 0
    while not held.whole:
        before = held.count
        wait = patience.pause * 2**failures
        try:
            _receive(opener, url, held, size, patience.timeout, progress)
            continue
        except urllib.error.HTTPError as problem:
            reason = f"status {problem.code} {problem.reason}"
            problem.close()
            if problem.code == 416:  # beyond the end: what is here is not the beginning of that file
                held.begin(None, None)
            elif problem.code not in _PASSING:
                raise DownloadError(f"{shown}: refused, {reason}.") from None
            if (delay := problem.headers.get("Retry-After", "")).isdecimal():
                wait = max(wait, float(delay))
        except urllib.error.URLError as problem:
            reason = str(problem.reason)
        except (OSError, http.client.HTTPException, ValueError) as problem:  # the last: redirected to no address at all
            reason = str(problem) or type(problem).__name__
        failures = 0 if held.count - before >= _ENOUGH else failures + 1
        if failures >= patience.attempts:
            raise DownloadError(
                f"{shown}: out of reach after {failures} attempts: {reason} ({held.count:,} bytes came)."
            )
        time.sleep(min(wait, _MAX_WAIT))


def show_address(url: str) -> str:
    """An address without what may be secret in it: a user, a password, a signature."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _Held:
    """What is here of a file, and by what the server knows it: written down, so that another process can go on."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self._address = path, address  # without its query: a signature in it changes from call to call
        self._note = path.with_name(f"{path.name}.json")
        self.validator: str | None = None
        self.size: int | None = None
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["address"] == address:
                self.validator, self.size = note["validator"], note["size"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if self.validator is None and not self.whole:
            self.begin(None, None)

    @property
    def count(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def whole(self) -> bool:
        return self.size is not None and self.count == self.size

    def begin(self, validator: str | None, size: int | None) -> None:
        """Throw away what is here, then note whose beginning comes next."""
        with self.open() as file:
            file.truncate(0)
        self.note(validator, size)

    def note(self, validator: str | None, size: int | None) -> None:
        self.validator, self.size = validator, size
        write_text(self._note, json.dumps({"address": self._address, "validator": validator, "size": size}))

    def open(self) -> IO[bytes]:
        try:
            return self.path.open("ab")
        except OSError as problem:
            raise UsageError(f"{self.path}: cannot be written: {problem.strerror or problem}.") from None


def _receive(
    opener: urllib.request.OpenerDirector,
    url: str,
    held: _Held,
    size: int | None,
    timeout: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make one attempt; anything short of the whole file is an error."""
    headers = {"User-Agent": f"pneumoscope/{__version__}", "Accept-Encoding": "identity"}
    if held.count and held.validator:
        headers |= {"Range": f"bytes={held.count}-", "If-Range": held.validator}
    with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:  # noqa: S310 - checked
        validator, total = _find_validator(response.headers), _find_size(response.headers)
        if response.status == 206:
            found = response.headers.get("Content-Range", "")
            if (
                not found.startswith(f"bytes {held.count}-")
                or total != held.size
                or validator not in (None, held.validator)
            ):
                held.begin(None, None)
                raise http.client.HTTPException(f"another range than asked for: {found!r}")
        if total is not None and (total != (size or total) or total > _MAX_BYTES):
            raise DownloadError(  # what is held stays: this may be the page of a network that wants a login
                f"{show_address(url)}: the file there has {total:,} bytes, expected were {size or _MAX_BYTES:,}."
            )
        if response.status != 206:
            held.begin(validator, total)
        _copy(response, held, total, progress)
    if held.count != (expected := total or size or held.count):
        raise http.client.HTTPException(f"broke off at {held.count:,} of {expected:,} bytes")
    held.note(held.validator, held.count)  # where no length was announced, the end alone tells it


def _copy(
    response: http.client.HTTPResponse, held: _Held, total: int | None, progress: Callable[[int, int], None] | None
) -> None:
    done = held.count
    with held.open() as file:
        while block := response.read(_BLOCK):
            try:
                file.write(block)
            except OSError as problem:
                raise UsageError(
                    f"{held.path}: cannot be written: {problem.strerror or problem}. Make room; then it goes on."
                ) from None
            done += len(block)
            if done > _MAX_BYTES:
                raise DownloadError(f"the server sends more than {_MAX_BYTES:,} bytes.")
            if progress is not None:
                progress(done, total or 0)


def _find_validator(headers: Message) -> str | None:
    """A strong entity tag, else a date: what If-Range may carry (RFC 9110, section 13.1.5)."""
    tags = (headers.get("ETag", ""), headers.get("Last-Modified", ""))
    return next((tag for tag in tags if re.fullmatch(r'"[!-~]*"|[A-Z][ -~]* GMT', tag)), None)


def _find_size(headers: Message) -> int | None:
    """Bytes of the whole file."""
    text = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _make_opener() -> urllib.request.OpenerDirector:
    """Speaks HTTP alone: urllib's own opener would follow an address to a file of this machine, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirections,
    ):
        opener.add_handler(handler())
    return opener


class _Redirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise DownloadError(
                f"{show_address(req.full_url)}: redirects to {show_address(newurl)}, which is not followed."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)
