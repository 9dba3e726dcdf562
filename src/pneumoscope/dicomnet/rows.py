"""Values that go into the queue and come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """What is known about an image: its state and the reason, whether its file is needed, and when it arrived."""

    state: str
    reason: str
    kept: bool
    received_at: float


@dataclass(frozen=True)
class Waiting:
    """An image that waits for its answer."""

    id: int
    key: str
    study: str
    to: tuple[str, ...]
    attempts: int
    alone: int


@dataclass(frozen=True)
class Made:
    """A result in the spool; `held`: whether a dry run made it, so that it is never sent."""

    kind: str
    sop_class_uid: str
    sop_uid: str
    file: str
    held: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an image.

    Attributes:
        image: which.
        state: `answered` or `set_aside`.
        reason: why it is set aside; it may quote the header.
        cause: the same for the log, without anything from the header.
        results: those of an answered image.
        about: further columns of the image's row.
    """

    image: Waiting
    state: str
    reason: str = ""
    results: tuple[Made, ...] = ()
    about: dict[str, Any] | None = None
    cause: str = "it cannot be answered"


@dataclass(frozen=True)
class Parcel:
    """A result that is due at a destination, or to be verified there; `asked` if storage commitment was asked for."""

    id: int
    file: str
    sop_class_uid: str
    sop_uid: str
    attempts: int
    sent_at: float
    study: str
    asked: bool
