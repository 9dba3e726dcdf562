"""What an upload asks for: an answer now or a job, once for each `Idempotency-Key`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from pydantic import BaseModel

from pneumoscope.errors import DataError
from pneumoscope.images.read import ImageBytes
from pneumoscope.server.jobs.jobs import Jobs
from pneumoscope.server.messages.predictions import JobMessage, PredictionQuery, PredictionsMessage
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.problems import logger
from pneumoscope.server.replies import add_names, add_pictures, gather, strip
from pneumoscope.server.storage import idempotency
from pneumoscope.server.storage.audit import SERVICE, Actor
from pneumoscope.server.storage.idempotency import Answered, Claim, Key

_BEAT = 30.0  # seconds between two signs of life


@dataclass(frozen=True)
class Wish:
    """How an upload is to be answered.

    Attributes:
        query: what is wanted of the images.
        caller: who sends them.
        key: an Idempotency-Key; empty: none.
        later: whether a job is wanted instead of predictions.
        callback: an address to call when the job is finished; empty: none.
        actor: who sends them, for the audit log.
    """

    query: PredictionQuery
    caller: str = ""
    key: str = ""
    later: bool = False
    callback: str = ""
    actor: Actor = SERVICE


@dataclass(frozen=True)
class Reply:
    """The answer to an upload.

    Attributes:
        status: of HTTP.
        location: of what was made.
        message: what is answered.
        replayed: whether an earlier request with the same key got the same.
        unlogged: how many files it is about whose entries in the audit log were not stored with their predictions.
    """

    status: int
    location: str
    message: BaseModel
    replayed: bool = False
    unlogged: int = 0


async def submit(
    service: PredictionService, jobs: Jobs, images: list[ImageBytes], wish: Wish, held: AsyncExitStack
) -> Reply:
    """Predict an upload, or make a job of it.

    Args:
        service: predicts.
        jobs: takes what is to be predicted later.
        images: the files.
        wish: how.
        held: what counts the bytes of the files; a job takes it over.

    Raises:
        RequestError: see `PredictionService.predict`, `gather`, `Jobs.submit` and `idempotency.claim`.
        DataError: something cannot be stored.
    """
    query = wish.query

    async def act(since: float | None) -> Reply:
        if wish.later:
            job = await jobs.submit(images, query, wish.callback, held, wish.actor)
            return Reply(202, job.href, job, unlogged=len(images))
        return _answer(gather(images, await service.predict(images, query, since, wish.actor)))

    if not wish.key or not query.store:
        return await act(None)
    digest = await asyncio.to_thread(idempotency.digest_upload, images, query, wish.callback)  # of up to 256 MiB
    key = idempotency.make_key(wish.caller, "jobs" if wish.later else "predictions", wish.key, digest)
    found = await _once(service, key, act)
    if isinstance(found, Reply):
        return found
    if wish.later:
        return Reply(found.status, found.location, JobMessage.model_validate_json(found.content), True, len(images))
    message = add_names(PredictionsMessage.model_validate_json(found.content), images)
    if query.heatmap or query.picture:
        answers = await service.predict(images, query.model_copy(update={"store": False, "reuse": False}))
        message = add_pictures(message, answers)
    return Reply(found.status, found.location, message, True, len(images))


async def _once(
    service: PredictionService, key: Key, act: Callable[[float | None], Awaitable[Reply]]
) -> Reply | Answered:
    """Do something unless it was done for this key before; then give the earlier answer."""
    call, store = service.stored.call, service.store
    found = await call(idempotency.claim, store, key)
    if isinstance(found, Answered):
        return found
    beating = asyncio.create_task(_beat(service, key, found))
    try:
        reply = await act(found.since)
    except Exception:
        await call(idempotency.release, store, key, found)
        raise
    finally:
        beating.cancel()
    message = reply.message
    plain = strip(message, service.settings) if isinstance(message, PredictionsMessage) else message
    answered = Answered(reply.status, reply.location, plain.model_dump_json())
    await call(idempotency.answer, store, key, found, answered)
    return reply


async def _beat(service: PredictionService, key: Key, claim: Claim) -> None:
    """Show regularly that a request is still being executed, so that no other request replaces it."""
    while True:
        await asyncio.sleep(_BEAT)
        try:
            await service.stored.call(idempotency.beat, service.store, key, claim)
        except DataError as problem:
            logger.error("A request with an Idempotency-Key: %s", problem)


def _answer(message: PredictionsMessage) -> Reply:
    new = [each for each in message.predictions if each.href and not each.reused]
    only = len(message.predictions) == len(new) == 1
    left = len(message.predictions) - len(new)
    return Reply(201 if new else 200, (new[0].href or "") if only else "", message, unlogged=left)
