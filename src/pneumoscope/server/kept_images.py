"""The folder in which uploaded files are kept; nobody but its owner may ever read them, as headers name patients."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.images.read import SUFFIXES

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

    def keep(self, content: bytes, sha256: str, format_: str) -> None:
        """Write a file unless it is there.

        Raises:
            DataError: it cannot be written.
        """
        path = self._locate(sha256, format_)
        try:
            if not path.exists():
                write_bytes(path, content)
                path.chmod(0o600)
        except (OSError, UsageError) as problem:
            raise DataError(str(problem), parameter="keep_images") from None

    def read(self, sha256: str, format_: str) -> bytes | None:
        """Read a file; None where there is none.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self._locate(sha256, format_).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise DataError(f"{self.folder}: {problem.strerror}.", parameter="keep_images") from None

    def delete(self, sha256s: Iterable[str]) -> int:
        """Delete the files with these contents; return how many there were.

        Raises:
            DataError: one cannot be deleted.
        """
        wanted, count = set(sha256s), 0
        try:
            for path in sorted(self.folder.iterdir()):
                if (found := _NAME.fullmatch(path.name)) and found["sha256"] in wanted:
                    path.unlink(missing_ok=True)
                    count += 1
        except OSError as problem:
            raise DataError(f"{problem.filename or self.folder}: cannot be deleted: {problem.strerror}.") from None
        return count

    def _locate(self, sha256: str, format_: str) -> Path:
        return self.folder / f"{sha256}{SUFFIXES.get(format_, ('.dcm',))[0]}"
