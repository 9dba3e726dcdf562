"""Names in any script, of classes and files, reach standard output of any encoding and files in UTF-8, by processes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pneumoscope.datasets.reading import read_samples
from pneumoscope.training.train import Run
from processes import run_encoded

NAMES = ("影像一", "Снимок", "צילום", "new\nline", "esc\x1b[31mred", "=1+1", "-x", "'z", "😀", "a\u202eb")
Process = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, two classes of ten images with such names."""
    folder = tmp_path_factory.mktemp("名前")
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / "data" / label).mkdir(parents=True)
        for name, source in zip(NAMES, sorted(images.rglob(f"{label}/*.png")), strict=False):
            shutil.copy(source, folder / "data" / label / f"{name}.png")
    return folder


@pytest.fixture
def process(folder: Path, run: Run) -> Process:
    def start(
        *arguments: str, encoding: str = "cp1252", code: int = 0, fresh: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        if fresh:
            command = [sys.executable, "-m", "pneumoscope", *arguments]
            environment = os.environ | {"PYTHONIOENCODING": encoding}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)
        else:
            done = run_encoded(arguments, encoding, folder)
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stderr
        assert done.returncode == code, done.stderr
        return done

    return start


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_predict_writes_rows_in_any_encoding(encoding: str, process: Process, folder: Path, run: Run) -> None:
    options = ("predict", "data", "--model", str(run.model))
    done = process(*options, "--format", "json", encoding=encoding, fresh=True)
    rows = json.loads(done.stdout.decode(encoding))
    assert {row["path"] for row in rows} == {path.relative_to(folder).as_posix() for path in folder.glob("data/*/*")}
    table = process(*options, "--format", "csv", encoding=encoding, fresh=True)
    assert len(list(csv.DictReader(table.stdout.decode(encoding).splitlines(keepends=True)))) == 20
    assert f"The encoding of standard output, {encoding}".encode() in table.stderr
    assert b"\x1b" not in process(*options, "--format", "table", encoding=encoding).stdout


def test_rows_for_excel_are_utf_8_with_a_byte_order_mark_everywhere(process: Process, folder: Path, run: Run) -> None:
    model = ("--model", str(run.model))
    written = [process("predict", "data", *model, "--format", "csv", "--excel").stdout]
    process("predict", "data", *model, "--out", "predictions.csv", "--excel")
    process("evaluate", "data", *model, "--out", "été", "--resamples", "20", "--excel")
    process("explain", "data/NORMAL/-x.png", *model, "--out", "карты", "--excel")
    process("data", "split", "data", "--out", "split.csv", "--by-name", "--excel")
    files = ("predictions.csv", "été/predictions.csv", "карты/explanations.csv", "split.csv")
    written += [(folder / name).read_bytes() for name in files]
    for content in written:
        assert content.startswith(b"\xef\xbb\xbfpath,")
        assert "影像一" in content.decode() or b"explanations" not in content
    written_paths = {sample.path.resolve() for sample in read_samples(folder / "split.csv")}
    assert written_paths == {path.resolve() for path in folder.glob("data/*/*")}
    assert process("compare", "été", "été").stdout.startswith(b"20 images")
    json_for_excel = process("predict", "data", *model, "--format", "json", "--excel", code=2)
    assert b"--excel: is only for CSV" in json_for_excel.stderr


def test_train_and_audit_write_files_in_utf_8(process: Process, folder: Path) -> None:
    process("train", "data", "--out", "rün", "--epochs", "1", "--size", "64", "--resamples", "20", encoding="ascii")
    process("audit", "data", "--out", "aüdit", "--quick", encoding="ascii")
    for name in ("samples.csv", "predictions.csv", "report.html", "config.yaml"):
        (folder / "rün" / name).read_text(encoding="utf-8")
    assert "\x1b" not in (folder / "rün" / "log.txt").read_text(encoding="utf-8")
    assert "影像一" in (folder / "rün" / "samples.csv").read_text(encoding="utf-8")


LINES = ["--help", "models list", "models show", "backbones", "predict data --model RUN --format csv", "frob",
         "data split data --out NEW --by-name", "compare RUN RUN", "compare RUN RUN --format json"]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_reader_that_leaves_ends_a_command_quietly(line: str, folder: Path, run: Run, tmp_path: Path) -> None:
    words = [{"RUN": str(run.folder), "NEW": str(tmp_path / "new.csv")}.get(word, word) for word in line.split()]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:  # noqa: PTH123 - a pipe
        command = [sys.executable, "-m", "pneumoscope", *words]
        done = subprocess.run(command, cwd=folder, stdout=closed, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == (2 if line == "frob" else 0)
    assert not any(word in done.stderr for word in (b"Traceback", b"Broken pipe", b"Exception ignored", b"internal"))


def test_everything_on_a_stream_has_its_encoding_and_columns_are_in_line(
    process: Process, folder: Path, images: Path
) -> None:
    for label, name in (("NORMAL", "正常"), ("PNEUMONIA", "肺炎 ё")):
        shutil.copytree(images / "test" / label, folder / "类" / name)
    run, quick = "rün\x1b[31m影", ("--resamples", "20")
    model = ("--model", run)
    lines: list[tuple[int, tuple[str, ...]]] = [
        (0, ("train", "类", "--epochs", "1", "--size", "64", "--positive", "肺炎 ё", "--out", run, *quick)),
        (0, ("evaluate", "类", *model, "--out", "копия", *quick)),
        (0, ("compare", "копия", "копия")),
        (0, ("models", "show", run)),
        (0, ("predict", "类", *model, "--format", "table")),
        (0, ("explain", "类", *model, "--out", f"{run}2")),
        (0, ("export", *model, "--out", f"{run}3")),
        (0, ("data", "split", "类", "--by-name", "--out", f"{run}.csv")),
        (0, ("data", "phantoms", "--count", "8", "--size", "64", "--out", f"{run}4")),
        (0, ("data", "split", "--help")),
        (2, ("fröb影",)),
        (3, ("data", "fetch", "kermany", "--out", "影", "--archive", f"{run}.zip")),
        (2, ("reviews", "export", "--database", f"{run}.db", "--images", ".", "--out", "影.csv")),
        (2, ("serve", "--token-file", f"{run}.txt")),
    ]
    for code, line in lines:
        done = process(*line, encoding="ascii", code=code)
        shown, _ = done.stdout.decode("ascii"), done.stderr.decode("ascii")
        assert "\x1b" not in shown
        if line[0] in ("train", "evaluate"):
            assert len({len(row) for row in re.findall(r"^.* images +\d+", shown, re.MULTILINE)}) == 1
    for line in (("models", "show", run), ("predict", "类", *model, "--format", "table")):
        assert "肺炎 ё" in process(*line, encoding="utf-16").stdout.decode("utf-16")


@pytest.mark.parametrize("line", ["--help", "models list", "data split data --by-name --out split9.csv"])
def test_a_full_disk_below_standard_output_is_named(line: str, folder: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        command = [sys.executable, "-m", "pneumoscope", *line.split()]
        done = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == "error: standard output: No space left on device."


@pytest.mark.parametrize(("line", "code"), [("predict data --format csv", 0), ("frob", 2)])
@pytest.mark.parametrize("streams", [">&3 2>/dev/full", ">&3 2>&-", "2>&1 >&3 | true"])
def test_messages_that_cannot_be_written_end_no_command(
    line: str, code: int, streams: str, folder: Path, run: Run, tmp_path: Path
) -> None:
    model = f" --model {run.model}" if line.startswith("predict") else ""
    shell = f"set -o pipefail; exec 3>{tmp_path}/out; {sys.executable} -m pneumoscope {line}{model} {streams}"
    assert subprocess.run(["bash", "-c", shell], cwd=folder, timeout=120).returncode == code
    assert bool((tmp_path / "out").read_bytes()) == (code == 0)


@pytest.mark.parametrize("line", ["--version", "models list"])
def test_without_any_standard_output_a_command_still_works(line: str) -> None:
    shell = f"{sys.executable} -m pneumoscope {line} >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], timeout=120).returncode == 0
