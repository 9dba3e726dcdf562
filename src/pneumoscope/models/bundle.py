"""What a trained model is on disk: `bundle.json` and `weights.safetensors`. Nothing in it can run code."""

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
from pneumoscope.errors import BundleError
from pneumoscope.images.preparing import InputSpec
from pneumoscope.models.shipped import DESCRIPTION, find_shipped, list_shipped
from pneumoscope.outputs import write_bytes, write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SCHEMA = 3
GRAPH = "network.onnx"  # reads its weights from beside it
MODEL, IR, PROGRAM = "model.onnx", "model.xml", "model.pt2"  # exports, each with its own weights
_WEIGHTS = "weights.safetensors"
_GUARD = "novelty."


Finite: TypeAlias = Annotated[float, Predicate(math.isfinite)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Rate: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class Calibration:
    """How the head's logits become probabilities, fitted on validation films.

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
        films: how many it was fitted on.
        before: log loss, Brier score and calibration error on them without it.
        after: the same with it, each film judged by a fit on the others (by patient).
    """

    method: Literal["none", "temperature", "platt", "isotonic"] = "none"
    slope: Annotated[float, Gt(0), Predicate(math.isfinite)] = 1.0
    intercept: Finite = 0.0
    offset: tuple[Finite, ...] = ()
    knots: tuple[tuple[Finite, Share], ...] = ()
    shares: tuple[Share, ...] = ()
    films: Annotated[int, Ge(0)] = 0
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: dict[str, float] = dataclasses.field(default_factory=dict)

    def without_fit(self) -> Calibration:
        """The network's own probabilities, stated for the same shares of the classes."""
        return Calibration(offset=self.offset, shares=self.shares)


@dataclass(frozen=True)
class Conformal:
    """What label sets are drawn from (Vovk 2012: split-conformal, by class).

    Attributes:
        error_rate: how often, in each class, the set may miss the truth.
        scores: for each class the probabilities that its validation films got for it, rising.
    """

    error_rate: Rate
    scores: dict[str, tuple[Share, ...]]


@dataclass(frozen=True)
class Novelty:
    """What tells films unlike those trained on; the guard's arrays lie among the weights, as `novelty.…`.

    Attributes:
        false_alarms: which share of ordinary films of each class may be called foreign.
        distances: of each class's validation films, rising.
    """

    false_alarms: Rate
    distances: dict[str, tuple[Annotated[float, Ge(0)], ...]]

    def promise(self, rate: float | None = None) -> float:
        """The share of ordinary films of each class that may be called foreign, as few films as there are allow it."""
        fewest = min(len(each) for each in self.distances.values() if each)
        return max(rate or self.false_alarms, 1 / (fewest + 1))


@dataclass(frozen=True)
class Bundle:
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
        threshold_rule: how the threshold was chosen on validation films.
        conformal: what label sets are drawn from, if anything.
        novelty: what tells foreign films, if anything.
        files: SHA-256 of all that runs the network besides PyTorch, by its name in the folder: `network.onnx`, which
            reads `weights.safetensors`, or what `export` wrote.
        attention: an export whose layers of attention stand between a place and its cell of the map, so that the map
            does not explain; where PyTorch runs the network, it tells by itself.
        schema: version of this layout; 1 had neither rule, nor conformal, nor novelty, 2 no files.
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
    novelty: Novelty | None = None
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    attention: bool = False
    schema: int = SCHEMA


def save_bundle(
    folder: Path, bundle: Bundle, state: Mapping[str, Tensor], half: bool = False, graph: bytes | None = None
) -> Bundle:
    """Write a bundle; its folder is made.

    Args:
        folder: where to.
        bundle: its description.
        state: the tensors of the network (`backbone.…`, `head.…`) and of the guard (`novelty.…`).
        half: store the network's weights in half precision, as `classifier.round_to_half` rounds them; its biases and
            batch norms stay as they are.
        graph: the backbone as ONNX (`models.graphs.trace_graph`); it is made to read its weights from the bundle's.
            Without one, PyTorch alone runs the bundle.

    Returns:
        The description with the weights' checksum filled in.

    Raises:
        BundleError: a weight does not fit half precision.
    """
    import safetensors.torch

    from pneumoscope.models.classifier import to_half

    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (tensor if not half or name.startswith(_GUARD) else to_half(tensor)).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    content = safetensors.torch.save(stored)
    files = {name: digest for name, digest in bundle.files.items() if name != GRAPH}
    if graph is not None:
        from pneumoscope.models.graphs import link_graph

        linked = link_graph(graph, content, _WEIGHTS)
        files[GRAPH] = hashlib.sha256(linked).hexdigest()
        write_bytes(folder / GRAPH, linked)
    bundle = dataclasses.replace(bundle, weights_sha256=hashlib.sha256(content).hexdigest(), files=files, schema=SCHEMA)
    values = dataclasses.asdict(bundle)
    values["checksum"] = _checksum(values)
    write_bytes(folder / _WEIGHTS, content)
    write_text(folder / DESCRIPTION, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return bundle


def load_bundle(folder: Path) -> Bundle:
    """Read and check a bundle's description. A run folder stands for the bundle inside it.

    Raises:
        BundleError: missing, damaged, incomplete or written by a newer version.
    """
    folder = find_bundle(folder)
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise BundleError(f"{path}: damaged: {problem}. Copy the bundle again from its source.") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path}: damaged: no mapping in it. Copy the bundle again from its source.")
    checksum, schema = values.pop("checksum", None), values.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{path}: schema {schema} is newer than {SCHEMA}, the newest that this version reads. Upgrade pneumoscope."
        )
    if checksum != _checksum(values):
        raise BundleError(f"{path}: damaged: its checksum does not fit. Copy the bundle again from its source.")
    if schema == 1 and isinstance(thresholds := values.get("thresholds"), dict):
        values["threshold_rule"] = str(thresholds.get("decision"))
    return build(Bundle, values, str(path), BundleError)


def load_arrays(folder: Path, bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Read a bundle's weights and check them against its description; the network's are float32, however stored.

    Raises:
        BundleError: missing or damaged.
    """
    import numpy as np
    import safetensors.numpy

    path = find_bundle(folder) / _WEIGHTS
    content = _read(path, bundle.weights_sha256)
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError) as problem:  # a KeyError where NumPy lacks the kind of number
        raise BundleError(f"{path}: damaged: {problem!r}. Copy the bundle again from its source.") from None
    return {
        name: array.copy() if name.startswith(_GUARD) or array.dtype.kind != "f" else array.astype(np.float32)
        for name, array in arrays.items()
    }


def load_weights(folder: Path, bundle: Bundle) -> dict[str, Tensor]:
    """The same as tensors.

    Raises:
        BundleError: missing or damaged.
    """
    import torch

    return {name: torch.from_numpy(array) for name, array in load_arrays(folder, bundle).items()}


def find_file(folder: Path, bundle: Bundle, name: str) -> Path:
    """A file of the bundle besides its weights, whose content is as its description says.

    Raises:
        BundleError: missing or damaged.
    """
    path = find_bundle(folder) / name
    _read(path, bundle.files[name])
    return path


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise BundleError(f"{path}: {problem.strerror}. Copy the bundle again from its source.") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(f"{path}: damaged: its checksum does not fit. Copy the bundle again from its source.")
    return content


def find_bundle(folder: Path) -> Path:
    """The folder that holds `bundle.json`: the given one, or `bundle/` inside a run.

    A name that is no path on disk stands for the bundle of that name that ships.

    Raises:
        BundleError: neither has one.
    """
    for candidate in (folder, folder / "bundle"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    names = list_shipped()
    if str(folder) in names and not folder.exists():
        return find_shipped(str(folder))
    known = f", or the name of one that ships ({', '.join(names)})" if names else ""
    raise BundleError(f"{folder}: no bundle here ({DESCRIPTION} is missing). Give a bundle, a finished run{known}.")


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
