"""Folds and trials on a Ray cluster: the same results as on one machine, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest

if any(find_spec(name) is None for name in ("ray", "optuna")):
    pytest.skip("needs Ray and Optuna: pip install 'pneumoscope[ray,tune]'", allow_module_level=True)

from commands import Command
from pneumoscope import CrossValidation, DataError, MissingExtraError, ServiceError, UsageError, cross_validate, tune
from pneumoscope.tasks.engine import open_ray
from pneumoscope.tasks.ray_tasks import Pool, RayTasks, open_tasks
from pneumoscope.tasks.reach import check_places, describe_places

FAST: dict[str, Any] = {"recipe": "head", "size": 128, "epochs": 4, "resamples": 20, "audit": False}
WORDS = ["--recipe", "head", "--size", 128, "--epochs", 4, "--resamples", 20, "--no-audit"]
SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "balance": ["none", "weights"]}


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One cluster on this machine, which all tests of this module share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER_TEST", "training")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers find modules where this process does
        with open_ray(cpus=1) as running:
            yield running


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """Two folds in this process; tests read it and change nothing."""
    return cross_validate(images, tmp_path_factory.mktemp("runs") / "local", folds=2, **FAST)


class Killer(threading.Thread):
    """Kills the first worker of the cluster that runs a task."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.02) and not self.killed:
            for process in Path("/proc").iterdir():
                with suppress(OSError):
                    if (process / "cmdline").read_bytes().startswith(
                        b"ray::_call\0"
                    ) and b"CLUSTER_TEST=training\0" in (process / "environ").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
                        self.killed = int(process.name)
                        return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


def wait_for_all(tasks: RayTasks) -> None:
    while tasks.count:
        tasks.wait()


def check_equal(found: CrossValidation, expected: CrossValidation) -> None:
    assert found.folds == expected.folds
    assert found.evaluation.metrics == expected.evaluation.metrics
    names = ("predictions.csv", "folds.csv", "crossval.json", "crossval.yaml")
    for name in names:
        assert (found.folder / name).read_bytes() == (expected.folder / name).read_bytes(), name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_folds_on_a_cluster_are_those_of_this_machine_though_a_worker_is_killed(
    ray: Any, local: CrossValidation, images: Path
) -> None:
    out = local.folder.with_name("ray")  # as deep as the other one, so that relative paths are the same
    with Killer() as killer:
        found = cross_validate(images, out, folds=2, on="ray", **FAST)
    assert killer.killed
    check_equal(found, local)
    assert sorted(each.name for each in (out / "folds").iterdir()) == sorted(
        each.name for each in (local.folder / "folds").iterdir()
    )


def test_finished_folds_are_kept_and_the_command_continues_on_a_cluster_what_began_here(
    ray: Any, local: CrossValidation, command: Command
) -> None:
    out = local.folder.with_name("again")
    shutil.copytree(local.folder, out)
    kept, lost = (out / "folds" / f"repeat-1-fold-{fold}" for fold in (1, 2))
    weights = (kept / "model" / "weights.safetensors").stat().st_mtime_ns
    shutil.rmtree(lost / "model")
    (lost / "metrics.json").unlink()
    (out / "predictions.csv").unlink()
    done = command("crossval", "--out", out, "--resume", "--on", "ray", "--workers", 1)
    assert done.code == 0, done.err
    assert "Folds: 2 of 2" in done.err
    assert (kept / "model" / "weights.safetensors").stat().st_mtime_ns == weights
    assert (out / "crossval.json").read_bytes() == (local.folder / "crossval.json").read_bytes()


def test_trials_one_at_a_time_are_those_of_this_machine(ray: Any, images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"folds": 2, "space": SPACE, "seed": 3, "test": False, **FAST}
    here = tune(images, tmp_path / "here", trials=5, **options)
    with Killer():
        begun = tune(images, tmp_path / "there", trials=3, on="ray", workers=1, **options)
    assert begun.search.count("complete") + begun.search.count("stopped early") == 3
    there = tune(out=tmp_path / "there", trials=5, test=False, resume=True, on="ray", workers=1)
    expected, found = (
        [(each.number, each.state, each.score, each.folds, each.settings, each.remark) for each in result.search.trials]
        for result in (here, there)
    )
    assert found == expected
    assert there.settings.optimisation == here.settings.optimisation


def test_several_trials_at_a_time_are_as_many_as_wanted(
    ray: Any, images: Path, tmp_path: Path, command: Command
) -> None:
    words = ["tune", images, "--out", tmp_path / "out", "--trials", 5, "--folds", 2, "--space", "head", "--no-test"]
    done = command(*words, *WORDS, "--on", "ray")
    assert done.code == 0, done.err
    assert done.out.startswith("5 trials: ")


def test_an_error_of_a_worker_has_its_message_and_exit_code(
    ray: Any, images: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images").glob("*/PNEUMONIA/*.png"):
        path.write_bytes(f"no image {path.name}".encode())
    words = ("crossval", tmp_path / "images", "--folds", 2, *WORDS)
    alone, done = (command(*words, "--out", tmp_path / on, "--on", on) for on in ("local", "ray"))
    assert (alone.code, done.code) == (3, 3), (alone.err, done.err)
    assert done.err.splitlines()[-1] == alone.err.splitlines()[-1]
    assert done.err.splitlines()[-1].startswith("error: ")
    assert not any(word in done.err for word in ("Traceback", "ray::"))


def test_a_machine_that_does_not_reach_data_or_output_is_named(ray: Any, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("path\n")
    places = describe_places(tmp_path, file, sorted(images.rglob("*.png")))
    with open_tasks(Pool()) as tasks:
        tasks.check(check_places, places)
        with pytest.raises(DataError, match=r"gone.png cannot be read .* must reach the data and the output folder"):
            tasks.check(check_places, replace(places, images=[tmp_path / "gone.png"]))
        with pytest.raises(DataError, match="is another folder than on the machine of the command"):
            tasks.check(check_places, replace(places, digest="0"))
        with pytest.raises(DataError, match="cannot be written"):
            tasks.check(check_places, replace(places, folder=tmp_path / "gone"))
        tasks.submit("dies", os._exit, 1)
        with pytest.raises(ServiceError, match=r"a worker died 5 times .* Continue with `resume=True`"):
            wait_for_all(tasks)


def test_options_without_a_cluster_and_a_missing_extra_are_said_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, name in (({"address": "auto"}, "address"), ({"cpus_per_worker": 2}, "cpus_per_worker")):
        for function in (cross_validate, tune):
            with pytest.raises(UsageError, match=f"{name}: has no effect without `on='ray'`"):
                function(images, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="workers: has no effect without"):
        tune(images, tmp_path / "out", workers=2)
    with pytest.raises(UsageError, match="on: must be 'local' or 'ray'"):
        cross_validate(images, tmp_path / "out", on="cloud")  # type: ignore[arg-type]
    monkeypatch.setattr("pneumoscope.tasks.engine.find_spec", lambda _: None)
    for function in (cross_validate, tune):
        with pytest.raises(MissingExtraError, match=r"pneumoscope\[ray\]"):
            function(images, tmp_path / "out", on="ray")
    assert not (tmp_path / "out").exists()
