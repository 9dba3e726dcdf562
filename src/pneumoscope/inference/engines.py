"""What runs the network: an engine takes prepared input and gives features and feature maps, as NumPy arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
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
from pneumoscope.inference.runtimes import import_onnxruntime, import_openvino
from pneumoscope.models.model_folder import GRAPH, IR, ONNX_MODEL, PROGRAM, Model, find_file

if TYPE_CHECKING:
    import torch

    from pneumoscope.models.classifier import Backbone

Array = NDArray[np.float32]
Kind: TypeAlias = Literal["auto", "torch", "onnx", "openvino", "program"]


@dataclass(frozen=True)
class Activations:
    """What a network makes of a batch.

    Attributes:
        features: float32 (B, D), the global average of the feature map.
        maps: float32 (B, D, h, w), the feature map, where it was asked for.
        intermediate: float32 (B, E), the averages of each stage's map, which the OOD detector looks at.
    """

    features: Array
    intermediate: Array
    maps: Array | None = None


class Engine(Protocol):
    """Runs a backbone; the same interface whatever is behind it."""

    @property
    def fingerprint(self) -> str:
        """Names the function computed: weights, architecture, precision and kind of device."""

    @property
    def batch_size(self) -> int:
        """How many inputs are best run at a time."""

    @property
    def width(self) -> int:
        """D, the number of features."""

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""


class TorchEngine:
    """Runs a backbone with PyTorch, in float32, batch norms folded into their convolutions.

    Args:
        backbone: (B, 3, S, S) -> (B, D, h, w); it is put into evaluation mode, on the processor, and copied.
        size: side S of the input.
        device: `auto`, `cpu` or `cuda`.
    """

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

    Args:
        program: its file.
        fingerprint: names its weights and architecture.

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


class _Crew:
    """Shares a batch among threads, each of which runs its part alone: that wastes less than to share each layer."""

    def __init__(self) -> None:
        self.size = count_threads()
        self._pool = ThreadPoolExecutor(self.size, "engine")

    def share(self, inputs: Array, run: Callable[[Array], Sequence[Array]]) -> list[Array]:
        """Outputs of a whole batch, in its order."""
        parts = np.array_split(np.ascontiguousarray(inputs), min(self.size, len(inputs)) or 1)
        found = [run(parts[0])] if len(parts) == 1 else list(self._pool.map(run, parts))
        return [np.concatenate(column) for column in zip(*found, strict=True)]


class OnnxEngine:
    """Runs a graph from `models.graphs` with ONNX Runtime, in float32, on the processor.

    Args:
        graph: its content, or its file, beside which its weights may lie.
        fingerprint: names its weights and architecture.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ModelError: no such graph.
    """

    def __init__(self, graph: bytes | Path, fingerprint: str) -> None:
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
        takes = {each.name: each.shape for each in self._session.get_inputs()}
        gives = {each.name: each.shape for each in self._session.get_outputs()}
        ours = [len(shape) for shape in takes.values()] == [4] and {"input", "features", "map", "intermediate"} <= {
            *takes,
            *gives,
        }
        if not ours or len(gives["features"]) != 2 or not isinstance(gives["features"][1], int):
            raise ModelError(f"{_name(graph)}: no graph of ours: it takes {takes} and gives {gives}.")
        self.width = gives["features"][1]
        self.fingerprint = f"{fingerprint}, onnxruntime {onnxruntime.__version__} float32 cpu"
        self._crew = _Crew()
        self.batch_size = 8 * self._crew.size

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        names = ["features", "intermediate", *(["map"] if maps else [])]
        features, intermediate, *rest = self._crew.share(inputs, lambda part: self._session.run(names, {"input": part}))
        return Activations(features, intermediate, rest[0] if maps else None)


class OpenVinoEngine:
    """Runs a graph from `models.graphs` with OpenVINO, in float32, on the processor, whose streams share a batch.

    Args:
        graph: the content of an ONNX file, or the file, or one of OpenVINO's own (.xml); its weights lie beside it.
        fingerprint: names its weights and architecture.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ModelError: no such graph.
    """

    _precision = "f32"  # elsewhere the processor's own arithmetic would be taken, where it has a shorter one
    _first = threading.Lock()

    def __init__(self, graph: bytes | Path, fingerprint: str) -> None:
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
        try:
            core = openvino.Core()
            found = core.read_model(io.BytesIO(graph) if isinstance(graph, bytes) else graph)
            compiled = core.compile_model(found, "CPU", options)
            self._outputs = {name: compiled.output(name) for name in ("features", "map", "intermediate")}
            self._requests = [compiled.create_infer_request() for _ in range(threads)]
            shape = compiled.input(0).partial_shape.get_max_shape()
        except RuntimeError as problem:
            raise ModelError(f"{_name(graph)}: OpenVINO cannot open it: {problem}") from None
        self.width = self._outputs["features"].partial_shape[1].get_length()
        self.fingerprint = f"{fingerprint}, openvino {openvino.__version__} float32 cpu"
        self.batch_size = 8 * threads
        self._lock = threading.Lock()
        # Its Python part sets itself up at the first call; two threads that do so at once can wait for each other for
        # ever, so that the first call is made alone, and all later ones of an engine one after the other.
        with self._first:
            self.run(np.zeros((1, *shape[1:]), np.float32))

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        parts = np.array_split(np.ascontiguousarray(inputs), min(len(self._requests), len(inputs)) or 1)
        with self._lock:
            working = self._requests[: len(parts)]
            for request, part in zip(working, parts, strict=True):
                request.start_async({0: part}, share_inputs=True)
            for request in working:
                request.wait()
            features, intermediate, *rest = (
                np.concatenate([request.get_tensor(self._outputs[name]).data for request in working])
                for name in ("features", "intermediate", *(["map"] if maps else []))
            )
        return Activations(features, intermediate, rest[0] if maps else None)


def build_engine(backbone: Backbone, size: int, device: str = "auto", graph: bytes | None = None) -> Engine:
    """The fastest engine for a network at hand: on a processor a runtime, where the network can be written as a graph.

    Args:
        backbone: (B, 3, S, S) -> (B, D, h, w).
        size: side S of the input.
        device: `auto`, `cpu` or `cuda`.
        graph: the same backbone as `models.graphs.try_graph` writes it, if that is at hand.
    """
    if choose_device(device).type != "cpu" or not _installed("onnxruntime"):
        return TorchEngine(backbone, size, device)
    import torch

    from pneumoscope.models.backbones import fingerprint_state
    from pneumoscope.models.onnx_graphs import try_graph

    backbone = backbone.cpu().eval()
    if (graph := graph or try_graph(backbone, size)) is None:
        return TorchEngine(backbone, size, device)
    state = backbone.state_dict()
    runtime = OpenVinoEngine if _suits_openvino(state) else OnnxEngine
    engine = runtime(graph, f"{fingerprint_state(state)} {backbone.architecture}")
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
    """What runs a model's network here: its graph on a processor, PyTorch on a GPU or where there is no graph.

    Args:
        folder: of the model.
        model: its description.
        arrays: its weights.
        device: `auto`, `cpu` or `cuda`.
        kind: insist on one. `program`, which can run any code, is never taken by itself.

    Raises:
        ModelError: nothing in the model can be run, or a file of it is damaged.
        MissingExtraError: what would run it is not installed.
        UsageError: it holds nothing that the engine insisted on can run, or not on that device.
    """
    _check_device(device)
    if device == "cuda" and kind not in ("auto", "torch"):
        raise UsageError(f"--device cuda: {kind} runs on the processor alone.")
    from pneumoscope.models.backbones import fingerprint_state

    weights = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    graph = next((name for name in (GRAPH, ONNX_MODEL) if name in model.files), None)
    name = f"{fingerprint_state(weights)} {model.architecture} {dict(model.arguments)}"
    # Nothing says that a graph computes what the weights beside it would: what it makes is its own.
    name += "".join(f" {digest}" for digest in model.files.values())
    torch_runs = bool(weights) and _installed("torch")
    if kind == "auto":
        on_gpu = device == "cuda" or (device == "auto" and torch_runs and shutil.which("nvidia-smi") is not None)
        if on_gpu and torch_runs and choose_device(device).type == "cuda":
            kind = "torch"
        elif device == "cuda":
            raise UsageError("--device cuda: this model, or this installation, has nothing that runs on a GPU.")
        elif graph is not None and _suits_openvino(weights):
            kind = "openvino"
        elif graph is not None and _installed("onnxruntime"):
            kind = "onnx"
        elif IR in model.files or (graph is not None and _installed("openvino")):
            kind = "openvino"
        else:
            kind = "torch"
    if kind == "onnx" and graph is not None:
        return OnnxEngine(find_file(folder, model, graph), name)
    if kind == "openvino" and (IR in model.files or graph is not None):
        if IR in model.files:
            find_file(folder, model, Path(IR).with_suffix(".bin").name)
        return OpenVinoEngine(find_file(folder, model, IR if IR in model.files else str(graph)), name)
    if kind == "torch" and weights:
        return _open_torch(model, arrays, device)
    if PROGRAM in model.files:
        if kind == "program":
            return ProgramEngine(find_file(folder, model, PROGRAM), name)
        raise UsageError(
            f"{folder}: a program of torch.export, which can run any code when it is loaded. If you trust its source: "
            'pneumoscope.load(FOLDER, engine="program").'
        )
    raise UsageError(f"{folder}: this model holds nothing that {kind} could run; it holds {', '.join(model.files)}.")


def count_threads() -> int:
    """How many threads to compute with: as many as this process may use cores, or as OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: CUDA is asked for where there is none, or something else.
    """
    _check_device(name)
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _check_device(name: str) -> None:
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: auto, cpu or cuda.")


def _open_torch(model: Model, arrays: Mapping[str, NDArray[Any]], device: str) -> TorchEngine:
    try:
        import torch

        from pneumoscope.models.backbones import rebuild_backbone

        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return TorchEngine(rebuild_backbone(model, state), model.input.size, device)
    except ImportError:
        raise MissingExtraError(
            'This model needs PyTorch: pip install "pneumoscope[train]", or let somebody who has it export the model '
            "(pneumoscope export --model MODEL --to onnx)."
        ) from None


def _suits_openvino(weights: Mapping[str, Any]) -> bool:
    """Whether OpenVINO is here, and the network one of those that it runs faster (docs/performance.md).

    These are networks whose convolutions look at single channels. To go by a measurement instead would let a busy
    minute decide, and the last digits of a run's numbers with it.
    """
    single = any(len(array.shape) == 4 and array.shape[1] == 1 < array.shape[0] for array in weights.values())
    return single and _installed("openvino")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _name(graph: bytes | Path) -> str:
    return str(graph) if isinstance(graph, Path) else "graph"
