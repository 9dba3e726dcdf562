"""The audit log: who saw, predicted, reviewed, exported or deleted what, when and from where.

The entry of a change to predictions or reviews is written in the same transaction. Entries of requests that only read
are written within a second by a thread, so that no request waits. A service that is killed loses at most that second.
Entries are not linked by hashes: services that write at the same time would have to wait for each other, and whoever
can get past the triggers of the database could compute the hashes anew. Such a person cannot change copies elsewhere.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import sqlalchemy as sql

from pneumoscope.errors import DataError
from pneumoscope.server.problems import logger
from pneumoscope.server.storage.store import AuditEntry, PredictionRecord, Store

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from pneumoscope.server.access.callers import Caller

Action: TypeAlias = Literal[
    "sign_in", "list_predictions", "view_prediction", "view_image", "view_evidence", "view_reviews", "list_studies",
    "view_node", "view_job", "predict", "review", "withdraw", "delete", "expire", "export_reviews", "erase", "backup",
    "restore", "read_audit", "export_audit", "trim_audit",
]  # fmt: skip
TRAIL = "trail"  # its key in the state of a request
_ACTION = "__pneumoscope_action__"
_ID = re.compile(r"[0-9a-f]{32}")
_PSEUDONYM = re.compile(r"[0-9a-f]{16}")
_MOST = 20_000  # entries that wait; beyond that they go to the service's log
_SECONDS = 1.0  # between two times of writing
_AT_ONCE = 500
_QUIET = 60.0  # seconds until a caller who is refused again gets another entry
_ADDRESSES = 4096  # remembered
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Actor:
    """Who does something, and in which request."""

    name: str
    role: str
    source: str
    address: str = ""
    request: str = ""

    def to_entry(
        self,
        action: Action,
        *,
        status: int = 200,
        count: int = 0,
        prediction_id: str | None = None,
        patient: str | None = None,
        study: str | None = None,
    ) -> AuditEntry:
        """An entry of the log; see there."""
        return AuditEntry(
            caller=self.name, role=self.role, source=self.source, address=self.address, action=action, count=count,
            status=status, request=self.request, prediction_id=prediction_id, patient=patient, study=study,
        )  # fmt: skip


SERVICE = Actor("pneumoscope", "admin", "service")


@dataclass
class Trail:
    """What a request does, as far as its route knows. It becomes an entry.

    Attributes:
        actor: who makes it.
        count: of predictions that it shows.
        patient: a pseudonym.
        study: a pseudonym.
        written: whether its entry was written with what it changed.
    """

    actor: Actor
    count: int = 0
    patient: str | None = None
    study: str | None = None
    written: bool = False


def audits(action: Action) -> Callable[[Endpoint], Endpoint]:
    """State what a route does, for the log; put it between the route's decorator and its function."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ACTION, action)
        return endpoint

    return mark


def find_action(endpoint: object) -> Action | None:
    """What a route does; None if it is not logged."""
    action: Action | None = getattr(endpoint, _ACTION, None)
    return action


def find_trail(request: HTTPConnection) -> Trail:
    """The trail of a request below `/v1/`."""
    trail: Trail = request.scope["state"][TRAIL]
    return trail


def make_actor(caller: Caller, request: str) -> Actor:
    """Who makes a request with an id."""
    return Actor(caller.name, caller.role, caller.source, caller.address, request)


def log_change(store: Store, actor: Actor, action: Action, record: PredictionRecord) -> AuditEntry:
    """The entry for making or reviewing a prediction, to be stored with that change."""
    return actor.to_entry(
        action, status=201, count=1, prediction_id=record.id, patient=record.patient or None,
        study=store.pseudonymise_study(record.study_uid),
    )  # fmt: skip


def find_user() -> Actor:
    """Who runs a command on this machine."""
    import getpass

    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a number without a name
        name = "unknown"
    return Actor(name, "admin", "command")


class AuditLog:
    """Writes entries that belong to no change, from a thread of its own.

    Args:
        store: the database.
        most: entries that may wait.
    """

    def __init__(self, store: Store, most: int = _MOST) -> None:
        self._store, self._most = store, most
        self._waiting: list[AuditEntry] = []
        self._changed, self._writing = threading.Condition(), threading.Lock()
        self._closed = self._complained = False
        self._refused: dict[tuple[str, str], float] = {}  # when somebody was last turned away
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def add(self, entry: AuditEntry) -> None:
        """Take an entry; it returns at once."""
        with self._changed:
            full = len(self._waiting) >= self._most
            if not full:
                self._waiting.append(entry)
            if len(self._waiting) >= _AT_ONCE:
                self._changed.notify()
        if full:
            logger.error("The audit log cannot keep up; not in the database: %s", _to_text(entry))

    def add_request(self, action: Action, trail: Trail, status: int, prediction_id: str | None) -> None:
        """Take the entry of a request, unless it was stored with the change that the request made."""
        if not trail.written:
            known = prediction_id if prediction_id and _ID.fullmatch(prediction_id) else None
            patient = trail.patient if trail.patient and _PSEUDONYM.fullmatch(trail.patient) else None
            count = 1 if known and status < 400 else trail.count
            self.add(
                trail.actor.to_entry(
                    action, status=status, count=count, prediction_id=known, patient=patient, study=trail.study
                )
            )

    def add_refused(self, actor: Actor, status: int) -> None:
        """Take the entry of a refused caller, at most one a minute for each address, so that nobody fills the log."""
        moment, key = time.monotonic(), (actor.address, actor.name)
        if moment - self._refused.get(key, -_QUIET) >= _QUIET:
            if len(self._refused) >= _ADDRESSES:
                self._refused.clear()
            self._refused[key] = moment
            self.add(actor.to_entry("sign_in", status=status))

    def flush(self) -> None:
        """Write all that waits.

        Raises:
            DataError: the database cannot be used; what waits stays.
        """
        with self._writing:  # the routes of the log write, too
            while True:
                with self._changed:
                    entries = self._waiting[:_AT_ONCE]
                if not entries:
                    return
                _write(self._store, entries)
                with self._changed:
                    del self._waiting[: len(entries)]

    def close(self) -> None:
        """Write all that waits, and end; what cannot be written goes to the service's log."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._try()
        for entry in self._waiting:
            logger.error("The audit log cannot be written; not in the database: %s", _to_text(entry))

    def _run(self) -> None:
        """Write every second."""
        while not self._closed:
            with self._changed:
                self._changed.wait(_SECONDS)
            self._try()

    def _try(self) -> None:
        try:
            self.flush()
            self._complained = False
        except Exception as problem:
            if not self._complained:
                reason = str(problem) if isinstance(problem, DataError) else type(problem).__name__
                logger.error("The audit log cannot be written, and is tried again: %s", reason)
            self._complained = True


def _write(store: Store, entries: Sequence[AuditEntry]) -> None:
    """Write entries, with whose images they are about."""
    columns = [column for column in AuditEntry.__table__.columns if column.name != "number"]
    rows = [{column.name: getattr(entry, column.name) for column in columns} for entry in entries]
    own = PredictionRecord
    with store.read() as connection:
        wanted = {row["prediction_id"] for row in rows if row["prediction_id"]}
        found = connection.execute(sql.select(own.id, own.patient, own.study_uid).where(own.id.in_(wanted)))
        known = {row.id: (row.patient or None, store.pseudonymise_study(row.study_uid)) for row in found}
        for row in rows:
            if row["prediction_id"] in known:
                row["patient"], row["study"] = known[row["prediction_id"]]
        connection.execute(sql.insert(AuditEntry), rows)


def _to_text(entry: AuditEntry) -> str:
    columns = [column.name for column in AuditEntry.__table__.columns if column.name != "number"]
    return json.dumps({name: getattr(entry, name) for name in columns}, default=str)
