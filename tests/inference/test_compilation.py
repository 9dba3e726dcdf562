"""Compiled networks that are kept: the same answers, whatever happens to the files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.inference import compilation, engines
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.inference.runtimes import import_openvino
from pneumoscope.models.backbones import find_backbone, load_backbone
from pneumoscope.models.model_folder import load_arrays, load_model, save_changed
from pneumoscope.training.train import Run


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the kept networks, empty."""
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was compiled since the test began."""
    done: list[object] = []
    core = import_openvino().Core
    compile_model = core.compile_model

    def note(self: Any, *arguments: Any) -> Any:
        done.append(arguments[0])
        return compile_model(self, *arguments)

    monkeypatch.setattr(core, "compile_model", note)
    return done


def ask(predictor: Predictor, images: Path) -> list[float | None]:
    return [each.probability for each in predictor.predict(sorted((images / "test").rglob("*.png"))[:3])]


def test_a_kept_network_gives_the_same_answers_to_the_last_bit(
    run: Run, images: Path, networks: Path, compiled: list[object]
) -> None:
    first = load(run.model, "cpu")
    assert (len(compiled), len([*networks.iterdir()])) == (1, 1)
    second = load(run.model, "cpu")
    assert len(compiled) == 1
    assert ask(second, images) == ask(first, images)
    inputs = np.random.default_rng(1).normal(size=(5, 3, 128, 128)).astype(np.float32)
    ours, other = (each.engine.run(inputs, maps=True) for each in (first, second))
    for name in ("features", "intermediate", "maps"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(other, name))


def test_a_packaged_backbone_is_compiled_for_the_first_training_only(
    networks: Path, compiled: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "compile_graph", compilation.compile_graph)  # not as all other tests share it
    spec = find_backbone("efficientnet_lite0")
    inputs = np.random.default_rng(1).normal(size=(3, 3, spec.input.size, spec.input.size)).astype(np.float32)
    first, second = (engines.build_engine(load_backbone(spec), spec.input.size, "cpu") for _ in range(2))
    assert (len(compiled), len([*networks.iterdir()])) == (1, 1)
    np.testing.assert_array_equal(first.run(inputs).features, second.run(inputs).features)

    other = engines.build_engine(load_backbone(find_backbone("chest_lite0")), spec.input.size, "cpu")  # other weights
    assert len(compiled) == 2
    assert not np.array_equal(other.run(inputs).features, first.run(inputs).features)


def flip(file: Path) -> None:
    """Change a bit of a weight."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def mislead(file: Path) -> None:
    """Write something else, with its right digest."""
    file.write_bytes(hashlib.sha256(b"no network").digest() + b"no network")


@pytest.mark.parametrize("damage", [flip, shorten, empty, mislead])
def test_a_damaged_network_is_compiled_again_and_replaced(
    damage: Callable[[Path], None], run: Run, images: Path, networks: Path, compiled: list[object]
) -> None:
    answers = ask(load(run.model, "cpu"), images)
    (file,) = networks.iterdir()
    whole = len(file.read_bytes())
    damage(file)
    assert ask(load(run.model, "cpu"), images) == answers
    assert len(compiled) == 2
    assert len(file.read_bytes()) == pytest.approx(whole, rel=0.01)
    load(run.model, "cpu")
    assert len(compiled) == 2


@pytest.mark.parametrize("what", ["everybody can write the model", "everybody can write the cache", "another owner"])
def test_networks_that_others_could_replace_are_not_kept(
    what: str, run: Run, images: Path, networks: Path, compiled: list[object], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    networks.mkdir(parents=True, mode=0o700)
    if what == "another owner":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        if (uid := model.stat().st_uid) == 0:
            os.chown(model, 23456, -1)
        assert uid != 12345
    else:
        (model if "model" in what else networks).chmod(0o777)
    assert len(ask(load(model, "cpu"), images)) == 3
    assert [*networks.iterdir()] == []


def test_a_kept_network_is_for_its_owner_alone(run: Run, networks: Path) -> None:
    load(run.model, "cpu")
    (file,) = networks.iterdir()
    assert (networks.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_network_is_used_where_the_cache_can_only_be_read(
    run: Run, networks: Path, compiled: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(run.model, "cpu")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    load(run.model, "cpu")
    assert len(compiled) == 1


def test_a_user_without_a_home_folder_can_predict(
    run: Run, images: Path, compiled: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(compilation, "cache_folder", fail)
    assert len(ask(load(run.model, "cpu"), images)) == 3
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_cache_that_cannot_be_written_changes_nothing(
    kind: str, run: Run, images: Path, networks: Path, compiled: list[object]
) -> None:
    networks.parent.mkdir()
    if kind == "file":
        networks.write_text("in the way")
    else:
        load(run.model, "cpu")
        (file,) = networks.iterdir()
        file.unlink()
        file.mkdir()
    assert len(ask(load(run.model, "cpu"), images)) == 3
    assert len(compiled) == (1 if kind == "file" else 2)


def test_other_threads_or_another_openvino_or_processor_compile_anew(
    run: Run, networks: Path, compiled: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = import_openvino()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    load(run.model, "cpu")
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        load(run.model, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "get_version", lambda: "another")
        load(run.model, "cpu")
    get_property = openvino.Core.get_property
    with monkeypatch.context() as patch:
        patch.setattr(
            openvino.Core, "get_property", lambda self, device, name: f"{get_property(self, device, name)}, another"
        )
        load(run.model, "cpu")
    assert len(compiled) == len([*networks.iterdir()]) == 4


def test_a_model_with_other_weights_is_compiled_anew(
    run: Run, images: Path, networks: Path, compiled: list[object], tmp_path: Path
) -> None:
    answers = ask(load(run.model, "cpu"), images)
    model = load_model(run.model)
    arrays = load_arrays(run.model, model)
    name = next(name for name in arrays if name.startswith("backbone.") and name.endswith(".weight"))
    save_changed(tmp_path / "changed", run.model, model, {name: arrays[name] + 1})
    assert ask(load(tmp_path / "changed", "cpu"), images) != answers
    assert len(compiled) == 2


def test_the_least_recently_used_networks_are_deleted(
    run: Run, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []
    for threads in (1, 2, 3):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        load(run.model, "cpu")
        kept += [each for each in networks.iterdir() if each not in kept]
        os.utime(kept[-1], (threads, threads))
    assert len(kept) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    load(run.model, "cpu")  # which makes it the one that was used last
    monkeypatch.setattr(compilation, "_MAX_BYTES", 3 * kept[0].stat().st_size + 1000)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    (networks / "lost").symlink_to(networks / "nowhere")
    (networks / "folder").mkdir()
    load(run.model, "cpu")
    assert set(networks.iterdir()) & set(kept) == {kept[0], kept[2]}


def test_the_frozen_backbone_of_a_training_is_not_kept(images: Path, networks: Path, tmp_path: Path) -> None:
    from pneumoscope.training.train import train

    train(images, tmp_path / "run", recipe="baseline", epochs=1, size=128, cache=False)
    assert not networks.exists()
