"""Tokens of persons and programs, in a file that the service reads again whenever it changes.

The file holds no token, only SHA-256 of a salt and each token. That is enough, and a slow password hash would add
nothing: tokens are made here, of 256 random bits, so nobody can try them all, however fast the hash is. Each file has
another salt, so nobody can see that two files have the same token.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pneumoscope.config import build
from pneumoscope.errors import DataError, PneumoscopeError, UsageError
from pneumoscope.files import read_regular
from pneumoscope.server.access.callers import Role
from pneumoscope.server.access.strength import make_token

_VERSION = 1
_LARGEST = 4 * 1024**2
_NAME = re.compile(r"[^\W_][\w.@+ -]{0,99}")
MAKE = "Make a token with: pneumoscope tokens add NAME"


@dataclass(frozen=True)
class Token:
    """What is kept of a token.

    Attributes:
        name: of the person or program.
        role: what they may do.
        sha256: of the file's salt and the token, as hexadecimal digits.
        created: seconds since 1970, as for the next two.
        expires: when it ceases to be valid; None for never.
        revoked: when it was revoked; None if it was not.
    """

    name: str
    role: Role
    sha256: str
    created: float
    expires: float | None = None
    revoked: float | None = None

    def is_valid(self, at: float) -> bool:
        """Whether it is taken at this time."""
        return self.revoked is None and (self.expires is None or at < self.expires)


@dataclass(frozen=True)
class _Content:
    version: int
    salt: str
    tokens: tuple[Token, ...] = ()


def now() -> float:
    """The time, in seconds since 1970."""
    return datetime.datetime.now(datetime.UTC).timestamp()


class TokenFile:
    """A file of tokens.

    Args:
        path: of the file; `add_token` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._known: dict[str, Token] = {}
        self._salt = ""

    def list_tokens(self) -> list[Token]:
        """All tokens, also expired and revoked ones, by name and age.

        Raises:
            DataError: the file is missing or damaged, or others may write it.
        """
        return sorted(self._read().tokens, key=lambda token: (token.name, token.created))

    def find(self, token: str) -> Token | None:
        """The valid token that this is.

        Raises:
            DataError: as above.
        """
        with self._lock:
            seen = self._look()
            if seen != self._seen or not seen:
                content = self._read()
                self._known = {each.sha256: each for each in content.tokens}
                self._salt, self._seen = content.salt, seen
            # The digest is secret as long as the salt is, so the time that the search takes says nothing about tokens.
            found = self._known.get(_digest(self._salt, token))
        return found if found is not None and found.is_valid(now()) else None

    def add_token(self, name: str, role: Role, lifetime: float | None = None) -> str:
        """Make a token, and return it; it cannot be read again.

        Raises:
            UsageError: the name is taken or has unusual characters, or the file cannot be written.
            DataError: as above.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r}: a name begins with a letter or digit, and has letters, digits, spaces and . @ + - _ only.",
                parameter="name",
            )
        token, at = make_token(), now()

        def change(content: _Content) -> _Content:
            if any(each.name == name and each.is_valid(at) for each in content.tokens):
                raise UsageError(
                    f"{name} already has a token. Rotate or revoke it, or choose another name.", parameter="name"
                )
            expires = None if lifetime is None else at + lifetime
            made = Token(name, role, _digest(content.salt, token), at, expires)
            return replace(content, tokens=(*content.tokens, made))

        self._change(change, create=True)
        return token

    def rotate_token(self, name: str, overlap: float, lifetime: float | None = None) -> str:
        """Make a new token for a name; the old ones stay valid for `overlap` seconds.

        The new one is valid for `lifetime` seconds, by default for as long as the latest one was meant to be.

        Raises:
            UsageError: nobody of this name has a valid token, or the file cannot be written.
            DataError: as above.
        """
        token, at = make_token(), now()

        def change(content: _Content) -> _Content:
            old = _find_valid(content, name, at)
            kept = [
                replace(each, expires=min(at + overlap, each.expires or at + overlap)) if each in old else each
                for each in content.tokens
            ]
            latest = old[-1]
            meant = None if latest.expires is None else latest.expires - latest.created
            expires = at + lifetime if lifetime is not None else None if meant is None else at + meant
            made = Token(name, latest.role, _digest(content.salt, token), at, expires)
            return replace(content, tokens=(*kept, made))

        self._change(change)
        return token

    def revoke_tokens(self, name: str) -> int:
        """Revoke all valid tokens of a name, and return their number.

        Raises:
            UsageError: nobody of this name has a valid token, or the file cannot be written.
            DataError: as above.
        """
        at, count = now(), 0

        def change(content: _Content) -> _Content:
            nonlocal count
            valid = _find_valid(content, name, at)
            count = len(valid)
            kept = (replace(each, revoked=at) if each in valid else each for each in content.tokens)
            return replace(content, tokens=tuple(kept))

        self._change(change)
        return count

    def _look(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    def _read(self) -> _Content:
        try:
            if os.name == "posix" and self.path.stat().st_mode & 0o022:
                raise DataError(f"{self.path}: others could add tokens to this file. Run chmod 600 on it.")
            values = json.loads(read_regular(self.path, _LARGEST))
        except FileNotFoundError:
            raise DataError(f"{self.path}: there is no such file. {MAKE}") from None
        except OSError as problem:
            raise DataError(f"{self.path}: cannot be read: {problem.strerror}.") from None
        except (ValueError, RecursionError):
            raise DataError(f"{self.path}: not a file of tokens. {MAKE}, into another file.") from None
        if not isinstance(values, dict) or values.get("version") != _VERSION:
            raise DataError(f"{self.path}: not a file of tokens of version {_VERSION}. Use another file.")
        return build(_Content, values, str(self.path), DataError)

    def _change(self, change: Callable[[_Content], _Content], create: bool = False) -> None:
        with _locked(self.path):
            made = create and not self.path.exists()
            content = _Content(_VERSION, secrets.token_hex(16)) if made else self._read()
            text = json.dumps(asdict(change(content)), indent=1, ensure_ascii=False)
            _write_private(self.path, text.encode() + b"\n")


def _find_valid(content: _Content, name: str, at: float) -> list[Token]:
    valid = [each for each in content.tokens if each.name == name and each.is_valid(at)]
    if not valid:
        names = ", ".join(sorted({each.name for each in content.tokens if each.is_valid(at)})) or "none"
        raise UsageError(f"{name} has no valid token. Those with one: {names}.", parameter="name")
    return valid


def _digest(salt: str, token: str) -> str:
    return hashlib.sha256(f"{salt}:{token}".encode("utf-8", "replace")).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time change the file."""
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as problem:
        raise UsageError(f"{path}: cannot be written: {problem.strerror}.") from None
    try:
        with suppress(ImportError):  # Windows has no such locks; two changes at once are unlikely
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_private(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, from the start readable by its owner alone; an earlier owner is kept."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if os.name == "posix" and path.exists() and (owner := path.stat()).st_uid != os.geteuid():
                os.chown(part, owner.st_uid, owner.st_gid)  # root adds a token for the service's user
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        raise UsageError(f"{path}: cannot be written: {problem.strerror}.") from None


def check_readable(path: Path) -> None:
    """Check that a file of tokens can be used.

    Raises:
        UsageError: it cannot; says why.
    """
    try:
        TokenFile(path).list_tokens()
    except PneumoscopeError as problem:
        raise UsageError(str(problem), parameter="tokens") from None
