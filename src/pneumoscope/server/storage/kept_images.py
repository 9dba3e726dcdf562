"""The folder in which uploaded files are kept; only its owner may read them, because headers name patients."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.images.read import SUFFIXES

MEDIA_TYPES = {
    "JPEG": "image/jpeg", "PNG": "image/png", "TIFF": "image/tiff", "BMP": "image/bmp", "WEBP": "image/webp",
    "GIF": "image/gif", "JPEG2000": "image/jp2", "DICOM": "application/dicom",
}  # fmt: skip
_NAME = re.compile(r"(?P<sha256>[0-9a-f]{64})\.[a-z0-9]+")


class KeptImages:
    """Image files, each named by the SHA-256 of its content.

    Args:
        folder: it is made if there is none.

    Raises:
        UsageError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"{folder} cannot be created: {problem.strerror}.", parameter="keep_images") from None

    def keep(self, content: bytes, sha256: str, format_: str) -> bool:
        """Write a file unless it is there; else it counts as new. Return whether it was written.

        Raises:
            DataError: it cannot be written.
        """
        path = self._locate(sha256, format_)
        try:
            if path.exists():
                os.utime(path)  # not to be deleted as old
                return False
            write_bytes(path, content, private=True)
            return True
        except (OSError, UsageError) as problem:
            raise DataError(str(problem), parameter="keep_images") from None

    def has(self, sha256: str, format_: str) -> bool:
        """Whether a file is kept."""
        return self._locate(sha256, format_).exists()

    def read(self, sha256: str, format_: str) -> bytes | None:
        """Read a file; None where it was not kept, or is gone.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self._locate(sha256, format_).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise DataError(f"{self.folder}: {problem.strerror}", parameter="keep_images") from None

    def delete(self, sha256s: Iterable[str]) -> int:
        """Delete the files with these contents; return how many there were.

        Raises:
            DataError: one cannot be deleted.
        """
        wanted = set(sha256s)
        return self._delete(path for sha256, path in self._list() if sha256 in wanted)

    def delete_older(self, moment: datetime.datetime, find_used: Callable[[list[str]], set[str]]) -> int:
        """Delete files that were written before a moment and are not used; return how many.

        Args:
            moment: in UTC, without a time zone.
            find_used: of given SHA-256 digests, returns those whose file has to stay.

        Raises:
            DataError: one cannot be deleted.
        """
        seconds = moment.replace(tzinfo=datetime.UTC).timestamp()
        old = {sha256: path for sha256, path in self._list() if path.stat().st_mtime < seconds}
        used = find_used(list(old))
        return self._delete(path for sha256, path in old.items() if sha256 not in used)

    def _locate(self, sha256: str, format_: str) -> Path:
        return self.folder / f"{sha256}{SUFFIXES.get(format_, ('.dcm',))[0]}"

    def _list(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.folder.iterdir()):
            if found := _NAME.fullmatch(path.name):
                yield found["sha256"], path

    def _delete(self, paths: Iterable[Path]) -> int:
        count = 0
        try:
            for path in paths:
                path.unlink(missing_ok=True)
                count += 1
        except OSError as problem:
            raise DataError(f"{problem.filename or self.folder}: cannot be deleted: {problem.strerror}.") from None
        return count
