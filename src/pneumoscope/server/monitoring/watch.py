"""Keeps a summary of the latest days at hand, so that Prometheus does not compute one with each scrape."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

import sqlalchemy as sql

from pneumoscope.errors import PneumoscopeError
from pneumoscope.evaluation.intervals.proportions import CONFIDENCE, wilson_interval
from pneumoscope.models.model_folder import Model
from pneumoscope.server.messages.monitoring import ModelComparison, MonitoringMessage, Share
from pneumoscope.server.monitoring.summary import summarise
from pneumoscope.server.problems import RequestError, log_internal_error, logger
from pneumoscope.server.storage.records import Property, ShadowPrediction, find_start
from pneumoscope.server.storage.store import DELETED, PredictionRecord, Review, Store, now
from pneumoscope.server.storage.unreadable import UnreadableCounts

Compare: TypeAlias = Callable[[datetime.datetime], ModelComparison]
SUMMARISED = 50_000  # predictions, and reviews, at most
_SUMMARY_EVERY = 60.0  # seconds
_REST = 30  # the pause between two summaries, in times that one takes, so that they use little of a processor
_READINESS_EVERY = 15.0


@dataclass(frozen=True)
class Summary:
    """A summary, and when it was last known to be correct (seconds since 1970)."""

    message: MonitoringMessage
    at: float


class Watch:
    """Summarises predictions and looks whether the service is ready, again and again.

    Args:
        store: the database.
        model: the model that is served.
        fingerprint: of this model.
        days: that the summary kept at hand is of, today (UTC) included.
        compare: compares a second model with it since a moment, if there is one.
    """

    def __init__(self, store: Store, model: Model, fingerprint: str, days: int, compare: Compare | None = None) -> None:
        self._compare = compare
        self.unreadable = UnreadableCounts(store)
        self.latest: Summary | None = None
        self.ready: bool | None = None
        self.days = days
        self._store, self._model, self._fingerprint = store, model, fingerprint
        self._seen: object = None
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, executor: Executor, check_ready: Callable[[], Awaitable[None]]) -> None:
        """Start; to be called on the event loop.

        Args:
            executor: in which summaries are made.
            check_ready: raises RequestError where the service is not ready.
        """
        self._tasks = [
            asyncio.create_task(self._repeat_summary(executor)),
            asyncio.create_task(self._repeat_check(check_ready)),
        ]

    def close(self) -> None:
        """End, and store what was counted."""
        for task in self._tasks:
            task.cancel()
        try:
            self.unreadable.save()
        except PneumoscopeError as problem:
            logger.error("The number of unreadable files could not be stored: %s", problem)

    def summarise(self, days: int) -> MonitoringMessage:
        """Summarise the predictions of today (UTC) and the days before it.

        Raises:
            DataError: the database does not answer.
        """
        self.unreadable.save()
        since = find_start(days)
        first = since.date()
        per_day = self._store.count_by_day(since)
        outcomes, reviews = self._store.list_outcomes(SUMMARISED, since), self._store.list_reviews(since, SUMMARISED)
        predictions, reasons = sum(per_day.values()), self.unreadable.read(first)
        files = sum(reasons.values())
        second = None if self._compare is None else self._compare(since)
        return MonitoringMessage(
            second_model=second,
            days=days,
            predictions=predictions,
            summarised=len(outcomes),
            summarised_reviews=len(reviews),
            per_day=per_day,
            unreadable=_measure(files, files + predictions),
            unreadable_reasons=reasons,
            **summarise(outcomes, reviews, self._model, self._fingerprint, (first, days)),
        )

    def refresh(self) -> Summary:
        """Bring the summary up to date; where nothing was stored or deleted since the last, that one still holds.

        Raises:
            DataError: the database does not answer.
        """
        self.unreadable.save()
        seen = (now().date(), _find_state(self._store), self.unreadable.read(datetime.date.min))
        at = time.time()
        if self.latest is None or seen != self._seen:
            self.latest = Summary(self.summarise(self.days), at)
            self._seen = seen
        else:
            self.latest = Summary(self.latest.message, at)
        return self.latest

    async def _repeat_summary(self, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            start = loop.time()
            try:
                await loop.run_in_executor(executor, self.refresh)
            except PneumoscopeError as problem:
                self.latest = None  # an old one would look like the present
                logger.error("No summary for Prometheus: %s", problem)
            except Exception as problem:  # else the last one would be shown for ever
                self.latest = None
                log_internal_error(problem, "No summary for Prometheus")
            await asyncio.sleep(max(_SUMMARY_EVERY, _REST * (loop.time() - start)))

    async def _repeat_check(self, check_ready: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await check_ready()
                self.ready = True
            except RequestError:
                self.ready = False
            except Exception as problem:
                self.ready = False
                log_internal_error(problem, "Not ready")
            await asyncio.sleep(_READINESS_EVERY)


def _find_state(store: Store) -> tuple[object, ...]:
    """Values that change when a prediction or review is stored or deleted, read from the ends of indices.

    Of two that are stored at the same moment, the one with the lower number may show only with the next change.
    """
    columns = [
        sql.select(sql.func.max(each)).scalar_subquery()
        for each in (PredictionRecord.number, Review.number, ShadowPrediction.created_at)
    ]
    columns.append(sql.select(Property.value).where(Property.key == DELETED).scalar_subquery())
    with store.read() as connection:
        return tuple(connection.execute(sql.select(*columns)).one())


def _measure(hits: int, n: int) -> Share:
    if not n:
        return Share(value=None, low=None, high=None, n=0)
    low, high = wilson_interval(hits / n, n, CONFIDENCE)
    return Share(value=hits / n, low=low, high=high, n=n)
