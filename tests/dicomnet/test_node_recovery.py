"""What the node does when the fault is not an image's, and when an image comes again after one."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from benches import TO, Bench
from node_process import StandIn
from peers import write_image

from pneumoscope.dicomnet.delivery import Delivery
from pneumoscope.dicomnet.node import Node
from pneumoscope.dicomnet.node_settings import NodeSettings
from pneumoscope.dicomnet.results import Answer
from pneumoscope.dicomnet.rules import Rule
from pneumoscope.dicomnet.spool import FullError
from pneumoscope.errors import DataError, ImageError, PneumoscopeError


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize("images", [1, 2])
def test_a_disk_without_space_for_results_is_no_images_fault(
    images: int, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(images):
        bench.receive(write_image(tmp_path / f"{number}.dcm", number, number))
    bench.intake.take()
    for _ in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(bench.spool, "store_result", lambda *_: _fail())
            with pytest.raises(OSError, match="full"):
                bench.answering.work()
    with monkeypatch.context() as patch:
        patch.setattr(bench.queue, "finish", lambda *_: _fail_database())
        for _ in range(5):
            with pytest.raises(DataError):
                bench.answering.work()
    assert bench.queue.count()[0] == {"waiting": images}
    bench.work()
    assert bench.queue.count()[0] == {"answered": images}
    assert {row.alone for row in bench.rows("SELECT alone FROM node_images")} <= {0, 1}


def count(bench: Bench) -> dict[str, int]:
    bench.work()
    return bench.queue.count()[0]


def test_a_skipped_image_that_comes_again_is_judged_by_the_rules_of_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    image = write_image(tmp_path / "1.dcm", 1, 1)
    bench = Bench(tmp_path, rules=(Rule(body_part=("ABDOMEN",)),))
    bench.receive(image)
    assert count(bench) == {"skipped": 1}
    bench.receive(image)
    assert count(bench) == {"skipped": 1}
    bench.settings = replace(bench.settings, rules=(Rule(body_part=("CHEST",)),))
    bench.restart()
    assert bench.intake.scan() == 0  # not by itself
    assert count(bench) == {"skipped": 1}
    bench.receive(image)
    assert count(bench) == {"answered": 1}
    assert len(bench.queue.list_parcels("archive", "due", 10)) == 2
    bench.receive(image)
    assert count(bench) == {"answered": 1}
    assert len([text for text in caplog.messages if "has come again, and is judged anew: it was skipped" in text]) == 2
    bench.stop()


def test_what_a_dry_run_made_is_not_sent_later_not_even_with_another_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, dry_run=True)
    bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    assert count(bench) == {"answered": 1}
    bench.stop()
    Path(bench.database).unlink()
    bench.settings = replace(bench.settings, dry_run=False)
    bench.restart()
    assert bench.intake.scan() == 1
    assert count(bench) == {"answered": 1}
    assert bench.queue.count()[1] == {("archive", "held"): 2}
    assert "2 results had been made by a dry run and are not sent" in caplog.messages
    bench.receive(write_image(tmp_path / "2.dcm", 1, 2))
    bench.work()
    assert len(bench.queue.list_parcels("archive", "due", 10)) == 2
    ((_, _key, files),) = bench.queue.list_finished(time.time() + 1, 10)
    for file in files:
        bench.spool.remove_result(file)
    assert not list((bench.settings.spool / "results").rglob("*.held"))
    bench.stop()


class Broken(StandIn):
    """An installation that can be mended."""

    broken = True

    def answer(self, paths: Iterable[Path]) -> Iterator[Answer]:
        for answer in super().answer(paths):
            error = "a decoder is not installed" if self.broken else None
            yield replace(answer, prediction=replace(answer.prediction, error=error))


@pytest.mark.parametrize("killed", [False, True])
def test_an_image_set_aside_that_comes_again_is_answered_if_that_is_possible_now(killed: bool, tmp_path: Path) -> None:
    image, answers = write_image(tmp_path / "1.dcm", 1, 1), Broken()
    bench = Bench(tmp_path, answers)
    bench.receive(image)
    assert count(bench) == {"set_aside": 1}
    key = bench.receive(image)
    assert count(bench) == {"set_aside": 1}
    folder = bench.settings.spool / "set-aside"
    assert {path.name for path in folder.iterdir()} == {f"{key}.dcm", f"{key}.json"}
    answers.broken = False
    bench.receive(image)
    if killed:  # before it has been announced
        bench.restart()
        assert bench.intake.scan() == 1
    assert count(bench) == {"answered": 1}
    assert not list(folder.iterdir())
    bench.stop()


def test_an_image_that_was_lost_and_comes_again_is_answered(bench: Bench, tmp_path: Path) -> None:
    image = write_image(tmp_path / "1.dcm", 1, 1)
    key = bench.receive(image)
    bench.intake.take()
    bench.spool.path_of(key).unlink()
    bench.intake.scan()
    assert bench.queue.count()[0] == {"lost": 1}
    bench.receive(image)
    assert count(bench) == {"answered": 1}


class Quoting(StandIn):
    """Errors and left out values as real headers bring them."""

    def answer(self, paths: Iterable[Path]) -> Iterator[Answer]:
        for answer in super().answer(paths):
            if answer.path.stat().st_size > 5000:
                error = f"{answer.path}: image of modality SECRETNAME^JOHN"
                yield Answer(answer.path, replace(answer.prediction, error=error))
            else:
                yield replace(answer, left_out=("PatientBirthDate", "StudyTime"))


def test_the_log_says_no_reason_that_quotes_a_header_and_the_folder_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench(tmp_path, Quoting())
    bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    key = bench.receive(write_image(tmp_path / "2.dcm", 1, 2, size=100))
    bench.work()
    assert "SECRETNAME" in (bench.settings.spool / "set-aside" / f"{key}.json").read_text()
    assert "SECRETNAME" not in caplog.text
    assert f"set aside: it cannot be answered; why is in set-aside/{key}.json" in caplog.text
    assert "without values that are not valid: PatientBirthDate StudyTime" in caplog.text
    bench.stop()


def test_a_header_that_cannot_be_read_is_quoted_in_the_folder_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_tags(*_: object) -> None:
        raise ImageError("image: the date SECRETNAME^JOHN is none")

    monkeypatch.setattr("pneumoscope.dicomnet.intake.read_tags", read_tags)
    key = bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    assert count(bench) == {"set_aside": 1}
    assert "SECRETNAME" in (bench.settings.spool / "set-aside" / f"{key}.json").read_text()
    assert "set aside: its header cannot be read" in caplog.text
    assert "SECRETNAME" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "127.0.0.1"}, []),
        ({"host": "0.0.0.0"}, ["not encrypted", "every sender"]),
        ({"host": "0.0.0.0", "allowed": ("ARCHIVE",)}, ["not encrypted"]),
    ],
)
def test_a_node_ends_with_a_thread_that_dies_and_warns_of_an_address_that_others_can_reach(
    settings: dict[str, Any],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Delivery, "_run", lambda _: None)
    values = NodeSettings(
        port=0, http_port=0, destinations=(TO,), spool=tmp_path / "spool", database=str(tmp_path / "node.sqlite"),
        **settings,
    )  # fmt: skip
    seen: list[tuple[int, bytes]] = []

    def look(node: Node) -> None:
        for name in ("healthz", "readyz"):
            answer = urllib3.request("GET", f"http://127.0.0.1:{node.http_port}/{name}")
            seen.append((answer.status, answer.data))

    with pytest.raises(PneumoscopeError, match="'deliver archive' has died"):
        Node(values, StandIn()).run(look)
    for status, content in seen:
        assert status == 503
        assert b"'deliver archive' has died" in content
        assert b"ending" not in content
    warned = [text for text in caplog.messages if "others can reach" in text]
    assert len(warned) == len(said)
    assert all(word in text for word, text in zip(said, warned, strict=True))


def _fail() -> None:
    raise FullError(errno.ENOSPC, "full")


def _fail_database() -> None:
    raise DataError("the database is out of reach")
