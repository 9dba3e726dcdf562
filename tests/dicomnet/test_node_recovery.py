"""What the node does when the fault is not an image's, and when an image comes again after one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from benches import Bench
from peers import write_image

from pneumoscope.dicomnet.spool import FullError
from pneumoscope.errors import DataError


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


def _fail() -> None:
    raise FullError(errno.ENOSPC, "full")


def _fail_database() -> None:
    raise DataError("the database is out of reach")
