"""Settings of the service."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What the service accepts, so that nobody can block it or fill its memory.

    Attributes:
        file_bytes: of one file.
        request_bytes: of one request.
        buffered_bytes: of all uploads, and answers with pictures, in memory; beyond that, uploads are answered 429.
        request_files: in one request.
        pictured_files: in one request that asks for pictures or heatmaps.
        message_bytes: of a request that brings no images.
        images: waiting or being processed at a time; beyond that, the answer is 429.
        requests: in progress at a time; beyond that, the answer is 503.
        silence: seconds that a sender may pause, and that the head of a request may take.
        sending: seconds that the body of a request may take.
    """

    file_bytes: int = 64 * 1024**2
    request_bytes: int = 256 * 1024**2
    buffered_bytes: int = 512 * 1024**2
    request_files: int = 64
    pictured_files: int = 8
    message_bytes: int = 64 * 1024
    images: int = 256
    requests: int = 512
    silence: float = 10.0
    sending: float = 120.0


@dataclass(frozen=True)
class Settings:
    """Settings of the service.

    Attributes:
        model: path, address or name of a model, which is fetched at the start if necessary; None: the default.
        host: address to listen on.
        port: 0 takes a free one.
        token: what callers must send; needed on any address but this machine's own.
        database: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        upgrade: whether the tables of an earlier version are brought up to date at the start; else they are refused.
        keep_images: folder to keep the uploaded files in; None keeps none.
        keep_for: how long predictions, their reviews and kept images are kept; None: for ever.
        keep_names: whether the names of files are kept.
        keep_uids: whether accession numbers and UIDs of DICOM files are kept, by which an archive finds the patient.
        batch_wait: milliseconds that an image may wait for others to share its batch.
        device: `auto`, `cpu` or `cuda`.
        refuse_out_of_scope: whether images outside the model's intended use get an error instead of a prediction.
        callback_hosts: which addresses may be called when a job is finished, such as https://ris.example.org.
        callback_secret: signs these calls.
        limits: what the service accepts.
    """

    model: str | Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    database: str | None = field(default=None, repr=False)
    upgrade: bool = False
    keep_images: Path | None = None
    keep_for: datetime.timedelta | None = None
    keep_names: bool = True
    keep_uids: bool = True
    batch_wait: float = 5.0
    device: str = "auto"
    refuse_out_of_scope: bool = False
    callback_hosts: tuple[str, ...] = ()
    callback_secret: str | None = field(default=None, repr=False)
    limits: Limits = Limits()

    def check(self) -> None:
        """Refuse settings that are dangerous or pointless.

        Raises:
            UsageError: another address without a token, a token that is easily guessed, or a wait out of range.
        """
        if self.token is None:
            if not _is_loopback(self.host):
                raise UsageError(
                    f"{self.host}: others can reach this address, so a token is needed. Set PNEUMOSCOPE_TOKEN, for "
                    "example to the output of: openssl rand -hex 32. Or listen on 127.0.0.1, the default.",
                    parameter="host",
                )
        elif not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise UsageError("The token may hold only ASCII characters, no spaces. To make one: openssl rand -hex 32")
        elif len(self.token) < 16:
            raise UsageError("The token is shorter than 16 characters and could be guessed. Use a longer one.")
        if not 0 <= self.batch_wait <= 1000:
            raise UsageError(f"{self.batch_wait:g}: not between 0 and 1000 milliseconds.", parameter="batch_wait")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
