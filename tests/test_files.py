"""Outputs: files are whole or absent, and a folder of somebody else's is never emptied."""

from __future__ import annotations

import csv
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import pneumoscope
from pneumoscope.cli.main import app
from pneumoscope.errors import UsageError
from pneumoscope.files import (
    claim_folder,
    format_rows,
    lock_folder,
    parse_rows,
    path_in_file,
    write_bytes,
    write_rows,
    write_text,
)
from pneumoscope.training.train import Run

MARKER = "config.yaml"
NAMES = (MARKER, "model", "linked")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def earlier_output(folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    for name in (MARKER, "model/model.json", ".report.html.0a1b.part"):
        (folder / name).write_text(name)
    return folder


# Files


def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in (b"first", b"", b"second" * 1000):
        write_bytes(tmp_path / "out.bin", content)
        assert tree(tmp_path) == {"out.bin": content}
    write_text(tmp_path / "out.bin", "für\n")
    assert tree(tmp_path) == {"out.bin": "für\n".encode()}


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, problem: type[BaseException] | BaseException
) -> None:
    (tmp_path / "out.txt").write_text("old")

    def fail(self: Path, *_: object) -> None:
        self.touch()  # a part has been made by then
        raise problem

    monkeypatch.setattr(Path, step, fail)
    expected = UsageError if isinstance(problem, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"out\.txt: cannot be written: No space" if expected is UsageError else None):
        write_text(tmp_path / "out.txt", "new")
    assert tree(tmp_path) == {"out.txt": b"old"}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, wholes, seen = tmp_path / "out.bin", [bytes([i]) * 300_000 for i in range(2)], set()
    write_bytes(path, wholes[0])
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        write_bytes(path, wholes[i % 2])
    done.set()
    reader.join()
    assert seen <= set(wholes)
    assert tree(tmp_path) == {"out.bin": wholes[1]}


def test_writers_of_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_text, args=(tmp_path / "out.txt", str(i) * 1000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(tree(tmp_path)) == ["out.txt"]
    assert len(set((tmp_path / "out.txt").read_text())) == 1


@pytest.mark.parametrize("name", ["gone/out.txt", "file/out.txt", "folder", "x" * 300])
def test_what_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=rf"{name}: cannot be written: .+\. Choose another"):
        write_text(tmp_path / name, "text")
    assert tree(tmp_path) == before


@pytest.mark.timeout(20)
def test_a_device_or_a_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text")
    reader.join()
    assert got == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# Rows


@settings(deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {name: st.none() | st.text(st.characters(codec="utf-8")) for name in ("label", 'a "b", c')}
        ),
        min_size=1,
        max_size=4,
    )
)
def test_rows_come_back_from_csv_as_they_were(rows: list[dict[str, str | None]]) -> None:
    text = "".join(format_rows(rows))
    _, back = parse_rows(io.StringIO(text, newline=""))
    assert back == [{key: value or "" for key, value in row.items()} for row in rows]


def test_rows_are_lines_with_a_header() -> None:
    assert "".join(format_rows([{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": None}])) == "epoch,loss\n1,0.1\n2,\n"


# Folders


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_absent_or_empty_folder_is_made(tmp_path: Path, overwrite: bool) -> None:
    for _ in range(2):
        claim_folder(tmp_path / "deep/run", NAMES, overwrite)
        assert tree(tmp_path) == {"deep": None, "deep/run": None}


def test_an_earlier_output_is_refused_and_kept(tmp_path: Path) -> None:
    earlier_output(tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"run: already exists\. Choose another path, or pass `overwrite=True`"):
        claim_folder(tmp_path / "run", NAMES)
    assert tree(tmp_path) == before


def test_an_earlier_output_is_emptied_where_that_is_allowed(tmp_path: Path) -> None:
    run = earlier_output(tmp_path / "run")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_text("image")
    (run / "linked").symlink_to(tmp_path / "images")
    claim_folder(run, NAMES, overwrite=True)
    assert tree(tmp_path) == {"run": None, "images": None, "images/1.png": b"image"}


def test_an_earlier_output_in_a_linked_folder_is_emptied_and_the_link_kept(tmp_path: Path) -> None:
    earlier_output(tmp_path / "scratch/run")
    (tmp_path / "run").symlink_to(tmp_path / "scratch/run")
    claim_folder(tmp_path / "run", NAMES, overwrite=True)
    assert (tmp_path / "run").is_symlink()
    assert tree(tmp_path / "scratch") == {"run": None}


def test_an_interrupted_deletion_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = earlier_output(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            claim_folder(run, NAMES, overwrite=True)
    claim_folder(run, NAMES, overwrite=True)
    assert tree(run) == {}


@pytest.mark.parametrize(
    "names",
    [["thesis.tex"], [".git"], [f"{MARKER}/nested"], [f"sub/{MARKER}"], [MARKER, "thesis.tex"], [MARKER, ".git"]],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_content_is_never_deleted(tmp_path: Path, names: list[str], overwrite: bool) -> None:
    for name in names:
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("dear")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"home: .*Choose another path"):
        claim_folder(tmp_path / "home", NAMES, overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").write_text("dear")
    with pytest.raises(UsageError, match=r"run: .*Choose another path"):
        claim_folder(tmp_path / "run", NAMES, overwrite)
    assert tree(tmp_path) == {"run": b"dear"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_cannot_be_made_is_an_error_that_says_why(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("dear")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name, why in (("file/run", "Not a directory"), ("dangling", "File exists"), ("x" * 300, "File name too long")):
        with pytest.raises(UsageError, match=rf"{name}: cannot be written: {why}\. Choose another path"):
            claim_folder(tmp_path / name, NAMES, overwrite)
    assert (tmp_path / "file").read_text() == "dear"


# Rows for spreadsheets


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\rx", "'=1", "''=1", "＝1", "=", "--x"]
HARMLESS = ["-", "+", "-5", "+1.5", "-.5e-3", "a=b", "'quoted'", "", "x", "1-1"]


@pytest.mark.parametrize("text", [*FORMULAS, *HARMLESS])
def test_no_cell_is_a_formula_and_our_reader_gets_back_the_text(text: str) -> None:
    written = "".join(format_rows([{"label": text, text: "header"}]))
    cells = [cell for row in csv.reader(io.StringIO(written, newline="")) for cell in row]
    harmless = {"label", "header", *HARMLESS}
    assert all(cell in harmless or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for cell in cells)
    assert parse_rows(io.StringIO(written, newline="")) == (["label", text], [{"label": text, text: "header"}])
    if text in HARMLESS:
        assert text in cells


@pytest.mark.parametrize("name", [*FORMULAS, *HARMLESS[:-3]])
def test_a_path_that_looks_like_a_formula_leads_to_the_same_file_for_any_reader(name: str) -> None:
    written = "".join(format_rows([{"path": f"{name}.png"}]))
    (row,) = csv.DictReader(io.StringIO(written, newline=""))
    assert Path(row["path"]) == Path(f"{name}.png")
    assert not row["path"].startswith(("=", "@", "\t", "\r", "＝"))
    assert parse_rows(io.StringIO(written, newline=""))[1] == [row]


def test_numbers_stay_numbers_and_excel_gets_a_byte_order_mark(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [{"label": "影像", "logit": -1.5}], excel=True)
    assert (tmp_path / "rows.csv").read_bytes() == "\ufefflabel,logit\n影像,-1.5\n".encode()
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
        assert parse_rows(file) == (["label", "logit"], [{"label": "影像", "logit": "-1.5"}])


@pytest.mark.parametrize("given", ["images/a.png", "../images/a.png", "./a.png"])
def test_a_relative_path_in_a_file_leads_to_the_image_from_anywhere(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    written = path_in_file(Path(given), tmp_path / "run")
    assert not Path(written).is_absolute()
    assert (tmp_path / "run" / written).resolve() == Path(given).resolve()
    assert path_in_file(tmp_path / "a.png", tmp_path / "run") == (tmp_path / "a.png").as_posix()


def test_of_ten_pairs_of_processes_never_two_write_into_one_folder(tmp_path: Path) -> None:
    script = """
import os, pathlib, sys, time
from pneumoscope.errors import UsageError
from pneumoscope.files import lock_folder
folder = pathlib.Path(sys.argv[1])
try:
    with lock_folder(folder):
        os.close(os.open(folder / "here", os.O_CREAT | os.O_EXCL))  # fails if the other is here, too
        time.sleep(0.05)
        (folder / "here").unlink()
except UsageError as refusal:
    assert "another process is writing into this folder" in str(refusal)
    sys.exit(2)
"""
    pairs = [
        [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / str(number))]) for _ in range(2)]
        for number in range(10)
    ]
    codes = [sorted(process.wait(60) for process in pair) for pair in pairs]
    assert all(code in ([0, 0], [0, 2]) for code in codes), codes


def test_a_folder_is_locked_as_long_as_it_is_written(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "new" / "run"):
        with pytest.raises(UsageError, match="another process is writing"), lock_folder(tmp_path / "new" / "run"):
            pass
        assert list((tmp_path / "new" / "run").iterdir()) == []
    with lock_folder(tmp_path / "new" / "run"):
        pass


def test_after_an_error_no_empty_folder_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"), lock_folder(tmp_path / "new"):
        raise ValueError("no images")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="no images"), lock_folder(tmp_path / "old"):
        raise ValueError("no images")
    assert (tmp_path / "old").exists()


def run_command(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception


@pytest.mark.parametrize(
    "command",
    [
        "evaluate",
        "audit",
        "export",
        "compare",
        "report",
        "plot",
        "explain",
        "predict",
        "split",
        "phantoms",
        "demo",
        "train",
    ],
)
def test_a_second_process_is_kept_out_of_a_folder(command: str, images: Path, run: Run, tmp_path: Path) -> None:
    out, image = tmp_path / "out", next((images / "test" / "PNEUMONIA").iterdir())
    commands: dict[str, Callable[[], object]] = {
        "evaluate": lambda: pneumoscope.evaluate(images, run.folder, out, resamples=20),
        "audit": lambda: pneumoscope.audit(images, out, quick=True),
        "export": lambda: pneumoscope.export(out, run.folder),
        "compare": lambda: pneumoscope.compare([run.folder, run.folder], out, resamples=20),
        "report": lambda: pneumoscope.write_checklist(run.folder, out=out),
        "plot": lambda: pneumoscope.plot(run.folder, out),
        "explain": lambda: run_command("explain", image, "--model", run.model, "--out", out),
        "predict": lambda: run_command("predict", image, "--model", run.model, "--heatmaps", out),
        "split": lambda: run_command("data", "split", images, "--by-name", "--redraw", "--folds", 2, "--out", out),
        "phantoms": lambda: run_command("data", "phantoms", "--count", 8, "--size", 64, "--out", out),
        "demo": lambda: run_command("demo", "--images", 40, "--out", out),
        "train": lambda: run_command("train", images, "--epochs", 1, "--resamples", 20, "--out", out),
    }
    with lock_folder(out):
        with pytest.raises(UsageError, match="another process is writing into this folder"):
            commands[command]()
        assert list(out.iterdir()) == []
    if command == "demo":  # which trains for a while
        return
    commands[command]()
    assert list(out.iterdir())
