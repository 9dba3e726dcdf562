"""A database of any earlier version can be brought up to date and keeps what it holds; all others are refused."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sql
from node_rows import fill_queue, list_all, open_queue
from services import draw, run_process
from test_store import facts_of, make_record

from pneumoscope.datasets.pseudonyms import compute_pseudonym
from pneumoscope.dicomnet.tables import TABLES as NODE
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.storage.databases import parse_url
from pneumoscope.server.storage.schema import Tables, find_head, migrate
from pneumoscope.server.storage.store import TABLES as READING_ROOM
from pneumoscope.server.storage.store import Review, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commands import Command
    from pneumoscope.training.train import Run

SCHEMAS = Path(__file__).parent / "schemas"  # the tables as each version made them, before there were migrations
# The tables after each migration. A change of a table is a new migration, and one more line here.
FINGERPRINTS = {
    (READING_ROOM.name, "0001"): "ef1348acba3176c1",
    (READING_ROOM.name, "0002"): "f0b53428026288f3",
    (READING_ROOM.name, "0003"): "e9c7cbc9f21aad0e",
    (READING_ROOM.name, "0004"): "d1ef4a5076f35f41",
    (READING_ROOM.name, "0005"): "170498d4b9592814",
    (READING_ROOM.name, "0006"): "00c4055d5cf442b4",
    (READING_ROOM.name, "0007"): "ce0206a8b0ebc137",
    (READING_ROOM.name, "0008"): "2ba8527a6485d0b8",
    (READING_ROOM.name, "0009"): "6c40e6f225d77009",
    (READING_ROOM.name, "0010"): "1d27acf27233aa80",
    (READING_ROOM.name, "0011"): "bcf148ad28f7d821",
    (READING_ROOM.name, "0012"): "638173caa25a0727",
    (NODE.name, "0001"): "7bc2b084bd2e11c8",
}
KINDS = {READING_ROOM.name: READING_ROOM, NODE.name: NODE}
WHEN = datetime.datetime(2024, 2, 29, 23, 59, 59, 123456)
ROW: dict[str, Any] = {
    "sha256": "d" * 64, "name": "Ünïcode ✓.png", "patient": "0123456789abcdef", "model": "model",
    "fingerprint": "f" * 64, "decision": "PNEUMONIA", "predicted_label": "PNEUMONIA", "probability": 0.9,
    "probabilities": {"NORMAL": 0.1, "PNEUMONIA": 0.9}, "prediction_set": ["PNEUMONIA"], "ood_score": None,
    "warnings": ["lateral view"], "width": 100, "height": 80, "format": "PNG", "invert": True, "any_modality": False,
}  # fmt: skip
SOURCE: dict[str, Any] = {
    "age": 4.5, "sex": "F", "view": "AP", "laterality": "U", "date": "2024-02-29", "accession_number": "A-007",
    "study_uid": "1.2.1", "series_uid": "1.2.2", "sop_uid": "1.2.3",
}  # fmt: skip


@contextmanager
def connect(url: str) -> Iterator[sql.Connection]:
    engine = sql.create_engine(parse_url(url)[0])
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def make_tables(connection: sql.Connection, name: str) -> None:
    file = SCHEMAS / f"{name}.{connection.dialect.name}.sql"
    for statement in file.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            connection.execute(sql.text(statement))


def insert(connection: sql.Connection, table: str, *rows: dict[str, Any]) -> None:
    found = sql.Table(table, sql.MetaData(), autoload_with=connection)
    for row in rows:
        connection.execute(sql.insert(found).values(**row))


def make_earlier(url: str, schema: int) -> list[dict[str, Any]]:
    """A database as an earlier version left it, with three predictions and two reviews; gives the predictions."""
    rows = [ROW | {"id": f"{name}" * 32, "created_at": WHEN - datetime.timedelta(days=day)} for day, name in
            enumerate("cab")]  # fmt: skip
    for row in rows:
        row |= ({"group": "children"} if schema > 1 else {}) | (SOURCE if schema > 2 else {})
    with connect(url) as connection:
        make_tables(connection, f"predictions-{schema}")
        properties = {"schema": str(schema), "secret": "ab" * 32}
        insert(connection, "properties", *({"key": key, "value": value} for key, value in properties.items()))
        insert(connection, "predictions", *rows)
        review = {"prediction_id": "a" * 32, "comment": "", "reviewer": "", "created_at": WHEN}
        insert(
            connection,
            "reviews",
            review | {"agrees": False, "label": "NORMAL"},
            review | {"agrees": True, "label": None, "comment": "ok"},
        )
    return rows


def describe(inspector: sql.Inspector | sql.MetaData, tables: Tables) -> list[str]:
    """The tables in a form that does not depend on the database."""
    if isinstance(inspector, sql.MetaData):
        found = inspector
    else:
        found = sql.MetaData()
        found.reflect(inspector.engine, only=lambda name, _: name in tables.metadata.tables)
    lines = []
    for table in found.tables.values():
        for column in table.columns:
            kind = type(column.type.as_generic()).__name__.replace("Double", "Float").replace("Text", "String")
            length = getattr(column.type, "length", None) or ""
            flags = f"{'null' if column.nullable else ''} {'key' if column.primary_key else ''}"
            lines.append(f"{table.name}.{column.name} {kind}{length} {flags}")
        lines += [
            f"{table.name} index {index.name} {[*index.columns.keys()]} {bool(index.unique)}" for index in table.indexes
        ]
        for constraint in table.constraints:
            if isinstance(constraint, sql.UniqueConstraint):
                lines.append(f"{table.name} unique {[*constraint.columns.keys()]}")
            elif isinstance(constraint, sql.ForeignKeyConstraint):
                to = [element.target_fullname for element in constraint.elements]
                lines.append(f"{table.name} refers {constraint.column_keys} {to}")
    return sorted(lines)


def fingerprint(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_have_changed_only_with_a_migration(url: str, kind: str) -> None:
    tables = KINDS[kind]
    revisions = [revision for name, revision in FINGERPRINTS if name == kind]
    assert revisions[-1] == find_head(tables), "the newest migration has no fingerprint here"
    made: list[str] = []
    for before, revision in itertools.pairwise([None, *revisions]):
        with connect(url) as connection:
            migrate(connection, tables, before, str(revision))
        with connect(url) as connection:
            made = describe(sql.inspect(connection), tables)
        assert fingerprint(made) == FINGERPRINTS[kind, str(revision)], f"{revision}: {made}"
    assert describe(tables.metadata, tables) == made, "a table was changed without a migration"


def test_a_changed_table_has_another_fingerprint() -> None:
    def tell(*columns: sql.Column[Any]) -> str:
        metadata = sql.MetaData()
        sql.Table("a", metadata, sql.Column("id", sql.Integer, primary_key=True), *columns)
        return fingerprint(describe(metadata, READING_ROOM))

    kinds: list[Any] = [sql.String(4), sql.String(5), sql.Double, sql.Integer]
    prints = [tell(), *(tell(sql.Column("b", kind)) for kind in kinds), tell(sql.Column("b", sql.Double, index=True))]
    prints += [tell(sql.Column("b", sql.Double, nullable=False)), tell(sql.Column("b", sql.Double, unique=True))]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_tables_that_earlier_versions_made_are_those_of_their_migration(url: str, schema: int) -> None:
    make_earlier(url, schema)
    with connect(url) as connection:
        made = describe(sql.inspect(connection), READING_ROOM)
    assert fingerprint(made) == FINGERPRINTS[READING_ROOM.name, f"{schema:04}"], made


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_a_database_of_an_earlier_version_is_refused_until_it_is_upgraded(url: str, schema: int) -> None:
    rows = make_earlier(url, schema)
    with pytest.raises(DataError, match=r"earlier version .revision 000\d; .* back it up.*pneumoscope serve --upgrade"):
        Store(url)
    later = make_record(**SOURCE)
    with Store(url, upgrade=True) as store:
        store.add([later])
        store.add([Review(prediction_id=later.id, agrees=True)])
    with Store(url) as store:
        assert store.pseudonymise("p1") == compute_pseudonym(bytes.fromhex("ab" * 32), "p1")
        listed = store.list_predictions(10)
        order = "cab" if "://" in url else "bac"  # SQLite knows in which order they were stored
        assert [record.id[0] for record in listed[1:]] == list(order)
        for row in rows:
            record = next(each for each in listed if each.id == row["id"])
            missing = dict.fromkeys(SOURCE) | {"group": None}
            assert facts_of(record) == missing | row | {"number": record.number}
        assert facts_of(listed[0]) == facts_of(later)
        reviews = [(review.agrees, review.label, review.comment) for record, review in store.list_reviews()]
        assert reviews == [(False, "NORMAL", ""), (True, None, "ok"), (True, None, "")]
        with pytest.raises((sql.exc.IntegrityError, DataError), match=r"(?i)foreign key"):
            store.add([Review(prediction_id="0" * 32, agrees=True)])
        with pytest.raises(sql.exc.IntegrityError):
            store.add([make_record(id=later.id)])


@pytest.mark.parametrize("schema", [None, 1, 3])
def test_services_that_start_at_once_do_not_collide(url: str, schema: int | None) -> None:
    if schema is not None:
        make_earlier(url, schema)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(url, upgrade=True), range(4)))
    assert len({store.pseudonymise("p1") for store in stores}) == 1
    assert {len(store.list_predictions(10)) for store in stores} == {0 if schema is None else 3}
    for store in stores:
        store.close()


def test_processes_that_upgrade_at_once_do_not_collide(url: str) -> None:
    make_earlier(url, 1)
    command = [sys.executable, "-m", "pneumoscope", "database", "upgrade", "--database", url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert all(f"revision {find_head(READING_ROOM)}" in text for text in said)
    with Store(url) as store:
        assert len(store.list_predictions(10)) == 3


def test_an_upgrade_that_fails_changes_nothing(url: str) -> None:
    make_earlier(url, 1)
    with connect(url) as connection:  # somebody has added it by hand; the first migration succeeds, the second fails
        connection.execute(sql.text("ALTER TABLE predictions ADD COLUMN sex TEXT"))
    with connect(url) as connection:
        before = describe(sql.inspect(connection), READING_ROOM)
    with pytest.raises(DataError, match=r"cannot be upgraded: .*sex.* Nothing was changed"):
        Store(url, upgrade=True)
    with connect(url) as connection:
        assert describe(sql.inspect(connection), READING_ROOM) == before
        assert connection.scalar(sql.text("SELECT value FROM properties WHERE key = 'schema'")) == "1"


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    Store(url).close()
    with connect(url) as connection:
        connection.execute(sql.text(f"UPDATE {READING_ROOM.revision} SET version_num = '9999'"))
    for upgrade in (False, True):
        with pytest.raises(DataError, match=r"newer version .*Upgrade pneumoscope"):
            Store(url, upgrade=upgrade)


def test_versions_without_migrations_see_that_a_database_is_newer(url: str) -> None:
    Store(url).close()
    with connect(url) as connection:
        schema = connection.scalar(sql.text("SELECT value FROM properties WHERE key = 'schema'"))
    assert int(str(schema)) == int(find_head(READING_ROOM)) > 3


def test_earlier_reviews_keep_their_answers(url: str) -> None:
    make_earlier(url, 2)
    with Store(url, upgrade=True) as store:
        assert [(review.answer, review.agrees) for _, review in store.list_reviews()] == [
            ("disagree", False), ("agree", True),
        ]  # fmt: skip


FOREIGN = {
    "another program's": ["CREATE TABLE films (id INTEGER)"],
    "without a version": ["CREATE TABLE predictions (id INTEGER)"],
    "with properties of its own": ["CREATE TABLE properties (name TEXT)", "CREATE TABLE predictions (id INTEGER)"],
    "with other columns": [f"CREATE TABLE {READING_ROOM.revision} (version_num VARCHAR(32))",
                           f"INSERT INTO {READING_ROOM.revision} VALUES ('{find_head(READING_ROOM)}')",
                           "CREATE TABLE properties (key TEXT, value TEXT)", "CREATE TABLE reviews (number INTEGER)",
                           "CREATE TABLE predictions (id INTEGER)"],
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("upgrade", [False, True])
def test_a_foreign_database_is_refused_and_left_alone(url: str, kind: str, upgrade: bool) -> None:
    with connect(url) as connection:
        for statement in FOREIGN[kind]:
            connection.execute(sql.text(statement))
    before = Path(url).read_bytes() if "://" not in url else b""
    with pytest.raises(UsageError, match="not a database of pneumoscope") as error:
        Store(url, upgrade=upgrade)
    assert "Choose another `database`" in str(error.value)
    assert before == (Path(url).read_bytes() if "://" not in url else b"")


def test_a_table_that_needs_other_columns_is_refused(url: str) -> None:
    Store(url).close()
    with connect(url) as connection:
        connection.execute(sql.text("DROP TABLE reviews"))
        columns = "prediction_id TEXT, agrees BOOLEAN, label TEXT, comment TEXT, reviewer TEXT, created_at TIMESTAMP"
        more = "answer TEXT, verified BOOLEAN, number INTEGER, stars INTEGER NOT NULL"
        connection.execute(sql.text(f"CREATE TABLE reviews ({columns}, {more})"))
    with pytest.raises(UsageError, match=r"reviews needs other columns .stars"):
        Store(url)


def test_the_tables_of_the_node_made_by_earlier_versions_are_used(url: str) -> None:
    with connect(url) as connection:
        make_tables(connection, "node-1")
        insert(connection, "node_properties", {"key": "schema", "value": "1"})
    with connect(url) as connection:
        made = describe(sql.inspect(connection), NODE)
    assert fingerprint(made) == FINGERPRINTS[NODE.name, "0001"], made
    fill_queue(url)
    with open_queue(url) as queue:
        assert list_all(queue)


def test_node_and_reading_room_share_a_database_in_either_order(url: str) -> None:
    fill_queue(url)
    with Store(url) as store:
        store.add([make_record()])
    with open_queue(url), Store(url) as store:
        assert len(store.list_predictions(10)) == 1


def test_reading_room_and_node_share_an_earlier_database(url: str) -> None:
    make_earlier(url, 3)
    fill_queue(url)
    with Store(url, upgrade=True) as store:
        assert len(store.list_predictions(10)) == 3


def test_serve_refuses_an_earlier_database_and_upgrades_it_if_told(run: Run, tmp_path: Path, command: Command) -> None:
    database = str(tmp_path / "predictions.sqlite")
    make_earlier(database, 3)
    done = command("serve", "--model", run.model, "--database", database, "--port", "0")
    assert done.code == 3
    assert "pneumoscope serve --upgrade" in done.err
    done = command("reviews", "export", "--out", tmp_path / "a.csv", "--images", tmp_path, "--database", database)
    assert done.code == 3
    assert "pneumoscope database upgrade" in done.err
    with run_process(run.model, database, "--upgrade") as process, process.client() as client:
        assert len(client.get("/v1/predictions").json()["predictions"]) == 3
        assert client.post("/v1/predictions", files={"files": ("a.png", draw(1))}).status_code == 201
        process.end(signal.SIGTERM)


def test_an_upgrade_without_serving(tmp_path: Path, command: Command) -> None:
    database = tmp_path / "predictions.sqlite"
    assert command("database", "upgrade", "--database", database).code == 2
    make_earlier(str(database), 2)
    fill_queue(str(database))
    done = command("database", "upgrade", "--database", database)
    assert (done.code, done.out) == (0, "")
    assert f"the reading room: revision {find_head(READING_ROOM)}, upgraded from revision 0002" in done.err
    assert "the DICOM node: revision 0001, was up to date" in done.err
    with Store(str(database)) as store:
        assert len(store.list_predictions(10)) == 3
