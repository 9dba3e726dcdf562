"""The work to do, in a database: images to answer, results to deliver. Each node works only on its own rows.

A node's rows belong to its spool, which only one process at a time can open. So two processes never do the same work,
even if they share a database. Every write begins with a statement that changes something: SQLite then waits for other
writers instead of failing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pneumoscope.dicomnet.rows import Known, Made, Outcome, Parcel, Waiting
from pneumoscope.dicomnet.tables import Delivery, Image, ResultRecord, Study, Transaction, open_tables
from pneumoscope.errors import DataError
from pneumoscope.server.storage.databases import explain

_MANY = 500  # values in a statement; SQLite's limit was once 999
NOT_ANSWERED = ("skipped", "set_aside", "lost")  # states; an image that comes again is judged anew
_REASON = 2000  # characters kept of one


class Queue:
    """The rows of one node; its methods may be called from several threads, and raise DataError on failure.

    Args:
        url: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        node: the id of the spool.
    """

    def __init__(self, url: str | None, node: str) -> None:
        self._engine, self.location = open_tables(url)
        self._node = node
        self._lock = threading.Lock()  # one writer of this process at a time; others would wait in the database

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def find_known(self, keys: Sequence[str]) -> dict[str, Known]:
        """Which of these images have a row, by key."""
        found: dict[str, Known] = {}
        for some in _split(keys):
            columns = (Image.key, Image.state, Image.reason, Image.kept, Image.received_at)
            query = sql.select(*columns).where(self._mine(Image), Image.key.in_(some))
            with self._read() as connection:
                found |= {row.key: Known(*row[1:]) for row in connection.execute(query)}
        return found

    def find_own(self, uids: Sequence[str]) -> set[str]:
        """Which of these SOP Instance UIDs are results of this node."""
        found: set[str] = set()
        for some in _split(uids):
            query = sql.select(ResultRecord.sop_uid).where(self._mine(ResultRecord), ResultRecord.sop_uid.in_(some))
            with self._read() as connection:
                found |= set(connection.scalars(query))
        return found

    def add_images(self, images: Sequence[dict[str, Any]]) -> None:
        """Add rows for images that have none."""
        defaults = {
            "state": "waiting", "reason": "", "to": [], "version": 0, "attempts": 0, "alone": 0, "kept": True,
            "sha256": "", "decision": "", "predicted_label": "", "warnings": [],
        }  # fmt: skip
        if images:
            with self._write() as connection:
                connection.execute(sql.insert(Image), [{**defaults, **each, "node": self._node} for each in images])

    def renew_images(self, images: Sequence[dict[str, Any]], most: int) -> None:
        """Judge images anew that were not answered, because they have arrived again.

        Args:
            images: their rows, as for `add_images`.
            most: how often answering one alone may have begun without an end; a higher number is set to this.
        """
        alone = sql.case((Image.alone > most, most), else_=Image.alone)
        with self._write() as connection:
            for each in images:
                mine = (self._mine(Image), Image.key == each["key"], Image.state.in_(NOT_ANSWERED))
                values = {key: each[key] for key in ("state", "reason", "to", "received_at", "calling", "study")}
                connection.execute(sql.update(Image).where(*mine).values(**values, alone=alone, kept=True))

    def list_waiting(self, quiet_since: float, begun_before: float, images: int) -> list[Waiting]:
        """Images of whole studies that are due, at least of one study; studies that were quiet longest come first.

        Args:
            quiet_since: a study is due if no image has arrived since.
            begun_before: or if its first image arrived before.
            images: up to how many images studies are taken.
        """
        waiting = (self._mine(Image), Image.state == "waiting")
        last = sql.func.max(Image.received_at)
        due = (
            sql.select(Image.study, sql.func.count().label("images"))
            .where(*waiting)
            .group_by(Image.study)
            .having(sql.or_(last <= quiet_since, sql.func.min(Image.received_at) <= begun_before))
            .order_by(last, Image.study)
            .limit(images)
        )
        with self._read() as connection:
            studies, total = [], 0
            for row in connection.execute(due):
                if total and total + row.images > images:
                    break
                studies.append(row.study)
                total += row.images
            if not studies:
                return []
            columns = (Image.id, Image.key, Image.study, Image.to, Image.attempts, Image.alone)
            query = sql.select(*columns).where(*waiting, Image.study.in_(studies)).order_by(Image.study, Image.id)
            return [
                Waiting(row.id, row.key, row.study, tuple(row.to), row.attempts, row.alone)
                for row in connection.execute(query)
            ]

    def begin(self, images: Sequence[Waiting]) -> None:
        """Note that answering begins, in case it never ends."""
        alone = int(len(images) == 1)
        values = {"attempts": Image.attempts + 1, "alone": Image.alone + alone}
        with self._write() as connection:
            for some in _split([each.id for each in images]):
                connection.execute(sql.update(Image).where(Image.id.in_(some)).values(**values))

    def take_back(self, images: Sequence[Waiting]) -> None:
        """Undo `begin` for images whose answering was stopped for a reason that they did not cause.

        Args:
            images: as they were before `begin`.
        """
        with self._write() as connection:
            for each in images:
                values = {"attempts": each.attempts, "alone": each.alone}
                connection.execute(sql.update(Image).where(Image.id == each.id).values(**values))

    def finish(self, outcomes: Sequence[Outcome], destinations: Sequence[str], held: bool) -> list[str]:
        """Save what became of images, and what is to be delivered, in one transaction.

        Args:
            outcomes: of images of whole studies.
            destinations: all names.
            held: whether nothing may be sent.

        Returns:
            SOP Instance UIDs of results that had been made before, and are not sent again.
        """
        moment, known = time.time(), []
        with self._write() as connection:
            versions: dict[str, int] = {}
            for each in outcomes:
                about = {**(each.about or {}), "reason": each.reason[:_REASON], "state": each.state}
                version = versions.get(each.image.study) or self._raise_version(connection, each.image.study, moment)
                versions[each.image.study] = version
                still = (Image.id == each.image.id, Image.state == "waiting")
                values = {"version": version, "answered_at": moment, **about}
                if not connection.execute(sql.update(Image).where(*still).values(**values)).rowcount:
                    continue  # it was answered before
                for made in each.results:
                    same = (self._mine(ResultRecord), ResultRecord.sop_uid == made.sop_uid)
                    if connection.scalar(sql.select(ResultRecord.id).where(*same)) is not None:
                        known.append(made.sop_uid)
                        continue
                    number = self._add_result(connection, each.image.id, made, moment)
                    rows = [
                        {"node": self._node, "result_id": number, "destination": name, "attempts": 0, "due_at": moment,
                         "state": "held" if held or made.held else "due", "commitment": "", "error": ""}
                        for name in destinations
                        if not each.image.to or name in each.image.to
                    ]  # fmt: skip
                    if rows:
                        connection.execute(sql.insert(Delivery), rows)
        return known

    def _raise_version(self, connection: sql.Connection, study: str, moment: float) -> int:
        mine = (Study.node == self._node, Study.study == study)
        values = {"version": Study.version + 1, "answered_at": moment}
        if not connection.execute(sql.update(Study).where(*mine).values(**values)).rowcount:
            row = {"node": self._node, "study": study, "version": 1, "answered_at": moment}
            connection.execute(sql.insert(Study).values(**row))
        return int(connection.scalar(sql.select(Study.version).where(*mine)) or 1)

    def _add_result(self, connection: sql.Connection, image: int, made: Made, moment: float) -> int:
        values = {
            "node": self._node, "image_id": image, "kind": made.kind, "sop_class_uid": made.sop_class_uid,
            "sop_uid": made.sop_uid, "file": made.file, "created_at": moment,
        }  # fmt: skip
        key = connection.execute(sql.insert(ResultRecord).values(**values)).inserted_primary_key
        return int(key[0]) if key is not None else 0

    def mark_images(self, keys: Iterable[str], state: str, reason: str) -> None:
        """Give waiting images another state."""
        with self._write() as connection:
            for some in _split(list(keys)):
                mine = (self._mine(Image), Image.key.in_(some), Image.state == "waiting")
                connection.execute(sql.update(Image).where(*mine).values(state=state, reason=reason[:_REASON]))

    def list_parcels(self, destination: str, state: str, limit: int) -> list[Parcel]:
        """What is due at a destination, or to be verified there (`sent`); what has been due longest comes first."""
        mine = (Delivery.destination == destination, Delivery.state == state, Delivery.due_at <= time.time())
        query = self._select_parcels().where(*mine).order_by(Delivery.due_at, Delivery.id).limit(limit)
        with self._read() as connection:
            return _to_parcels(connection.execute(query))

    def _select_parcels(self) -> sql.Select[Any]:
        columns = (
            Delivery.id, ResultRecord.file, ResultRecord.sop_class_uid, ResultRecord.sop_uid, Delivery.attempts,
            Delivery.sent_at, Image.study, Delivery.commitment,
        )  # fmt: skip
        chosen: sql.Select[Any] = sql.select()
        joined = chosen.add_columns(*columns).join(ResultRecord, ResultRecord.id == Delivery.result_id)
        return joined.join(Image, Image.id == ResultRecord.image_id).where(self._mine(Delivery))

    def mark_parcels(self, parcels: Sequence[Parcel | int], state: str, **values: Any) -> None:
        """Give deliveries a state, and further columns."""
        values = {key: value[:_REASON] if isinstance(value, str) else value for key, value in values.items()}
        with self._write() as connection:
            for some in _split([each if isinstance(each, int) else each.id for each in parcels]):
                connection.execute(sql.update(Delivery).where(Delivery.id.in_(some)).values(state=state, **values))
                if state == "delivered":
                    connection.execute(sql.delete(Transaction).where(Transaction.delivery_id.in_(some)))

    def add_transaction(self, transaction: str, numbers: Sequence[int], due_at: float) -> None:
        """Note that storage commitment is asked for, and when to ask again."""
        rows = [{"node": self._node, "uid": transaction, "delivery_id": number} for number in numbers]
        with self._write() as connection:
            connection.execute(sql.insert(Transaction), rows)
            for some in _split(numbers):
                values = {"commitment": transaction, "due_at": due_at}
                connection.execute(sql.update(Delivery).where(Delivery.id.in_(some)).values(**values))

    def withdraw_transaction(self, transaction: str) -> None:
        """Note that it could not be asked for, and may be asked for again at once."""
        mine = (self._mine(Delivery), Delivery.commitment == transaction, Delivery.state == "sent")
        with self._write() as connection:
            connection.execute(sql.update(Delivery).where(*mine).values(commitment="", due_at=time.time()))

    def find_committed(self, destination: str, transaction: str, uids: Sequence[str]) -> list[Parcel]:
        """Results that were part of a transaction of storage commitment and are not delivered yet."""
        asked = sql.select(Transaction.delivery_id).where(self._mine(Transaction), Transaction.uid == transaction)
        return self._find_parcels(
            uids, Delivery.destination == destination, Delivery.id.in_(asked),
            Delivery.state.in_(("due", "sent", "failed")),
        )  # fmt: skip

    def find_uncommitted(self, destination: str, transaction: str, uids: Sequence[str]) -> list[Parcel]:
        """Results that still wait for this transaction, if it is the last that was asked for."""
        about = (Delivery.destination == destination, Delivery.commitment == transaction, Delivery.state == "sent")
        return self._find_parcels(uids, *about)

    def _find_parcels(self, uids: Sequence[str], *about: sql.ColumnElement[bool]) -> list[Parcel]:
        found: list[Parcel] = []
        for some in _split(uids):
            query = self._select_parcels().where(*about, ResultRecord.sop_uid.in_(some))
            with self._read() as connection:
                found += _to_parcels(connection.execute(query))
        return found

    def retry_failed(self) -> int:
        """Make all failed results due again, and return how many those were."""
        mine = (self._mine(Delivery), Delivery.state == "failed")
        values = {"state": "due", "attempts": 0, "due_at": time.time()}
        with self._write() as connection:
            return connection.execute(sql.update(Delivery).where(*mine).values(**values)).rowcount

    def count(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """How many images have which state, and how many deliveries by destination and state."""
        images = sql.select(Image.state, sql.func.count()).where(self._mine(Image)).group_by(Image.state)
        deliveries = (
            sql.select(Delivery.destination, Delivery.state, sql.func.count())
            .where(self._mine(Delivery))
            .group_by(Delivery.destination, Delivery.state)
        )
        with self._read() as connection:
            return (
                {str(state): int(count) for state, count in connection.execute(images)},
                {(str(name), str(state)): int(count) for name, state, count in connection.execute(deliveries)},
            )

    def list_finished(self, before: float, limit: int) -> list[tuple[int, str, list[str]]]:
        """Images that were finished before a moment, but whose files are still there: id, key, and files of results."""
        open_states = ("due", "sent", "failed")
        pending = (
            sql.select(Delivery.id)
            .join(ResultRecord, ResultRecord.id == Delivery.result_id)
            .where(ResultRecord.image_id == Image.id, Delivery.state.in_(open_states))
        )
        done = (Image.state.in_(("answered", "skipped")), Image.kept, Image.received_at < before, ~pending.exists())
        query = sql.select(Image.id, Image.key).where(self._mine(Image), *done).limit(limit)
        with self._read() as connection:
            images = [(int(row.id), str(row.key)) for row in connection.execute(query)]
            files: dict[int, list[str]] = {}
            for some in _split([number for number, _ in images]):
                results = sql.select(ResultRecord.image_id, ResultRecord.file).where(ResultRecord.image_id.in_(some))
                for number, file in connection.execute(results):
                    files.setdefault(number, []).append(file)
        return [(number, key, files.get(number, [])) for number, key in images]

    def mark_removed(self, images: Sequence[int]) -> None:
        """Note that the files of images are not needed any more."""
        with self._write() as connection:
            for some in _split(images):
                connection.execute(sql.update(Image).where(Image.id.in_(some)).values(kept=False))

    def list_keys(self, state: str) -> list[str]:
        """The names of all images of a state whose files may be there."""
        query = sql.select(Image.key).where(self._mine(Image), Image.state == state, Image.kept)
        with self._read() as connection:
            return list(connection.scalars(query))

    def ping(self) -> None:
        """Check that the database answers."""
        with self._read() as connection:
            connection.execute(sql.select(1))

    def _mine(self, table: type[Image | ResultRecord | Delivery | Transaction]) -> sql.ColumnElement[bool]:
        return table.node == self._node

    @contextmanager
    def _read(self) -> Iterator[sql.Connection]:
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sql.Connection]:
        with self._lock, self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SQLAlchemyError) as problem:
            if isinstance(problem, OSError):  # pg8000 raises it where a connection was cut; so were the others
                self._engine.dispose()
            state = "reports an error" if isinstance(problem, DBAPIError) else "is out of reach"
            raise DataError(f"{self.location}: the database {state}: {explain(problem)}.") from None


def _to_parcels(rows: Iterable[Any]) -> list[Parcel]:
    return [
        Parcel(
            row.id, row.file, row.sop_class_uid, row.sop_uid, row.attempts, row.sent_at or 0.0, row.study,
            bool(row.commitment),
        )
        for row in rows
    ]  # fmt: skip


def _split(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _MANY):
        yield values[start : start + _MANY]
