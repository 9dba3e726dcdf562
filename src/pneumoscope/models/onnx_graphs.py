"""A network as an ONNX graph, which runs without PyTorch, and faster than PyTorch on a processor."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pneumoscope.errors import ModelError
from pneumoscope.models.classifier import mixes_places, pool
from pneumoscope.models.graph_sizes import GraphSizes
from pneumoscope.models.stored_backbone import StoredBackbone

if TYPE_CHECKING:
    import onnx

    from pneumoscope.models.classifier import Backbone

_OPSET = 17


class Description(nn.Module):
    """A backbone with the outputs of an engine: features (B, D), map (B, D, h, w) and intermediate features (B, E).

    If there is a head, its logits come first.
    """

    def __init__(self, backbone: Backbone, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) -> (logits,) features, map, intermediate."""
        maps, intermediate = self.backbone.describe(inputs)
        features = pool(maps)
        return (*(() if self.head is None else (self.head(features),)), features, maps, intermediate)


def trace_graph(backbone: Backbone, size: int, head: nn.Linear | None = None) -> bytes:
    """Trace a backbone, in evaluation mode on the processor, as an ONNX graph for batches of any size.

    Tensors keep their names. If there is a head, its logits are the first output.
    """
    outputs = [*([] if head is None else ["logits"]), "features", "map", "intermediate"]
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the newer exporter, which takes ten times as long for the same graph
        torch.onnx.export(
            Description(backbone, head).eval(),
            (torch.zeros(2, 3, size, size),),
            path := Path(place) / "network.onnx",
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would change and rename weights
            do_constant_folding=False,
            opset_version=_OPSET,
            input_names=["input"],
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in ("input", *outputs)},
        )
        return path.read_bytes()


def try_graph(backbone: Backbone, size: int) -> bytes | None:
    """Trace a backbone, or return None where that fails, the graph would not be run, or the network has attention.

    Networks with attention are explained by gradients, which need PyTorch.
    """
    if isinstance(backbone, StoredBackbone) and backbone.fits(size):
        return backbone.make_graph()
    if mixes_places(backbone):
        return None
    try:
        graph = trace_graph(backbone, size)
        GraphSizes(graph, "network", size, {})
        return graph
    except (ModelError, torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError):
        return None


def add_distance(network: onnx.ModelProto, detector: Mapping[str, NDArray[Any]], limit: float) -> None:
    """Give a graph one more output, `ood_score` (B,) in float64: `decisions.ood.Mahalanobis` divided by its limit.

    The detector's arrays are `mean` (D,), `directions` (K, D), `variances` (K,) and `rest` (1,).
    """
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, NDArray[Any]] = {
        "mean": detector["mean"].astype(np.float64),
        "half": np.ascontiguousarray(detector["directions"].astype(np.float16).T),
        "variances": detector["variances"].astype(np.float64),
        "rest": detector["rest"].astype(np.float64),
        "none": np.zeros(1),
        "limit": np.array([limit * detector["mean"].size ** 0.5]),
        "axis": np.array([1]),
    }
    steps = (
        ("Cast", "intermediate", "double"), ("Sub", "double mean", "centred"), ("Cast", "half", "directions"),
        ("MatMul", "centred directions", "along"), ("Mul", "along along", "squares"),
        ("Div", "squares variances", "scaled"), ("ReduceSum", "scaled axis", "near"),
        ("Mul", "centred centred", "whole"), ("ReduceSum", "whole axis", "all"), ("ReduceSum", "squares axis", "part"),
        ("Sub", "all part", "left"), ("Max", "left none", "across"), ("Div", "across rest", "far"),
        ("Add", "near far", "sum"), ("Sqrt", "sum", "distance"), ("Div", "distance limit", "ood_score"),
    )  # fmt: skip
    outer = ("intermediate", "ood_score")
    for kind, inputs, output in steps:
        names = [each if each in outer else f"ood.{each}" for each in (*inputs.split(), output)]
        options: dict[str, Any] = {"to": TensorProto.DOUBLE} if kind == "Cast" else {}
        options |= {"keepdims": 0} if kind == "ReduceSum" else {}
        network.graph.node.append(helper.make_node(kind, names[:-1], names[-1:], **options))
    network.graph.initializer.extend(numpy_helper.from_array(each, f"ood.{key}") for key, each in constants.items())
    network.graph.output.append(helper.make_tensor_value_info("ood_score", TensorProto.DOUBLE, ["batch"]))


def link_graph(graph: bytes, weights: bytes, location: str) -> bytes:
    """Make a graph read its weights from a safetensors file beside it (ONNX external data); half precision is cast."""
    import onnx
    from onnx import TensorProto, helper

    model, start = onnx.load_from_string(graph), 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:start])
    kinds = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}
    casts = []
    for tensor in model.graph.initializer:
        stored = header.get(tensor.name)
        if stored is None or stored["dtype"] not in kinds or tensor.data_type != TensorProto.FLOAT:
            continue
        begin, end = stored["data_offsets"]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.data_type = kinds[stored["dtype"]]
        for key, value in (("location", location), ("offset", start + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))
        if tensor.data_type == TensorProto.FLOAT16:
            name, tensor.name = tensor.name, f"{tensor.name}.half"
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    linked: bytes = model.SerializeToString(deterministic=True)
    return linked
