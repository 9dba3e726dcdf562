"""Engines run the network: they turn prepared input into features and feature maps, as NumPy arrays."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import MissingExtraError, ModelError, UsageError
from pneumoscope.inference.compilation import compile_graph
from pneumoscope.inference.runtimes import (
    check_device,
    choose_device,
    count_threads,
    import_onnxruntime,
    import_openvino,
    is_installed,
)
from pneumoscope.models.model_folder import GRAPH, IR, IR_WEIGHTS, ONNX_MODEL, PROGRAM, WEIGHTS, Model, find_file
from pneumoscope.models.pretrained import pretrained_folder

if TYPE_CHECKING:
    from pneumoscope.models.classifier import Backbone

Array = NDArray[np.float32]
_PART = 8  # images that a thread runs at a time
Kind: TypeAlias = Literal["auto", "torch", "onnx", "openvino", "program"]


@dataclass(frozen=True)
class Activations:
    """What a network computes for a batch."""

    features: Array  # float32 (B, D), the global average of the feature map
    intermediate: Array  # float32 (B, E), the averages of each stage's map, which the OOD detector looks at
    maps: Array | None = None


class Engine(Protocol):
    """Runs a backbone; the interface is the same for every runtime."""

    @property
    def fingerprint(self) -> str:
        """Names the function computed: weights, architecture, precision and kind of device."""

    @property
    def batch_size(self) -> int:
        """How many inputs to run at a time."""

    @property
    def width(self) -> int:
        """D, the number of features."""

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""


class TorchEngine:
    """Runs a copy of a backbone with PyTorch, in float32, batch norms folded; `size` is the side of its input."""

    _flags = threading.Lock()  # cuDNN's are the process's

    def __init__(self, backbone: Backbone, size: int, device: str = "auto") -> None:
        import torch

        from pneumoscope.models.backbones import fingerprint_state
        from pneumoscope.models.classifier import fold_batchnorms

        self._device = choose_device(device)
        backbone = backbone.eval()
        kind = f"{backbone.architecture}, torch {torch.__version__} float32 {self._device.type}"
        self.fingerprint = f"{fingerprint_state(backbone.state_dict())} {kind}"
        self.width = backbone.width
        folded = fold_batchnorms(backbone.cpu(), size)
        self.backbone = folded.to(self._device).to(memory_format=torch.channels_last)
        # On a processor, small batches stay in its caches (docs/log.md).
        self.batch_size = 64 if self._device.type == "cuda" else 8

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        import torch

        from pneumoscope.models.classifier import pool

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._device.type == "cuda":
                stack.enter_context(self._flags)
                stack.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
                )
            batch = torch.from_numpy(inputs).to(self._device, memory_format=torch.channels_last)
            found, intermediate = self.backbone.describe(batch)
            features = pool(found).cpu().numpy()
            return Activations(
                features, intermediate.float().cpu().numpy(), found.contiguous().cpu().numpy() if maps else None
            )


class ProgramEngine:
    """Runs a program that `torch.export` wrote, in float32, on the processor.

    The fingerprint names its weights and architecture.

    Raises:
        MissingExtraError: PyTorch is not installed.
    """

    def __init__(self, program: Path, fingerprint: str) -> None:
        try:
            import torch
        except ImportError:
            raise MissingExtraError('PyTorch is not installed: pip install "pneumoscope[train]".') from None
        loaded = torch.export.load(program)
        self._run = loaded.module()
        self.width = int(loaded.state_dict["head.weight"].shape[1])
        self.fingerprint = f"{fingerprint}, program, torch {torch.__version__} float32 cpu"
        self.batch_size = 8

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        import torch

        with torch.inference_mode():
            _, features, found, intermediate = (each.numpy() for each in self._run(torch.from_numpy(inputs)))
        return Activations(features, intermediate, found if maps else None)


class _Pool:
    """Splits a batch among threads that each run their part alone, which is faster than splitting every layer."""

    def __init__(self) -> None:
        self.size = count_threads()
        self._pool = ThreadPoolExecutor(self.size, "engine")

    def share(self, inputs: Array, run: Callable[[Array], Sequence[Array]]) -> list[Array]:
        """Outputs of the whole batch, in order."""
        parts = np.array_split(np.ascontiguousarray(inputs), min(self.size, len(inputs)) or 1)
        found = [run(parts[0])] if len(parts) == 1 else list(self._pool.map(run, parts))
        return [np.concatenate(column) for column in zip(*found, strict=True)]


class OnnxEngine:
    """Runs a graph from `models.onnx_graphs` with ONNX Runtime, in float32, on the processor.

    The graph is its content, or its file, which may read its weights from beside it. A graph that comes from elsewhere
    has been found to be bounded: `check` refuses a size of batch for which it is not.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ModelError: not a graph that can be run.
    """

    def __init__(self, graph: bytes | Path, fingerprint: str, check: Callable[[int], object] | None = None) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError:
            raise MissingExtraError("ONNX Runtime is not installed: pip install onnxruntime.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph) if isinstance(graph, Path) else graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:
            raise ModelError(f"{_name(graph)}: ONNX Runtime cannot open it: {problem}") from None
        inputs = {each.name: each.shape for each in self._session.get_inputs()}
        outputs = {each.name: each.shape for each in self._session.get_outputs()}
        known = {"input", "features", "map", "intermediate"} <= {*inputs, *outputs}
        known = known and [len(shape) for shape in inputs.values()] == [4] and len(outputs["features"]) == 2
        if not known or not isinstance(outputs["features"][1], int):
            raise ModelError(
                f"{_name(graph)}: not a graph made by pneumoscope. Its inputs: {inputs}; outputs: {outputs}."
            )
        self.width, self._check = outputs["features"][1], check
        self.fingerprint = f"{fingerprint}, onnxruntime {onnxruntime.__version__} float32 cpu"
        self._pool = _Pool()
        self.batch_size = _PART * self._pool.size

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        names, check = ["features", "intermediate", *(["map"] if maps else [])], self._check

        def run(part: Array) -> Sequence[Array]:
            if check is not None:
                check(len(part))
            found: Sequence[Array] = self._session.run(names, {"input": part})
            return found

        features, intermediate, *rest = self._pool.share(inputs, run)
        return Activations(features, intermediate, rest[0] if maps else None)


class OpenVinoEngine:
    """Runs a graph from `models.onnx_graphs` with OpenVINO, in float32, on the processor.

    Each image runs alone, for which the graph is compiled: this is faster than batches (benchmarks/batches_of_one.py).
    The graph is the content of an ONNX file, the file, or one of OpenVINO's own (.xml) with its weights beside it;
    `check` is that of `OnnxEngine`, `kept` is what `compile_graph` calls `name`.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ModelError: not a graph that can be run.
    """

    _precision = "f32"  # the default would be bfloat16 on processors that have it
    _first = threading.Lock()

    def __init__(
        self, graph: bytes | Path, fingerprint: str, size: int, check: Callable[[int], object] | None = None,
        kept: str = "",
    ) -> None:  # fmt: skip
        try:
            openvino = import_openvino()
        except ImportError:
            raise MissingExtraError('OpenVINO is not installed: pip install "pneumoscope[export]".') from None
        threads = count_threads()
        options = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        if check is not None:
            check(1)
        try:
            compiled = compile_graph(graph, size, options, kept)
            outputs = {name: compiled.output(name) for name in ("features", "intermediate", "map")}
            # Twice as many as streams, so that none waits for Python.
            self._requests = [compiled.create_infer_request() for _ in range(2 * threads)]
        except RuntimeError as problem:
            raise ModelError(f"{_name(graph)}: OpenVINO cannot open it: {problem}") from None
        self._outputs = {name: (output, tuple(output.shape)[1:]) for name, output in outputs.items()}
        self.width = self._outputs["features"][1][0]
        self.fingerprint = f"{fingerprint}, openvino {openvino.__version__} float32 cpu"
        self.batch_size = _PART * threads
        self._lock = threading.Lock()
        # OpenVINO's Python part sets itself up at the first call, and two threads that do so at once can deadlock: the
        # first call is made alone, and later calls of an engine one after the other.
        with self._first:
            self.run(np.zeros((1, 3, size, size), np.float32))

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        inputs, count = np.ascontiguousarray(inputs), len(self._requests)
        wanted = ("features", "intermediate", *(["map"] if maps else []))
        found = {name: np.empty((len(inputs), *self._outputs[name][1]), np.float32) for name in wanted}
        with self._lock:
            for place in range(len(inputs) + count):
                request, done = self._requests[place % count], place - count
                if done >= 0:
                    request.wait()
                    for name, values in found.items():
                        values[done] = request.get_tensor(self._outputs[name][0]).data[0]
                if place < len(inputs):
                    request.start_async({0: inputs[place : place + 1]}, share_inputs=True)
        return Activations(found["features"], found["intermediate"], found.get("map"))


def build_engine(backbone: Backbone, size: int, device: str = "auto", graph: bytes | None = None) -> Engine:
    """Build the fastest engine for a network in memory: on a processor a runtime, if a graph can be traced.

    `size` is the side of its input; `graph` is the same backbone from `models.onnx_graphs.try_graph`, if it was traced.
    """
    if choose_device(device).type != "cpu" or not is_installed("onnxruntime"):
        return TorchEngine(backbone, size, device)
    import torch

    from pneumoscope.models.backbones import fingerprint_state
    from pneumoscope.models.onnx_graphs import try_graph
    from pneumoscope.models.stored_backbone import StoredBackbone

    stored = isinstance(backbone, StoredBackbone) and backbone.fits(size)
    backbone = backbone if stored else backbone.cpu().eval()
    if (graph := graph or try_graph(backbone, size)) is None:
        return TorchEngine(backbone, size, device)
    state = backbone.state_dict()
    name = f"{fingerprint_state(state)} {backbone.architecture}"
    kept = f"{hashlib.sha256(graph).hexdigest()} {name}" if stored else ""
    engine = OpenVinoEngine(graph, name, size, kept=kept) if _suits_openvino(state) else OnnxEngine(graph, name)
    if stored:  # the package's tests compare its graphs with their networks
        return engine
    probe = np.linspace(-2, 2, 3 * size * size, dtype=np.float32).reshape(1, 3, size, size)
    with torch.inference_mode():
        maps, intermediate = (tensor.numpy() for tensor in backbone.describe(torch.from_numpy(probe)))
    found = engine.run(probe, maps=True)
    pairs = ((found.maps, maps), (found.intermediate, intermediate))
    close = all(ours is not None and np.allclose(ours, own, 1e-3, 1e-4 * np.abs(own).max()) for ours, own in pairs)
    return engine if close else TorchEngine(backbone, size, device)


def open_engine(
    folder: Path, model: Model, arrays: Mapping[str, NDArray[Any]], device: str = "auto", kind: Kind = "auto"
) -> Engine:
    """Open what runs a model's network here: its graph on a processor, PyTorch on a GPU or where there is no graph.

    `auto` never chooses `program`, which can run any code.

    Raises:
        ModelError: nothing in the model can be run, or a file of it is damaged.
        MissingExtraError: the engine is not installed.
        UsageError: the model has nothing that this engine runs, or not on that device.
    """
    check_device(device)
    if device == "cuda" and kind not in ("auto", "torch"):
        raise UsageError(f"{kind} runs on the processor only.", "device")
    from pneumoscope.models.backbones import fingerprint_state

    weights = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    graph = next((name for name in (GRAPH, ONNX_MODEL) if name in model.files), None)
    name = f"{fingerprint_state(weights)} {model.architecture} {dict(model.arguments)}"
    # A graph need not compute what the weights beside it would, so its features are cached under its own digest.
    name += "".join(f" {digest}" for digest in model.files.values())
    kept = f"{name} {model.weights_sha256}"  # a graph may read any of the weights
    if kind == "auto":
        kind = _choose_kind(model, weights, graph, device)
    if kind == "openvino" and IR in model.files:
        from pneumoscope.inference.ir_sizes import check_ir

        path, _ = find_file(folder, model, IR)
        find_file(folder, model, IR_WEIGHTS)
        check_ir(path, model.input.size, batch=1)
        return OpenVinoEngine(path, name, model.input.size, kept=f"{IR} {kept}")
    if kind in ("onnx", "openvino") and graph is not None:
        path, content = find_file(folder, model, graph)
        check = None
        if not path.is_relative_to(pretrained_folder()):  # which is as safe as the package's code
            from pneumoscope.models.graph_sizes import GraphSizes

            sizes = GraphSizes(content, str(path), model.input.size, {WEIGHTS: (path.parent / WEIGHTS).stat().st_size})
            sizes.check_detector(arrays)
            check = sizes.check
        if kind == "onnx":
            return OnnxEngine(path, name, check)
        return OpenVinoEngine(path, name, model.input.size, check, f"{graph} {kept}")
    if kind == "torch" and weights:
        return _open_torch(model, arrays, device)
    if kind == "program" and PROGRAM in model.files:
        return ProgramEngine(find_file(folder, model, PROGRAM)[0], name)
    if PROGRAM in model.files:
        raise UsageError(
            f"{folder} holds a program of torch.export, which can run any code when it is loaded. If you trust its "
            'source: pneumoscope.load(FOLDER, engine="program").'
        )
    raise UsageError(f"{folder} holds nothing that {kind} can run. It holds {', '.join(model.files)}.")


def _choose_kind(model: Model, weights: Mapping[str, Any], graph: str | None, device: str) -> Kind:
    """The fastest engine that is installed and can run the model."""
    torch_runs = bool(weights) and is_installed("torch")
    # Importing torch takes a second, so that CUDA is only looked for where there is an NVIDIA driver.
    maybe_gpu = device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None)
    if maybe_gpu and torch_runs and choose_device(device).type == "cuda":
        return "torch"
    if device == "cuda":
        raise UsageError("Nothing in this model, or in this installation, runs on a GPU.", "device")
    if graph is not None and _suits_openvino(weights):
        return "openvino"
    if graph is not None and is_installed("onnxruntime"):
        return "onnx"
    if IR in model.files or (graph is not None and is_installed("openvino")):
        return "openvino"
    return "torch"


def _open_torch(model: Model, arrays: Mapping[str, NDArray[Any]], device: str) -> TorchEngine:
    try:
        import torch

        from pneumoscope.models.backbones import rebuild_backbone

        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return TorchEngine(rebuild_backbone(model, state), model.input.size, device)
    except ImportError:
        raise MissingExtraError(
            'This model needs PyTorch: pip install "pneumoscope[train]". Or ask someone who has it to export it: '
            "pneumoscope export --model MODEL --to onnx --out DIR."
        ) from None


def _suits_openvino(weights: Mapping[str, Any]) -> bool:
    """Whether OpenVINO is installed and faster (docs/performance.md): for networks with depthwise convolutions.

    Measuring instead would make the choice, and the last digits of a run's numbers, depend on how busy the machine is.
    """
    depthwise = any(len(array.shape) == 4 and array.shape[1] == 1 < array.shape[0] for array in weights.values())
    return depthwise and is_installed("openvino")


def _name(graph: bytes | Path) -> str:
    return str(graph) if isinstance(graph, Path) else "graph"
