"""Reading the audit log page by page, exporting it, and deleting old entries."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from pneumoscope.errors import PneumoscopeError
from pneumoscope.files import check_file, format_rows, write_text
from pneumoscope.server.storage.audit import Action, Actor, find_user
from pneumoscope.server.storage.audit_messages import AuditQuery
from pneumoscope.server.storage.queries import Page, read_cursor, to_utc, write_cursor
from pneumoscope.server.storage.store import AuditEntry, Store, now

_OWN = AuditEntry
_COLUMNS = ("number", "at", *(each.name for each in _OWN.__table__.columns if each.name not in ("number", "at")))
_PAGE = 20_000  # rows of the export that are read at once


def list_entries(store: Store, query: AuditQuery) -> Page[Any]:
    """A page of the log, the newest first."""
    wanted = (
        (_OWN.caller, query.caller), (_OWN.action, query.action), (_OWN.prediction_id, query.prediction),
        (_OWN.patient, query.patient),
    )  # fmt: skip
    conditions: list[sql.ColumnElement[bool]] = [column == value for column, value in wanted if value is not None]
    if query.since is not None:
        conditions.append(_OWN.at >= to_utc(query.since))
    if query.cursor:
        conditions.append(_OWN.number < read_cursor(query.cursor))
    statement = sql.select(_OWN.__table__).where(*conditions).order_by(_OWN.number.desc()).limit(query.limit + 1)
    with store.read() as connection:
        rows = connection.execute(statement).all()
    entries = rows[: query.limit]
    return Page(entries, write_cursor(entries[-1].number) if len(rows) > query.limit else None)


def export_entries(
    store: Store, out: Path, actor: Actor, overwrite: bool = False, *, excel: bool = False,
    delete_older: datetime.timedelta | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Write the log as a table, the oldest entry first, and log that.

    Args:
        store: the database.
        out: the table.
        actor: who does it.
        overwrite: whether to replace an earlier table.
        excel: whether the table begins with a byte order mark.
        delete_older: delete the written entries that are older than this from the database; there is no other way.

    Returns:
        How many entries were written, and how many deleted.

    Raises:
        UsageError: the table exists already or cannot be written.
        DataError: the database cannot be used.
    """
    check_file(out, overwrite)
    rows: list[dict[str, Any]] = []
    last = 0
    while True:
        statement = sql.select(_OWN.__table__).where(_OWN.number > last).order_by(_OWN.number).limit(_PAGE)
        with store.read() as connection:
            some = connection.execute(statement).mappings().all()
        rows += [{name: _format(each[name]) for name in _COLUMNS} for each in some]
        if len(some) < _PAGE:
            break
        last = some[-1]["number"]
    write_text(out, "".join(format_rows(rows, excel, _COLUMNS)), private=True)
    store.add([actor.to_entry("export_audit", count=0)])
    deleted = 0
    if delete_older is not None and rows:
        deleted = _trim(store, now() - delete_older, int(rows[-1]["number"]), actor)
    return len(rows), deleted


def log_command(url: str, action: Action) -> str:
    """Log a command of this machine; return why not, if it cannot be logged (tables of an earlier version)."""
    try:
        with Store(url, create=False) as store:
            store.add([find_user().to_entry(action)])
    except PneumoscopeError as problem:
        return str(problem)
    return ""


def _trim(store: Store, before: datetime.datetime, last: int, actor: Actor) -> int:
    """Delete entries from before a moment, up to a number; the trigger against it is off until the transaction ends."""
    with store.lock() as connection:
        sqlite = connection.dialect.name == "sqlite"
        guard = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = 'audit_delete'"
        trigger = connection.exec_driver_sql(guard).scalar_one() if sqlite else ""
        connection.exec_driver_sql("DROP TRIGGER audit_delete" if sqlite else "ALTER TABLE audit DISABLE TRIGGER USER")
        found = connection.execute(sql.delete(_OWN).where(_OWN.at < before, _OWN.number <= last))
        connection.exec_driver_sql(trigger if sqlite else "ALTER TABLE audit ENABLE TRIGGER USER")
        entry = actor.to_entry("trim_audit")
        columns = {name: getattr(entry, name) for name in _COLUMNS if name != "number"}
        connection.execute(sql.insert(_OWN).values(**columns))
        return int(getattr(found, "rowcount", 0))


def _format(value: Any) -> Any:
    return f"{value.isoformat(timespec='milliseconds')}Z" if isinstance(value, datetime.datetime) else value
