"""The DICOM node: it receives images, answers studies, and delivers results until a signal stops it.

    association -> spool (fsync) -> acknowledged          any number of threads
    spool -> queue                                        one thread, and a look at the whole spool now and then
    queue -> predictions -> results in the spool, queue   one thread, batches across studies
    queue -> destination -> verified                      a thread for each destination

The process may end at any moment. What was acknowledged is on disk; what was not has to be sent again. A step that was
interrupted is done again, with the same result.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from pneumoscope.dicomnet.addresses import is_loopback
from pneumoscope.dicomnet.answering import Answering, Answers
from pneumoscope.dicomnet.delivery import Delivery
from pneumoscope.dicomnet.destinations import make_sender
from pneumoscope.dicomnet.intake import Intake
from pneumoscope.dicomnet.measurements import Measurements
from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.receiver import Receiver, resolve_classes
from pneumoscope.dicomnet.spool import Arrival, Spool, Stored
from pneumoscope.dicomnet.watching import WatchedFolder
from pneumoscope.errors import DataError, PneumoscopeError

if TYPE_CHECKING:
    from pneumoscope.dicomnet.node_settings import NodeSettings

_POLL = 0.2  # seconds between looks at what is due
_SCAN = 300.0  # seconds between looks at the whole spool
_REMOVED = 500  # images that are removed at a time
_DAY = 86_400
logger = logging.getLogger("pneumoscope.node")


class Node:
    """A node; `run` runs it.

    Args:
        settings: how to run it; they have been checked.
        answers: what makes results of images.
    """

    def __init__(self, settings: NodeSettings, answers: Answers) -> None:
        self.settings = settings
        self.measurements = Measurements()
        self._answers = answers
        self._spool = Spool(settings.spool, settings.limits.free_bytes)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._deliveries: list[Delivery] = []
        self.http_port: int | None = None

    @property
    def port(self) -> int:
        """The port for DICOM."""
        return self._receiver.port

    def run(self, ready: Callable[[Node], None] | None = None) -> None:
        """Run until `stop` is called, then finish what is being done.

        Args:
            ready: called when all ports are open.

        Raises:
            PneumoscopeError: an address, the spool, the database, a certificate or the model cannot be used.
        """
        with ExitStack() as stack:
            stack.enter_context(self._spool.open())
            self._queue = Queue(self.settings.database, self._spool.node)
            stack.callback(self._queue.close)
            self._prepare()
            _warn_of_others(self.settings)
            stack.callback(self._join)
            self._receiver = Receiver(self.settings, self._spool, self)
            self._receiver.start()
            stack.callback(self._receiver.stop)
            if self.settings.http_port is not None:
                from pneumoscope.dicomnet.web import serve_web

                self.http_port = stack.enter_context(serve_web(self.settings, self._spool, self, self))
            self._begin()
            if ready is not None:
                ready(self)
            while not self._ended.wait(1.0):
                if dead := self._find_dead():
                    self._failure = PneumoscopeError(f"The thread {dead[0]!r} has died. Please report it.")
                    break
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End soon, after finishing what is being sent or answered. A signal handler may call this."""
        self._ended.set()

    def _prepare(self) -> None:
        settings = self.settings
        self._intake = Intake(self._spool, self._queue, settings.rules)
        self._answering = Answering(settings, self._spool, self._queue, self._answers, self._count_answer)
        if settings.retry_failed:
            logger.info("%d results that had been given up are tried again", self._queue.retry_failed())
        for each in settings.destinations if not settings.dry_run else ():
            sender = make_sender(each, settings.title, self.committed)
            self._deliveries.append(
                Delivery(each, sender, self._queue, self._spool, settings.retries, self._count_delivery)
            )
        names = {each.name for each in settings.destinations}
        for (name, state), count in self._queue.count()[1].items():
            if name not in names and state in ("due", "sent"):
                logger.warning("%d results are due at %s, which is no longer a destination", count, name)

    def _begin(self) -> None:
        works: list[tuple[str, Callable[[], None]]] = [("intake", self._take), ("answer", self._answer)]
        if self.settings.watch is not None:
            classes = frozenset(resolve_classes(self.settings.sop_classes))
            watched = WatchedFolder(self.settings.watch, self._spool, self, classes, self.settings.limits.object_bytes)
            works.append(("watch", lambda: watched.run(self._ended)))
        for name, work in works:
            thread = threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        for delivery in self._deliveries:
            delivery.start()
            self._threads.append(delivery.thread)

    def _join(self) -> None:
        self._ended.set()
        self._intake.wake.set()
        for delivery in self._deliveries:
            delivery.stop()
        for thread in self._threads:
            thread.join(60)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; the node ends with it."""
        try:
            work()
        except BaseException as problem:
            self._failure = problem
        finally:
            self._ended.set()

    def _take(self) -> None:
        scanned = float("-inf")
        while not self._ended.is_set():
            try:
                if time.monotonic() - scanned > _SCAN:
                    if found := self._intake.scan():
                        logger.info("%d images were in the spool but not in the database", found)
                    self._clean()
                    scanned = time.monotonic()
                if not self._intake.take():
                    self._intake.wake.wait(_POLL)
                    self._intake.wake.clear()
            except DataError as problem:  # of the database
                logger.error("%s", problem)
                self._ended.wait(2)
            except OSError as problem:
                logger.error("spool: %s", problem.strerror or type(problem).__name__)
                self._ended.wait(2)

    def _answer(self) -> None:
        while not self._ended.is_set():
            try:
                if not self._answering.work():
                    self._ended.wait(_POLL)
                    continue
            except DataError as problem:
                logger.error("%s", problem)
                self._ended.wait(2)
            except OSError as problem:  # such as a full disk
                self.measurements.count("refused", reason="result")
                logger.error("results cannot be written: %s", problem.strerror or type(problem).__name__)
                self._ended.wait(2)
            for delivery in self._deliveries:
                delivery.wake()

    def _clean(self) -> None:
        """Remove files of images that are done, after the days they are kept for."""
        before = time.time() - self.settings.keep_days * _DAY
        while finished := self._queue.list_finished(before, _REMOVED):
            for _, key, results in finished:
                for name in results:
                    self._spool.remove_result(name)
                self._spool.remove(key)
            self._queue.mark_removed([number for number, _, _ in finished])

    def received(self, stored: Stored, arrival: Arrival) -> None:
        """An image is on disk."""
        self.measurements.count("received", by="stow" if arrival.calling == "STOW" else "dicom")
        if stored.repeat:
            self.measurements.count("repeats")
        if stored.changed:
            self.measurements.count("changed")
            logger.warning("image %s has come with other content than before: a new version", stored.key[:20])
        self._intake.announce(stored.key)

    def refused(self, reason: str) -> None:
        """An image or an association has been refused."""
        self.measurements.count("refused", reason=reason)

    def committed(self, transaction: str, stored: Sequence[str], failed: Sequence[str]) -> None:
        """An archive reports on storage commitment."""
        with suppress(DataError):  # if it cannot be saved, the archive is asked again
            for delivery in self._deliveries:
                delivery.confirm_committed(transaction, stored, failed)

    def find_troubles(self) -> list[str]:
        """Why the node is not ready; empty where it is."""
        troubles = []
        try:
            self._queue.ping()
        except DataError:
            troubles.append("the database does not answer")
        if self._spool.full:
            troubles.append("too little space on the disk of the spool")
        if self._ended.is_set():
            troubles.append("the node is ending")
        return [*troubles, *self.find_failures()]

    def find_failures(self) -> list[str]:
        """What has failed for good, so that the node ends."""
        failed = ["the node has failed"] if self._failure is not None else []
        return [*failed, *(f"the thread {name!r} has died" for name in self._find_dead())]

    def _find_dead(self) -> list[str]:
        """Threads that have ended by themselves."""
        if self._ended.is_set():
            return []
        return [each.name for each in (*self._threads, self._receiver.thread) if not each.is_alive()]

    def render_metrics(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        with suppress(DataError):
            images, deliveries = self._queue.count()
            return self._render(images, deliveries)
        return self._render({}, {})

    def _render(self, images: dict[str, int], deliveries: dict[tuple[str, str], int]) -> bytes:
        unreachable = [
            ({"destination": each.name}, time.time() - each.unreachable_since if each.unreachable_since else 0.0)
            for each in self._deliveries
        ]
        return self.measurements.render(
            {
                "images": [({"state": state}, number) for state, number in images.items()],
                "delivering": [
                    ({"destination": name, "state": state}, number) for (name, state), number in deliveries.items()
                ],
                "unreachable_seconds": unreachable,
                "associations": [({}, self._receiver.associations)],
                "free_bytes": [({}, self._spool.free())],
            }
        )

    def _count_answer(self, decision: str) -> None:
        self.measurements.count("answered", decision=decision)

    def _count_delivery(self, destination: str, event: str) -> None:
        self.measurements.count("deliveries", destination=destination, event=event)


def _warn_of_others(settings: NodeSettings) -> None:
    """Warn in the log if others can reach an address that is not protected."""
    if is_loopback(settings.host):
        return
    if settings.tls.certificate is None:
        logger.warning("others can reach %s, and DICOM there is not encrypted: set `tls`", settings.host)
    if not settings.allowed and settings.tls.authorities is None:
        logger.warning("others can reach %s, and every sender is accepted: set `allowed`, or `tls.authorities`",
                       settings.host)  # fmt: skip


def run_node(settings: NodeSettings, answers: Answers, ready: Callable[[Node], None] | None = None) -> None:
    """Run a node until SIGTERM or SIGINT.

    Raises:
        PneumoscopeError: something cannot be used; see `Node.run`.
    """
    import signal

    node = Node(settings, answers)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    node.run(ready)
