"""Training in several processes, as `torchrun` starts them: real processes that talk to each other with gloo."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch._C._distributed_c10d import TCPStore

import pneumoscope
from commands import Command
from pneumoscope.errors import UsageError
from pneumoscope.training.train import train
from processes import Started, start_command

TOLERANCE = 1e-4
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {"epochs": 12},
    # At the recipe's own rates, rounding grows about tenfold with each step on so few images, also in one process
    # (docs/log.md).
    "finetune": {"epochs": 3, "warmup_epochs": 2, "precision": "float32", "lr": 1e-4, "backbone_lr": 3e-5},
}


def options(recipe: str) -> dict[str, Any]:
    """With batches of 7, the last of an epoch has 3 images: fewer than four processes."""
    return {"recipe": recipe, "size": 64, "batch_size": 7, **RECIPES[recipe]}


def flags(recipe: str) -> list[str]:
    return [word for name, value in options(recipe).items() for word in (f"--{name.replace('_', '-')}", str(value))]


@contextmanager
def processes(size: int, words: Sequence[object], logs: Path) -> Iterator[list[Started]]:
    """Start `pneumoscope` as `torchrun` does, with a store like that of its agent."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs.mkdir(exist_ok=True)
    common = {
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    started = []
    for rank in range(size):
        with mock.patch.dict(os.environ, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}):
            started.append(start_command(words, logs / str(rank)))
    try:
        yield started
    finally:
        for each in started:
            each.end()


def run_processes(size: int, words: Sequence[object], logs: Path) -> list[tuple[int, str]]:
    """The exit code and output of each."""
    with processes(size, words, logs) as started:
        return [(each.wait(400), each.shown) for each in started]


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each recipe by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {recipe: train(images, folder / recipe, **options(recipe)).folder for recipe in RECIPES}


def column(path: Path, *names: str) -> np.ndarray[Any, Any]:
    with path.open(encoding="utf-8", newline="") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def check_same(run: Path, expected: Path) -> None:
    """Losses, weights and probabilities differ by rounding only."""
    losses, probabilities = ("train_loss", "val_loss", "val_accuracy", "lr"), ("probability",)
    for name, columns in (("history.csv", losses), ("predictions.csv", probabilities)):
        np.testing.assert_allclose(column(run / name, *columns), column(expected / name, *columns), 0, TOLERANCE)
    weights, others = (load_file(folder / "model" / "weights.safetensors") for folder in (run, expected))
    for name in weights:
        if name.startswith(("head.", "backbone.")):
            np.testing.assert_allclose(weights[name], others[name], 0, TOLERANCE, err_msg=name)
    for name in ("samples.csv", "intake.json"):
        assert (run / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize(("recipe", "size"), [("baseline", 4), ("finetune", 2), ("finetune", 4)])
def test_several_processes_train_the_same_model_as_one(
    recipe: str, size: int, alone: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    words = ["train", images, "--out", tmp_path / "run", "--no-cache", *flags(recipe)]
    (code, shown), *others = run_processes(size, words, tmp_path / "logs")
    assert code == 0, shown
    assert others == [(0, "")] * (size - 1)  # only the first one shows anything
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in shown
    check_same(tmp_path / "run", alone[recipe])


def wait_for(path: Path, started: Sequence[Started]) -> None:
    while not path.exists() and all(each.runs for each in started):
        time.sleep(0.02)
    assert path.exists(), "\n".join(each.shown for each in started)


def test_a_run_goes_on_after_a_process_was_killed(alone: dict[str, Path], images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with processes(2, ["train", images, "--out", run, *flags("finetune")], tmp_path / "first") as (leader, other):
        wait_for(run / "checkpoints" / "finetune.pt", (leader, other))
        other.end(signal.SIGKILL)
        assert leader.wait(400) == 1
        assert "Another process of this training has ended" in leader.shown
        assert leader.shown.count("error: ") == 1
    assert not (run / "report.html").exists()
    (code, shown), _ = run_processes(2, ["train", "--out", run, "--resume"], tmp_path / "again")
    assert code == 0, shown
    check_same(run, alone["finetune"])


def test_an_image_that_one_process_cannot_read_is_left_out_as_by_one_process(images: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(images, tmp_path / "data"))
    damaged = sorted((data / "train" / "NORMAL").iterdir())[1]
    damaged.write_bytes(b"no image")
    expected = train(data, tmp_path / "alone", **options("baseline"))
    words = ["train", data, "--out", tmp_path / "run", *flags("baseline")]
    (code, shown), other = run_processes(2, words, tmp_path / "logs")
    assert code == 0, shown
    assert damaged.name in shown
    assert other == (0, "")
    check_same(tmp_path / "run", expected.folder)


def test_all_processes_end_with_the_error_of_one(images: Path, tmp_path: Path) -> None:
    data, run = Path(shutil.copytree(images, tmp_path / "data")), tmp_path / "run"
    lost = min((data / "train" / "PNEUMONIA").iterdir())
    words = ["train", data, "--out", run, *flags("finetune"), "--epochs", 200]
    with processes(4, words, tmp_path / "logs") as started:
        wait_for(run / "checkpoints" / "finetune.pt", started)
        lost.unlink()
        codes = [each.wait(400) for each in started]
    assert codes == [3] * 4
    lines = [line for each in started for line in each.shown.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lost.name in lines[0]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--batch-size", "1"], "error: --batch-size: a batch of 1 is too small for 2 processes"),
        (["--train-backbone", "--size", "64"], "error: --freeze-batchnorm: the batch norms of efficientnet_lite0"),
        (["--strict", "--no-audit"], "error: --strict: "),
    ],
)
def test_settings_that_several_processes_cannot_use_are_refused_once(
    wrong: list[str], named: str, images: Path, tmp_path: Path
) -> None:
    words = ["train", images, "--out", tmp_path / "run", "--recipe", "baseline", *wrong]
    ended = run_processes(2, words, tmp_path / "logs")
    assert [code for code, _ in ended] == [2, 2]
    assert sum(shown.count("error: ") for _, shown in ended) == 1
    assert named in "".join(shown for _, shown in ended)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("words", [["crossval", "images"], ["models", "list"], ["train", "--no-such-option"]])
def test_what_several_processes_cannot_do_is_refused_by_the_first(
    words: list[str], rank: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    result = command(*words)
    assert result.code == 2
    assert result.out == ""
    if rank:
        assert result.err == ""
    elif words[0] != "train":
        assert f"`{words[0]}` runs in one process" in result.err


@pytest.mark.parametrize("function", [pneumoscope.cross_validate, pneumoscope.tune])
def test_functions_that_run_in_one_process_say_so(
    function: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="runs in one process"):
        function(tmp_path, tmp_path / "out")


SCRIPT = """
import os, signal, sys
import pneumoscope

class Kill(pneumoscope.Callback):
    def on_epoch(self, metrics, epoch):
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and epoch == 5:
            os.kill(os.getpid(), signal.SIGKILL)

run = pneumoscope.train(
    sys.argv[1], sys.argv[2], recipe="baseline", size=64, batch_size=7, epochs=12, callbacks=[Kill()]
)
print(run.evaluation.n, "images tested")
"""


def test_torchrun_starts_a_failed_training_again_and_it_goes_on(
    alone: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
         script, images, run],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["12 images tested"] * 2  # every process has the run
    check_same(run, alone["baseline"])
