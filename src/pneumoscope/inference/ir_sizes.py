"""Finds out how much memory and work a model in OpenVINO's own format takes, in a process that may fail.

OpenVINO computes sizes while it reads such a file, so that a crafted one could fill the memory before it can be looked
at. A process of its own, with limits, reads it first; `models.graph_sizes` does the same for ONNX without one.

python -m pneumoscope.inference.ir_sizes model.xml SIDE BATCH
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from pneumoscope.errors import ModelError
from pneumoscope.inference.runtimes import import_openvino
from pneumoscope.models.graph_sizes import MAX_NODES, MAX_TENSOR, MAX_TOTAL, MAX_WORK
from pneumoscope.text import shorten

MEMORY, SECONDS = 16 * 1024**3, 60  # of address space, of which OpenVINO takes a part, and of a processor
_OPERATIONS = frozenset({
    "Abs", "Add", "AvgPool", "Broadcast", "Ceiling", "Clamp", "Concat", "Constant", "Convert", "Convolution", "Cos",
    "Divide", "Elu", "Equal", "Erf", "Exp", "FakeQuantize", "Floor", "FloorMod", "Gather", "Gelu", "Greater",
    "GroupConvolution", "HSigmoid", "HSwish", "HardSigmoid", "Interpolate", "Less", "Log", "LogicalNot", "MVN",
    "MatMul", "MaxPool", "Maximum", "Minimum", "Mish", "Multiply", "Negative", "PRelu", "Pad", "Parameter", "Power",
    "Range", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Result",
    "ScaledDotProductAttention", "Select", "ShapeOf", "Sigmoid", "Sin", "Slice", "SoftPlus", "Softmax", "Split",
    "Sqrt", "Squeeze", "Subtract", "Swish", "Tanh", "Tile", "Transpose", "Unsqueeze", "VariadicSplit",
})  # fmt: skip


def check_ir(path: Path, side: int, batch: int) -> None:
    """Check that a model of OpenVINO (.xml) can be opened and run on batches of 1 to `batch` images of a side.

    Raises:
        ModelError: it cannot, or takes too much.
    """
    command = [sys.executable, "-m", "pneumoscope.inference.ir_sizes", str(path), str(side), str(batch)]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, text=True, timeout=2 * SECONDS, check=False
        )
        reason = json.loads(done.stdout) if done.returncode == 0 else f"reading it ended with {done.returncode}"
    except (subprocess.TimeoutExpired, ValueError):
        reason = "reading it takes too long"
    if reason:
        raise ModelError(
            f"{path}: this graph is not run: {shorten(reason, 300)}. Copy the model again from its source."
        )


def _measure(path: str, side: int, batch: int) -> str:
    """Why a model is not run; empty if it is."""
    found = import_openvino().Core().read_model(path)
    if len(found.get_ops()) > MAX_NODES or len(found.inputs) != 1:
        return "too many operations or inputs"
    if unknown := {each.get_type_name() for each in found.get_ops()} - _OPERATIONS:
        return f"operation {min(unknown)}"
    shape = found.input(0).partial_shape
    if str(shape[1:]) != f"[3,{side},{side}]":
        return f"its input is {shape}, not 3 channels of {side} x {side} pixels"
    for size in range(1, batch + 1):
        found.reshape({0: [size, 3, side, side]})
        if reason := _measure_batch(found.get_ops(), size * side * side):
            return reason
        shapes = {}
        for name in ("features", "map", "intermediate"):
            shapes[name] = list(found.output(name).shape)
        if [len(each) for each in shapes.values()] != [2, 4, 2] or {each[0] for each in shapes.values()} != {size}:
            return f"not a graph made by pneumoscope: its outputs are {shapes}"
        if shapes["features"][1] != shapes["map"][1]:
            return f"{shapes['features'][1]} features of a map of {shapes['map'][1]}"
    return ""


def _measure_batch(operations: list[Any], pixels: int) -> str:
    total = work = weights = 0
    for each in operations:
        kind, given = each.get_type_name(), [list(value.get_shape()) for value in each.input_values()]
        sizes = [math.prod(value.get_shape()) for value in each.outputs()]
        if kind == "Constant":
            weights += sum(sizes)
            continue
        if max(sizes, default=0) > MAX_TENSOR * pixels + weights:
            return f"operation {kind}: its output has {max(sizes):,} numbers"
        factor = 16
        if kind in ("Convolution", "GroupConvolution"):
            factor = math.prod(given[1][1 if kind == "Convolution" else 2 :])
        elif kind == "MatMul":
            factor = max(given[0][-2:])
        elif kind == "ScaledDotProductAttention":
            factor = 2 * given[1][-2]
        elif kind in ("MaxPool", "AvgPool"):
            factor = math.prod(each.get_attributes()["kernel"])
        total, work = total + sum(sizes), work + factor * sum(sizes)
    if total > MAX_TOTAL * pixels + 4 * weights or work > MAX_WORK * pixels:
        return f"{total:,} numbers, {work:,} multiplications"
    return ""


def _main() -> None:
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    path, side, batch = sys.argv[1:]
    try:
        reason = _measure(path, int(side), int(batch))
    except Exception as problem:  # OpenVINO and its bindings raise many kinds
        reason = f"OpenVINO cannot open it: {problem}"
    sys.stdout.write(json.dumps(reason))


if __name__ == "__main__":
    _main()
