"""Names in any script, of classes and files, reach standard output of any encoding and files in UTF-8, by processes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pneumoscope.datasets.reading import read_samples
from pneumoscope.training.train import Run

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
    def start(*arguments: str, encoding: str = "cp1252", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "pneumoscope", *arguments]
        environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONWARNINGS": "error::EncodingWarning"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stderr
        assert done.returncode == code, done.stderr
        return done

    return start


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_predict_writes_rows_in_any_encoding(encoding: str, process: Process, folder: Path, run: Run) -> None:
    options = ("predict", "data", "--model", str(run.model))
    done = process(*options, "--format", "json", encoding=encoding)
    rows = json.loads(done.stdout.decode(encoding))
    assert {row["path"] for row in rows} == {path.relative_to(folder).as_posix() for path in folder.glob("data/*/*")}
    table = process(*options, "--format", "csv", encoding=encoding)
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


@pytest.mark.parametrize("line", ["--version", "models list"])
def test_without_any_standard_output_a_command_still_works(line: str) -> None:
    shell = f"{sys.executable} -m pneumoscope {line} >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], timeout=120).returncode == 0
