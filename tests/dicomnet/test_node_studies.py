"""From received images to results: studies, late and repeated images, rules, poison, and starts after an end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from benches import Bench
from node_process import StandIn
from peers import write_image

from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.results import Answer
from pneumoscope.dicomnet.rules import Rule
from pneumoscope.dicomnet.spool import Arrival, Spool, read_meta
from pneumoscope.errors import DataError, UsageError


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()


def test_late_images_make_another_version_of_their_study_and_repeats_do_not(bench: Bench, tmp_path: Path) -> None:
    first, late = write_image(tmp_path / "1.dcm", 1, 1), write_image(tmp_path / "2.dcm", 1, 2)
    bench.receive(first)
    bench.work()
    bench.receive(late)
    bench.receive(first)
    bench.work()
    assert [tuple(row) for row in bench.rows("SELECT version FROM node_images ORDER BY id")] == [(1,), (2,)]
    assert [row.version for row in bench.rows("SELECT version FROM node_studies")] == [2]
    assert len(bench.queue.list_parcels("archive", "due", 100)) == 4


def test_other_content_under_the_same_uid_is_kept_beside_and_its_results_are_sent_once(
    bench: Bench, tmp_path: Path
) -> None:
    one = write_image(tmp_path / "1.dcm", 1, 1)
    bench.receive(one)
    bench.work()
    changed = write_image(tmp_path / "2.dcm", 1, 1, PatientComments="changed")
    key = bench.receive(changed)
    assert key[:20] == bench.receive(one)[:20]
    bench.work()
    assert bench.queue.count()[0] == {"answered": 2}
    # The stand-in's UIDs know the SOP Instance UID alone: what was sent under a UID is never replaced.
    assert len(bench.queue.list_parcels("archive", "due", 100)) == 2


def test_a_study_waits_until_it_is_quiet_and_not_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quiet=60.0, longest_wait=1000.0)
    bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    bench.work()
    assert bench.queue.count()[0] == {"waiting": 1}
    now = time.time()
    assert [each.study for each in bench.queue.list_waiting(now, now - 1000, 10)]
    assert not bench.queue.list_waiting(now - 60, now - 1000, 10)
    assert [each.study for each in bench.queue.list_waiting(now - 60, now + 1, 10)]
    bench.stop()


def test_batches_hold_whole_studies(bench: Bench, tmp_path: Path) -> None:
    for number in range(7):
        bench.receive(write_image(tmp_path / f"{number}.dcm", number // 3, number))
    while bench.intake.take():
        pass
    now = time.time() + 1
    assert [len(bench.queue.list_waiting(now, now, images)) for images in (1, 3, 4, 6, 7, 100)] == [3, 3, 3, 6, 7, 7]


def test_poison_is_set_aside_with_its_reason_and_stops_nothing(bench: Bench, tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.dcm", 1, 1)
    short = write_image(tmp_path / "short.dcm", 1, 2, Rows=1000)  # more pixels than there are
    other = write_image(tmp_path / "other.dcm", 1, 3)
    bench.receive(good)
    keys = [bench.receive(short)]
    garbage = bench.spool.store(Arrival("1.2.840.10008.5.1.4.1.1.1", "1.2.9", "1.2.840.10008.1.2.1", "M"), b"\xff" * 99)
    wrong_uid = bench.spool.store(
        Arrival("1.2.840.10008.5.1.4.1.1.1", "1.2.10", "1.2.840.10008.1.2.1", "M"),
        other.read_bytes()[read_meta(other.read_bytes()).start :],
    )
    keys += [garbage.key, wrong_uid.key]
    bench.intake.announce(garbage.key)
    bench.intake.announce(wrong_uid.key)
    bench.work()
    assert bench.queue.count()[0] == {"answered": 1, "set_aside": 3}
    folder = bench.settings.spool / "set-aside"
    reasons = [json.loads((folder / f"{key}.json").read_text())["reason"] for key in keys]
    assert all((folder / f"{key}.dcm").is_file() for key in keys)
    assert "contradict" in reasons[0]
    assert "damaged" in reasons[1] or "not" in reasons[1]
    assert "SOP Instance UID" in reasons[2]
    assert "SECRET" not in " ".join(reasons)
    bench.receive(short)  # again
    bench.work()
    assert bench.queue.count()[0] == {"answered": 1, "set_aside": 3}
    assert [bench.spool.path_of(key).exists() for key in keys] == [False] * 3


class Deadly(StandIn):
    """Ends the process at one image, as far as the node can see."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, list[int]()

    def answer(self, paths: Iterable[Path]) -> Iterator[Answer]:
        paths = list(paths)
        self.calls.append(len(paths))
        for path in paths:
            if path.stat().st_size > self.size:
                raise KeyboardInterrupt
            yield from super().answer([path])


def test_an_image_that_ends_the_process_is_set_aside_and_the_others_are_answered(tmp_path: Path) -> None:
    deadly = Deadly(5000)
    bench = Bench(tmp_path, deadly)
    for number, size in enumerate((32, 32, 100, 32)):
        bench.receive(write_image(tmp_path / f"{number}.dcm", number, number, size))
    ends = 0
    while ends < 20:
        try:
            bench.work()
            break
        except KeyboardInterrupt:
            ends += 1
            bench.restart()
            bench.intake.scan()
    assert ends == 4  # once with the others, and three times alone
    assert bench.queue.count()[0] == {"answered": 3, "set_aside": 1}
    assert "ended 3 times" in next((bench.settings.spool / "set-aside").glob("*.json")).read_text()
    bench.stop()


class Failing(StandIn):
    """Raises at one image."""

    def answer(self, paths: Iterable[Path]) -> Iterator[Answer]:
        for path in paths:
            if path.stat().st_size > 5000:
                raise MemoryError
            yield from super().answer([path])


def test_an_image_whose_answering_raises_is_set_aside_after_some_tries(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Failing())
    for number, size in enumerate((32, 100, 32)):
        bench.receive(write_image(tmp_path / f"{number}.dcm", number, number, size))
    bench.work()
    assert bench.queue.count()[0] == {"answered": 2, "set_aside": 1}
    bench.stop()


def test_what_was_received_is_found_again_without_the_database(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(3):
        bench.receive(write_image(tmp_path / f"{number}.dcm", number, number))
    bench.work()
    before = {path.name: path.read_bytes() for path in (bench.settings.spool / "results").rglob("*.dcm")}
    bench.stop()
    Path(bench.database).unlink()
    bench.restart()
    assert bench.intake.scan() == 3
    bench.work()
    after = {path.name: path.read_bytes() for path in (bench.settings.spool / "results").rglob("*.dcm")}
    assert after == before  # what may have been sent is sent again, not something else under its UID
    assert len(bench.queue.list_parcels("archive", "due", 100)) == 6
    bench.stop()


def test_an_image_whose_file_is_gone_is_lost_loudly(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    assert bench.intake.take() == 1
    bench.spool.path_of(key).unlink()
    bench.intake.scan()
    assert bench.queue.count()[0] == {"lost": 1}
    assert any("1 images are lost" in message for message in caplog.messages)


def test_files_are_removed_when_all_is_delivered_and_the_time_is_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    image = write_image(tmp_path / "1.dcm", 1, 1)
    key = bench.receive(image)
    bench.work()
    later = time.time() + 1
    assert bench.queue.list_finished(later, 10) == []
    parcels = bench.queue.list_parcels("archive", "due", 10)
    bench.queue.mark_parcels(parcels, "delivered")
    ((number, found, results),) = bench.queue.list_finished(later, 10)
    assert (found, len(results)) == (key, 2)
    bench.queue.mark_removed([number])
    bench.spool.remove(key)
    bench.receive(image)  # the same image again, long after
    bench.work()
    assert not bench.spool.path_of(key).exists()
    assert bench.queue.count()[0] == {"answered": 1}
    bench.stop()


def test_a_result_of_this_node_that_comes_back_is_not_answered(bench: Bench, tmp_path: Path) -> None:
    bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    bench.work()
    for parcel in bench.queue.list_parcels("archive", "due", 10):
        bench.receive(bench.spool.result_path(parcel.file))
    bench.work()
    assert bench.queue.count()[0] == {"answered": 1, "skipped": 2}


RULES = (
    Rule(calling=("PORTABLE*",), answer=False),
    Rule(view=("LL", "LATERAL"), answer=False),
    Rule(modality=("CR", "DX"), age_from=1, age_below=18),
    Rule(modality=("CR",), body_part=("",)),
)


@pytest.mark.parametrize(
    ("elements", "calling", "reason"),
    [
        ({"PatientAge": "003Y"}, "MODALITY", ""),
        ({"PatientAge": "003Y"}, "portable2", "not answered: rule 1"),
        ({"PatientAge": "003Y", "ViewPosition": "LL"}, "MODALITY", "not answered: rule 2"),
        ({"PatientAge": "006M"}, "MODALITY", "not answered: no rule fits"),
        ({"PatientAge": "018Y"}, "MODALITY", "not answered: no rule fits"),
        ({}, "MODALITY", "not answered: no rule fits"),
        ({"BodyPartExamined": ""}, "MODALITY", ""),
    ],
)
def test_rules_decide_which_images_are_answered(
    elements: dict[str, Any], calling: str, reason: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, rules=RULES)
    bench.receive(write_image(tmp_path / "1.dcm", 1, 1, **elements), calling)
    bench.work()
    (row,) = bench.rows("SELECT state, reason FROM node_images")
    assert tuple(row) == ("skipped" if reason else "answered", reason)
    bench.stop()


def test_the_log_has_no_name_no_number_and_no_uid(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.receive(write_image(tmp_path / "1.dcm", 1, 1))
    bench.receive(write_image(tmp_path / "2.dcm", 1, 2, Rows=1000))
    bench.receive(write_image(tmp_path / "3.dcm", 1, 3, PixelRepresentation=7))
    bench.work()
    text = caplog.text
    assert "study" in text
    assert not [word for word in ("SECRET", "Secret", "ACC1", "1.2.3.1") if word in text]


def test_tables_of_another_version_are_refused(bench: Bench) -> None:
    engine = sql.create_engine(f"sqlite:///{bench.database}")
    with engine.begin() as connection:
        connection.execute(sql.text("UPDATE node_revision SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DataError, match=r"newer version .revision 9999"):
        Queue(bench.database, "x")


def test_a_spool_has_one_process_at_a_time(bench: Bench) -> None:
    with pytest.raises(UsageError, match="another process"), Spool(bench.settings.spool, 0).open(patience=0.0):
        pass


def test_a_partial_file_of_a_killed_process_is_removed(bench: Bench) -> None:
    part = bench.settings.spool / "incoming" / "x.part"
    part.write_bytes(b"half")
    bench.restart()
    assert not part.exists()
    assert bench.intake.scan() == 0


def test_two_nodes_share_a_postgresql(postgresql: str, tmp_path: Path) -> None:
    benches = [Bench(tmp_path / name) for name in ("a", "b")]
    for bench in benches:
        bench.stop()
        bench.database = postgresql
        bench.restart()
    for number in range(6):
        benches[number % 2].receive(write_image(tmp_path / f"{number}.dcm", number // 2, number))
    for bench in benches:
        bench.work()
        assert bench.queue.count() == ({"answered": 3}, {("archive", "due"): 6})
        bench.stop()
