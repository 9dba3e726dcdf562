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
from pneumoscope.models.backbones import BackboneSpec, build_backbone
from pneumoscope.models.bundle import (
    Bundle,
    Calibration,
    Conformal,
    Novelty,
    find_file,
    load_bundle,
    load_weights,
    save_bundle,
)
from pneumoscope.models.classifier import Classifier, build_head, round_to_half
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


def test_half_a_bundle_gives_the_logits_of_the_rounded_network_to_the_last_bit(run: Run, tmp_path: Path) -> None:
    bundle = load_bundle(run.bundle)
    spec = BackboneSpec(bundle.backbone, bundle.architecture, "bundle", "", bundle.input, bundle.arguments)
    states = {"before": load_weights(run.bundle, bundle)}
    saved = save_bundle(tmp_path / "half", bundle, states["before"], half=True)
    states["stored"] = load_weights(tmp_path / "half", saved)
    networks = {}
    for name, state in states.items():
        network = Classifier(build_backbone(spec), build_head(1280, 2)).eval()
        network.load_state_dict({key: tensor for key, tensor in state.items() if not key.startswith("novelty.")})
        networks[name] = network
    inputs = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, stored = (network(inputs) for network in networks.values())
        round_to_half(networks["before"])
        rounded = networks["before"](inputs)
    assert torch.equal(stored, rounded)
    assert not torch.equal(stored, before)
    for key, tensor in states["before"].items():
        assert states["stored"][key].dtype == tensor.dtype
        if tensor.ndim < 2 or key.startswith("novelty."):
            assert torch.equal(states["stored"][key], tensor)
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (tmp_path / "half", run.bundle)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_what_half_precision_cannot_hold_is_refused(value: float, run: Run, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="half precision"):
        save_bundle(tmp_path / "b", load_bundle(run.bundle), {"head.weight": torch.full((1, 3), value)}, half=True)
    assert not (tmp_path / "b" / "weights.safetensors").exists()


def test_a_run_stands_for_its_bundle(run: Run) -> None:
    assert load_bundle(run.folder) == load_bundle(run.bundle)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.floats(0, 1, exclude_max=True),
    file=st.sampled_from(["bundle.json", "weights.safetensors", "network.onnx"]),
)
def test_any_flipped_byte_is_found(place: float, file: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(run.bundle, folder, dirs_exist_ok=True)
    content = bytearray((folder / file).read_bytes())
    content[int(place * len(content))] ^= 0x04
    (folder / file).write_bytes(content)
    with contextlib.suppress(BundleError):
        loaded = load_bundle(folder)
        load_weights(folder, loaded)
        find_file(folder, loaded, "network.onnx")
        # White space between the values of the description means nothing; any other flip has to be found.
        assert file == "bundle.json"
        assert loaded == load_bundle(run.bundle)


@pytest.mark.parametrize("file", ["bundle.json", "weights.safetensors", "network.onnx"])
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
