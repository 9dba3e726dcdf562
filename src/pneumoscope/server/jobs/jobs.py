"""Files that are predicted while the caller does not wait.

The files wait in memory, like those of all requests, and the jobs in the database: a job whose service ended is lost,
and says so.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sql

from pneumoscope.errors import DataError
from pneumoscope.images.read import ImageBytes
from pneumoscope.server.inference.batching import Answer
from pneumoscope.server.jobs.callbacks import Callbacks
from pneumoscope.server.messages.predictions import JobMessage, PredictionQuery, PredictionsMessage
from pneumoscope.server.problems import RequestError, log_internal_error, logger, to_internal_error, too_busy
from pneumoscope.server.replies import gather, strip
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.audit import SERVICE, Actor
from pneumoscope.server.storage.erasure import deleted_meanwhile, drop_deleted, find_mark
from pneumoscope.server.storage.store import AnsweredRequest, JobRecord, link_answer, now
from pneumoscope.server.stored import StoredPredictions

Predict = Callable[[Sequence[ImageBytes], PredictionQuery, float | None, Actor, int], Awaitable[list[Answer]]]
KEPT = datetime.timedelta(days=1)
_UNFINISHED = ("waiting", "running")
_SLICE = 8  # files that are predicted at a time, so that waiting requests get their turn
_MOST = 64  # jobs that wait
_BEAT, _STALE = 5.0, 30.0  # seconds between two signs of life, and after which a service counts as ended


@dataclass
class _Work:
    record: JobRecord
    images: list[ImageBytes]
    query: PredictionQuery
    actor: Actor
    mark: int  # erasures after it count
    held: AsyncExitStack = field(repr=False)  # counts the bytes of the images


class Jobs:
    """The jobs of this service, in the order in which they came.

    Raises:
        UsageError: the settings of callbacks are not valid.
    """

    def __init__(self, stored: StoredPredictions, predict: Predict, settings: Settings) -> None:
        self._stored, self._predict, self._settings = stored, predict, settings
        self.callbacks = Callbacks(stored, to_message, settings.callback_hosts, settings.callback_secret)
        self._queue: asyncio.Queue[_Work] = asyncio.Queue(_MOST)
        self._mine: dict[int, _Work] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Start; to be called on the event loop."""
        self._tasks = [asyncio.create_task(each()) for each in (self._work, self._beat, self.callbacks.run)]

    async def close(self) -> None:
        """Stop; what is not finished is lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(DataError):  # where one cannot be stored, the others cannot either
            for work in self._mine.values():
                await self._stored.call(
                    self._finish, work.record.number, "lost", _lost().to_document(self._settings.root)
                )
        for work in self._mine.values():
            await work.held.aclose()
        self._mine.clear()

    async def submit(
        self,
        images: list[ImageBytes],
        query: PredictionQuery,
        callback: str,
        held: AsyncExitStack,
        actor: Actor = SERVICE,
    ) -> JobMessage:
        """Take files to predict them later.

        Args:
            images: the files.
            query: how.
            callback: an address to call then; empty: none.
            held: what counts the bytes of the files; taken over.
            actor: who sends them, for the audit log.

        Raises:
            RequestError: 422, the callback is not allowed, or pictures are wanted; 429, too many jobs wait.
        """
        if query.heatmap or query.picture:
            detail = "A job gives no pictures. Get them from /image and /evidence.png of its predictions."
            raise RequestError(422, detail, code="no-pictures")
        if callback:
            self.callbacks.check(callback)
        if self._queue.full():
            raise too_busy(f"{_MOST} jobs are waiting.", 5)
        if not self._settings.keep_names:
            images = [replace(image, name=f"image-{number}") for number, image in enumerate(images, 1)]
        record = JobRecord(
            state="waiting", files=len(images), beat_at=time.time(), callback=callback,
            callback_state="waiting" if callback else "",
        )  # fmt: skip
        mark = await self._stored.call(self._add, record)
        work = _Work(record, images, query, actor, mark, held.pop_all())
        self._mine[record.number] = work
        try:
            self._queue.put_nowait(work)
        except asyncio.QueueFull:  # others were faster
            await self._end(work, "failed", too_busy(f"{_MOST} jobs are waiting.", 5).to_document(self._settings.root))
        return to_message(record)

    async def find(self, job_id: str) -> JobMessage:
        """A job by its id.

        Raises:
            RequestError: 404, there is none.
        """

        def find() -> JobRecord | None:
            self._find_lost()
            with self._stored.store.begin() as session:
                return session.scalar(sql.select(JobRecord).where(JobRecord.id == job_id))

        record = await self._stored.call(find)
        if record is None:
            raise RequestError(404, "There is no job with this id. They are kept for a day.", code="job-not-found")
        return to_message(record)

    async def _work(self) -> None:
        while True:
            work = await self._queue.get()
            number = work.record.number
            try:
                await self._stored.call(self._change, number, {"state": "running"})
                message = await self._answer(work)
                await self._end(work, "done", strip(message, self._settings).model_dump(mode="json"))
            except RequestError as problem:
                await self._end(work, "failed", problem.to_document(self._settings.root))
            except DataError as problem:
                logger.error("A job has failed: %s", problem)
                detail = "The service cannot access its storage. Send the files again later."
                await self._end(
                    work,
                    "failed",
                    RequestError(503, detail, code="storage-unavailable").to_document(self._settings.root),
                )
            except Exception as problem:
                log_internal_error(problem, "A job has failed")
                await self._end(work, "failed", to_internal_error(problem).to_document(self._settings.root))

    async def _answer(self, work: _Work) -> PredictionsMessage:
        answers: dict[int, Answer] = {}
        while left := [i for i in range(len(work.images)) if i not in answers]:
            part = left[:_SLICE]
            try:
                found = await self._predict([work.images[i] for i in part], work.query, None, work.actor, work.mark)
            except RequestError as problem:
                if problem.status != 429:
                    raise
                found = [problem] * len(part)
            answers |= {i: each for i, each in zip(part, found, strict=True) if not _is_busy(each)}
            if any(map(_is_busy, found)):
                await asyncio.sleep(1)  # others come first
        images = [
            replace(image, name=f"image-{i + 1}") if _is_deleted(answers[i]) else image
            for i, image in enumerate(work.images)
        ]
        return gather(images, [answers[i] for i in range(len(images))])

    async def _end(self, work: _Work, state: str, content: dict[str, object]) -> None:
        try:
            await self._stored.call(self._finish, work.record.number, state, content)
        except DataError as problem:  # the job is then found to be lost
            logger.error("The result of a job cannot be stored: %s", problem)
        finally:
            self._mine.pop(work.record.number, None)
            await work.held.aclose()
        self.callbacks.notice()

    async def _beat(self) -> None:
        while True:
            try:
                await self._stored.call(self._show_life, list(self._mine))
            except DataError as problem:
                logger.error("Jobs: %s", problem)
            await asyncio.sleep(_BEAT)

    def _show_life(self, numbers: list[int]) -> None:
        own = JobRecord
        with self._stored.store.begin() as session:
            session.execute(sql.delete(JobRecord).where(JobRecord.created_at < now() - KEPT))
            session.execute(
                sql.delete(AnsweredRequest).where(AnsweredRequest.began_at < time.time() - KEPT.total_seconds())
            )
            if numbers:
                session.execute(sql.update(own).where(own.number.in_(numbers)).values(beat_at=time.time()))
        self._find_lost()

    def _find_lost(self) -> None:
        """Mark jobs as lost whose service has ended."""
        own, stale = JobRecord, time.time() - _STALE
        with self._stored.store.begin() as session:
            query = sql.select(own.number).where(own.state.in_(_UNFINISHED), own.beat_at < stale)
            numbers = list(session.scalars(query))
        for number in numbers:
            self._finish(number, "lost", _lost().to_document(self._settings.root))

    def _add(self, record: JobRecord) -> int:
        with self._stored.store.begin() as session:
            session.execute(sql.delete(JobRecord).where(JobRecord.created_at < now() - KEPT))
            session.add(record)
            session.flush()
            return find_mark(session)

    def _change(self, number: int, values: dict[str, object]) -> None:
        with self._stored.store.begin() as session:
            session.execute(sql.update(JobRecord).where(JobRecord.number == number).values(**values))

    def _finish(self, number: int, state: str, content: dict[str, Any]) -> None:
        own = JobRecord
        mine = sql.update(own).where(own.number == number)
        with self._stored.store.begin() as session:
            session.execute(
                mine.where(own.callback_state == "waiting").values(callback_state="due", callback_due_at=time.time())
            )
            finished = mine.where(own.state.in_(_UNFINISHED)).values(state=state, finished_at=now())
            if session.connection().execute(finished).rowcount:
                if "predictions" in content:
                    content = {**content, "predictions": drop_deleted(session, content["predictions"])}
                text = json.dumps(content)
                session.execute(mine.values(content=text))
                link_answer(session, text, job=number)


def to_message(record: JobRecord) -> JobMessage:
    """The message of a job."""
    content = json.loads(record.content) if record.content else None
    failed = record.state in ("failed", "lost")
    return JobMessage.model_validate(
        {
            "id": record.id,
            "href": f"jobs/{record.id}",
            "state": record.state,
            "files": record.files,
            "created_at": record.created_at,
            "finished_at": record.finished_at,
            "callback_state": {"": None, "waiting": "due"}.get(record.callback_state, record.callback_state),
            "predictions": content["predictions"] if content and not failed else None,
            "problem": content if content and failed else None,
        }
    )


def _is_busy(answer: Answer) -> bool:
    return isinstance(answer, RequestError) and answer.status == 429


def _is_deleted(answer: Answer) -> bool:
    return isinstance(answer, RequestError) and answer.code == deleted_meanwhile().code


def _lost() -> RequestError:
    detail = (
        "The service ended before it had predicted all files. Send them again; with reuse=true those that were stored "
        "are not predicted twice."
    )
    return RequestError(503, detail, code="job-lost")
