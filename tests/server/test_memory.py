"""What was read and what reviewers thought of it survives, in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from rooms import draw, run_process, run_thread

from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.store import Memory, Read, Verdict, new_id, now

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind, empty."""
    if request.param == "sqlite":
        return str(tmp_path / "reads.sqlite")
    server: str = request.getfixturevalue("postgresql")
    engine = sql.create_engine(server.replace("postgresql:", "postgresql+pg8000:"), isolation_level="AUTOCOMMIT")
    name = f"room_{new_id()}"
    with engine.connect() as connection:
        connection.execute(sql.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server.rpartition('/')[0]}/{name}"


def make_read(**values: Any) -> Read:
    usual = Read(
        new_id(), now(), "d" * 64, "image.png", "", "model", "f" * 64, "PNEUMONIA", "PNEUMONIA",
        ("PNEUMONIA",), 0.9, 0.9, 0.5,
    )  # fmt: skip
    return replace(usual, **values)


def test_reads_and_verdicts_come_back_as_they_were(url: str) -> None:
    ood = make_read(
        name="Ünïcode ✓.png", decision="out_of_distribution", probability=None, ood_score=None, prediction_set=()
    )
    reads = [make_read(), ood]
    with Memory(url) as memory:
        memory.add_reads(reads)
        verdict = Verdict(ood.id, now(), "ab", False, "NORMAL", "a 'note' with \"quotes\";\n--")
        memory.add_verdict(verdict)
        memory.add_verdict(replace(verdict, agrees=True, label=None, note=""))
    with Memory(url) as memory:
        assert memory.find_read(ood.id) == ood
        assert memory.find_read("nothing") is None
        assert {read.id for read in memory.list_reads(10)} == {read.id for read in reads}
        assert len(memory.list_reads(1)) == 1
        assert memory.list_reads(10, since=now()) == []
        assert memory.count_days(ood.at) == {ood.at.date().isoformat(): 2}
        assert memory.list_verdicts([ood.id])[ood.id][0] == verdict
        assert [read.id for read, _ in memory.list_reviewed()] == [ood.id] * 2


def test_a_batch_is_kept_whole_or_not_at_all(url: str) -> None:
    first, twice = make_read(), make_read()
    with Memory(url) as memory:
        memory.add_reads([twice])
        with pytest.raises(sql.exc.IntegrityError):
            memory.add_reads([first, twice])
        assert memory.find_read(first.id) is None


def test_many_threads_write_side_by_side(url: str) -> None:
    with Memory(url) as memory, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: memory.add_reads([make_read(), make_read()]), range(40)))
        assert len(memory.list_reads(1000)) == 80


def test_two_services_that_begin_at_once_agree_on_a_secret(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        memories = list(pool.map(lambda _: Memory(url), range(4)))
    assert len({memory.name_patient("p1") for memory in memories}) == 1
    for memory in memories:
        memory.close()


def test_a_pseudonym_tells_nothing_elsewhere(tmp_path: Path) -> None:
    with Memory(str(tmp_path / "a")) as one, Memory(str(tmp_path / "b")) as other:
        assert one.name_patient("p1") == one.name_patient("p1") != one.name_patient("p2")
        assert one.name_patient("p1") != other.name_patient("p1")
        assert one.name_patient(None) == ""


@pytest.mark.parametrize("start", ["", "sqlite:///"])
def test_a_database_file_is_its_owners_alone(tmp_path: Path, start: str) -> None:
    with Memory(f"{start}{tmp_path / 'reads.sqlite'}"):
        assert stat.S_IMODE((tmp_path / "reads.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "url",
    [
        "mysql://a@b/c",
        "nothing://",
        "postgresql://a@127.0.0.1:1/none",
        "postgresql://a@b/c?ssl=x&y=z",
        "/proc/no/reads.sqlite",
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_a_password(url: str) -> None:
    with pytest.raises((UsageError, DataError)) as found:
        Memory(url.replace("a@", "a:hunter2@"))
    assert "hunter2" not in str(found.value)


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reads.sqlite"
    Memory(str(path)).close()
    engine = sql.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(sql.text("UPDATE pneumoscope SET value = '99' WHERE key = 'schema'"))
    engine.dispose()
    with pytest.raises(DataError, match="newer"):
        Memory(str(path))


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes" * 100)
    with pytest.raises((UsageError, DataError)):
        Memory(str(path))
    assert path.read_text().startswith("not a database")


def test_a_killed_service_has_lost_no_verdict_that_it_acknowledged(run: Run, url: str) -> None:
    acknowledged: list[str] = []
    with run_process(run.model, url) as process:
        with process.client() as client:
            answer = client.post("/v1/predictions", files=[("files", (f"{i}.png", draw(i))) for i in range(8)])
        numbers = [one["id"] for one in answer.json()["predictions"]]

        def judge(worker: int) -> None:
            with httpx.Client(base_url=process.url) as client:
                for turn in range(10_000):
                    note = f"{worker}-{turn}"
                    try:
                        kept = client.post(
                            f"/v1/reads/{numbers[worker]}/verdicts",
                            json={"verdict": "disagree", "label": "NORMAL", "note": note}
                            if answer.json()["predictions"][worker]["decision"] != "NORMAL"
                            else {"verdict": "agree", "note": note},
                        )
                    except httpx.TransportError:
                        return
                    if kept.status_code == 201:
                        acknowledged.append(note)

        def read(worker: int) -> None:
            with httpx.Client(base_url=process.url) as client, suppress(httpx.TransportError):
                while True:
                    client.post("/v1/predictions", files={"files": ("a.png", draw(worker))})

        threads = [threading.Thread(target=judge, args=(worker,)) for worker in range(8)]
        threads += [threading.Thread(target=read, args=(worker,)) for worker in range(2)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 100:
            assert any(thread.is_alive() for thread in threads)
        process.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
    with Memory(url) as memory:
        kept = {verdict.note for _, verdict in memory.list_reviewed()}
    assert len(acknowledged) >= 100
    assert set(acknowledged) <= kept


def test_a_database_that_is_gone_is_told_and_found_again(settings: Settings, tmp_path: Path) -> None:
    with run_thread(settings) as url:

        def send() -> httpx.Response:
            return httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", draw(3))})

        assert send().status_code == 200
        with sql.create_engine(f"sqlite:///{settings.database}").connect() as connection:
            connection.execute(sql.text("ALTER TABLE reads RENAME TO elsewhere"))
            connection.commit()
            answer = send()
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert "reads" not in answer.text
            connection.execute(sql.text("ALTER TABLE elsewhere RENAME TO reads"))
            connection.commit()
        assert send().status_code == 200


def test_postgresql_that_restarts_is_found_again(postgresql: str) -> None:
    with Memory(postgresql) as memory:
        memory.ping()
        engine = sql.create_engine(postgresql.replace("postgresql:", "postgresql+pg8000:"))
        with engine.connect() as connection:  # as a restart does: every other session ends
            connection.execute(
                sql.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
        engine.dispose()
        memory.ping()


def test_the_users_own_file_is_the_default(tmp_path: Path) -> None:
    script = "from pneumoscope.server.store import Memory; print(Memory().shown)"
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    environment.pop("PNEUMOSCOPE_DATABASE", None)
    call = [sys.executable, "-c", script]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str(tmp_path / "pneumoscope" / "reads.sqlite")
