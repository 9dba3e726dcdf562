from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pneumoscope
from pneumoscope.errors import BundleError
from pneumoscope.images.preparing import InputSpec
from pneumoscope.models.bundle import Bundle, Calibration, Conformal, Novelty, load_bundle, load_weights, save_bundle
from pneumoscope.training.train import Run


@pytest.fixture
def bundle(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.bundle, tmp_path / "bundle"))


def test_a_bundle_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made = Bundle(
        backbone="resnet18",
        architecture="resnet18",
        arguments={"head_norm_first": True},
        labels=("A", "Ä b"),
        positive="Ä b",
        input=InputSpec(320, "pad"),
        thresholds={"decision": 0.3},
        calibration=Calibration("platt", 1.5, -0.25, (0.5, -0.5), (), (0.25, 0.75), 40, {"ece": 0.2}, {"ece": 0.1}),
        training={"recipe": "head", "best": {"epoch": 3}},
        data={"fingerprint": "ab"},
        version="0",
        weights_sha256="",
        threshold_rule="sensitivity>=0.95",
        conformal=Conformal(0.1, {"A": (0.25, 0.5), "Ä b": ()}),
        novelty=Novelty(0.05, {"A": (0.5, 1.25), "Ä b": ()}),
    )
    state = {"head.weight": torch.randn(1, 3), "head.bias": torch.zeros(1)}
    saved = save_bundle(tmp_path / "b", made, state)
    loaded = load_bundle(tmp_path / "b")
    assert loaded == saved
    weights = load_weights(tmp_path / "b", loaded)
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())


def test_a_run_stands_for_its_bundle(run: Run) -> None:
    assert load_bundle(run.folder) == load_bundle(run.bundle)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), file=st.sampled_from(["bundle.json", "weights.safetensors"]))
def test_any_flipped_byte_is_found(place: float, file: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(run.bundle, folder, dirs_exist_ok=True)
    content = bytearray((folder / file).read_bytes())
    content[int(place * len(content))] ^= 0x04
    (folder / file).write_bytes(content)
    with contextlib.suppress(BundleError):
        loaded = load_bundle(folder)
        load_weights(folder, loaded)
        # White space between the values of the description means nothing; any other flip has to be found.
        assert file == "bundle.json"
        assert loaded == load_bundle(run.bundle)


@pytest.mark.parametrize("file", ["bundle.json", "weights.safetensors"])
def test_a_missing_file_is_named(file: str, bundle: Path) -> None:
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=file):
        pneumoscope.load(bundle)


def test_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    values = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**values, "schema": 99, "invention": True}))
    with pytest.raises(BundleError, match=r"schema 99 is newer.*Upgrade"):
        load_bundle(bundle)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"schema": "x"}', "\x00", "{" * 10_000])
def test_a_description_of_another_kind_is_refused(content: str, bundle: Path) -> None:
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(bundle)


def test_weights_that_do_not_fit_the_description_are_refused(run: Run, tmp_path: Path) -> None:
    state = load_weights(run.bundle, load_bundle(run.bundle))
    del state["backbone.network.conv_stem.weight"]
    save_bundle(tmp_path / "b", load_bundle(run.bundle), state)
    with pytest.raises(BundleError, match="do not fit"):
        pneumoscope.load(tmp_path / "b")


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        pneumoscope.load(tmp_path)
