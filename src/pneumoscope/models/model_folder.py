"""The model folder: a trained model on disk as `model.json` and `weights.safetensors`. Nothing in it can run code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, Len
from pydantic import Strict

from pneumoscope.config import build, quote
from pneumoscope.errors import ModelError, UsageError
from pneumoscope.files import read_regular, write_bytes, write_text
from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.about import About
from pneumoscope.models.lineage import Count, Parent, Step
from pneumoscope.models.pretrained import DESCRIPTION, find_pretrained, list_pretrained

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SCHEMA = 4
GRAPH = "network.onnx"  # reads its weights from beside it
ONNX_MODEL, IR, IR_WEIGHTS, PROGRAM = "model.onnx", "model.xml", "model.bin", "model.pt2"  # exports
WEIGHTS = "weights.safetensors"
FILES = (GRAPH, ONNX_MODEL, IR, IR_WEIGHTS, PROGRAM)  # what `Model.files` may name
MAX_DESCRIPTION, MAX_FILE = 16 * 1024**2, 2 * 1024**3  # bytes of `model.json` and of any other file
_UNTOUCHED = "ood."  # arrays of the OOD detector keep the precision they are stored in


@dataclass(frozen=True)
class Model:
    """A trained classifier without its weights: the content of `model.json`."""

    backbone: str  # name of the backbone
    architecture: str  # the timm architecture that the name means
    arguments: dict[str, Any]  # what the architecture is built with
    # class names in the order of the outputs; if there are two, the second is positive
    labels: Annotated[tuple[Annotated[str, Len(1)], ...], Len(2)]
    positive: str | None  # the positive class if there are two; None for more
    input: InputSpec  # what the network takes
    # what it decides by, as `pneumoscope.decisions.decisions.Decisions`, whose arrays lie among the weights
    decisions: dict[str, Any]
    training: dict[str, Any]  # recipe, settings, and the metrics of the epoch that was kept
    data: dict[str, Any]  # fingerprint and counts of the training samples
    version: str  # of the pneumoscope that made it
    weights_sha256: str = ""  # of `weights.safetensors`
    # SHA-256 of each file that runs the network without PyTorch, by its name in the folder: `network.onnx`, which
    # reads `weights.safetensors`, or what `export` wrote
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    # an exported network that mixes places by attention before its map, so that the map does not explain. Where
    # PyTorch runs the network, this is found out from the network itself.
    attention: bool = False
    lineage: tuple[Step, ...] = ()  # the models that it was made from
    about: About = dataclasses.field(default_factory=About)  # what its makers state
    schema: int = SCHEMA  # version of this layout


Share = Annotated[float, Strict(), Ge(-1), Le(1)]


@dataclass(frozen=True)
class _Interval:
    value: Share
    low: Share | None = None
    high: Share | None = None


@dataclass(frozen=True)
class _TestDecisions:
    answered: _Interval
    out_of_distribution: dict[str, Count]
    coverage: dict[str, _Interval] = dataclasses.field(default_factory=dict)
    images: dict[str, Count] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class _Test:
    """What a pretrained model says of its test, for `models show`."""

    n: Count
    metrics: dict[str, _Interval]
    split: str = "test"
    decisions: _TestDecisions | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Settings:
    """Of all settings of the training, those that commands use."""

    augmented_copies: Count = 0


@dataclass(frozen=True)
class _Ensemble:
    """Of how many models an ensemble was made, and by which cross-validation."""

    models: Count
    folds: Count
    repeats: Count


@dataclass(frozen=True)
class _Training:
    """Of all that is said about the training, what commands use."""

    test: _Test | None = None
    ensemble: _Ensemble | None = None
    settings: _Settings = _Settings()


def save_model(
    folder: Path, model: Model, state: Mapping[str, Tensor], half: bool = False, graph: bytes | None = None
) -> Model:
    """Write a model folder.

    Args:
        folder: where to write it.
        model: its description.
        state: the tensors of the network (`backbone.…`, `head.…`) and of the detector (`ood.…`).
        half: store the network's weights in half precision, as `classifier.round_to_half` rounds them, but not its
            biases and batch norms.
        graph: the backbone as ONNX (`models.onnx_graphs.trace_graph`); it is changed to read the weights file. Without
            it only PyTorch can run the model.

    Returns:
        The description with the weights' checksum filled in.

    Raises:
        ModelError: a weight does not fit half precision.
    """
    import safetensors.torch

    from pneumoscope.models.classifier import to_half

    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (tensor if not half or name.startswith(_UNTOUCHED) else to_half(tensor)).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    content = safetensors.torch.save(stored)
    files = {name: digest for name, digest in model.files.items() if name != GRAPH}
    if graph is not None:
        from pneumoscope.models.onnx_graphs import link_graph

        linked = link_graph(graph, content, WEIGHTS)
        files[GRAPH] = hashlib.sha256(linked).hexdigest()
        write_bytes(folder / GRAPH, linked)
    model = dataclasses.replace(model, weights_sha256=hashlib.sha256(content).hexdigest(), files=files, schema=SCHEMA)
    write_bytes(folder / WEIGHTS, content)
    _write_description(folder, model)
    return model


def save_changed(folder: Path, source: Path, model: Model, arrays: Mapping[str, NDArray[Any]]) -> Model:
    """Write a model that differs from another one by its description and by some of its arrays.

    Arrays keep the precision and all files the layout that they have there, so that its `network.onnx` still fits.

    Args:
        folder: where to write it.
        source: the other model's folder.
        model: the new description, with the files and checksums of the other one.
        arrays: those that replace others, of the same shapes.

    Returns:
        The description with the weights' checksum filled in.

    Raises:
        ModelError: the other model is missing or damaged.
    """
    import safetensors.numpy

    content = _read(find_model(source) / WEIGHTS, model.weights_sha256)
    if arrays:
        stored = safetensors.numpy.load(content)
        stored |= {name: array.astype(stored[name].dtype) for name, array in arrays.items()}
        content = safetensors.numpy.save(stored)
    model = dataclasses.replace(model, weights_sha256=hashlib.sha256(content).hexdigest(), schema=SCHEMA)
    folder.mkdir(parents=True, exist_ok=True)
    for name in model.files:
        write_bytes(folder / name, find_file(source, model, name)[1])
    write_bytes(folder / WEIGHTS, content)
    _write_description(folder, model)
    return model


def _write_description(folder: Path, model: Model) -> None:
    values = dataclasses.asdict(model)
    values["checksum"] = _checksum(values)
    write_text(folder / DESCRIPTION, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def load_model(folder: Path) -> Model:
    """Read and check `model.json`. A run folder can be given in place of the model inside it.

    Raises:
        ModelError: missing, damaged, incomplete, or of another version.
    """
    folder = find_model(folder)
    path = folder / DESCRIPTION
    try:
        values = json.loads(read_regular(path, MAX_DESCRIPTION).decode("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        checksum, schema = values.pop("checksum", None), values.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise ModelError(
                f"{path} has schema {quote(schema)}, but this version reads schema {SCHEMA}. Upgrade pneumoscope."
            )
        if checksum != _checksum(values):
            raise ValueError("its checksum does not match")
    except (OSError, ValueError, RecursionError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ModelError(f"{path}: damaged: {reason}. Copy the model again from its source.") from None
    if schema != SCHEMA:
        raise ModelError(
            f"{path} has schema {quote(schema)}, but this version reads schema {SCHEMA}. Train the model again."
        )
    model = build(Model, values, str(path), ModelError)
    used = {name: value for name, value in model.training.items() if name in ("test", "settings", "ensemble")}
    if isinstance(used.get("settings"), dict):
        used["settings"] = {key: value for key, value in used["settings"].items() if key == "augmented_copies"}
    build(_Training, used, str(path), ModelError, "training.")
    if (contradiction := _find_contradiction(model)) is not None:
        raise ModelError(f"{path}: {contradiction}. Copy the model again from its source.")
    return model


def _find_contradiction(model: Model) -> str | None:
    """What in a description cannot be true, if anything."""
    labels = quote(list(model.labels))
    if len(set(model.labels)) < len(model.labels):
        return f"labels: one occurs twice: {labels}"
    expected = model.labels[1] if len(model.labels) == 2 else None
    if model.positive != expected:
        return f"positive: {quote(model.positive)} for the labels {labels}; it must be {quote(expected)}"
    for name, digest in model.files.items():
        if name not in FILES or not re.fullmatch("[0-9a-f]{64}", digest):
            return f"files: {quote(name)} is not a file of a model, or has no SHA-256"
    counts, seen = model.data.get("counts", {}), model.data.get("seen", [])
    groups = list(counts.values()) if isinstance(counts, dict) else [None]
    if not all(isinstance(each, dict) and all(type(n) is int and n >= 0 for n in each.values()) for each in groups):
        return "data.counts: not numbers of images by split and class"
    if not isinstance(seen, list) or not all(isinstance(each, str) for each in seen):
        return "data.seen: not a list of digests"
    sources = model.data.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(each, str) for each in sources):
        return "data.sources: not a list of names"
    if (IR in model.files) != (IR_WEIGHTS in model.files):
        return f"files: {IR} and {IR_WEIGHTS} belong together"
    return None


def load_arrays(folder: Path, model: Model) -> dict[str, NDArray[Any]]:
    """Read a model's weights and check them against `model.json`; those of the network are returned as float32.

    Raises:
        ModelError: missing or damaged.
    """
    import numpy as np
    import safetensors.numpy

    path = find_model(folder) / WEIGHTS
    content = _read(path, model.weights_sha256)
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as problem:  # of kinds NumPy lacks, too
        raise ModelError(f"{path}: damaged: {problem!r}. Copy the model again from its source.") from None
    arrays = {
        name: array.copy() if name.startswith(_UNTOUCHED) or array.dtype.kind != "f" else array.astype(np.float32)
        for name, array in arrays.items()
    }
    with np.errstate(all="ignore"):  # a sum is finite only if all its parts are; halves overflow in sums of their own
        wrong = [
            name
            for name, each in arrays.items()
            if not np.isfinite(each.sum(dtype=np.float64 if each.dtype == np.float16 else None))
        ]
    if wrong:
        raise ModelError(f"{path}: {quote(wrong[0])} holds numbers that are not finite. Train the model again.")
    return arrays


def stores_half(folder: Path, model: Model) -> bool:
    """Whether a model's network is stored in half precision.

    Raises:
        ModelError: missing or damaged.
    """
    import safetensors.numpy

    stored = safetensors.numpy.load(_read(find_model(folder) / WEIGHTS, model.weights_sha256))
    return any(array.dtype == "float16" for name, array in stored.items() if not name.startswith(_UNTOUCHED))


def load_weights(folder: Path, model: Model) -> dict[str, Tensor]:
    """The same as tensors.

    Raises:
        ModelError: missing or damaged.
    """
    import torch

    return {name: torch.from_numpy(array) for name, array in load_arrays(folder, model).items()}


def find_file(folder: Path, model: Model, name: str) -> tuple[Path, bytes]:
    """Find a file of the model other than its weights, and verify its checksum: its path and its content.

    Raises:
        ModelError: missing or damaged.
    """
    path = find_model(folder) / name
    return path, _read(path, model.files[name])


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = read_regular(path, MAX_FILE)
    except OSError as problem:
        raise ModelError(f"{path}: {problem.strerror}. Copy the model again from its source.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(f"{path}: damaged: its checksum does not match. Copy the model again from its source.")
    return content


def find_model(folder: Path) -> Path:
    """Find the folder that holds `model.json`: the given one, or `model/` inside a run, or a pretrained model by name.

    Raises:
        ModelError: the folder holds none.
        UsageError: there is no such folder or name.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    names = list_pretrained()
    if str(folder) in names and not folder.exists():
        return find_pretrained(str(folder))
    kinds = ["a model folder", "a finished run"]
    if names:
        kinds.append(f"the name of a pretrained model ({', '.join(names)})")
    if not folder.exists():
        raise UsageError(f"{folder}: there is no such folder or model. Give {' or '.join(kinds)}.", "model")
    raise ModelError(f"{folder}: no model here ({DESCRIPTION} is missing). Give {' or '.join(kinds)}.")


def name_model(path: Path) -> str:
    """The name of a model by its folder or run, without where that is on this machine."""
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def to_parent(name: str, model: Model) -> Parent:
    """What a model that is made from this one states about it."""
    data = model.data
    sources = tuple(data.get("sources", ()))
    return Parent(name, model.weights_sha256, data.get("fingerprint"), sources, model.version, model.about)


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
