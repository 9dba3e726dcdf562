"""A published zip archive: downloaded with resumption, and unpacked without trusting what is in it."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from pneumoscope import __version__
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import SPLITS
from pneumoscope.errors import DataError, DownloadError, UsageError
from pneumoscope.files import write_text

if TYPE_CHECKING:
    import urllib3

ATTEMPTS = 5  # that fail in a row; one that brings a mebibyte resets the count
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without a byte
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # RFC 9110, 6585, 8470: a later attempt may succeed
_MAX_BYTES = 16 << 30
_MAX_MEMBERS = 250_000  # version 3 of the Kermany data, with its OCT images, has about 115,000
_MAX_IMAGE_BYTES = 64 << 20
_MAX_RATIO = 100  # JPEG hardly shrinks; zeros shrink a thousandfold
# No leading dot, no Windows device, no other alphabet, no stream behind a colon.
_IMAGE_NAME = re.compile(
    r"(?!(con|prn|aux|nul|com\d|lpt\d)\.)[a-z0-9][a-z0-9._-]{0,99}\.(jpe?g|png)", re.IGNORECASE | re.ASCII
)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def download(
    url: str, path: Path, *, size: int | None = None, most: int = _MAX_BYTES, progress: Progress = silent
) -> None:
    """Download a file; a later call resumes it, also in another process.

    The rest is requested only of the same version of the file (If-Range; RFC 9110, section 13.1.5); `path.json` beside
    the file says which version that is.

    Args:
        url: http or https. Redirections are followed to these alone, and never from https to http.
        path: where to write, in an existing folder.
        size: in bytes, if known.
        most: the largest size that is accepted.
        progress: called with the bytes that are here and the total.

    Raises:
        DownloadError: the server refuses, does not answer, or has a file of another size.
        UsageError: `url` is not valid, or `path` cannot be written.
    """
    from urllib3.exceptions import HTTPError

    if not re.fullmatch(r"https?://[a-z0-9.:-]+/[!-~]*", url, re.IGNORECASE):
        raise UsageError(f"{url!r} is not the address of a file that begins with http:// or https://.", "url")
    address, failures = hide_secrets(url), 0
    try:
        part = _Part(path, address)
        while not part.complete:
            before, delay = part.count, PAUSE * 2**failures
            try:
                _receive(url, part, size, most, progress)
                continue
            except _AttemptError as problem:
                reason, delay = str(problem), max(delay, problem.delay)
            except ValueError as problem:  # of urllib.parse, or urllib3; the message may hold a signature or password
                raise DownloadError(
                    f"{address}: this address, its proxy or a redirection is not valid ({type(problem).__name__})."
                ) from None
            except HTTPError as problem:
                reason = str(getattr(problem, "reason", problem)) or type(problem).__name__
            failures = 0 if part.count - before >= 1 << 20 else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(
                    f"{address}: failed {failures} times in a row: {reason} ({part.count:,} bytes received)."
                )
            time.sleep(min(delay, 60.0))
    except OSError as problem:  # of the file: urllib3 turns those of the network into HTTPError
        raise UsageError(
            f"{path}: cannot be written: {problem.strerror or problem}. Free some space and run it again; the download "
            "resumes."
        ) from None


def hide_secrets(url: str) -> str:
    """An address without user, password and query, which may hold a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def hash_archive(path: Path, algorithm: str = "sha256") -> str:
    """Checksum of an archive in hexadecimal; DataError if it cannot be read, or lists more members than any dataset."""
    digest, members = hashlib.new(algorithm, usedforsecurity=False), 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                members += block.count(b"PK\1\2")  # one for each (APPNOTE 4.3.12); zipfile would load them all
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}.") from None
    if members > _MAX_MEMBERS:
        raise DataError(f"{path}: lists more than {_MAX_MEMBERS:,} files; this is not the published archive.")
    return digest.hexdigest()


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        DataError: it is not one, is damaged, or could write outside a folder or fill memory or disk.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as problem:  # zipfile raises nearly anything on a damaged file
        with path.open("rb") as file:
            start = file.read(512).lstrip().lower()
        hint = "It seems truncated: get it again." if start.startswith(b"pk") else "Use the .zip as published."
        if start.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
            hint = "It is a web page: the download failed. Download the archive again."
        raise DataError(f"{path}: cannot be read as a zip archive ({problem}). {hint}") from None
    try:
        _require_safe(path, archive.infolist())
    except DataError:
        archive.close()
        raise
    return archive


def list_images(archive: zipfile.ZipFile, labels: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
    """Find the images `…/{train,val,test}/{LABEL}/NAME.jpeg` of an archive, wherever in it they are.

    Everything else is left out: other folders (`OCT2017`), a copy within the copy (`chest_xray/chest_xray`), files of
    macOS.

    Args:
        archive: from `open_archive`.
        labels: the class folders; a set of images has all of them.

    Returns:
        The members by place `split/LABEL/name`, in order.

    Raises:
        DataError: there are no such images, or two sets of them, or one has an unusual name or is encrypted.
    """
    path, members = archive.filename, archive.infolist()
    layout = re.compile(rf"((?:.*/)?)((?:{'|'.join(SPLITS)})/({'|'.join(labels)})/([^/]+))", re.DOTALL)
    by_root: defaultdict[str, dict[str, tuple[str, zipfile.ZipInfo]]] = defaultdict(dict)
    for member in members:
        match, name = layout.fullmatch(member.filename), PurePosixPath(member.filename)
        if not match or "__MACOSX" in name.parts or name.name[0] == "." or name.suffix.lower() not in _IMAGE_SUFFIXES:
            continue
        root, place, _, file = match.groups()
        if not _IMAGE_NAME.fullmatch(file):
            raise DataError(f"{path}: {member.filename!r} is not the name of an image of this dataset.")
        if member.flag_bits & 1:
            raise DataError(f"{path}: is encrypted. Use the .zip as published, without a password.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: is compressed in an unusual way. Use the .zip as published.")
        # Many file systems take `a.jpeg` and `A.jpeg` for the same file.
        if by_root[root].setdefault(place.casefold(), (place, member)) != (place, member):
            raise DataError(f"{path}: contains {member.filename!r} twice, if letter case is ignored.")
    labels_of = {root: {place.split("/")[1] for place, _ in images.values()} for root, images in by_root.items()}
    complete = [root for root in sorted(by_root, key=len) if labels_of[root] == set(labels)]
    if not complete:
        inner = [each.filename for each in members if each.filename.lower().endswith((".zip", ".tar.gz", ".tgz"))]
        raise DataError(
            f"{path}: no folders {{train,test}}/{{{','.join(labels)}}} with images in it."
            + (f" It contains another archive, {inner[0]}: unpack it and use that one." if inner else "")
        )
    if others := [root for root in complete if not root.startswith(complete[0])]:
        raise DataError(f"{path}: contains two sets of images, {complete[0]} and {others[0]}. Use one.")
    return dict(sorted(by_root[complete[0]].values()))


def unpack_images(archive: zipfile.ZipFile, images: Mapping[str, zipfile.ZipInfo], folder: Path) -> None:
    """Write images of `list_images` to their places in a folder, each checked against its CRC.

    Raises:
        DataError: the archive is damaged.
        UsageError: the folder cannot be written.
    """
    for place, member in images.items():
        try:
            with archive.open(member) as file:
                content = file.read(member.file_size)  # bounded: without a size, zipfile inflates whatever there is
            if len(content) != member.file_size:
                raise EOFError("cut short")
        except Exception as problem:  # as above
            raise DataError(
                f"{archive.filename}: contains a damaged file, {place} ({problem}). Get it again."
            ) from None
        try:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with (folder / place).open("xb") as file:
                file.write(content)
        except OSError as problem:
            raise UsageError(f"{folder / place}: cannot be written: {problem.strerror or problem}.", "out") from None


class _AttemptError(Exception):
    """An attempt failed, but another one may succeed; the server may ask for a delay in seconds."""

    def __init__(self, reason: str, retry_after: str = "") -> None:
        super().__init__(reason)
        self.delay = float(retry_after) if retry_after.isdecimal() else 0.0


class _Part:
    """The part of a file that has been downloaded, with a note of the file's version beside it."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.validator, self.size = path, None, None
        self._note, self._address = path.with_name(f"{path.name}.json"), address
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["address"] == address:  # without its query: a signature in it changes from call to call
                self.validator, self.size = note["validator"], note["size"]
        if self.validator is None and not self.complete:
            self.restart()

    @property
    def count(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def complete(self) -> bool:
        return self.count == self.size

    def restart(self, validator: str | None = None, size: int | None = None) -> None:
        """Discard what is here, then note which version comes next."""
        self.path.write_bytes(b"")
        self.note(validator, size)

    def note(self, validator: str | None, size: int | None) -> None:
        self.validator, self.size = validator, size
        write_text(self._note, json.dumps({"address": self._address, "validator": validator, "size": size}))


def _receive(url: str, part: _Part, size: int | None, most: int, progress: Progress) -> None:
    """Make one attempt; anything short of the whole file is an error."""
    address, headers = hide_secrets(url), {"User-Agent": f"pneumoscope/{__version__}", "Accept-Encoding": "identity"}
    if part.count and part.validator:
        headers |= {"Range": f"bytes={part.count}-", "If-Range": part.validator}
    with _open(url, headers) as response:
        status, content_range = f"status {response.status} {response.reason}", response.headers.get("Content-Range", "")
        values = (response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))  # strong ones alone:
        validator = next((value for value in values if re.fullmatch(r'"[!-~]*"|[A-Z][ -~]* GMT', value)), None)
        length = content_range.rpartition("/")[2] or response.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        if response.status in _TRANSIENT:
            raise _AttemptError(status, response.headers.get("Retry-After", ""))
        fits = content_range.startswith(f"bytes {part.count}-") and total == part.size
        if response.status == 416 or (response.status == 206 and not (fits and validator in (None, part.validator))):
            part.restart()
            raise _AttemptError(f"a different range than requested ({content_range or status})")
        if response.status not in (200, 206):
            raise DownloadError(f"{address}: the server refused: {status}.")
        if total is not None and (total != (size or total) or total > most):
            wanted = f"expected {size:,}" if size else f"the limit is {most:,}"
            # The part that is here stays: this may be the log-in page of a network.
            raise DownloadError(f"{address}: the file there has {total:,} bytes, {wanted}.")
        if response.status == 200:
            part.restart(validator, total)
        count = part.count
        with part.path.open("ab") as file:
            while block := response.read1(1 << 16, decode_content=False):
                file.write(block)
                if (count := count + len(block)) > most:
                    raise DownloadError(f"The server sent more than {most:,} bytes.")
                progress("Downloading", count, total or 0)
    if count != (expected := total or size or count):
        raise _AttemptError(f"connection closed at {count:,} of {expected:,} bytes")
    part.note(part.validator, count)  # without an announced length, only the end of the stream tells it


@contextmanager
def _open(url: str, headers: Mapping[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
    """Request an address; follow redirections to http and https, but never from https to http."""
    target = url
    for _ in range(10):
        with (
            _connect(target) as client,
            client.request(
                "GET", target, headers=headers, timeout=TIMEOUT, retries=False, preload_content=False,
                enforce_content_length=False,  # the caller checks the length, and keeps what came
            ) as response,
        ):  # fmt: skip
            if not (location := response.get_redirect_location()):
                yield response
                return
        allowed = ("https",) if urlsplit(target).scheme == "https" else ("http", "https")
        target = urljoin(target, location)
        if urlsplit(target).scheme not in allowed:
            raise DownloadError(f"{hide_secrets(url)}: redirects to {hide_secrets(target)}, which is not followed.")
    raise DownloadError(f"{hide_secrets(url)}: redirects too often.")


def _connect(url: str) -> urllib3.PoolManager:
    """A client that uses the proxy of the environment or the system."""
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return urllib3.PoolManager()
    user = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
    return urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}", proxy_headers=headers)


def _require_safe(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what could write outside a folder, differ between systems, or fill memory or disk."""
    for member in members:
        name = member.orig_filename  # as it is in the archive: zipfile cuts and replaces
        kind = stat.S_IFMT(member.external_attr >> 16)
        if re.match(r"/|[a-z]:", name, re.IGNORECASE) or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise DataError(f"{path}: unsafe: {name!r} points outside its folder. Nothing was unpacked.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{path}: unsafe: {name!r} is a link or a device. Nothing was unpacked.")
        if member.file_size > _MAX_IMAGE_BYTES and name.lower().endswith(_IMAGE_SUFFIXES):
            raise DataError(f"{path}: {name!r} has {member.file_size:,} bytes, too many for an image.")
    packed, total = path.stat().st_size, sum(member.file_size for member in members)
    if total > min(_MAX_BYTES, _MAX_RATIO * packed):
        raise DataError(f"{path}: {packed:,} bytes would unpack to {total:,}; this is not the published archive.")
