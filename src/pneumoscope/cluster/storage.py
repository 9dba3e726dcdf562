"""Files in folders and buckets: read, listed and written with fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.files import write_bytes
from pneumoscope.images import limits
from pneumoscope.text import shorten

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Whether a path is an address such as `s3://bucket/folder`, not a file of this machine."""
    return _URL.match(path) is not None


def join(folder: str, name: str) -> str:
    """The address of a name in a folder or bucket."""
    return f"{folder.rstrip('/')}/{name}"


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into one error that names the address.

    Raises:
        DataError: it cannot be read or written.
        MissingExtraError: the package for this kind of address is not installed.
    """
    try:
        yield
    except ImportError as problem:
        raise MissingExtraError(f"{url}: {problem}. Install what it names, such as: pip install s3fs") from None
    except Exception as problem:  # each file system has errors of its own
        reason = shorten(str(problem) or type(problem).__name__, 300)
        raise DataError(f"{url}: cannot be reached ({reason}). Check the address, and your access to it.") from None


@dataclass(frozen=True)
class Storage:
    """A folder, or a prefix of a bucket.

    Attributes:
        url: its path or address.
    """

    url: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return not is_url(self.url)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path in it. Listings are not cached, because other processes write, too."""
        with reaching(self.url):
            import fsspec

            system, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
            return system, str(path)

    def list_names(self, folder: str) -> set[str]:
        """The names of the files in a folder of it; none where it does not exist."""
        system, path = self._opened
        with reaching(self.url):
            try:
                found = system.ls(join(path, folder), detail=False)
            except FileNotFoundError:
                return set()
            return {str(each).rstrip("/").rpartition("/")[2] for each in found}

    def list_files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the address of every file below it, with what the listing says, one folder at a time."""
        system, path = self._opened
        with reaching(self.url):
            for folder, _, files in system.walk(path, detail=True, on_error="raise"):
                for name, about in sorted(files.items()):
                    if name:
                        yield system.unstrip_protocol(join(str(folder), name)), about

    def exists(self, name: str) -> bool:
        """Whether it holds this file."""
        system, path = self._opened
        with reaching(self.url):
            return bool(system.exists(join(path, name)))

    def read(self, name: str) -> bytes:
        """The content of a file."""
        system, path = self._opened
        with reaching(join(self.url, name)):
            return bytes(system.cat_file(join(path, name)))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file, to read parts of it."""
        system, path = self._opened
        with reaching(join(self.url, name)):
            file = system.open(join(path, name), "rb", block_size=2**20)  # the default for S3 is 50 MB
        with file:
            yield file

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all: a bucket shows an object when it is complete."""
        if self.is_local:
            file = Path(self.url, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, content)
            return
        system, path = self._opened
        with reaching(join(self.url, name)):
            system.pipe_file(join(path, name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; say whether it was written. A storage that cannot refuse writes it anyway."""
        system, path = self._opened
        with reaching(join(self.url, name)):
            try:
                system.pipe_file(join(path, name), content, mode="create")
            except FileExistsError:
                return False
            except Exception:  # each storage has its own way to say that it cannot refuse, or that another was faster
                if self.exists(name):
                    return False
                system.pipe_file(join(path, name), content)
        return True

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        system, path = self._opened
        with reaching(join(self.url, name)), suppress(FileNotFoundError):
            system.rm_file(join(path, name))


class Reader:
    """Reads images at addresses; keeps the file systems open."""

    def __init__(self) -> None:
        self._systems: dict[str, Any] = {}

    def read(self, url: str) -> bytes:
        """The content of a file, if it is not larger than any image may be.

        Raises:
            DataError: it cannot be read, or is too large.
        """
        with reaching(url):
            import fsspec

            server = "/".join(url.split("/", 3)[:3])  # with the bucket, account or host, which a file system may be of
            if server not in self._systems:
                self._systems[server] = fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
            content = bytes(self._systems[server].cat_file(url, start=0, end=limits.MAX_BYTES + 1))  # one request
        if len(content) > limits.MAX_BYTES:
            raise DataError(f"{url}: more than {limits.MAX_BYTES:,} bytes, the limit.")
        return content

    def reaches(self, url: str) -> bool:
        """Whether a file can be read now."""
        try:
            with reaching(url):
                import fsspec

                system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
                return bool(system.cat_file(path, start=0, end=1))
        except DataError:
            return False
