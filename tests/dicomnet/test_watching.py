"""A folder that the node watches."""

from __future__ import annotations

import shutil
import time
import urllib.request
from pathlib import Path

from peers import NodeProcess, run_node, wait_until, write_image


def count(node: NodeProcess, name: str) -> float:
    """A number of the node's metrics, over all labels."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def results_of(folder: Path) -> set[str]:
    return {path.name for path in (folder / "spool" / "results").rglob("*.dcm")}


def test_files_of_a_watched_folder_are_answered_once_and_stay_where_they_are(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    (watched / "inner").mkdir(parents=True)
    first = write_image(watched / "a.dcm", 1, 1)
    write_image(watched / "inner" / "b", 1, 2)
    (watched / "notes.txt").write_text("no image")
    (watched / ".c.dcm.part").write_bytes(first.read_bytes()[:300])
    with run_node(tmp_path / "node", watch=str(watched), dry_run=True) as node:
        wait_until(lambda: len(results_of(tmp_path / "node")) == 4)
        write_image(watched / "late.dcm", 1, 3)
        wait_until(lambda: len(results_of(tmp_path / "node")) == 6)
        shutil.copy(first, watched / "copy.dcm")
        node.end()
        assert any("2 files" in line or "1 files" in line for line in node.lines)
        node.start()
        wait_until(lambda: count(node, "pneumoscope_node_repeats_total") >= 4)
        assert len(results_of(tmp_path / "node")) == 6
    assert sorted(path.name for path in watched.rglob("*") if path.is_file()) == [
        ".c.dcm.part", "a.dcm", "b", "copy.dcm", "late.dcm", "notes.txt",
    ]  # fmt: skip


def test_a_file_is_taken_only_when_it_is_complete(tmp_path: Path) -> None:
    watched, whole = tmp_path / "watched", write_image(tmp_path / "whole.dcm", 1, 1, size=400).read_bytes()
    watched.mkdir()
    with run_node(tmp_path / "node", watch=str(watched), dry_run=True):
        with (watched / "a.dcm").open("wb") as file:
            for start in range(0, len(whole), len(whole) // 12 + 1):
                file.write(whole[start : start + len(whole) // 12 + 1])
                file.flush()
                time.sleep(0.3)
                assert not list((tmp_path / "node/spool/images").rglob("*.dcm"))
        wait_until(lambda: len(results_of(tmp_path / "node")) == 2)
    assert not list((tmp_path / "node/spool/set-aside").iterdir())
