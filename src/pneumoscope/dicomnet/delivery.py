"""Delivers results: a thread for each destination sends what is due, verifies it, and tries again."""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pneumoscope.dicomnet.addresses import Destination
from pneumoscope.dicomnet.destinations import Item, NotOfferedError, Sender, UnreachableError
from pneumoscope.dicomnet.node_settings import Retries
from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.rows import Parcel
from pneumoscope.dicomnet.spool import Spool, read_arrival
from pneumoscope.errors import DataError, ImageError
from pneumoscope.images.dicom import Tags, read_tags

_TOGETHER = 64  # results over one association
_SAVED = 16  # results after which it is saved that they have been sent
_POLL = 0.25  # seconds
_ASKED = 4  # times that an archive is asked for storage commitment before a result is sent again
logger = logging.getLogger("pneumoscope.node")


@dataclass
class _Work:
    """Sending, or verifying. Each has its own retries, so that a failure of one does not delay the other.

    Attributes:
        run: does what is due, and returns how much that was.
        failures: how many in a row.
        lost_since: since when the destination has been out of reach.
        next_at: when to try again, by the clock of the process.
    """

    run: Callable[[], int]
    failures: int = 0
    lost_since: float | None = None
    next_at: float = 0.0


class Delivery:
    """Delivers to one destination; started by `start`.

    Args:
        destination: which.
        sender: the way there.
        queue: what is due.
        spool: where the results are.
        retries: how it is tried again.
        report: called with the destination's name and what happened: `sent`, `delivered`, `refused`, `missing`,
            `unreachable`, `unverifiable`, `failed` or `error`.
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
        self._destination, self._sender, self._queue, self._spool = destination, sender, queue, spool
        self._retries, self._report = retries, report
        self._random = random.Random(f"{spool.seed} {self.name}")  # noqa: S311 - spreads waits, keeps no secret
        self._works = (_Work(self._verify), _Work(self._send))
        self._unverifiable = ""  # why, as last logged
        self._wake, self._ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"deliver {self.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def wake(self) -> None:
        """Note that there may be something new."""
        self._wake.set()

    def stop(self) -> None:
        """End once the current sending is finished."""
        self._ended.set()
        self._wake.set()

    @property
    def unreachable_since(self) -> float | None:
        """Since when the destination is out of reach; None where it is not."""
        return min((work.lost_since for work in self._works if work.lost_since is not None), default=None)

    def _run(self) -> None:
        while not self._ended.is_set():
            if not sum(self._try(work) for work in self._works if time.monotonic() >= work.next_at):
                self._wake.wait(_POLL)
                self._wake.clear()

    def _try(self, work: _Work) -> int:
        """Do what is due, and return how much that was; no error ends the thread."""
        try:
            done = work.run()
        except UnreachableError as problem:
            self._report(self.name, "unreachable")
            log = logger.warning if work.lost_since is None else logger.info
            work.lost_since = work.lost_since or time.time()
            log("%s: %s; next try in %.1f s", self.name, problem, self._put_off(work))
        except (DataError, OSError) as problem:  # of the database, or the spool
            logger.error("%s", problem if isinstance(problem, DataError) else problem.strerror)
            work.next_at = time.monotonic() + 2
        except Exception as problem:
            self._report(self.name, "error")
            logger.error("%s: %s; next try in %.1f s", self.name, _describe(problem), self._put_off(work))
        else:
            if done and work.lost_since is not None:
                logger.warning("%s: is reached again after %.0f s", self.name, time.time() - work.lost_since)
            work.failures, work.lost_since = 0, None
            return done
        return 0

    def _put_off(self, work: _Work) -> float:
        """Try again later, and return the seconds until then."""
        work.failures += 1
        wait = self._delay(work.failures)
        work.next_at = time.monotonic() + wait
        return wait

    def _delay(self, failures: int) -> float:
        """Seconds to wait after that many failures: a limit that doubles each time, times 0.5 to 1 at random."""
        longest = min(self._retries.longest, self._retries.first * 2.0 ** min(failures - 1, 30))
        return longest * self._random.uniform(0.5, 1.0)

    def _send(self) -> int:
        """Send what is due, and return how many results that was."""
        parcels = self._queue.list_parcels(self.name, "due", _TOGETHER)
        items = self._find_items(parcels)
        by_number = {each.id: each for each in parcels}
        left = [each.number for each in items]
        accepted: list[Parcel] = []
        try:
            for item, error in self._sender.send(items) if items else ():
                left.remove(item.number)
                if error is not None:
                    self._refuse(by_number[item.number], error)
                    continue
                accepted.append(by_number[item.number])
                if len(accepted) >= _SAVED:
                    self._save_sent(accepted)
                    accepted = []
        except (UnreachableError, DataError, OSError):
            raise
        except Exception as problem:
            if not left:
                raise
            # The next result caused it. It is given up after some attempts, so that the others get their turn.
            self._report(self.name, "error")
            self._refuse(by_number[left[0]], _describe(problem))
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
        """Ask for what has been sent, and return how many results that was."""
        parcels = self._queue.list_parcels(self.name, "sent", _TOGETHER)
        if not parcels:
            return 0
        if self._destination.verify == "none":  # it was otherwise when they were sent
            self._queue.mark_parcels(parcels, "delivered")
            return len(parcels)
        try:
            self._ask(parcels)
            self._unverifiable = ""
        except NotOfferedError as problem:
            self._leave_unverified(parcels, str(problem))
        return len(parcels)

    def _ask(self, parcels: Sequence[Parcel]) -> None:
        """Ask whether results are there, in the way set for the destination."""
        retries, committed = self._retries, self._destination.verify == "commitment"
        within = retries.commit_within if committed else retries.verify_within
        items = self._find_items(parcels, asked=True)
        known = {item.number for item in items}
        late = {each.id for each in parcels if time.time() - each.sent_at >= within and (each.asked or not committed)}
        if committed:
            absent = known
            self._commit([item for item in items if item.number not in late])
        else:
            found = {item.number for item, there in self._sender.find(items) if there}
            self._confirm(sorted(found))
            absent = known - found
            if waiting := sorted(absent - late):
                self._queue.mark_parcels(waiting, "sent", due_at=time.time() + max(1.0, retries.verify_after))
        missing = [each for each in parcels if each.id in absent & late]
        for each in missing:
            self._report(self.name, "missing")
            self._refuse(each, f"{'not committed' if committed else 'not there'} {within:g} s after sending")

    def _leave_unverified(self, parcels: Sequence[Parcel], reason: str) -> None:
        """Keep results that cannot be verified as sent, and ask again now and then; sending goes on."""
        due = time.time() + self._retries.longest
        self._queue.mark_parcels(parcels, "sent", due_at=due, error=f"not verified: {reason}")
        for _ in parcels:
            self._report(self.name, "unverifiable")
        if reason != self._unverifiable:
            self._unverifiable = reason
            logger.warning(
                "%s: results cannot be verified by %s (%s). They are kept as sent. Choose another `verify`, or none.",
                self.name, self._destination.verify, reason,
            )  # fmt: skip

    def _commit(self, items: Sequence[Item]) -> None:
        """Ask for storage commitment; `confirm_committed` gets the answer. Without one it is asked for again."""
        from pydicom.uid import generate_uid

        if not items:
            return
        transaction, numbers = str(generate_uid()), [item.number for item in items]
        # Saved first, as the answer may come before the call returns.
        due = time.time() + self._retries.commit_within / _ASKED
        self._queue.add_transaction(transaction, numbers, due)
        try:
            self._sender.commit(items, transaction)
        except Exception:
            self._queue.withdraw_transaction(transaction)
            raise

    def confirm_committed(self, transaction: str, stored: Sequence[str], failed: Sequence[str]) -> tuple[int, int]:
        """Save what the archive reports of storage commitment; return how many are there, and how many are not.

        A report that a result is there always counts. A report that it is not counts only as the answer to the last
        request.
        """
        there = self._queue.find_committed(self.name, transaction, stored)
        missing = self._queue.find_uncommitted(self.name, transaction, failed)
        self._confirm([each.id for each in there])
        for each in missing:
            self._report(self.name, "missing")
            self._refuse(each, "storage commitment failed")
        return len(there), len(missing)

    def _confirm(self, numbers: Sequence[int]) -> None:
        if numbers:
            self._queue.mark_parcels(numbers, "delivered", error="")
        for _ in numbers:
            self._report(self.name, "delivered")

    def _refuse(self, parcel: Parcel, error: str) -> None:
        """Try it again later, or give it up until a person looks at it."""
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
        """What to send, or to ask for by the UIDs of study and series; a result whose file is gone fails."""
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


def _describe(problem: Exception) -> str:
    """What went wrong, and where; an unexpected message could quote a patient's data."""
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    return f"unexpected {type(problem).__name__} in {frame.name}, line {frame.lineno}"
