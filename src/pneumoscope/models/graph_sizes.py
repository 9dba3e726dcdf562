"""Finds out how much memory and work a graph takes before anything runs it.

A crafted ONNX file of a few hundred bytes can loop for ever, or double a tensor until the memory is full. So only
operations on a list are run, the shape of every tensor is computed, and their sizes are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from pneumoscope.errors import ModelError
from pneumoscope.models.graph_file import Constant, Graph, Node, read_graph
from pneumoscope.models.graph_operations import OPERATIONS, Shape, Value, given
from pneumoscope.text import shorten

# For each pixel of the input.
MAX_TENSOR, MAX_LIVE, MAX_TOTAL, MAX_WORK = 512, 2048, 16384, 2**22
MAX_NODES, MAX_RANK = 20_000, 8


class GraphSizes:
    """A graph that may be run on batches whose memory and work have been found to be bounded.

    Args:
        content: of its file.
        name: of its file, for messages.
        side: of the square input that the model's description states.
        beside: the size of each file that it may read, by name.

    Raises:
        ModelError: it cannot be read, does not fit the description, or takes too much.
    """

    def __init__(self, content: bytes, name: str, side: int, beside: Mapping[str, int]) -> None:
        self._name, self._checked = name, set[int]()
        try:
            self._graph = read_graph(content)
            inputs = {name: shape for name, shape in self._graph.inputs.items() if name not in self._graph.constants}
            if list(inputs) != ["input"] or inputs["input"][1:] != (3, side, side):
                raise ValueError(f"its input is {inputs}, not 3 channels of {side} x {side} pixels")
            for constant in self._graph.constants.values():
                _check_place(constant, beside)
        except ValueError as problem:
            raise self._refuse(problem) from None
        self._width = self.check(1)["intermediate"][1]

    def check_detector(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check that the OOD detector among a model's arrays takes what the graph gives.

        Raises:
            ModelError: it does not.
        """
        mean = arrays.get("ood.mean")
        if mean is not None and mean.shape != (self._width,):
            raise self._refuse(ValueError(f"{self._width} intermediate features, not {mean.shape}"))

    def check(self, batch: int) -> dict[str, Shape]:
        """Check that a batch of this size can be run: the shapes of its outputs, or none if this is known.

        Raises:
            ModelError: it takes too much.
        """
        if batch in self._checked:
            return {}
        try:
            outputs = measure_graph(self._graph, batch)
            shapes = [outputs.get(name, ()) for name in ("features", "map", "intermediate")]
            if [len(shape) for shape in shapes] != [2, 4, 2] or {shape[0] for shape in shapes} != {batch}:
                raise ValueError(f"not a graph made by pneumoscope: its outputs are {outputs}")
            if shapes[0][1] != shapes[1][1]:
                raise ValueError(f"{shapes[0][1]} features of a map of {shapes[1][1]}")
        except ValueError as problem:
            raise self._refuse(problem) from None
        self._checked.add(batch)
        return outputs

    def _refuse(self, problem: ValueError) -> ModelError:
        reason = shorten(str(problem), 300)
        return ModelError(f"{self._name}: this graph is not run: {reason}. Copy the model again from its source.")


def _check_place(constant: Constant, beside: Mapping[str, int]) -> None:
    """Check that a constant in another file lies in one that may be read.

    Raises:
        ValueError: it does not.
    """
    if constant.external is None:
        return
    location, start, length = (constant.external.get(name, "") for name in ("location", "offset", "length"))
    if location not in beside or not re.fullmatch("[0-9]{1,15}", start) or not re.fullmatch("[0-9]{1,15}", length):
        raise ValueError(f"it reads {location!r}")
    if int(length) != constant.size * constant.itemsize or int(start) + int(length) > beside[location]:
        raise ValueError(f"it reads {length} bytes of {location} for the shape {constant.shape}")


def measure_graph(graph: Graph, batch: int) -> dict[str, Shape]:
    """Compute the shapes of a graph's outputs for a batch of that size.

    Raises:
        ValueError: an operation that is not run, a size that depends on the image, or too much memory or work.
    """
    if len(graph.nodes) > MAX_NODES:
        raise ValueError(f"{len(graph.nodes):,} operations; the limit is {MAX_NODES:,}")
    values = {name: Value(each.shape, each.values) for name, each in graph.constants.items()}
    weights = sum(each.size for each in graph.constants.values())
    (image,) = (name for name in graph.inputs if name not in values)
    values[image] = Value(tuple(batch if side is None else side for side in graph.inputs[image]))
    pixels = batch * math.prod(values[image].shape[-2:])
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    live = total = work = 0
    for i, node in enumerate(graph.nodes):
        try:
            inputs = [values[name] if name else None for name in node.inputs]
            outputs = OPERATIONS[node.kind](node, inputs)
            work += _count_work(node, inputs, outputs[0])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, ZeroDivisionError) as problem:
            reason = f"{problem} is not known here" if isinstance(problem, KeyError) else problem
            raise ValueError(f"operation {node.kind}: {reason}") from None
        for name, output in zip(node.outputs, outputs, strict=False):
            size = math.prod(output.shape)
            if name in values or len(output.shape) > MAX_RANK or size > MAX_TENSOR * pixels + weights:
                raise ValueError(f"operation {node.kind}: its output has {size:,} numbers, or it occurs twice")
            values[name] = output
            live, total = live + size, total + size
        if live > MAX_LIVE * pixels + 2 * weights or total > MAX_TOTAL * pixels + 4 * weights:
            raise ValueError(f"{total:,} numbers, {live:,} at a time")
        if work > MAX_WORK * pixels:
            raise ValueError(f"{work:,} multiplications")
        live -= sum(math.prod(values[name].shape) for name in {*node.inputs} if name and last_use[name] == i
                    and name not in graph.constants and name != image)  # fmt: skip
    return {name: values[name].shape for name in graph.outputs}


def _count_work(node: Node, inputs: list[Value | None], output: Value) -> int:
    """Multiplications, or as many of what else takes time."""
    size, first = math.prod(output.shape), inputs[0] if inputs else None
    if node.kind in ("Conv", "Gemm", "MatMul") and first is not None:
        if node.kind == "Conv":
            return size * math.prod(given(inputs, 1).shape[1:])
        return size * first.shape[0 if node.attributes.get("transA") else -1]
    if node.kind in ("MaxPool", "AveragePool"):
        return size * math.prod(list[int](node.attributes["kernel_shape"]))
    return 16 * (size + (math.prod(first.shape) if first is not None else 0))
