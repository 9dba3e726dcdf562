from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pneumoscope
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decisions, read_decisions, to_json
from pneumoscope.decisions.ood import OOD
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.scope import Scope
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import ModelError
from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.backbones import BackboneSpec, build_backbone
from pneumoscope.models.classifier import Classifier, build_head, round_to_half
from pneumoscope.models.model_folder import Model, find_file, load_model, load_weights, save_model
from pneumoscope.training.train import Run


@pytest.fixture
def model(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.model, tmp_path / "model"))


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    decisions = Decisions(
        Calibration("platt", 1.5, -0.25, (0.5, -0.5), (), (0.25, 0.75), 40, {"brier": 0.2}, {"brier": 0.1}),
        Threshold(0.3, "sensitivity>=0.95"),
        PredictionSets(0.1, {"A": (0.25, 0.5), "Ä b": ()}),
        OOD("mahalanobis", 0.05, {"A": (0.5, 1.25), "Ä b": ()}),
        Scope((1.0, 5.0), ("AP", "PA"), ("DX",)),
    )
    made = Model(
        backbone="resnet18",
        architecture="resnet18",
        arguments={"head_norm_first": True},
        labels=("A", "Ä b"),
        positive="Ä b",
        input=InputSpec(320, "pad"),
        decisions=to_json(decisions),
        training={"recipe": "head", "best": {"epoch": 3}},
        data={"fingerprint": "ab"},
        version="0",
    )
    state = {"head.weight": torch.randn(1, 3), "head.bias": torch.zeros(1)}
    saved = save_model(tmp_path / "b", made, state)
    loaded = load_model(tmp_path / "b")
    assert loaded == saved
    assert read_decisions(loaded) == decisions
    weights = load_weights(tmp_path / "b", loaded)
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())


def test_half_a_model_gives_the_logits_of_the_rounded_network_to_the_last_bit(run: Run, tmp_path: Path) -> None:
    model = load_model(run.model)
    spec = BackboneSpec(model.backbone, model.architecture, "model", "", model.input, model.arguments)
    states = {"before": load_weights(run.model, model)}
    saved = save_model(tmp_path / "half", model, states["before"], half=True)
    states["stored"] = load_weights(tmp_path / "half", saved)
    networks = {}
    for name, state in states.items():
        network = Classifier(build_backbone(spec), build_head(1280, 2)).eval()
        network.load_state_dict({key: tensor for key, tensor in state.items() if not key.startswith("ood.")})
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
        if tensor.ndim < 2 or key.startswith("ood."):
            assert torch.equal(states["stored"][key], tensor)
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (tmp_path / "half", run.model)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_what_half_precision_cannot_hold_is_refused(value: float, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="half precision"):
        save_model(tmp_path / "b", load_model(run.model), {"head.weight": torch.full((1, 3), value)}, half=True)
    assert not (tmp_path / "b" / "weights.safetensors").exists()


def test_a_run_stands_for_its_model(run: Run) -> None:
    assert load_model(run.folder) == load_model(run.model)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.floats(0, 1, exclude_max=True),
    file=st.sampled_from(["model.json", "weights.safetensors", "network.onnx"]),
)
def test_any_flipped_byte_is_found(place: float, file: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(run.model, folder, dirs_exist_ok=True)
    content = bytearray((folder / file).read_bytes())
    content[int(place * len(content))] ^= 0x04
    (folder / file).write_bytes(content)
    with contextlib.suppress(ModelError):
        loaded = load_model(folder)
        load_weights(folder, loaded)
        find_file(folder, loaded, "network.onnx")
        # White space between the values of the description means nothing; any other flip has to be found.
        assert file == "model.json"
        assert loaded == load_model(run.model)


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors", "network.onnx"])
def test_a_missing_file_is_named(file: str, model: Path) -> None:
    (model / file).unlink()
    with pytest.raises(ModelError, match=file):
        pneumoscope.load(model)


def test_a_newer_schema_asks_for_an_upgrade(model: Path) -> None:
    values = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**values, "schema": 99, "invention": True}))
    with pytest.raises(ModelError, match=r"has schema 99.*Upgrade"):
        load_model(model)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"schema": "x"}', "\x00", "{" * 10_000])
def test_a_description_of_another_kind_is_refused(content: str, model: Path) -> None:
    (model / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.json"):
        load_model(model)


def test_weights_that_do_not_fit_the_description_are_refused(run: Run, tmp_path: Path) -> None:
    state = load_weights(run.model, load_model(run.model))
    del state["backbone.network.conv_stem.weight"]
    save_model(tmp_path / "b", load_model(run.model), state)
    with pytest.raises(ModelError, match="do not fit"):
        pneumoscope.load(tmp_path / "b")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model here"):
        pneumoscope.load(tmp_path)


def test_a_model_says_for_which_class_fractions_its_probabilities_hold(model: Path) -> None:
    description = load_model(model)
    calibration = {**description.decisions["calibration"], "class_fractions": []}
    with pytest.raises(ModelError, match="class_fractions"):
        read_decisions(replace(description, decisions={**description.decisions, "calibration": calibration}))
