"""Pseudonyms of patients: the same in every run, and of no use without the key."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
from functools import cached_property
from pathlib import Path

from pneumoscope.errors import UsageError
from pneumoscope.files import read_regular

KEY_FILE = "PNEUMOSCOPE_PSEUDONYM_KEY_FILE"  # environment variable
_KEY_BYTES = 32
_HEX_DIGITS = 16  # of a pseudonym
_LARGEST = 1024  # bytes of a key file
_WAYS_OUT = f"Set ${KEY_FILE} to another file, or pass `patient_ids=True` to name patients."


class Pseudonyms:
    """The pseudonyms that a machine gives to patients.

    The key is read at the first patient, and made if there is none yet.

    Args:
        file: holds the key; `find_key_file()` by default.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or find_key_file()

    def get(self, patient: str | None) -> str | None:
        """A patient's pseudonym of 16 hexadecimal digits; None where no patient is known.

        Raises:
            UsageError: the key cannot be read or made.
        """
        return compute_pseudonym(self._key, patient) if patient else None

    @cached_property
    def _key(self) -> bytes:
        return open_key(self.file)


def compute_pseudonym(key: bytes, patient: str) -> str:
    """A patient's pseudonym under a key: the first digits of an HMAC (RFC 2104) with SHA-256."""
    return hmac.new(key, patient.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_HEX_DIGITS]


def open_key(file: Path, key: bytes | None = None) -> bytes:
    """Read the key in a file; where there is no file, make it, with this key or a new one.

    Raises:
        UsageError: the key cannot be read or made.
    """
    return read_key(file) or _make_key(file, key)


def find_key_file() -> Path:
    """`$PNEUMOSCOPE_PSEUDONYM_KEY_FILE`, else a file in the user's data folder."""
    import platformdirs

    given = os.environ.get(KEY_FILE)
    return Path(given) if given else platformdirs.user_data_path("pneumoscope") / "pseudonym.key"


def read_key(file: Path) -> bytes | None:
    """The key in a file; None where there is no file.

    Raises:
        UsageError: it cannot be read, or is not a key.
    """
    try:
        text = read_regular(file, _LARGEST).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise UsageError(
            f"{file}: the key behind the pseudonyms of patients cannot be read: {problem.strerror or problem}. "
            f"{_WAYS_OUT}"
        ) from None
    key = b""
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(text)
    if len(key) < _KEY_BYTES:
        raise UsageError(
            f"{file}: this is not a key for pseudonyms, which has at least {2 * _KEY_BYTES} hexadecimal digits. "
            "Restore the file, or delete it: then patients get new pseudonyms."
        )
    return key


def _make_key(file: Path, key: bytes | None) -> bytes:
    """Make a key file that only its owner may read, or take the one that another process has made meanwhile."""
    part = file.with_name(f".{file.name}.{os.urandom(4).hex()}.part")
    content = f"{secrets.token_hex(_KEY_BYTES) if key is None else key.hex()}\n".encode("ascii")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_new(part, content)
            try:
                os.link(part, file)  # appears whole, or not at all
            except FileExistsError:  # another process has made one; no key is ever replaced
                pass
            except OSError:  # the file system has no hard links
                with contextlib.suppress(FileExistsError):
                    _write_new(file, content)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        raise UsageError(
            f"{file}: the key behind the pseudonyms of patients cannot be written: {problem.strerror or problem}. "
            f"{_WAYS_OUT}"
        ) from None
    found = read_key(file)
    if found is None:
        raise UsageError(f"{file}: leads to a file that does not exist. {_WAYS_OUT}")
    if key is not None:
        return found
    logging.getLogger("pneumoscope").info(
        "Patients get pseudonyms. The key behind them is new: %s. Keep it, and keep it secret.", file
    )
    return found


def _write_new(file: Path, content: bytes) -> None:
    """Write a file that must not exist yet, readable only by its owner."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
