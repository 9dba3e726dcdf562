"""The command line from end to end: what a user types, what it prints, and its exit code."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import Command
from pneumoscope.training.train import Run
from processes import start_command


@pytest.fixture
def image(images: Path) -> Path:
    return next((images / "test" / "NORMAL").iterdir())


def test_train_evaluate_and_predict_agree(command: Command, images: Path, tmp_path: Path) -> None:
    trained = command("train", images, "--out", tmp_path / "run", "--size", 64, "--epochs", 3)
    assert trained.code == 0
    assert "accuracy" in trained.out
    assert str(tmp_path / "run" / "report.html") in trained.out
    evaluated = command("evaluate", images, "--model", tmp_path / "run", "--out", tmp_path / "again")
    assert evaluated.code == 0
    again, trained_on = (_json(tmp_path / name / "metrics.json") for name in ("again", "run"))
    del trained_on["validation"]  # an evaluation has none
    assert again | {"notes": []} == trained_on | {"notes": []}  # training knows more of the data
    predicted = command("predict", images / "test", "--model", tmp_path / "run", "--format", "csv", "--no-ood")
    assert predicted.code == 0
    by_name = {Path(row["path"]).name: row["probability"] for row in csv.DictReader(io.StringIO(predicted.out))}
    with (tmp_path / "run" / "predictions.csv").open() as file:
        recorded = {Path(row["path"]).name: row["probability"] for row in csv.DictReader(file)}
    assert by_name.keys() == recorded.keys()
    assert all(float(by_name[name]) == pytest.approx(float(recorded[name]), abs=1e-6) for name in recorded)


def test_evaluate_uses_the_split_named(command: Command, run: Run, images: Path, tmp_path: Path) -> None:
    for split, n in (("val", 12), ("train", 24), ("all", 48)):
        assert command("evaluate", images, "--model", run.folder, "--out", tmp_path / split, "--split", split).code == 0
        assert _json(tmp_path / split / "metrics.json")["n"] == n
    wrong = command("evaluate", images, "--model", run.folder, "--out", tmp_path / "x", "--split", "tset")
    assert wrong.code == 2
    assert "no split 'tset'" in wrong.err
    assert command("evaluate", images, "--model", run.folder, "--out", tmp_path / "val").code == 2


def test_on_a_terminal_the_table_follows_the_bar_and_messages_break_between_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no image")
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "pneumoscope", "predict", "text.png", "--model", str(run.model), "--out", "p.csv"]
    for arguments in (command[:-2], command):
        process = subprocess.Popen(arguments, stdout=terminal, stderr=terminal, cwd=tmp_path)
        assert process.wait(60) == 3
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n").split("\n")
    (table,) = [number for number, line in enumerate(lines) if line.lstrip("\r").startswith("file ")]
    assert not any(
        "Predicting" in line for line in lines[table:][: lines[table:].index("1 of 1 files have no prediction.")]
    )
    (reason,) = [
        number for number, line in enumerate(lines) if line.lstrip("\r").startswith("text.png: unknown format")
    ]
    assert len(lines[reason].strip()) <= 80
    assert "Supported are JPEG, PNG" in " ".join(line.strip() for line in lines[reason : reason + 3])


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet", "table"])
def test_predict_writes_every_format_in_input_order(
    form: str, command: Command, run: Run, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [*sorted((images / "test").rglob("*.png"))[:3], tmp_path / "bad.png"]
    out = tmp_path / f"predictions.{form}"
    result = command("predict", *files, "--model", run.model, "--format", form, "--out", out, "--no-ood")
    assert result.code == 0
    assert "1 of 4 files have no prediction" in result.err
    assert result.out == ""
    if form == "table":
        text = out.read_text()
        assert all(file.name in text for file in files)
        return
    if form == "parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(out).to_pylist()
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
    else:
        text = out.read_text()
        rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert [Path(row["path"]) for row in rows] == files
    assert list(rows[0]) == [
        *("path", "label", "probability", "predicted_label", "prediction_set", "ood_score", "decision", "warnings"),
        *("error", "patient", "age", "sex", "view", "laterality", "date", "accession_number", "study_uid"),
        *("series_uid", "sop_uid"),
    ]
    assert 0 <= float(rows[0]["probability"]) <= 1
    assert rows[0]["predicted_label"] in ("NORMAL", "PNEUMONIA")
    assert rows[0]["decision"] in ("NORMAL", "PNEUMONIA", "uncertain")
    assert "bad.png" in rows[3]["error"]
    assert not rows[3]["probability"]
    assert command("predict", *files, "--model", run.model, "--format", form, "--out", out).code == 2


def test_predict_takes_a_table_and_keeps_its_labels(command: Command, run: Run, images: Path, tmp_path: Path) -> None:
    table = run.folder / "samples.csv"
    result = command("predict", table, "--model", run.folder, "--format", "jsonl")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == 48
    assert {row["label"] for row in rows} == {"NORMAL", "PNEUMONIA"}


def test_an_out_of_distribution_image_gets_no_probability(command: Command, run: Run, tmp_path: Path) -> None:
    stripes = np.tile(np.repeat([0, 255], 8), (200, 13)).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    (row,) = _predict(command, tmp_path / "stripes.png", "--model", run.model)
    assert (row["decision"], row["probability"], row["predicted_label"]) == ("out_of_distribution", None, None)
    assert row["ood_score"] > 1
    (row,) = _predict(command, tmp_path / "stripes.png", "--model", run.model, "--no-ood")
    assert (row["decision"] != "out_of_distribution", row["ood_score"], 0 <= row["probability"] <= 1) == (
        True,
        None,
        True,
    )
    table = command("predict", tmp_path / "stripes.png", "--model", run.model, "--format", "table")
    assert "out of distribution" in table.out


def test_predict_adjusts_probabilities_to_a_prevalence(command: Command, run: Run, images: Path) -> None:
    options = (images / "test", "--model", run.model, "--no-ood")
    plain, rare = _predict(command, *options), _predict(command, *options, "--prevalence", 0.02)
    assert _json(run.model / "model.json")["decisions"]["calibration"]["class_fractions"] == [0.5, 0.5]
    for before, after in zip(plain, rare, strict=True):
        odds = before["probability"] / (1 - before["probability"]) * 0.02 / 0.98
        assert after["probability"] == pytest.approx(odds / (1 + odds))
        assert after["prediction_set"] == before["prediction_set"]
    wide = _predict(command, *options, "--alpha", 0.5)
    assert sum(len(row["prediction_set"]) for row in wide) < sum(len(row["prediction_set"]) for row in plain)
    for option, value in (("--prevalence", 1.5), ("--alpha", 0), ("--false-alarms", -1)):
        assert command("predict", *options, option, value).code == 2


def test_evaluate_measures_for_another_prevalence_and_for_an_estimated_one(
    command: Command, run: Run, images: Path, tmp_path: Path
) -> None:
    options = ("--split", "all", "--resamples", 50)
    result = command(
        "evaluate", images, "--model", run.folder, "--out", tmp_path / "common", *options, "--prevalence", 0.9
    )
    assert result.code == 0
    assert "Adjusted to 0.900." in result.out
    assert max(map(len, result.out.split("\n\n")[1].splitlines())) <= 80
    common = _json(tmp_path / "common" / "metrics.json")
    assert common["prevalence"] == 0.5
    assert common["adjusted"]["metrics"]["ppv"]["value"] > common["metrics"]["ppv"]["value"]
    assert common["adjusted"]["metrics"]["auroc"]["value"] == pytest.approx(common["metrics"]["auroc"]["value"])
    result = command(
        "evaluate", images, "--model", run.folder, "--out", tmp_path / "adapted", *options, "--adapt-prior"
    )
    assert "estimated without labels" in result.out
    adapted = _json(tmp_path / "adapted" / "metrics.json")["adjusted"]
    assert adapted["estimated"]
    assert adapted["prevalence"]["low"] <= adapted["prevalence"]["value"] <= adapted["prevalence"]["high"]
    assert sum(adapted["shares"].values()) == pytest.approx(1)
    both = command(
        "evaluate", images, "--model", run.folder, "--out", tmp_path / "x", "--adapt-prior", "--prevalence", 0.1
    )
    assert both.code == 2


def test_a_missing_file_does_not_stop_the_others(command: Command, run: Run, image: Path, tmp_path: Path) -> None:
    names = [image, tmp_path / "gone.png", "x" * 300, image]
    result = command("predict", *names, "--model", run.model, "--format", "jsonl")
    assert result.code == 0
    errors = [json.loads(line)["error"] for line in result.out.splitlines()]
    assert [error is None for error in errors] == [True, False, False, True]
    assert "gone.png" in errors[1]


def test_the_name_of_the_output_says_its_format(command: Command, run: Run, image: Path, tmp_path: Path) -> None:
    assert command("predict", image, "--model", run.model, "--out", tmp_path / "p.json").code == 0
    assert json.loads((tmp_path / "p.json").read_text())[0]["decision"]
    missing = command("predict", image, "--model", run.model, "--out", tmp_path / "no" / "p.json")
    assert missing.code == 2
    assert "there is no folder" in missing.err


def test_an_internal_error_ends_in_exit_code_1_without_a_stack_trace(
    command: Command, run: Run, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pneumoscope.inference.predictor

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("impossible")

    monkeypatch.setattr(pneumoscope.inference.predictor, "load", fail)
    result = command("predict", image, "--model", run.model)
    assert result.code == 1
    assert "ZeroDivisionError: impossible" in result.err


def test_predict_fails_when_nothing_can_be_read(command: Command, run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    assert command("predict", tmp_path / "bad.png", "--model", run.model).code == 3
    assert command("predict", tmp_path / "missing.png", "--model", run.model).code == 3


def test_every_bad_image_gets_a_row_with_its_error(command: Command, run: Run, image: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    pixels = np.asarray(Image.open(image))
    bad = {
        "truncated.png": content[: len(content) // 2],
        "empty.png": b"",
        "text.jpg": b"this is no picture",
        "bomb.png": content[:16] + (60_000).to_bytes(4, "big") * 2 + content[24:],
        "float.tiff": _encode(Image.fromarray(pixels.astype(np.float32)), "TIFF"),
    }
    good = {
        "sixteen.png": _encode(Image.fromarray(pixels.astype(np.uint16) * 257), "PNG"),
        "rgba.png": _encode(Image.fromarray(pixels).convert("RGBA"), "PNG"),
        "palette.png": _encode(Image.fromarray(pixels).convert("P"), "PNG"),
        "rgb.bmp": _encode(Image.fromarray(pixels).convert("RGB"), "BMP"),
        "plain.tiff": _encode(Image.fromarray(pixels), "TIFF"),
    }
    for name, bytes_ in {**bad, **good}.items():
        (tmp_path / name).write_bytes(bytes_)
    result = command("predict", tmp_path, image, "--model", run.model, "--format", "jsonl", "--no-ood")
    assert result.code == 0
    rows = {Path(row["path"]).name: row for row in map(json.loads, result.out.splitlines())}
    for name in bad:
        assert name in rows[name]["error"]
        assert rows[name]["probability"] is None
    for name in good:
        assert rows[name]["error"] is None
        assert rows[name]["probability"] == pytest.approx(rows[image.name]["probability"], abs=2e-3)


def test_a_data_set_that_cannot_be_used_ends_in_exit_code_3(command: Command, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = Path(shutil.copytree(images, tmp_path / "one"))
    for extra in sorted((one / "val" / "NORMAL").iterdir()):
        extra.unlink()
    cases = {
        tmp_path / "missing": "missing",
        tmp_path / "empty": "no class folders",
        one: "'val' has no image of class NORMAL",
        images / "train" / "NORMAL": "no class folders",
    }
    for data, message in cases.items():
        result = command("train", data, "--out", tmp_path / "run")
        assert result.code == 3, data
        assert message in result.err
        assert not (tmp_path / "run").exists()


def test_a_class_with_one_image_is_named(command: Command, images: Path, tmp_path: Path) -> None:
    for name in ("NORMAL", "PNEUMONIA"):
        shutil.copytree(images / "train" / name, tmp_path / "data" / name)
    for extra in sorted((tmp_path / "data" / "NORMAL").iterdir())[1:]:
        extra.unlink()
    result = command("train", tmp_path / "data", "--out", tmp_path / "run")
    assert result.code == 3
    assert "class NORMAL" in result.err


def test_the_positive_class_has_to_be_known(command: Command, images: Path, tmp_path: Path) -> None:
    for old, new in (("NORMAL", "clear"), ("PNEUMONIA", "sick")):
        shutil.copytree(images / "train" / old, tmp_path / "data" / new)
    asked = command("train", tmp_path / "data", "--out", tmp_path / "run")
    assert asked.code == 3
    assert "--positive" in asked.err
    options = ("--out", tmp_path / "run", "--positive", "sick", "--size", 64, "--epochs", 1)
    assert command("train", tmp_path / "data", *options).code == 0
    assert _json(tmp_path / "run" / "model" / "model.json")["labels"] == ["clear", "sick"]
    assert command("train", tmp_path / "data", "--out", tmp_path / "b", "--positive", "ill").code == 2


def test_labels_that_the_model_does_not_know_are_refused(
    command: Command, run: Run, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images / "test" / "NORMAL", tmp_path / "data" / "TUBERCULOSIS")
    result = command("evaluate", tmp_path / "data", "--model", run.folder, "--out", tmp_path / "out")
    assert result.code == 3
    assert "TUBERCULOSIS" in result.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_ends_in_exit_code_4(command: Command, run: Run, image: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run.model, tmp_path / "model"))
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (model / "weights.safetensors").write_bytes(content)
    damaged = command("predict", image, "--model", model)
    assert damaged.code == 4
    assert "weights.safetensors" in damaged.err
    (tmp_path / "empty").mkdir()
    assert command("predict", image, "--model", tmp_path / "empty").code == 4
    assert command("predict", image, "--model", tmp_path / "mistyped").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "No data"),
        (["train", "images", "--epochs", "0", "--out", "r"], "epochs"),
        (["train", "images", "--lr", "fast", "--out", "r"], "lr"),
        (["train", "images", "--threshold", "best", "--out", "r"], "sensitivity>=0.95"),
        (["train", "images", "--recipe", "magic", "--out", "r"], "baseline"),
        (["train", "images", "--backbone", "resnet51", "--out", "r"], "resnet50"),
        (["train", "images", "--rotate", "5", "--out", "r"], "--train-backbone"),
        (["train", "images", "--config", "wrong.yaml", "--out", "r"], "leraning_rate"),
        (["train", "images", "--device", "abacus", "--out", "r"], "cpu"),
        (["train", "images", "--resume", "--out", "r"], "no run to resume"),
        (["predict", "--nonsense"], "nonsense"),
        (["nonsense"], "nonsense"),
        (["data", "split", "images", "--out", "s.csv", "--test-fraction", "2"], "between 0 and 1"),
        (["data", "phantoms", "--out", "p", "--count", "2"], "at least 8"),
    ],
)
def test_wrong_usage_ends_in_exit_code_2_and_says_what_to_change(
    arguments: list[str], message: str, command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("leraning_rate: 1\n")
    (tmp_path / "images").symlink_to(images)
    result = command(*arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "r").exists()


def test_options_take_precedence_over_a_config_file(command: Command, images: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "run: {recipe: head}\nnetwork: {size: 64}\noptimisation: {epochs: 2, balance: sampling}\n"
    )
    result = command("train", images, "--out", tmp_path / "run", "--config", tmp_path / "c.yaml", "--epochs", 1)
    assert result.code == 0
    text = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("recipe: head", "epochs: 1", "balance: sampling", "weight_decay: 0.01"):
        assert f"  {line}\n" in text


def test_split_writes_a_table_that_train_reads(command: Command, images: Path, tmp_path: Path) -> None:
    for name in ("NORMAL", "PNEUMONIA"):
        shutil.copytree(images / "train" / name, tmp_path / "data" / name)
    result = command("data", "split", tmp_path / "data", "--out", tmp_path / "split.csv", "--seed", 3)
    assert result.code == 0
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    trained = command("train", tmp_path / "split.csv", "--out", tmp_path / "run", "--size", 64, "--epochs", 1)
    assert trained.code == 0
    with (tmp_path / "run" / "samples.csv").open() as file:
        assert [row["split"] for row in csv.DictReader(file)] == [row["split"] for row in rows]
    assert command("data", "split", tmp_path / "data", "--out", tmp_path / "split.csv").code == 2


def test_phantoms_are_a_data_set(command: Command, tmp_path: Path) -> None:
    result = command("data", "phantoms", "--out", tmp_path / "p", "--count", 16, "--size", 64)
    assert result.code == 0
    assert len(list((tmp_path / "p").rglob("phantom*.png"))) == 16 + 8
    assert command("data", "phantoms", "--out", tmp_path / "p").code == 2


def test_the_demo_trains_and_reports(command: Command, tmp_path: Path) -> None:
    result = command("demo", "--out", tmp_path / "demo", "--images", 40)
    assert result.code == 0
    assert "auroc" in result.out
    assert (tmp_path / "demo" / "report.html").is_file()
    assert "radiographs are simulated" in (tmp_path / "demo" / "report.html").read_text()


def test_backbones_are_listed_with_their_licences(command: Command) -> None:
    result = command("backbones")
    assert result.code == 0
    for word in ("efficientnet_lite0", "resnet50", "densenet121", "Apache-2.0", "BSD-3-Clause"):
        assert word in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_help_and_version_answer_at_once_and_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pneumoscope.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout
        loaded = set(result.stderr.split())
        assert loaded.isdisjoint({"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "pyarrow", "scipy"})


def test_a_command_ends_quietly_whatever_was_imported() -> None:
    pytest.importorskip("triton")  # which lists at the end what was not deleted; PyTorch's compiler imports it
    code = "import triton, sys\nfrom pneumoscope.cli.main import main\nsys.argv = ['pneumoscope', '--version']\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (bool(result.stdout), result.stderr) == (True, "")


def test_ctrl_c_leaves_a_run_that_can_be_resumed(command: Command, images: Path, tmp_path: Path) -> None:
    words = [
        "train",
        images,
        "--out",
        tmp_path / "run",
        "--size",
        64,
        "--epochs",
        5000,
        "--patience",
        5000,
        "--no-test",
    ]
    process = start_command(words, tmp_path / "log")
    while not (tmp_path / "run" / "checkpoints" / "head.pt").exists() and process.runs:
        time.sleep(0.01)
    for _ in range(5):  # as a user presses it again: PyTorch can lose one that comes while it writes a checkpoint
        process.end(signal.SIGINT)
        process.process.join(30)
        if not process.runs:
            break
    assert process.wait(60) == 130
    assert f"train --out {tmp_path / 'run'} --resume --no-test" in " ".join(process.shown.split())
    assert "Traceback" not in process.shown
    assert (tmp_path / "run" / "checkpoints" / "head.pt").exists()
    again = command(*words)
    assert (again.code, "holds an unfinished run. Pass --resume to continue it" in " ".join(again.err.split())) == (
        2,
        True,
    )
    assert (tmp_path / "run" / "checkpoints" / "head.pt").exists()


def test_a_file_that_cannot_be_written_is_reported_before_anything_is_predicted(
    command: Command, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)
    monkeypatch.setattr("pneumoscope.inference.predictor.load", None)
    result = command("predict", image, "--out", tmp_path / "out.csv")
    assert (result.code, "cannot be written" in " ".join(result.err.split())) == (2, True)


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["backbones"], ["predict"]])
def test_output_that_nobody_reads_any_more_is_no_error(
    arguments: list[str], unbuffered: str, run: Run, images: Path
) -> None:
    if arguments == ["predict"]:
        arguments = ["predict", str(images), "--model", str(run.folder), "--format", "jsonl"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pneumoscope", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0, err
    assert "Traceback" not in err
    assert "error" not in err.lower()


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _encode(picture: Image.Image, form: str) -> bytes:
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


def _predict(command: Command, *arguments: object) -> list[dict[str, Any]]:
    result = command("predict", *arguments, "--format", "jsonl")
    assert result.code == 0
    return [json.loads(line) for line in result.out.splitlines()]


def test_explain_and_heatmaps_write_pictures_and_a_table(
    command: Command, run: Run, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [*sorted((images / "test" / "PNEUMONIA").iterdir())[:2], tmp_path / "bad.png"]
    explained = command("explain", *files, "--model", run.folder, "--out", tmp_path / "maps", "--label", "NORMAL")
    assert explained.code == 0
    assert "1 of 3 files have no prediction" in explained.err
    predicted = command("predict", *files, "--model", run.folder, "--format", "csv", "--heatmaps", tmp_path / "heat")
    assert predicted.code == 0
    assert len(predicted.out.splitlines()) == 4
    tables = []
    for name in ("maps", "heat"):
        with (tmp_path / name / "explanations.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [bool(row["error"]) for row in rows] == [False, False, True]
        for row in rows[:2]:
            with Image.open(tmp_path / name / row["overlay"]) as picture:
                assert picture.format == "PNG"
        tables.append(rows)
    for against, towards in zip(*tables, strict=True):
        if not against["error"]:
            assert (against["label"], towards["label"]) == ("NORMAL", "PNEUMONIA")
            assert float(against["logit"]) == pytest.approx(-float(towards["logit"]), abs=1e-5)
    assert command("explain", *files, "--model", run.folder, "--out", tmp_path / "maps").code == 2
    assert command("explain", files[2], "--model", run.folder, "--out", tmp_path / "none").code == 3
    assert command("explain", *files, "--model", run.folder, "--out", tmp_path / "x", "--label", "TUMOUR").code == 2
    assert not (tmp_path / "x").exists()


def test_rows_name_the_flags_of_the_command(
    command: Command, run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.errors import ImageError
    from pneumoscope.images import read

    def refuse(*_: object) -> None:
        raise ImageError("x.png: a CT slice. Pass `any_modality=True`.")

    monkeypatch.setattr(read, "_read_raster", refuse)
    shutil.copy(next((images / "test" / "NORMAL").iterdir()), tmp_path / "x.png")
    result = command("predict", tmp_path / "x.png", "--model", run.model, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(result.out))
    assert row["error"] == "x.png: a CT slice. Pass --any-modality."


def test_patients_are_named_on_request_only(command: Command, run: Run, images: Path, tmp_path: Path) -> None:
    files = sorted((images / "test").rglob("*.png"))
    rows = [f"{file},{file.parent.name},Smith-4711,{'test' if i % 2 else 'train'}" for i, file in enumerate(files)]
    (tmp_path / "data.csv").write_text("path,label,patient,split\n" + "\n".join(rows) + "\n")
    for options, named in (((), False), (("--patient-ids",), True)):
        out = tmp_path / f"evaluated-{named}"
        arguments = ("--model", run.model, "--out", out, "--split", "all", "--resamples", 20, *options)
        assert command("evaluate", tmp_path / "data.csv", *arguments).code == 0
        for file in ("metrics.json", "report.html"):
            text = (out / file).read_text(encoding="utf-8")
            assert "1 patient is in more than one split" in text
            assert ("Smith-4711" in text) is named
        assert "Smith-4711" in (out / "predictions.csv").read_text(encoding="utf-8")
        out = tmp_path / f"audited-{named}"
        audited = command("audit", tmp_path / "data.csv", "--quick", "--out", out, *options)
        assert ("Smith-4711" in audited.out + (out / "audit.json").read_text(encoding="utf-8")) is named
        assert ("Smith-4711" in (out / "audit.html").read_text(encoding="utf-8")) is named
