"""Backbones whose graphs come with the package: they run without timm, whose import takes longer than a second."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pneumoscope.models.classifier import Backbone

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    import onnx

_STATE, _SIZE, _WIDTH = "pneumoscope.state", "pneumoscope.size", "pneumoscope.width"
_PREFIX = "network."


class StoredBackbone(Backbone):
    """A backbone that is built only when PyTorch needs it: to train it, to run it, or to look at its layers.

    Until then, its weights and its graph are enough. Everything else that PyTorch does with a module reads `_modules`,
    which builds the network.

    Args:
        graph: from `store_graph`.
        state: the network's weights by name.
        architecture: as for `Backbone`.
        build: makes the network, with any weights.
    """

    def __init__(
        self, graph: onnx.ModelProto, state: Mapping[str, Tensor], architecture: str, build: Callable[[], nn.Module]
    ) -> None:
        nn.Module.__init__(self)
        self.architecture = architecture
        self._graph, self._state, self._build = graph, dict(state), build

    @property
    def stored(self) -> bool:
        """Whether the network has not been built yet, so that the graph is still valid."""
        return "network" not in self.__dict__["_modules"]

    @property
    def width(self) -> int:
        """D, the number of features."""
        return int(_read(self._graph, _WIDTH)) if self.stored else super().width

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        modules: dict[str, nn.Module | None] = self.__dict__["_modules"]
        if "network" not in modules:
            with torch.inference_mode(False):  # else a network first needed for a prediction could never be trained
                network = self._build()
                network.load_state_dict(self._state)
            modules["network"] = network.train(self.training)
        return modules

    @_modules.setter
    def _modules(self, modules: dict[str, nn.Module | None]) -> None:
        self.__dict__["_modules"] = modules

    def __getattr__(self, name: str) -> Any:  # which `nn.Module` answers from its `__dict__`
        return self._modules[name] if name == "network" else super().__getattr__(name)

    def train(self, mode: bool = True) -> StoredBackbone:
        """As of `nn.Module`."""
        if not self.stored:
            super().train(mode)
        self.training = mode
        return self

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """As of `nn.Module`."""
        if self.stored and not args and not options:
            return OrderedDict((_PREFIX + name, tensor) for name, tensor in self._state.items())
        found: dict[str, Any] = super().state_dict(*args, **options)
        return found

    def fits(self, size: int) -> bool:
        """Whether the stored graph still describes this backbone, at this size of input."""
        return self.stored and size == int(_read(self._graph, _SIZE))

    def make_graph(self) -> bytes:
        """Give the graph with the weights."""
        import onnx

        graph = onnx.ModelProto()
        graph.CopyFrom(self._graph)
        del graph.metadata_props[:]
        for tensor in graph.graph.initializer:
            value = self._state[tensor.name.removeprefix(f"backbone.{_PREFIX}")]
            tensor.raw_data = np.ascontiguousarray(value.numpy()).tobytes()
        content: bytes = graph.SerializeToString(deterministic=True)
        return content


def open_graph(architecture: str) -> onnx.ModelProto | None:
    """Open the graph of an architecture without arguments; None where the package has none."""
    file = _find(architecture)
    if not file.is_file():
        return None
    import onnx

    return onnx.load_from_string(file.read_bytes())


def list_tensors(graph: onnx.ModelProto) -> dict[str, Tensor]:
    """The names of a network's weights, in its order, each with zeros of its shape."""
    listed = json.loads(_read(graph, _STATE))
    return {name: torch.zeros(shape, dtype=getattr(torch, kind)) for name, (shape, kind) in listed.items()}


def store_graph(traced: bytes, backbone: Backbone, size: int) -> bytes:
    """Take the weights out of a backbone's graph, and note what is needed to put others in.

    `benchmarks/store_graphs.py` makes the graphs of the package with it.
    """
    import onnx

    graph, state = onnx.load_from_string(traced), backbone.network.state_dict()
    for tensor in graph.graph.initializer:
        tensor.ClearField("raw_data")
    listed = {name: (list(each.shape), str(each.dtype).removeprefix("torch.")) for name, each in state.items()}
    for key, value in ((_STATE, json.dumps(listed)), (_SIZE, str(size)), (_WIDTH, str(backbone.width))):
        graph.metadata_props.add(key=key, value=value)
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _find(architecture: str) -> Traversable:
    return files("pneumoscope.models") / "graphs" / f"{architecture}.onnx"


def _read(graph: onnx.ModelProto, key: str) -> str:
    return next(str(each.value) for each in graph.metadata_props if each.key == key)
