"""The folder in which uploaded files are kept; only its owner may read them, because headers name patients."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.images.read import SUFFIXES

MEDIA_TYPES = {
    "JPEG": "image/jpeg", "PNG": "image/png", "TIFF": "image/tiff", "BMP": "image/bmp", "WEBP": "image/webp",
    "GIF": "image/gif", "JPEG2000": "image/jp2", "DICOM": "application/dicom",
}  # fmt: skip
_NAME = re.compile(r"(?P<sha256>[0-9a-f]{64})\.[a-z0-9]+(?P<pending>\.new)?")
_PART = re.compile(r"\.[0-9a-f]{64}\..*\.part")  # a file that was being written when its service was killed
_SUFFIXES = (*(suffixes[0] for suffixes in SUFFIXES.values()), ".dcm")
_PENDING = ".new"


class KeptImages:
    """Image files, each named by the SHA-256 of its content.

    Until its prediction is stored, the name of a file says that it is pending. So files that a killed service leaves
    can be found.

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

    def keep(self, content: bytes, sha256: str, format_: str) -> Path | None:
        """Write a file, or renew the date of one that is there. Return the pending file if it was written.

        Raises:
            DataError: it cannot be written.
        """
        path = self._locate(sha256, format_)
        try:
            for each in (path, _pend(path)):
                if each.exists():
                    os.utime(each)  # not to be deleted as old
                    return None
            write_bytes(_pend(path), content, private=True)
            return _pend(path)
        except (OSError, UsageError) as problem:
            raise DataError(str(problem), parameter="keep_images") from None

    def confirm(self, pending: Iterable[Path]) -> None:
        """Give pending files their names; the prediction of each is stored."""
        for path in pending:
            with suppress(OSError):  # the file is also found under its old name
                path.replace(path.with_suffix(""))

    def has(self, sha256: str, format_: str) -> bool:
        """Whether a file is kept."""
        path = self._locate(sha256, format_)
        return path.exists() or _pend(path).exists()

    def read(self, sha256: str, format_: str) -> bytes | None:
        """Read a file; None where it was not kept, or is gone.

        Raises:
            DataError: it cannot be read.
        """
        path = self._locate(sha256, format_)
        try:
            for each in (path, _pend(path), path):  # a pending file may get its name meanwhile
                with suppress(FileNotFoundError):
                    return each.read_bytes()
        except OSError as problem:
            raise DataError(f"{self.folder}: {problem.strerror}", parameter="keep_images") from None
        return None

    def delete(self, sha256s: Iterable[str]) -> int:
        """Delete the files with these contents; return how many there were.

        Raises:
            DataError: one cannot be deleted.
        """
        paths = (self.folder / f"{sha256}{suffix}" for sha256 in sha256s for suffix in _SUFFIXES)
        return self._delete(each for path in paths for each in (path, _pend(path)))

    def settle(self, moment: datetime.datetime, find_used: Callable[[list[str]], set[str]]) -> int:
        """Delete files from before a moment that killed services wrote without storing a prediction; return how many.

        Args:
            moment: in UTC, without a time zone.
            find_used: of given SHA-256 digests, returns those that have a prediction.

        Raises:
            DataError: one cannot be deleted.
        """
        old = [path for path in self.folder.iterdir() if _is_older(path, moment)]
        pending = {path: found["sha256"] for path in old if (found := _NAME.fullmatch(path.name)) and found["pending"]}
        used = find_used(sorted(set(pending.values())))
        self.confirm(path for path, sha256 in pending.items() if sha256 in used)
        parts = [path for path in old if _PART.fullmatch(path.name)]
        return self._delete([*parts, *(path for path, sha256 in pending.items() if sha256 not in used)])

    def delete_older(self, moment: datetime.datetime, find_used: Callable[[list[str]], set[str]]) -> int:
        """Delete files that were written before a moment and are not used; return how many.

        Args:
            moment: in UTC, without a time zone.
            find_used: of given SHA-256 digests, returns those whose file has to stay.

        Raises:
            DataError: one cannot be deleted.
        """
        old = {sha256: path for sha256, path in self._list() if _is_older(path, moment)}
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
                with suppress(FileNotFoundError):
                    path.unlink()
                    count += 1
        except OSError as problem:
            raise DataError(f"{problem.filename or self.folder}: cannot be deleted: {problem.strerror}.") from None
        return count


def _pend(path: Path) -> Path:
    return path.with_name(path.name + _PENDING)


def _is_older(path: Path, moment: datetime.datetime) -> bool:
    """Whether a file was written before a moment; False for one that is gone by now."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime < moment.replace(tzinfo=datetime.UTC).timestamp()
    return False
