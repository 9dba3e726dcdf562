"""Deleting old predictions with their reviews and kept images, and images whose predictions were never stored."""

from __future__ import annotations

import asyncio
import datetime
from concurrent.futures import Executor

from pneumoscope.errors import PneumoscopeError
from pneumoscope.server.problems import log_internal_error, logger
from pneumoscope.server.storage.audit import SERVICE
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.store import Store, now

_EVERY = 3600.0  # seconds
_AT_ONCE = 10_000  # predictions that are looked for, deleted and logged together
_SURELY_STORED = datetime.timedelta(hours=1)  # a prediction is stored sooner than that after its file


class Retention:
    """Deletes what is too old.

    Args:
        store: the database.
        kept: the folder of images, where there is one.
        keep_for: how long predictions are kept; None: for ever.
    """

    def __init__(self, store: Store, kept: KeptImages | None, keep_for: datetime.timedelta | None) -> None:
        self._store, self._kept, self._keep_for = store, kept, keep_for

    def run(self) -> None:
        """Delete what is too old now, and log what that was.

        Raises:
            DataError: the database or the folder cannot be changed.
        """
        if self._kept is not None and (lost := self._kept.settle(now() - _SURELY_STORED, self._store.find_used)):
            logger.info("Deleted: %d files of images whose predictions were never stored.", lost)
        if self._keep_for is None:
            return
        moment = now() - self._keep_for
        predictions = reviews = 0
        while ids := [row.id for row in self._store.find_images(before=moment, limit=_AT_ONCE)]:
            done = self._store.delete(ids, [SERVICE.to_entry("expire", count=len(ids))])
            predictions, reviews = predictions + done[0], reviews + done[1]
        # All old files without a prediction, also those left by a service that was killed before it deleted them.
        images = self._kept.delete_older(moment, self._store.find_used) if self._kept else 0
        if predictions or images:
            text = "Older than %s, deleted: %d predictions, %d reviews, %d kept images."
            logger.info(text, f"{moment:%Y-%m-%d %H:%M} UTC", predictions, reviews, images)

    async def repeat(self, executor: Executor) -> None:
        """Run at once and every hour, until cancelled; after an error it is tried again with the next."""
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(executor, self.run)
            except (PneumoscopeError, OSError) as problem:
                logger.error("Predictions that are too old could not be deleted: %s", problem)
            except Exception as problem:  # else nothing would be deleted any more
                log_internal_error(problem, "Predictions that are too old could not be deleted")
            await asyncio.sleep(_EVERY)
