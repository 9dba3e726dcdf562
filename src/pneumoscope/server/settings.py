"""How a reading room is to be run."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What the service takes, so that nobody can hold it up or fill its memory.

    Attributes:
        file_bytes: of one file.
        request_bytes: of one request.
        waiting_bytes: of all uploads and answers with pictures that are held; beyond that, uploads are answered 429.
        request_files: in one request.
        pictured_files: in one request that asks for pictures.
        message_bytes: of a request that brings no images.
        images: that may wait or be computed at a time; beyond that, the answer is 429.
        requests: that may be under way at a time; beyond that, the answer is 503.
        silence: seconds that a sender may pause, and that a request's head may take.
        sending: seconds that a request's body may take.
    """

    file_bytes: int = 64 * 1024**2
    request_bytes: int = 256 * 1024**2
    waiting_bytes: int = 512 * 1024**2
    request_files: int = 64
    pictured_files: int = 8
    message_bytes: int = 64 * 1024
    images: int = 256
    requests: int = 512
    silence: float = 10.0
    sending: float = 120.0


@dataclass(frozen=True)
class Settings:
    """How a reading room is to be run.

    Attributes:
        model: a model, a run that holds one, or the name of one that ships; None for the default.
        host: address to listen on.
        port: 0 takes a free one.
        token: what callers have to show; needed on any address but the machine's own.
        database: SQLAlchemy's URL, or a path of a SQLite file; None for the user's own file.
        keep_images: folder for the files themselves; None keeps none.
        keep_names: whether the files' names are kept.
        wait: seconds that an image may wait for others to share its batch.
        device: `auto`, `cpu` or `cuda`.
        limits: what is taken.
    """

    model: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    database: str | None = field(default=None, repr=False)
    keep_images: Path | None = None
    keep_names: bool = True
    wait: float = 0.005
    device: str = "auto"
    limits: Limits = Limits()

    def check(self) -> None:
        """Refuse what would be dangerous or pointless.

        Raises:
            UsageError: another address without a token, a token that is easily guessed, or a wait that is none.
        """
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise UsageError("The token is no plain word. Take letters and digits, such as: openssl rand -hex 32.")
        if self.token is not None and len(self.token) < 16:
            raise UsageError("The token is shorter than 16 characters, and can be guessed. Take a longer one.")
        if self.token is None and not self.is_loopback:
            raise UsageError(
                f"--host {self.host}: others could reach this service, so that they have to show a token. Set "
                "PNEUMOSCOPE_TOKEN (such as: openssl rand -hex 32), or leave --host out."
            )
        if not 0 <= self.wait <= 1:
            raise UsageError(f"--batch-wait {self.wait * 1000:g}: it has to lie between 0 and 1000 milliseconds.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
