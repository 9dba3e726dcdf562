"""Requests with an `Idempotency-Key`: sent again, they get the same answer and nothing is done twice.

As in draft-ietf-httpapi-idempotency-key-header-07. A key holds for one caller and one address, for `KEPT` seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from pneumoscope.images.read import ImageBytes
from pneumoscope.server.messages.predictions import PredictionQuery, ReviewMessage, ReviewRequest
from pneumoscope.server.problems import RequestError
from pneumoscope.server.storage.erasure import drop_deleted
from pneumoscope.server.storage.store import AnsweredRequest, AuditEntry, Review, Store, link_answer

KEPT = 24 * 3600.0  # seconds
_LEASE = 120.0  # seconds without a sign of life, after which another request with the same key replaces this one


@dataclass(frozen=True)
class Key:
    """A key, and the digest of the request that has it."""

    key: str
    request: str


@dataclass(frozen=True)
class Answered:
    """The answer to a request; `replayed`: an earlier request with the same key got it."""

    status: int
    location: str
    content: str
    replayed: bool = False


@dataclass(frozen=True)
class Claim:
    """Permission to execute a request.

    Attributes:
        began_at: when it was given, in seconds since 1970. Another claim of the same key has another time.
        since: when another request with this key began that was never answered, in seconds since 1970; None: there was
            none.
    """

    began_at: float
    since: float | None = None


def make_key(caller: str, address: str, key: str, request: str) -> Key:
    """The key of a caller for an address; `request`: the digest of what it asks for."""
    word = key.strip().strip('"')
    return Key(hashlib.sha256("\0".join((caller, address, word)).encode()).hexdigest(), request)


def digest_upload(images: Sequence[ImageBytes], query: PredictionQuery, callback: str) -> str:
    """The digest of an upload: its files, their names, how they are read, and whom to call."""
    digest = hashlib.sha256(f"{query.model_dump_json()}{callback}\0".encode())
    for image in images:
        digest.update(hashlib.sha256(image.content).digest() + image.name.encode() + b"\0")
    return digest.hexdigest()


def digest_review(request: ReviewRequest) -> str:
    """The digest of a review."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def claim(store: Store, key: Key) -> Answered | Claim:
    """Begin a request with a key, unless it has been answered.

    Raises:
        RequestError: 409, one with this key is in progress; 422, the key was used for another request.
    """
    now = time.time()
    _forget(store, now)
    try:
        with store.read() as connection:
            _insert(connection, key, now)
        return Claim(now)
    except IntegrityError:
        pass
    found = _find(store, key)
    if found is None:  # it has failed meanwhile
        raise _in_use(1)
    if found.status is not None:
        return Answered(found.status, found.location, found.content, replayed=True)
    if (left := found.beat_at + _LEASE - now) > 0:
        raise _in_use(max(1, round(left)))
    own = AnsweredRequest
    mine = sql.update(own).where(own.key == key.key, own.beat_at == found.beat_at, own.status.is_(None))
    with store.begin() as session:
        if not session.connection().execute(mine.values(began_at=now, beat_at=now)).rowcount:
            raise _in_use(1)
    return Claim(now, found.began_at)


def beat(store: Store, key: Key, claim: Claim) -> None:
    """Show that a request is still being executed."""
    with store.begin() as session:
        session.execute(sql.update(AnsweredRequest).where(*_held(key, claim)).values(beat_at=time.time()))


def answer(store: Store, key: Key, claim: Claim, answered: Answered) -> None:
    """Keep the answer to a request that was begun, unless a prediction in it was deleted meanwhile."""
    predictions = json.loads(answered.content).get("predictions") or []
    with store.begin() as session:
        if not _update(session.connection(), key, answered, *_held(key, claim)):
            return  # another service has the request, because this one stalled
        if drop_deleted(session, predictions) != predictions:
            session.execute(sql.delete(AnsweredRequest).where(AnsweredRequest.key == key.key))
        else:
            link_answer(session, answered.content, key=key.key)


def release(store: Store, key: Key, claim: Claim) -> None:
    """Forget a request that was begun and failed, so that it can be sent again."""
    with store.begin() as session:
        session.execute(sql.delete(AnsweredRequest).where(*_held(key, claim)))


def _held(key: Key, claim: Claim) -> tuple[sql.ColumnElement[bool], ...]:
    """The conditions that a request is not answered, and that this claim of it still holds."""
    own = AnsweredRequest
    return own.key == key.key, own.began_at == claim.began_at, own.status.is_(None)


def add_review(store: Store, key: Key, review: Review, entry: AuditEntry) -> Answered:
    """Save a review, its audit entry and the answer in one transaction; give the earlier answer if there is one.

    Raises:
        RequestError: 404, the prediction has been deleted; 422, the key was used for another request.
    """
    now = time.time()
    _forget(store, now)
    try:
        with store.begin() as session:
            connection = session.connection()
            _insert(connection, key, now)
            session.add_all([review, entry])
            session.flush()
            content = ReviewMessage.model_validate(review).model_dump_json()
            answered = Answered(201, f"reviews/{review.number}", content)
            _update(connection, key, answered)
            link_answer(session, content, key=key.key)
        return answered
    except IntegrityError:
        found = _find(store, key)
    if found is None or found.status is None:
        raise RequestError(404, "There is no prediction with this id.", code="prediction-not-found")
    return Answered(found.status, found.location, found.content, replayed=True)


def _insert(connection: sql.Connection, key: Key, moment: float) -> None:
    row = {"key": key.key, "request": key.request, "began_at": moment, "beat_at": moment, "location": "", "content": ""}
    connection.execute(sql.insert(AnsweredRequest).values(**row))


def _update(connection: sql.Connection, key: Key, answered: Answered, *conditions: sql.ColumnElement[bool]) -> int:
    """Write an answer, and return how many requests met the conditions."""
    values = {"status": answered.status, "location": answered.location, "content": answered.content}
    own = AnsweredRequest
    return connection.execute(sql.update(own).where(own.key == key.key, *conditions).values(**values)).rowcount


def _find(store: Store, key: Key) -> AnsweredRequest | None:
    with store.begin() as session:
        found = session.get(AnsweredRequest, key.key)
    if found is not None and found.request != key.request:
        raise RequestError(
            422, "This Idempotency-Key was used for another request. Use a new key for each new request.",
            code="key-reused",
        )  # fmt: skip
    return found


def _forget(store: Store, now: float) -> None:
    own = AnsweredRequest
    with store.begin() as session:
        session.execute(sql.delete(own).where(own.began_at < now - KEPT))


def _in_use(seconds: int) -> RequestError:
    return RequestError(
        409, f"A request with this Idempotency-Key is in progress. Try again in {seconds} s.",
        {"retry-after": str(seconds)}, code="key-in-use",
    )  # fmt: skip
