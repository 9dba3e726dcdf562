"""What the service does in its database, a PostgreSQL of ten million predictions: how long each request takes.

    python benchmarks/database_scale.py                              # starts a PostgreSQL of its own, and ends it
    python benchmarks/database_scale.py --predictions 100000
    python benchmarks/database_scale.py --database postgresql://USER@HOST/NAME --keep    # an empty database is filled

The database holds simulated predictions of two years by three models, reviews of a tenth of them, readings of a
hundredth, an audit log, and the answers to a day's requests with keys. Scans of a whole table are named.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from pneumoscope.images.read import Reading
from pneumoscope.server.access.callers import Caller
from pneumoscope.server.messages.predictions import ListQuery, PageQuery
from pneumoscope.server.messages.readings import ReadingQuery
from pneumoscope.server.readings import readings
from pneumoscope.server.storage import image_reviews, queries
from pneumoscope.server.storage.audit import SERVICE, log_change
from pneumoscope.server.storage.audit_messages import AuditQuery
from pneumoscope.server.storage.audit_table import list_entries
from pneumoscope.server.storage.databases import parse_url
from pneumoscope.server.storage.erasure import erase
from pneumoscope.server.storage.records import find_start
from pneumoscope.server.storage.store import PredictionRecord, Review, Store, now
from pneumoscope.server.storage.studies import list_studies

LARGE = ("predictions", "audit", "reviews", "readings", "shadow_predictions", "answered_requests")
SLOW = 3.0  # seconds, after which something is measured only once
FILL = Path(__file__).with_suffix(".sql")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=10_000_000)
    parser.add_argument("--database", help="a database of a PostgreSQL; it is filled if it has no predictions")
    parser.add_argument("--keep", action="store_true", help="leave the database as it is; else its tables are dropped")
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with serving() if given.database is None else keeping(given.database) as url:
        fill(url, given.predictions)
        start = time.perf_counter()
        with Store(url, upgrade=True) as store:
            print(f"\nopened, and upgraded if it was older: {time.perf_counter() - start:.1f} s")
            measure(store, given.rounds, given.only)
        print_sizes(url)
        if given.database and not given.keep:
            run(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


@contextmanager
def keeping(url: str) -> Iterator[str]:
    """A database that exists."""
    yield url


@contextmanager
def serving() -> Iterator[str]:
    """A PostgreSQL in a temporary folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    program = programs[-1] if programs else Path(shutil.which("postgres") or "")
    folder = Path(tempfile.mkdtemp(prefix="database-scale-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
        for each in folder.parents:
            each.chmod(each.stat().st_mode | 0o011)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    make = [*as_user, str(program.parent / "initdb"), "-D", str(folder / "data"), "-U", "reader", "-A", "trust"]
    subprocess.run([*make, "-E", "UTF8", "--no-locale"], check=True, capture_output=True, cwd="/")
    options = ("shared_buffers=1GB", "maintenance_work_mem=512MB", "max_wal_size=8GB")
    command = [*as_user, str(program), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
    command += ["-h", "127.0.0.1", *(part for option in options for part in ("-c", option))]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/")
    try:
        ready = [str(program.parent / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        while subprocess.run(ready, check=False).returncode:
            time.sleep(0.1)
        yield f"postgresql://reader@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
        shutil.rmtree(folder)


def run(url: str, *statements: str) -> Any:
    """Execute statements, each at once; give the rows of the last."""
    engine = sql.create_engine(parse_url(url)[0], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            found = connection.exec_driver_sql(statement)
        rows = found.all() if found.returns_rows else []
    engine.dispose()
    return rows


def fill(url: str, predictions: int) -> None:
    """Make the tables and fill them, without their indices meanwhile."""
    Store(url, upgrade=False).close() if not run(url, "SELECT to_regclass('predictions')")[0][0] else None
    if run(url, "SELECT 1 FROM predictions LIMIT 1"):
        return
    start = time.perf_counter()
    engine = sql.create_engine(parse_url(url)[0])
    made = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname LIKE 'ix_%'"
    with engine.begin() as connection:
        connection.exec_driver_sql("SET synchronous_commit = off")
        indices = connection.exec_driver_sql(made).scalars().all()
        for each in indices:
            connection.exec_driver_sql(f"DROP INDEX {each.split()[2 if ' UNIQUE ' not in each else 3]}")
        connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER USER")
        connection.exec_driver_sql(f"CREATE TEMP TABLE wanted AS SELECT {predictions} AS n")
        for statement in FILL.read_text(encoding="utf-8").split(";\n"):
            if statement.strip():
                begun = time.perf_counter()
                connection.exec_driver_sql(statement)
                print(f"{time.perf_counter() - begun:8.1f} s  {' '.join(statement.split())[:80]}", flush=True)
        for each in indices:
            begun = time.perf_counter()
            connection.exec_driver_sql(each)
            print(f"{time.perf_counter() - begun:8.1f} s  {each[:80]}", flush=True)
        connection.exec_driver_sql("ALTER TABLE audit ENABLE TRIGGER USER")
    engine.dispose()
    run(url, "VACUUM (ANALYZE)", "CHECKPOINT")
    print(f"filled in {time.perf_counter() - start:.0f} s")


def measure(store: Store, rounds: int, only: str) -> None:
    """Print how long each request takes."""
    watched: list[tuple[str, Any]] = []
    sql.event.listen(store._engine, "before_cursor_execute", lambda *found: watched.append((found[2], found[3])))
    print("\n| what | median | slowest | scans of a whole table |\n| --- | --- | --- | --- |")
    for name, job in list_jobs(store):
        if only not in name:
            continue
        watched.clear()
        seconds = []
        for i in range(rounds):
            start = time.perf_counter()
            try:
                job(i)
            except Exception as problem:
                print(f"| {name} | failed: {type(problem).__name__}: {str(problem)[:100]} | | |", flush=True)
                break
            seconds.append(time.perf_counter() - start)
            if seconds[-1] > SLOW:
                break
        else:
            i = rounds
        if seconds:
            kept = list(watched)
            scans = sorted({scan for statement in kept[:20] for scan in find_scans(store, *statement)})
            show = f"{statistics.median(seconds) * 1000:,.1f} ms | {max(seconds) * 1000:,.1f} ms"
            print(f"| {name} | {show} | {', '.join(scans)} |", flush=True)


def find_scans(store: Store, statement: str, parameters: Any) -> list[str]:
    """The large tables that a statement reads from beginning to end."""
    if not statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE")):
        return []
    engine = store._impatient
    try:
        with engine.connect() as connection:
            (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    except sql.exc.SQLAlchemyError:
        return []

    def look(node: dict[str, Any]) -> Iterator[str]:
        if "Seq Scan" in node["Node Type"] and node["Relation Name"] in LARGE:
            yield node["Relation Name"]
        for each in node.get("Plans", ()):
            yield from look(each)

    return list(look(plan["Plan"]))


def list_jobs(store: Store) -> Iterator[tuple[str, Callable[[int], object]]]:
    """What to measure."""
    with store.read() as connection:
        highest: int = connection.execute(sql.select(sql.func.max(PredictionRecord.number))).scalar_one()
        step = highest // 50 // 100 * 100 + 1  # so that all kinds of predictions are among them
        some = connection.execute(
            sql.select(PredictionRecord.id, PredictionRecord.sha256, PredictionRecord.patient,
                       PredictionRecord.study_uid, PredictionRecord.model, PredictionRecord.fingerprint)
            .where(PredictionRecord.number.in_(range(step, highest, step)))
            .order_by(PredictionRecord.number)
        ).all()  # fmt: skip
    patients = [row for row in some if row.patient]
    studies = [row for row in some if row.study_uid]
    reader = Caller(name="Dr 1", role="read", source="token", address="")
    deep = queries.write_cursor(highest // 2)

    def show(**wanted: Any) -> Callable[[int], object]:
        return lambda _: queries.list_predictions(store, ListQuery(**wanted), reader)

    numbers = itertools.count()

    def add(_: int) -> None:
        records = []
        for each in range(32):
            digest = f"{next(numbers):064x}"
            records.append(make_record(digest, f"new{each % 8}"))
        store.add([row for record in records for row in (record, log_change(store, SERVICE, "predict", record))])

    yield "store 32 predictions with their log entries", add
    yield "one prediction", lambda i: queries.find_prediction(store, some[i % len(some)].id)
    yield (
        "the same file again",
        lambda i: queries.find_same(store, [queries.Key(some[i % len(some)].sha256, some[0].fingerprint, Reading())]),
    )
    yield "the reviews of 500 files", lambda _: image_reviews.find_reviews(store, [row.sha256 for row in some] * 10)
    yield "store a review", lambda i: store.add([Review(prediction_id=some[i % len(some)].id, agrees=True)])
    yield "predictions: first page", show()
    yield "predictions: first page of 500", show(limit=500)
    yield "predictions: page in the middle", show(cursor=deep)
    yield "predictions: of a patient", lambda i: show(patient=patients[i % len(patients)].patient)(i)
    yield "predictions: of an unknown patient", show(patient="0" * 16)
    yield "predictions: of a study", lambda i: show(study=studies[i % len(studies)].study_uid)(i)
    yield "predictions: a usual decision", show(decision="PNEUMONIA")
    yield "predictions: a rare, old decision", show(decision="BACTERIA")
    yield "predictions: of the model in use", show(model=some[-1].model)
    yield "predictions: of an earlier model", show(model=some[0].model)
    yield "predictions: of an earlier model, by fingerprint", show(model=some[0].fingerprint)
    yield "predictions: of an unknown model", show(model="unknown")
    yield "predictions: since an hour", show(since=now() - datetime.timedelta(hours=1))
    yield (
        "predictions: since a year, one decision of an earlier model",
        show(since=now() - datetime.timedelta(days=365), decision="uncertain", model=some[0].model),
    )
    yield "predictions: reviewed", show(reviewed=True)
    yield "predictions: not reviewed", show(reviewed=False)
    yield "predictions: for a second reading", show(second_reading=True)
    yield "predictions: for a second reading, in the middle", show(second_reading=True, cursor=deep)
    yield "predictions: with a disagreement", show(disagreement=True)
    yield "predictions: with a disagreement, of a rare decision", show(disagreement=True, decision="BACTERIA")
    yield "studies: first page", lambda _: list_studies(store, PageQuery())
    yield "studies: page in the middle", lambda _: list_studies(store, PageQuery(cursor=deep))
    yield from list_jobs_of_log(store, some, patients, highest)
    yield from list_summaries(store)
    yield from list_deletions(store, patients)


def list_jobs_of_log(
    store: Store, some: Any, patients: Any, highest: int
) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Pages of the audit log and of readings."""

    def show(**wanted: Any) -> Callable[[int], object]:
        return lambda _: list_entries(store, AuditQuery(**wanted))

    yield "audit log: first page", show()
    yield "audit log: page in the middle", show(cursor=queries.write_cursor(highest // 2))
    yield "audit log: of a patient", lambda i: show(patient=patients[i % len(patients)].patient)(i)
    yield "audit log: of a prediction", lambda i: show(prediction=some[i % len(some)].id)(i)
    yield "audit log: of a caller who has left", show(caller="Dr 99")
    yield "audit log: of a rare action", show(action="erase")
    yield "audit log: since an hour", show(since=now() - datetime.timedelta(hours=1))
    yield "readings: first page", lambda _: readings.list_readings(store, ReadingQuery())
    yield (
        "readings: of a file",
        lambda i: readings.list_readings(store, ReadingQuery(sha256=some[i % len(some)].sha256)),
    )
    yield "readings: of a reader", lambda _: readings.list_readings(store, ReadingQuery(reader="Dr 99"))
    yield (
        "which of 500 files a reader has read",
        lambda _: readings.find_read(store, "Dr 1", [row.sha256 for row in some] * 10),
    )


def _call(function: Callable[..., object], *arguments: Any) -> object:
    """Call a function with all but the number of the round."""
    return function(*arguments[:-1])


def list_summaries(store: Store) -> Iterator[tuple[str, Callable[[int], object]]]:
    """What monitoring, agreement and exports read."""
    for days in (30, 365):
        since = find_start(days)
        yield f"monitoring, {days} days: predictions by day", partial(_call, store.count_by_day, since)
        yield f"monitoring, {days} days: outcomes", partial(_call, store.list_outcomes, 50_000, since)
        yield f"monitoring, {days} days: reviews", partial(_call, store.list_reviews, since, 50_000)
    from pneumoscope.server.monitoring import watch

    yield "monitoring: whether anything has changed", lambda _: watch._find_state(store)
    yield "all readings", lambda _: readings.list_all(store)
    yield "all reviews, for their export", lambda _: sum(1 for _ in store.list_reviews())


def list_deletions(store: Store, patients: Any) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Erasure, and deletion of what is old."""
    yield "erase a patient", lambda i: erase(store, None, patient=patients[-1 - i].patient)
    with store.read() as connection:
        column = PredictionRecord.created_at
        oldest = sql.select(column).order_by(PredictionRecord.number).offset(2000).limit(1)
        before = connection.scalar(oldest)
    yield (
        "delete the 2,000 oldest predictions",
        lambda _: store.delete(
            [row.id for row in store.find_images(before=before)], [SERVICE.to_entry("expire", count=2000)]
        ),
    )


def make_record(sha256: str, patient: str) -> PredictionRecord:
    """A prediction that is new."""
    return PredictionRecord(
        sha256=sha256, name="image.dcm", patient=patient, model="pneumonia-c", fingerprint="c" * 64,
        decision="NORMAL", predicted_label="NORMAL", probability=0.1, probabilities={"NORMAL": 0.9, "PNEUMONIA": 0.1},
        prediction_set=["NORMAL"], ood_score=0.5, warnings=[], width=1024, height=1024, format="DICOM",
    )  # fmt: skip


def print_sizes(url: str) -> None:
    """Print the rows and bytes of tables and indices."""
    tables = "SELECT relname, n_live_tup, pg_table_size(relid), pg_indexes_size(relid) FROM pg_stat_user_tables"
    print("\n| table | rows | table | indices |\n| --- | --- | --- | --- |")
    for name, rows, size, indices in run(url, f"{tables} ORDER BY 3 DESC"):
        print(f"| {name} | {rows:,} | {size / 1e6:,.0f} MB | {indices / 1e6:,.0f} MB |")
    indices = "SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes ORDER BY 2 DESC LIMIT 20"
    print("\n".join(f"{name}: {size / 1e6:,.0f} MB" for name, size in run(url, indices)))


if __name__ == "__main__":
    main()
