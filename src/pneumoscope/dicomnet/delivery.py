"""Delivers results: a thread for each destination sends what is due, verifies it, and tries again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from pneumoscope.dicomnet.destinations import Item, Sender, UnreachableError
from pneumoscope.dicomnet.node_settings import Destination, Retries
from pneumoscope.dicomnet.queue import Parcel, Queue
from pneumoscope.dicomnet.spool import Spool, read_arrival
from pneumoscope.errors import DataError, ImageError
from pneumoscope.images.dicom import Tags, read_tags

_TOGETHER = 64  # results over one association
_SAVED = 16  # results after which it is saved that they have been sent
_POLL = 0.25  # seconds
logger = logging.getLogger("pneumoscope.node")


class Delivery:
    """Delivers to one destination; started by `start`.

    Args:
        destination: which.
        sender: the way there.
        queue: what is due.
        spool: where the results are.
        retries: how it is tried again.
        report: called with the destination's name and what happened: `sent`, `delivered`, `refused`, `missing`,
            `unreachable` or `failed`.
    """

    def __init__(
        self,
        destination: Destination,
        sender: Sender,
        queue: Queue,
        spool: Spool,
        retries: Retries,
        report: Callable[[str, str], None],
    ) -> None:
        self.name = destination.name
        self.unreachable_since: float | None = None
        self._destination, self._sender, self._queue, self._spool = destination, sender, queue, spool
        self._retries, self._report = retries, report
        self._random = random.Random(f"{spool.seed} {self.name}")  # noqa: S311 - spreads waits, keeps no secret
        self._failures = 0
        self._wake, self._ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"deliver {self.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    def stop(self) -> None:
        """End after what is being sent."""
        self._ended.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            busy, lost = 0, ""
            for work in (self._verify, self._send):  # one that fails does not stop the other
                try:
                    busy += work()
                except UnreachableError as problem:
                    lost = str(problem)
                except (DataError, OSError) as problem:  # of the database, or the spool
                    logger.error("%s", problem if isinstance(problem, DataError) else problem.strerror)
                    self._ended.wait(2)
            if lost:
                self._lose(lost)
                continue
            if busy:
                self._reach()
            else:
                self._wake.wait(_POLL)
                self._wake.clear()

    def _reach(self) -> None:
        if self.unreachable_since is not None:
            logger.warning("%s: is reached again after %.0f s", self.name, time.time() - self.unreachable_since)
        self.unreachable_since, self._failures = None, 0

    def _lose(self, reason: str) -> None:
        self._report(self.name, "unreachable")
        self._failures += 1
        wait = self._delay(self._failures)
        if self.unreachable_since is None:
            self.unreachable_since = time.time()
            logger.warning("%s: %s; next try in %.1f s", self.name, reason, wait)
        else:
            logger.info("%s: %s; next try in %.1f s", self.name, reason, wait)
        self._ended.wait(wait)

    def _delay(self, failures: int) -> float:
        """Seconds to wait after so many failures: twice as long each time, and between half and all of it."""
        longest = min(self._retries.longest, self._retries.first * 2.0 ** min(failures - 1, 30))
        return longest * self._random.uniform(0.5, 1.0)

    def _send(self) -> int:
        """Send what is due, and give its number."""
        parcels = self._queue.list_parcels(self.name, "due", _TOGETHER)
        items = self._find_items(parcels)
        by_number = {each.id: each for each in parcels}
        accepted: list[Parcel] = []
        try:
            for item, error in self._sender.send(items) if items else ():
                if error is not None:
                    self._refuse(by_number[item.number], error)
                    continue
                accepted.append(by_number[item.number])
                if len(accepted) >= _SAVED:
                    self._save_sent(accepted)
                    accepted = []
        finally:
            self._save_sent(accepted)
        return len(parcels)

    def _save_sent(self, parcels: Sequence[Parcel]) -> None:
        if not parcels:
            return
        moment, verify = time.time(), self._destination.verify
        if verify == "none":
            self._queue.mark_parcels(parcels, "delivered", sent_at=moment, error="")
        else:
            due = moment + self._retries.verify_after
            self._queue.mark_parcels(parcels, "sent", sent_at=moment, due_at=due, commitment="", error="")
        for _ in parcels:
            self._report(self.name, "delivered" if verify == "none" else "sent")

    def _verify(self) -> int:
        """Ask for what has been sent, and give the number of those asked for."""
        parcels = self._queue.list_parcels(self.name, "sent", _TOGETHER)
        if not parcels:
            return 0
        if self._destination.verify == "none":  # it was otherwise when they were sent
            self._queue.mark_parcels(parcels, "delivered")
            return len(parcels)
        late = [each for each in parcels if time.time() - each.sent_at >= self._retries.verify_within]
        items, by_number = self._find_items(parcels, asked=True), {each.id: each for each in parcels}
        if self._destination.verify == "commitment":
            self._commit([item for item in items if by_number[item.number] not in late])
            missing = late
        else:
            found = {item.number for item, there in self._sender.find(items) if there}
            self._confirm([each.id for each in parcels if each.id in found])
            absent = [each for each in parcels if each.id not in found]
            missing = [each for each in absent if each in late]
            if waiting := [each for each in absent if each not in late]:
                self._queue.mark_parcels(waiting, "sent", due_at=time.time() + max(1.0, self._retries.verify_after))
        for each in missing:
            self._report(self.name, "missing")
            self._refuse(each, f"not there {self._retries.verify_within:g} s after sending")
        return len(parcels)

    def _commit(self, items: Sequence[Item]) -> None:
        """Ask for storage commitment; `confirm_committed` gets the answer, and without one they are sent again."""
        from pydicom.uid import generate_uid

        if not items:
            return
        transaction = str(generate_uid())
        numbers = [item.number for item in items]
        # Saved first, as the answer may come before the call returns.
        due = time.time() + self._retries.verify_within
        self._queue.mark_parcels(numbers, "sent", commitment=transaction, due_at=due)
        self._sender.commit(items, transaction)

    def _confirm(self, numbers: Sequence[int]) -> None:
        if numbers:
            self._queue.mark_parcels(numbers, "delivered", error="")
        for _ in numbers:
            self._report(self.name, "delivered")

    def _refuse(self, parcel: Parcel, error: str) -> None:
        """Try it again later, or give it up for a person to look at."""
        attempts = parcel.attempts + 1
        failed = attempts >= self._retries.refusals
        due = time.time() + self._delay(attempts)
        state = "failed" if failed else "due"
        self._queue.mark_parcels([parcel], state, attempts=attempts, error=error, due_at=due)
        self._report(self.name, "failed" if failed else "refused")
        log = logger.error if failed else logger.warning
        log("%s: study %s: result refused (%s), attempt %d%s", self.name, parcel.study[:12], error, attempts,
            "; given up until `pneumoscope dicom node --retry-failed`" if failed else "")  # fmt: skip

    def _find_items(self, parcels: Sequence[Parcel], asked: bool = False) -> list[Item]:
        """What to send, or to ask for by the UIDs of study and series; a result whose file is gone has failed."""
        items = []
        for each in parcels:
            path = self._spool.result_path(each.file)
            try:
                if not path.is_file():
                    raise ImageError("it is gone")
                tags = read_tags(path, "it") if asked else Tags()
                syntax = read_arrival(path).syntax
            except (ImageError, ValueError) as problem:
                self._queue.mark_parcels([each], "failed", error=f"its file cannot be read: {problem}")
                self._report(self.name, "failed")
                logger.error("%s: study %s: the file of a result cannot be read", self.name, each.study[:12])
                continue
            about = (each.sop_class_uid, each.sop_uid, tags.study or "", tags.series or "", syntax)
            items.append(Item(each.id, path, *about))
        return items


def confirm_committed(queue: Queue, transaction: str, stored: Sequence[str], failed: Sequence[str]) -> tuple[int, int]:
    """Save what an archive reports of storage commitment; give how many are there, and how many are not.

    What has failed is sent again at once.
    """
    there = queue.find_committed(transaction, stored)
    missing = queue.find_committed(transaction, failed)
    if there:
        queue.mark_parcels(there, "delivered", error="")
    if missing:
        queue.mark_parcels(missing, "due", due_at=time.time(), error="storage commitment failed")
    return len(there), len(missing)
