"""What a trained model is on disk: `model.json` and `weights.safetensors`. Nothing in it can run code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Interval, Len, Predicate

from pneumoscope.config import build
from pneumoscope.errors import ModelError
from pneumoscope.files import write_bytes, write_text
from pneumoscope.images.prepare import InputSpec
from pneumoscope.models.pretrained import DESCRIPTION, find_pretrained, list_pretrained

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SCHEMA = 3
GRAPH = "network.onnx"  # reads its weights from beside it
ONNX_MODEL, IR, PROGRAM = "model.onnx", "model.xml", "model.pt2"  # exports, each with its own weights
_WEIGHTS = "weights.safetensors"
_GUARD = "ood."


Finite: TypeAlias = Annotated[float, Predicate(math.isfinite)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Rate: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class Calibration:
    """How the head's logits become probabilities, fitted on validation images.

    Two classes: sigmoid(slope * logit + intercept), or straight lines between `knots`. More: softmax(slope * logits).
    Then `offset` is added to the logarithms of the classes' probabilities (but for `knots`, which need none).

    Attributes:
        method: `none`, `temperature` (Guo et al. 2017), `platt` (after Platt 1999) or `isotonic` (Zadrozny & Elkan
            2002).
        slope: multiplies the logits; 1 / temperature.
        intercept: added, of `platt` alone.
        offset: for each class the logarithm of its share in `shares` to that which the network was trained for; empty
            where they are the same.
        knots: (logit, probability) pairs of `isotonic`, rising.
        shares: shares of the classes that the probabilities are stated for, in the order of the labels.
        images: how many it was fitted on.
        before: log loss, Brier score and calibration error on them without it.
        after: the same with it, each image judged by a fit on the others (by patient).
    """

    method: Literal["none", "temperature", "platt", "isotonic"] = "none"
    slope: Annotated[float, Gt(0), Predicate(math.isfinite)] = 1.0
    intercept: Finite = 0.0
    offset: tuple[Finite, ...] = ()
    knots: tuple[tuple[Finite, Share], ...] = ()
    shares: tuple[Share, ...] = ()
    images: Annotated[int, Ge(0)] = 0
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: dict[str, float] = dataclasses.field(default_factory=dict)

    def without_fit(self) -> Calibration:
        """The network's own probabilities, stated for the same shares of the classes."""
        return Calibration(offset=self.offset, shares=self.shares)


@dataclass(frozen=True)
class Conformal:
    """What prediction sets are drawn from (Vovk 2012: split-conformal, by class).

    Attributes:
        alpha: how often, in each class, the set may miss the truth.
        scores: for each class the probabilities that its validation images got for it, rising.
    """

    alpha: Rate
    scores: dict[str, tuple[Share, ...]]


@dataclass(frozen=True)
class OODState:
    """What tells images unlike those trained on; the detector's arrays lie among the weights, as `ood.…`.

    Attributes:
        false_alarms: which share of ordinary images of each class may be called ood.
        distances: of each class's validation images, rising.
    """

    false_alarms: Rate
    distances: dict[str, tuple[Annotated[float, Ge(0)], ...]]

    def promise(self, rate: float | None = None) -> float:
        """The share of ordinary images of each class that may be called ood, as few images as there are allow it."""
        fewest = min(len(each) for each in self.distances.values() if each)
        return max(rate or self.false_alarms, 1 / (fewest + 1))


@dataclass(frozen=True)
class Model:
    """A trained classifier without its weights.

    Attributes:
        backbone: name of the backbone.
        architecture: the timm architecture it stands for.
        arguments: what the architecture is built with.
        labels: class names in the order of the outputs; of two, the second is positive.
        positive: the positive class of two, None of more.
        input: what the network takes.
        thresholds: `decision`: a probability from here on is called positive (two classes).
        calibration: how logits become probabilities.
        training: recipe, settings and the figures of the epoch that was kept.
        data: fingerprint and counts of the samples trained on.
        version: of the pneumoscope that made it.
        weights_sha256: of `weights.safetensors`.
        threshold_rule: how the threshold was chosen on validation images.
        conformal: what prediction sets are drawn from, if anything.
        ood: what tells out-of-distribution images, if anything.
        files: SHA-256 of all that runs the network besides PyTorch, by its name in the folder: `network.onnx`, which
            reads `weights.safetensors`, or what `export` wrote.
        attention: an export whose layers of attention stand between a place and its cell of the map, so that the map
            does not explain; where PyTorch runs the network, it tells by itself.
        schema: version of this layout; 1 had neither rule, nor conformal, nor ood, 2 no files.
    """

    backbone: str
    architecture: str
    arguments: dict[str, Any]
    labels: Annotated[tuple[str, ...], Len(2)]
    positive: str | None
    input: InputSpec
    thresholds: dict[str, Share]
    calibration: Calibration
    training: dict[str, Any]
    data: dict[str, Any]
    version: str
    weights_sha256: str
    threshold_rule: str = "0.5"
    conformal: Conformal | None = None
    ood: OODState | None = None
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    attention: bool = False
    schema: int = SCHEMA


def save_model(
    folder: Path, model: Model, state: Mapping[str, Tensor], half: bool = False, graph: bytes | None = None
) -> Model:
    """Write a model; its folder is made.

    Args:
        folder: where to.
        model: its description.
        state: the tensors of the network (`backbone.…`, `head.…`) and of the detector (`ood.…`).
        half: store the network's weights in half precision, as `classifier.round_to_half` rounds them; its biases and
            batch norms stay as they are.
        graph: the backbone as ONNX (`models.graphs.trace_graph`); it is made to read its weights from the model's.
            Without one, PyTorch alone runs the model.

    Returns:
        The description with the weights' checksum filled in.

    Raises:
        ModelError: a weight does not fit half precision.
    """
    import safetensors.torch

    from pneumoscope.models.classifier import to_half

    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (tensor if not half or name.startswith(_GUARD) else to_half(tensor)).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    content = safetensors.torch.save(stored)
    files = {name: digest for name, digest in model.files.items() if name != GRAPH}
    if graph is not None:
        from pneumoscope.models.onnx_graphs import link_graph

        linked = link_graph(graph, content, _WEIGHTS)
        files[GRAPH] = hashlib.sha256(linked).hexdigest()
        write_bytes(folder / GRAPH, linked)
    model = dataclasses.replace(model, weights_sha256=hashlib.sha256(content).hexdigest(), files=files, schema=SCHEMA)
    values = dataclasses.asdict(model)
    values["checksum"] = _checksum(values)
    write_bytes(folder / _WEIGHTS, content)
    write_text(folder / DESCRIPTION, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return model


def load_model(folder: Path) -> Model:
    """Read and check a model's description. A run folder stands for the model inside it.

    Raises:
        ModelError: missing, damaged, incomplete or written by a newer version.
    """
    folder = find_model(folder)
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path}: damaged: {problem}. Copy the model again from its source.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: damaged: no mapping in it. Copy the model again from its source.")
    checksum, schema = values.pop("checksum", None), values.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ModelError(
            f"{path}: schema {schema} is newer than {SCHEMA}, the newest that this version reads. Upgrade pneumoscope."
        )
    if checksum != _checksum(values):
        raise ModelError(f"{path}: damaged: its checksum does not fit. Copy the model again from its source.")
    if schema == 1 and isinstance(thresholds := values.get("thresholds"), dict):
        values["threshold_rule"] = str(thresholds.get("decision"))
    return build(Model, values, str(path), ModelError)


def load_arrays(folder: Path, model: Model) -> dict[str, NDArray[Any]]:
    """Read a model's weights and check them against its description; the network's are float32, however stored.

    Raises:
        ModelError: missing or damaged.
    """
    import numpy as np
    import safetensors.numpy

    path = find_model(folder) / _WEIGHTS
    content = _read(path, model.weights_sha256)
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError) as problem:  # a KeyError where NumPy lacks the kind of number
        raise ModelError(f"{path}: damaged: {problem!r}. Copy the model again from its source.") from None
    return {
        name: array.copy() if name.startswith(_GUARD) or array.dtype.kind != "f" else array.astype(np.float32)
        for name, array in arrays.items()
    }


def load_weights(folder: Path, model: Model) -> dict[str, Tensor]:
    """The same as tensors.

    Raises:
        ModelError: missing or damaged.
    """
    import torch

    return {name: torch.from_numpy(array) for name, array in load_arrays(folder, model).items()}


def find_file(folder: Path, model: Model, name: str) -> Path:
    """A file of the model besides its weights, whose content is as its description says.

    Raises:
        ModelError: missing or damaged.
    """
    path = find_model(folder) / name
    _read(path, model.files[name])
    return path


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise ModelError(f"{path}: {problem.strerror}. Copy the model again from its source.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(f"{path}: damaged: its checksum does not fit. Copy the model again from its source.")
    return content


def find_model(folder: Path) -> Path:
    """The folder that holds `model.json`: the given one, or `model/` inside a run.

    A name that is no path on disk stands for the model of that name that ships.

    Raises:
        ModelError: neither has one.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    names = list_pretrained()
    if str(folder) in names and not folder.exists():
        return find_pretrained(str(folder))
    known = f", or the name of one that ships ({', '.join(names)})" if names else ""
    raise ModelError(f"{folder}: no model here ({DESCRIPTION} is missing). Give a model, a finished run{known}.")


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
