"""The tables of a database and their versions: a new database is made, an older one upgraded, another one refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.storage.databases import PATIENCE, TEMPORARY, explain, opening

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

Kind: TypeAlias = Literal["empty", "current", "older", "newer", "unknown"]
STORE_REVISION, NODE_REVISION = "pneumoscope_revision", "node_revision"  # tables with the revision of the others
_LOCK = 5_026_891_347_203_118  # the number of our advisory lock in PostgreSQL
_OURS = ({STORE_REVISION}, {NODE_REVISION}, {"node_properties"}, {"properties", "predictions"})
_SHOWN = 5  # names of tables in a message
_WAY_OUT = "Choose another `database`, or move what is in this one elsewhere."


@dataclass(frozen=True)
class Tables:
    """Some tables of a database that have one version together.

    Attributes:
        name: for messages.
        metadata: the tables as this version of pneumoscope needs them.
        migrations: a folder with a migration from each revision to the next, for Alembic.
        revision: the table that holds the revision.
        properties: the table whose `schema` was the version, before there were migrations.
    """

    name: str
    metadata: sql.MetaData
    migrations: Path
    revision: str
    properties: str


@dataclass(frozen=True)
class State:
    """Which version of some tables a database has.

    Attributes:
        kind: `empty` has none of them; `older` and `newer` are those of other versions, `unknown` of another program.
        revision: what it has, where that is known.
        detail: why it is unknown.
    """

    kind: Kind
    revision: str | None = None
    detail: str = field(default="", repr=False)


def prepare(engine: sql.Engine, location: str, tables: Tables, *, upgrade: bool = False) -> None:
    """Make the tables where there are none, and refuse those of other versions; `upgrade`: bring older ones up to date.

    Services that start at once wait for each other. A change is made whole or not at all.

    Raises:
        UsageError: the database is another program's, or has no version.
        DataError: another version made it, or it cannot be upgraded.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with engine.connect() as connection:
                current = find_state(connection, tables).kind == "current"
            if not current:
                with locking(engine) as connection:
                    _bring_up_to_date(connection, location, tables, upgrade)
            if engine.dialect.name == "sqlite":
                with engine.connect() as connection:  # readers work beside a writer; the file remembers it
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            return
        except DBAPIError as problem:
            if not TEMPORARY.search(str(problem.orig)) or time.monotonic() > end:
                raise
            time.sleep(0.1)


def upgrade_database(url: str | None, kinds: Iterable[Tables]) -> list[tuple[Tables, str | None, str]]:
    """Bring the tables that a database has up to date, and give the revisions before and after of each.

    Raises:
        UsageError: the database cannot be reached, or has no tables of pneumoscope.
        DataError: a newer version made it, or it cannot be upgraded.
    """
    done = []
    with opening(url) as database:
        engine = database.connect(create=False, patient=True)
        try:
            for tables in kinds:
                with engine.connect() as connection:
                    state = find_state(connection, tables)
                if state.kind != "empty":
                    prepare(engine, database.location, tables, upgrade=True)
                    done.append((tables, state.revision, find_head(tables)))
        finally:
            engine.dispose()
    if not done:
        raise UsageError(f"{database.location}: has no tables of pneumoscope yet.", parameter="database")
    return done


def find_state(connection: sql.Connection, tables: Tables) -> State:
    """Find out which version some tables have, or why they are not ours. It changes nothing."""
    inspector = sql.inspect(connection)
    present = set(inspector.get_table_names())
    revision = _read_revision(connection, tables, present)
    if revision is None:
        if same := sorted(present & set(tables.metadata.tables)):
            return State("unknown", detail=f"its tables {_list(same)} have no version")
        if present and not any(marks <= present for marks in _OURS):
            return State("unknown", detail=f"it has tables of another program ({_list(sorted(present))})")
        return State("empty")
    scripts = _open_scripts(tables)
    if revision not in {script.revision for script in scripts.walk_revisions()}:
        return State("newer", revision)
    if revision != scripts.get_current_head():
        return State("older", revision)
    faults = [_find_fault(inspector, present, table) for table in tables.metadata.tables.values()]
    if fault := next(filter(None, faults), ""):
        return State("unknown", revision, fault)
    return State("current", revision)


def has_node(connection: sql.Connection) -> bool:
    """Whether the database has tables of a DICOM node."""
    return not {NODE_REVISION, "node_properties"}.isdisjoint(sql.inspect(connection).get_table_names())


def find_head(tables: Tables) -> str:
    """The revision that this version of pneumoscope needs."""
    return str(_open_scripts(tables).get_current_head())


def migrate(connection: sql.Connection, tables: Tables, start: str | None, end: str = "head") -> None:
    """Bring tables from a revision (None: there are none) to another one, in the transaction of the connection."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    scripts = _open_scripts(tables)
    context = MigrationContext.configure(connection, opts={"version_table": tables.revision})
    if start is not None:
        context.stamp(scripts, start)
    operations = Operations(context)
    for script in reversed(list(scripts.iterate_revisions(end, start or "base"))):
        if script.revision != start:
            script.module.upgrade(operations)
            context.stamp(scripts, script.revision)
    # Versions without migrations know only this property. Without it they would use the tables as their own.
    own = _describe_properties(tables)
    connection.execute(sql.delete(own).where(own.c.key == "schema"))
    connection.execute(sql.insert(own).values(key="schema", value=str(int(context.get_current_heads()[0]))))


def _open_scripts(tables: Tables) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(tables.migrations))


def _read_revision(connection: sql.Connection, tables: Tables, present: set[str]) -> str | None:
    """The revision of the tables, also of those made before there were revisions; None: they have none."""
    if tables.revision in present:
        version = sql.table(tables.revision, sql.column("version_num", sql.String))
        return connection.scalar(sql.select(version.c.version_num))
    if tables.properties not in present:
        return None
    properties = _describe_properties(tables)
    if not set(properties.c.keys()) <= {each["name"] for each in sql.inspect(connection).get_columns(properties.name)}:
        return None
    schema = connection.scalar(sql.select(properties.c.value).where(properties.c.key == "schema"))
    return schema if schema is None or not schema.isdecimal() else f"{int(schema):04}"


def _describe_properties(tables: Tables) -> sql.TableClause:
    return sql.table(tables.properties, sql.column("key", sql.String), sql.column("value", sql.Text))


def _find_fault(inspector: sql.Inspector, present: set[str], table: sql.Table) -> str:
    """Why a table cannot be used as ours; empty where it can."""
    if table.name not in present:
        return f"it has no table {table.name}"
    found = {each["name"]: each for each in inspector.get_columns(table.name)}
    if missing := [column.name for column in table.columns if column.name not in found]:
        return f"its table {table.name} has no column {_list(missing)}"
    if more := [name for name, each in found.items() if name not in table.columns and _must_be_given(each)]:
        return f"its table {table.name} needs other columns ({_list(more)})"
    return ""


def _must_be_given(column: Mapping[str, object]) -> bool:
    return not column["nullable"] and column.get("default") is None and not column.get("identity")


def share(connection: sql.Connection) -> None:
    """Begin a transaction that never runs beside one of `locking`; in PostgreSQL, several of these may run at once."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock_shared(_LOCK)))


@contextmanager
def locking(engine: sql.Engine) -> Iterator[sql.Connection]:
    """Begin a transaction that only one process at a time is in."""
    with engine.connect() as connection:
        sqlite = engine.dialect.name == "sqlite"
        try:
            if sqlite:  # a table that others refer to is replaced only where nobody checks the references
                connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
            yield connection
            connection.commit()
        finally:
            connection.rollback()
            if sqlite:
                connection.exec_driver_sql("PRAGMA foreign_keys=ON")


def _bring_up_to_date(connection: sql.Connection, location: str, tables: Tables, upgrade: bool) -> None:
    state = find_state(connection, tables)  # again: another process may have been first
    if state.kind == "older" and not upgrade:
        serving = " (or start with `pneumoscope serve --upgrade`)" if tables.revision == STORE_REVISION else ""
        raise DataError(
            f"{location}: its tables of {tables.name} are those of an earlier version (revision {state.revision}; this "
            f"version needs {find_head(tables)}). Stop what uses the database and back it up. Then run `pneumoscope "
            f"database upgrade`{serving}."
        )
    if state.kind in ("empty", "older"):
        try:
            migrate(connection, tables, state.revision)
        except DBAPIError as problem:
            if state.kind == "empty" or TEMPORARY.search(str(problem.orig)):
                raise
            raise DataError(
                f"{location}: its tables of {tables.name} cannot be upgraded: {explain(problem)}. Nothing was changed. "
                "They may not be those of pneumoscope, or somebody has changed them: restore a backup."
            ) from None
        _check_references(connection, location)
        before, state = state, find_state(connection, tables)
        if before.kind == "older" and state.kind == "current":
            text = "%s: tables of %s upgraded from revision %s to %s."
            logging.getLogger("pneumoscope").info(text, location, tables.name, before.revision, state.revision)
    if state.kind == "newer":
        raise DataError(
            f"{location}: its tables of {tables.name} were made by a newer version (revision {state.revision}; this "
            f"version needs {find_head(tables)}). Upgrade pneumoscope, or choose another `database`."
        )
    if state.kind == "unknown":
        raise UsageError(
            f"{location}: this is not a database of pneumoscope, or one that an unreleased version made: "
            f"{state.detail}. {_WAY_OUT}",
            parameter="database",
        )


def _check_references(connection: sql.Connection, location: str) -> None:
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise DataError(
            f"{location}: it has reviews of predictions that it does not have, so it cannot be upgraded. Nothing was "
            "changed. Restore a backup."
        )


def _list(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
