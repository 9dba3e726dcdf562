"""Keeping for a time, erasing a patient, backing up and restoring, and a key outside the database."""

from __future__ import annotations

import datetime
import hashlib
import os
import sqlite3
import stat
import subprocess
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from benches import Bench
from peers import write_image
from services import draw, run_thread, wait_until
from test_migrations import connect, make_earlier
from test_store import facts_of, make_record

from pneumoscope.datasets.pseudonyms import KEY_FILE
from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.monitoring.watch import Watch
from pneumoscope.server.periods import read_period
from pneumoscope.server.storage.backups import back_up, restore
from pneumoscope.server.storage.databases import parse_url
from pneumoscope.server.storage.erasure import erase
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.retention import Retention
from pneumoscope.server.storage.store import TABLES, Review, Store, now

if TYPE_CHECKING:
    from commands import Command
    from pneumoscope.server.settings import Settings

OLD, RECENT = now() - datetime.timedelta(days=31), now() - datetime.timedelta(days=29)
DAYS = datetime.timedelta(days=30)


def keep(kept: KeptImages, sha256: str) -> None:
    kept.confirm(filter(None, [kept.keep(b"image", sha256, "PNG")]))


def add(store: Store, kept: KeptImages | None = None, **values: Any) -> str:
    """A prediction with a review, and its image; gives its id."""
    record = make_record(**values)
    if kept is not None:
        keep(kept, record.sha256)
        moment = record.created_at.replace(tzinfo=datetime.UTC).timestamp()
        os.utime(kept.folder / f"{record.sha256}.png", (moment, moment))
    store.add([record])
    store.add([Review(prediction_id=record.id, agrees=True, label="PNEUMONIA")])
    return record.id


def list_ids(store: Store) -> set[str]:
    return {record.id for record in store.list_predictions(1000)}


def test_what_is_too_old_is_deleted_and_nothing_else(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptImages(tmp_path / "images")
    (kept.folder / "notes.txt").write_text("somebody's")
    os.utime(kept.folder / "notes.txt", (0, 0))
    caplog.set_level("INFO")
    with Store(url) as store:
        gone = {add(store, kept, sha256=f"{i:064x}", created_at=OLD) for i in range(3)}
        again = add(store, kept, sha256=f"{9:064x}", created_at=OLD)
        stays = {add(store, kept, sha256=f"{i:064x}", created_at=RECENT) for i in range(3, 6)}
        stays.add(add(store, kept, sha256=f"{9:064x}", created_at=RECENT))
        keep(kept, f"{7:064x}")  # of a prediction that is about to be stored
        Retention(store, kept, DAYS).run()
        assert list_ids(store) == stays
        assert again not in stays
        assert {record.id for record, _ in store.list_reviews()} == stays
        assert gone.isdisjoint(stays)
        Retention(store, kept, DAYS).run()
    names = {path.name for path in kept.folder.iterdir()}
    assert names == {"notes.txt", *(f"{i:064x}.png" for i in (3, 4, 5, 7, 9))}
    lines = [line for line in caplog.messages if "deleted: " in line]
    assert len(lines) == 1
    assert "deleted: 4 predictions, 4 reviews, 3 kept images" in lines[0]


def test_a_file_whose_service_was_killed_before_its_prediction_was_stored_is_deleted(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kept = KeptImages(tmp_path / "images")
    stored, lost, recent, elsewhere = (f"{i:064x}" for i in range(4))
    with Store(settings.database) as store:
        store.add([make_record(sha256=stored)])
    for sha256 in (stored, lost, recent):
        assert kept.keep(b"image", sha256, "PNG") is not None
    keep(kept, elsewhere)  # a service with another database may use the same folder
    (kept.folder / f".{lost}.png.new.1a2b3c4d.part").write_bytes(b"ima")
    (kept.folder / "notes.new").write_text("somebody's")
    assert all(kept.read(sha256, "PNG") == b"image" and kept.has(sha256, "PNG") for sha256 in (stored, lost))
    for path in kept.folder.iterdir():
        if not path.name.startswith(recent):
            os.utime(path, (0, 0))
    with run_thread(replace(settings, keep_images=kept.folder)):
        wait_until(lambda: "Deleted: 2 files" in caplog.text)
    names = {path.name for path in kept.folder.iterdir()}
    assert names == {f"{stored}.png", f"{elsewhere}.png", f"{recent}.png.new", "notes.new"}


def test_deleting_a_file_does_not_list_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptImages(tmp_path / "images")
    keep(kept, f"{1:064x}")
    kept.keep(b"image", f"{2:064x}", "DICOM")
    keep(kept, f"{3:064x}")
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("it was listed"))
    assert kept.delete([f"{1:064x}", f"{2:064x}", f"{4:064x}"]) == 2
    monkeypatch.undo()
    assert [path.name for path in kept.folder.iterdir()] == [f"{3:064x}.png"]


def test_a_service_deletes_what_is_too_old_when_it_starts(settings: Settings) -> None:
    with Store(settings.database) as store:
        add(store, created_at=OLD)
        stays = add(store, created_at=RECENT)
    with run_thread(replace(settings, keep_for="30d")) as url:

        def list_shown() -> list[str]:
            return [each["id"] for each in httpx.get(f"{url}/v1/predictions").json()["predictions"]]

        wait_until(lambda: list_shown() == [stays])
    with run_thread(settings) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_an_unforeseen_error_does_not_end_what_is_done_again_and_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = {"run": 0, "refresh": 0}

    def fail(name: str) -> Any:
        def work(*_: object) -> None:
            calls[name] += 1
            raise ZeroDivisionError("TERCES"[::-1])  # the log quotes lines of code

        return work

    for name, value in (
        ("storage.retention._EVERY", 0.01),
        ("monitoring.watch._SUMMARY_EVERY", 0.01),
        ("monitoring.watch._REST", 0.0),
    ):
        monkeypatch.setattr(f"pneumoscope.server.{name}", value)
    monkeypatch.setattr(Retention, "run", fail("run"))
    monkeypatch.setattr(Watch, "refresh", fail("refresh"))
    with run_thread(replace(settings, keep_for="30d")):
        wait_until(lambda: min(calls.values()) > 1, 10)
    assert "ZeroDivisionError" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("text", ["30", "d", "0d", "-3d", "30 days", "1.5d", "", "999999d"])
def test_a_period_is_a_number_with_a_unit(text: str) -> None:
    assert read_period("30d", "keep_for") == DAYS
    assert read_period("12h", "keep_for") == datetime.timedelta(hours=12)
    assert read_period("2w", "keep_for") == datetime.timedelta(weeks=2)
    with pytest.raises(UsageError, match="such as 12h, 30d or 52w"):
        read_period(text, "keep_for")


@pytest.mark.parametrize("named", ["id", "pseudonym", "study"])
def test_a_patient_or_a_study_is_erased_everywhere_and_nobody_else(
    url: str, tmp_path: Path, command: Command, named: str
) -> None:
    images = tmp_path / "images"
    kept = KeptImages(images)
    with Store(url) as store:
        whose = {name: store.pseudonymise(name) for name in ("P1", "P2")}
        theirs = {
            add(store, kept, patient=whose["P1"], sha256=f"{i:064x}", study_uid="1.2.3", name=f"SECRET{i}")
            for i in range(3)
        }
        others = {
            add(store, kept, patient=whose["P2"], sha256=f"{7:064x}", study_uid="1.2.4"),
            add(store, kept, patient="", sha256=f"{8:064x}"),
        }
    flags = {"id": ["--patient", "P1"], "pseudonym": ["--patient", whose["P1"]], "study": ["--study", "1.2.3"]}[named]
    where = ("--database", url, "--images", images)
    done = command("database", "erase", *flags, *where, "--dry-run")
    assert "Would erase: 3 predictions" in done.out, done.err
    with Store(url) as store:
        assert list_ids(store) == theirs | others
    done = command("database", "erase", *flags, *where)
    assert "Erased: 3 predictions, 3 reviews, 3 kept images" in done.out, done.err
    assert "backups" in done.err
    with Store(url) as store:
        assert list_ids(store) == others
    assert {path.stem for path in images.iterdir()} == {f"{7:064x}", f"{8:064x}"}
    if "://" not in url:  # nor is it left in parts of the file that are free
        assert all(b"SECRET" not in path.read_bytes() for path in Path(url).parent.glob("predictions.sqlite*"))
    assert "Erased: 0 predictions" in command("database", "erase", *flags, *where).out


def test_what_is_stored_while_an_erasure_waits_is_erased_with_its_image(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, lock = KeptImages(tmp_path / "images"), Store.lock
    with Store(url) as store:
        patient = store.pseudonymise("P1")

        def wait(own: Store) -> Any:  # another process stores one just before
            add(own, kept, patient=patient, sha256=f"{1:064x}")
            return lock(own)

        monkeypatch.setattr(Store, "lock", wait)
        erased = erase(store, kept, patient="P1")
        assert (erased.predictions, erased.images) == (1, 1)
        assert not list_ids(store)
    assert not list(kept.folder.iterdir())


def test_erasing_needs_one_thing_to_erase(tmp_path: Path, command: Command) -> None:
    database = tmp_path / "predictions.sqlite"
    with Store(str(database)) as store:
        ids = {add(store)}
    for flags in ([], ["--patient", "a", "--study", "1.2"], ["--patient", ""]):
        done = command("database", "erase", "--database", database, *flags)
        assert (done.code, "Give either --patient or --study" in done.err) == (2, True)
    with Store(str(database)) as store:
        assert list_ids(store) == ids


def test_a_study_is_erased_from_a_node_and_its_spool(tmp_path: Path, command: Command) -> None:
    bench = Bench(tmp_path)
    for study, number in ((1, 1), (1, 2), (2, 3)):
        bench.receive(write_image(tmp_path / f"{number}.dcm", study, number))
    bench.work()
    where = ("--database", bench.database, "--study", "1.2.3.1")
    spool = ("--spool", bench.settings.spool)
    done = command("database", "erase", *where, *spool)
    assert (done.code, "another process" in done.err) == (2, True)
    bench.stop()
    done = command("database", "erase", *where)
    assert "2 images of a DICOM node remain: stop it and give --spool" in done.err
    done = command("database", "erase", *where, *spool)
    assert "2 images of a DICOM node" in done.out, done.err
    kinds = ("node_images", "node_studies")
    assert [bench.rows(f"SELECT count(*) FROM {kind}")[0][0] for kind in kinds] == [1, 1]
    files = [path for path in bench.settings.spool.rglob("*.dcm") if b"SECRET1" in path.read_bytes()]
    assert files == []
    bench.restart()
    bench.work()
    assert bench.queue.count()[0] == {"answered": 1}
    bench.stop()


def test_a_patient_can_still_be_found_where_images_of_a_node_remain(tmp_path: Path, command: Command) -> None:
    bench = Bench(tmp_path)
    content = write_image(tmp_path / "1.dcm", 1, 1)
    bench.receive(content)
    bench.work()
    bench.stop()
    sha256 = hashlib.sha256(content.read_bytes()).hexdigest()
    with Store(bench.database) as store:
        add(store, patient=store.pseudonymise("P1"), sha256=sha256, study_uid="1.2.3.1")
    where = ("--database", bench.database, "--patient", "P1")
    done = command("database", "erase", *where)
    assert "1 images of a DICOM node remain: stop it and give --spool" in done.err
    assert "Erased: 0 predictions" in done.out
    done = command("database", "erase", *where, "--spool", bench.settings.spool)
    assert "Erased: 1 predictions, 1 reviews" in done.out, done.err
    assert "1 images of a DICOM node" in done.out
    assert [path for path in bench.settings.spool.rglob("*.dcm") if b"SECRET1" in path.read_bytes()] == []


def test_kept_images_that_are_not_looked_for_are_named(tmp_path: Path, command: Command) -> None:
    database, kept = str(tmp_path / "predictions.sqlite"), KeptImages(tmp_path / "images")
    with Store(database) as store:
        add(store, kept, study_uid="1.2.3", sha256="a" * 64)
        add(store, kept, study_uid="1.2.4", sha256="b" * 64)
        add(store, kept, study_uid="1.2.3", sha256="b" * 64)
    done = command("database", "erase", "--database", database, "--study", "1.2.3")
    assert "a" * 64 in done.err
    assert "b" * 64 not in done.err  # another study has it


def test_a_backup_made_while_the_database_is_written_has_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    url, copy = str(tmp_path / "predictions.sqlite"), tmp_path / "backup.sqlite"
    end, written = threading.Event(), []
    with Store(url) as store:

        def write() -> None:
            while not end.is_set():
                written.append(add(store))

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: len(written) > 20)
        before = set(written)
        back_up(url, copy)
        end.set()
        writer.join()
        after = {record.id: facts_of(record) for record in store.list_predictions(100_000)}
        pseudonym = store.pseudonymise("p1")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    other = tmp_path / "new" / "predictions.sqlite"
    restore(copy, str(other), [TABLES])
    with Store(str(other)) as restored:
        found = {record.id: facts_of(record) for record in restored.list_predictions(100_000)}
        assert before <= set(found) <= set(after)
        assert all(after[key] == facts for key, facts in found.items())
        assert len(restored.list_reviews()) in (len(found), len(found) - 1)  # one may be on its way
        assert restored.pseudonymise("p1") == pseudonym
        with pytest.raises(UsageError, match="another process uses it"):
            restore(copy, str(other), [TABLES], overwrite=True)


def test_a_backup_takes_the_place_of_a_damaged_database(tmp_path: Path, command: Command) -> None:
    database, copy = tmp_path / "predictions.sqlite", tmp_path / "backup.sqlite"
    with Store(str(database)) as store:
        ids = {add(store)}
        assert command("database", "backup", "--out", copy, "--database", database).code == 0
        assert command("database", "backup", "--out", copy, "--database", database).code == 2  # it exists
    database.write_bytes(b"damaged" * 1000)
    done = command("database", "restore", copy, "--database", database)
    assert (done.code, "--overwrite" in done.err) == (2, True)
    done = command("database", "restore", copy, "--database", database, "--overwrite")
    assert done.code == 0, done.err
    with Store(str(database)) as store:
        assert list_ids(store) == ids


def test_a_database_of_an_earlier_version_is_backed_up_and_restored_as_it_is(tmp_path: Path) -> None:
    earlier, copy, other = (str(tmp_path / name) for name in ("a", "b", "c"))
    make_earlier(earlier, 1)
    back_up(earlier, Path(copy))
    with Store(earlier, upgrade=True):
        pass
    restore(Path(copy), other, [TABLES])
    with pytest.raises(DataError, match="earlier version"):
        Store(other)


def test_what_is_not_a_backup_is_not_restored(tmp_path: Path) -> None:
    target = tmp_path / "predictions.sqlite"
    (notes := tmp_path / "notes.txt").write_text("somebody's notes" * 1000)
    sqlite3.connect(films := tmp_path / "films.sqlite").execute("CREATE TABLE films (id INTEGER)").connection.close()
    for file in (notes, films):
        with pytest.raises(DataError):
            restore(file, str(target), [TABLES])
    with pytest.raises(UsageError, match="no such file"):
        restore(tmp_path / "nothing", str(target), [TABLES])
    assert not target.exists()


def test_a_postgresql_is_backed_up_by_its_own_programs(postgresql: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pg_dump"):
        back_up(postgresql, tmp_path / "a")
    with pytest.raises(UsageError, match="pg_restore"):
        restore(tmp_path / "a", postgresql, [TABLES])


def test_a_dump_of_postgresql_restores_what_it_had(postgresql: str, tmp_path: Path) -> None:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    if not programs:
        pytest.skip("pg_dump is not installed")
    folder, server = programs[-1].parent, postgresql.rpartition("/")[0]
    names = [f"test_{uuid.uuid4().hex}" for _ in range(2)]
    engine = sql.create_engine(parse_url(postgresql)[0], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in names:
            connection.execute(sql.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    one, two = (f"{server}/{name}" for name in names)
    with Store(one) as store:
        add(store, name="Ünïcode ✓.png")
        before, pseudonym = [facts_of(record) for record in store.list_predictions(10)], store.pseudonymise("p1")
    file = str(tmp_path / "dump")
    subprocess.run([folder / "pg_dump", "-Fc", "-f", file, one], check=True)
    subprocess.run([folder / "pg_restore", "-d", two, file], check=True)
    with Store(two) as store:
        assert [facts_of(record) for record in store.list_predictions(10)] == before
        assert store.pseudonymise("p1") == pseudonym
        add(store)  # numbers go on
        assert len(list_ids(store)) == 2


def test_a_new_database_takes_the_key_of_the_file_that_is_set(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pseudonym.key"
    monkeypatch.setenv(KEY_FILE, str(file))
    with Store(url) as store:
        pseudonym = store.pseudonymise("p1")
    with connect(url) as connection:
        values = set(connection.scalars(sql.text("SELECT value FROM properties")))
    assert file.read_text().strip() not in values
    with Store(url) as store:
        assert store.pseudonymise("p1") == pseudonym
    right = file.read_text()
    file.write_text("ab" * 32)
    with pytest.raises(UsageError, match=r"holds another key\. Set it to"):
        Store(url)
    file.unlink()
    with pytest.raises(UsageError, match="does not exist"):
        Store(url)
    assert not file.exists()  # a new key would be another one
    monkeypatch.delenv(KEY_FILE)
    with pytest.raises(UsageError, match="is not set"):
        Store(url)
    file.write_text(right)
    monkeypatch.setenv(KEY_FILE, str(file))
    Store(url).close()


def test_an_existing_database_keeps_its_key_until_it_is_moved(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.delenv(KEY_FILE)
    with Store(url) as store:
        pseudonym = store.pseudonymise("p1")
    (other := tmp_path / "other.key").write_text("ab" * 32)
    monkeypatch.setenv(KEY_FILE, str(other))
    with Store(url) as store:
        assert store.pseudonymise("p1") == pseudonym
    assert command("database", "move-key", "--out", other, "--database", url).code == 2
    file = tmp_path / "own.key"
    done = command("database", "move-key", "--out", file, "--database", url)
    assert done.code == 0, done.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv(KEY_FILE, str(file))
    with Store(url) as store:
        assert store.pseudonymise("p1") == pseudonym
        assert command("database", "move-key", "--out", file, "--database", url).code == 3
    key = file.read_text().strip().encode()
    if "://" not in url:
        assert all(key not in path.read_bytes() for path in Path(url).parent.glob("predictions.sqlite*"))


def test_images_that_are_sent_again_count_as_new(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    with run_thread(replace(settings, keep_images=folder, keep_for="30d")) as url:
        for _ in range(2):
            assert httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", draw(3))}, timeout=60).is_success
            (kept,) = folder.iterdir()
            assert kept.stat().st_mtime > OLD.timestamp() + 1000
            os.utime(kept, (0, 0))
