"""Backbones that run without their networks."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumoscope.inference.engines import TorchEngine, build_engine
from pneumoscope.models.backbones import find_backbone, list_backbones, load_backbone
from pneumoscope.models.classifier import Backbone, round_to_half
from pneumoscope.models.onnx_graphs import trace_graph, try_graph
from pneumoscope.models.stored_backbone import StoredBackbone, store_graph

STORED = [spec.name for spec in list_backbones() if spec.package or spec.model]


def load(name: str = "efficientnet_lite0") -> StoredBackbone:
    backbone = load_backbone(find_backbone(name))
    assert isinstance(backbone, StoredBackbone)
    assert backbone.stored
    return backbone


@pytest.mark.parametrize("name", STORED)
def test_a_stored_graph_computes_what_its_network_does(name: str) -> None:
    backbone, size = load(name), find_backbone(name).input.size
    inputs = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    found = build_engine(backbone, size, "cpu").run(inputs, maps=True)
    assert backbone.fits(size)
    wanted = TorchEngine(backbone, size, "cpu").run(inputs, maps=True)
    assert not backbone.fits(size)
    for part in ("features", "maps", "intermediate"):
        ours, theirs = getattr(found, part), getattr(wanted, part)
        np.testing.assert_allclose(ours, theirs, 1e-3, 1e-4 * float(np.abs(theirs).max()))


def test_a_stored_graph_is_what_tracing_gives() -> None:
    backbone, size = load().eval(), 224
    stored = try_graph(backbone, size)
    width, names = backbone.width, list(backbone.state_dict())
    assert stored == trace_graph(backbone, size)
    assert not backbone.stored
    assert (backbone.width, list(backbone.state_dict())) == (width, names)
    assert store_graph(stored, backbone, size) == store_graph(trace_graph(backbone, size), backbone, size)


def test_another_size_is_traced() -> None:
    backbone = load()
    assert not backbone.fits(160)
    assert build_engine(backbone, 160, "cpu").run(np.zeros((1, 3, 160, 160), np.float32)).features.shape == (1, 1280)


@pytest.mark.parametrize(
    "use",
    [
        lambda backbone: list(backbone.parameters()),
        lambda backbone: backbone.double(),
        lambda backbone: backbone.requires_grad_(False),
        lambda backbone: backbone.network.num_features,
        lambda backbone: backbone(torch.zeros(1, 3, 64, 64)),
        lambda backbone: backbone.load_state_dict(backbone.state_dict()),
        lambda backbone: torch.nn.Sequential(backbone).state_dict(),
        lambda backbone: next(copy.deepcopy(backbone).buffers()) is not None and list(backbone.modules()),
    ],
)
def test_whatever_else_pytorch_does_meets_the_network(use: Callable[[Backbone], object]) -> None:
    backbone = load().eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    use(backbone)
    assert not backbone.stored
    assert not any(layer.training for layer in backbone.modules())
    after = backbone.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name].to(before[name].dtype)) for name in before)


def test_a_network_that_is_first_needed_in_inference_mode_can_be_trained() -> None:
    backbone = load().eval()
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, 64, 64))
    backbone.load_state_dict(backbone.state_dict())
    backbone(torch.zeros(1, 3, 64, 64)).sum().backward()
    assert all(each.grad is not None for each in backbone.parameters())


def test_weights_that_are_rounded_before_the_network_is_built_stay_so() -> None:
    backbone = load().eval()
    round_to_half(backbone)
    name = "network.conv_stem.weight"
    stored = backbone.state_dict()[name].clone()
    assert torch.equal(stored, stored.half().float())
    assert torch.equal(dict(backbone.named_parameters())[name], stored)


def test_a_frozen_recipe_needs_neither_timm_nor_the_compiler_of_pytorch(images: Path, tmp_path: Path) -> None:
    script = (
        "import json, sys, pneumoscope\n"
        "pneumoscope.train(sys.argv[1], sys.argv[2], recipe='baseline', epochs=2, resamples=20, cache=False)\n"
        "unneeded = ('timm', 'torchvision', 'torch._dynamo', 'sklearn', 'pandas')\n"
        "print(json.dumps([name for name in unneeded if name in sys.modules]))"
    )
    command = [sys.executable, "-c", script, str(images), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
