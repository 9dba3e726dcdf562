"""What happens where the database or the folder of images cannot be written, and who may read what is written."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from services import draw, run_thread, wait_until
from test_store import make_record

from pneumoscope.errors import DataError
from pneumoscope.server.storage.store import Review, Store

if TYPE_CHECKING:
    from commands import Command
    from pneumoscope.server.settings import Settings

OPEN = 0o022  # a umask that lets everybody read


def ask(url: str) -> tuple[int, str]:
    answer = httpx.get(f"{url}/readyz", timeout=60)
    return answer.status_code, answer.json().get("detail", "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(OPEN)
    yield
    os.umask(before)


def test_a_locked_database_is_not_ready_until_it_is_free(settings: Settings) -> None:
    with run_thread(settings) as url:
        assert ask(url) == (200, "")
        other = sqlite3.connect(str(settings.database))
        other.execute("BEGIN IMMEDIATE")
        status, detail = ask(url)
        assert (status, "another process has locked it" in detail) == (503, True), detail
        assert str(settings.database) not in detail
        other.rollback()
        other.close()
        wait_until(lambda: ask(url)[0] == 200)


def test_requests_that_wait_for_a_locked_database_do_not_delay_the_answer(settings: Settings) -> None:
    with run_thread(settings) as url:
        files = {"files": ("a.png", draw(3))}
        prediction = httpx.post(f"{url}/v1/predictions", files=files, timeout=60).json()["predictions"][0]
        review = {"agrees": True, "label": "NORMAL"} if prediction["decision"] != "PNEUMONIA" else {"agrees": True}
        other = sqlite3.connect(str(settings.database))
        other.execute("BEGIN IMMEDIATE")
        address = f"{url}/v1/predictions/{prediction['id']}/reviews"
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(address, json=review, timeout=100).status_code))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        assert ask(url)[0] == 503
        assert answers == []  # they still wait, and keep all threads for queries busy
        other.rollback()
        other.close()
        for thread in threads:
            thread.join()
        assert set(answers) == {201}
        assert ask(url)[0] == 200


def test_a_full_database_is_not_ready(settings: Settings) -> None:
    def limit(connection: Any, _: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={max(pages, 1)}")

    with Store(settings.database):
        pass
    sql.event.listen(sql.Engine, "connect", limit)
    try:
        with run_thread(settings) as url:
            status, detail = ask(url)
            assert (status, "it is full" in detail) == (503, True), detail
            assert httpx.get(f"{url}/healthz").status_code == 200
    finally:
        sql.event.remove(sql.Engine, "connect", limit)


def test_strangers_do_not_read_what_the_database_says(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with run_thread(settings) as url:
        with sqlite3.connect(str(settings.database)) as other:
            other.execute("ALTER TABLE properties RENAME TO elsewhere")
        other.close()
        status, detail = ask(url)
    assert (status, "The database cannot be used" in detail) == (503, True)
    assert "no such table" not in detail
    assert "no such table" in caplog.text


def test_a_full_disk_is_not_ready_until_there_is_space(settings: Settings, small_disk: Path) -> None:
    with run_thread(replace(settings, database=str(small_disk / "predictions.sqlite"))) as url:
        assert ask(url) == (200, "")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1024)):
                pass
        wait_until(lambda: ask(url)[0] == 503)  # the log of writes is used up first
        assert "full" in ask(url)[1] or "I/O" in ask(url)[1]
        answer = httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", draw(3))}, timeout=60)
        assert answer.status_code == 503
        ballast.unlink()
        wait_until(lambda: ask(url)[0] == 200)
        assert httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", draw(3))}, timeout=60).status_code == 201


def test_checking_leaves_nothing_behind(url: str) -> None:
    with Store(url) as store:
        assert [store.find_fault() for _ in range(3)] == [""] * 3
        with store.read() as connection:
            keys = connection.scalars(sql.text("SELECT key FROM properties")).all()
    assert len(keys) == 2  # the schema and the key


@pytest.mark.usefixtures("open_umask")
def test_an_image_whose_prediction_cannot_be_stored_is_not_kept(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("the database is full")

    kept = tmp_path / "kept"
    with run_thread(replace(settings, keep_images=kept)) as url:
        stored = httpx.post(f"{url}/v1/predictions", files={"f": ("a.png", draw(1))}, timeout=60)
        monkeypatch.setattr(Store, "add", fail)
        for seed in (1, 2):
            answer = httpx.post(f"{url}/v1/predictions", files={"f": ("a.png", draw(seed))}, timeout=60)
            assert answer.status_code == 503
        monkeypatch.undo()
    assert [path.stem for path in kept.iterdir()] == [stored.json()["predictions"][0]["sha256"]]


def test_nobody_else_may_ever_read_a_kept_image(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    seen: dict[str, set[int]] = {}
    real = os.open

    def watch(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        descriptor = real(path, flags, mode, **more)
        if str(path).startswith(str(folder)):  # at the first moment, before a byte is written
            seen.setdefault(Path(path).suffix, set()).add(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    with pytest.MonkeyPatch.context() as patch, run_thread(replace(settings, keep_images=folder)) as url:
        patch.setattr(os, "open", watch)
        httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", draw(3))}, timeout=60)
    assert seen == {".part": {0o600}}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_bytes() == draw(3)


@pytest.mark.usefixtures("open_umask")
def test_files_of_the_database_and_exported_reviews_are_private(tmp_path: Path, command: Command) -> None:
    (tmp_path / "image.png").write_bytes(content := draw(3))
    record = make_record(sha256=hashlib.sha256(content).hexdigest())
    database, out = tmp_path / "new" / "predictions.sqlite", tmp_path / "reviews.csv"
    with Store(str(database)) as store:
        store.add([record])
        store.add([Review(prediction_id=record.id, agrees=True, label="PNEUMONIA")])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
        assert set(modes.values()) == {0o600}, modes
    done = command("reviews", "export", "--out", out, "--images", tmp_path, "--database", database)
    assert done.code == 0, done.err
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
