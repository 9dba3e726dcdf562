"""Devices, threads, and the runtimes with their telemetry switched off."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    import torch

_TELEMETRY, _CONVERTERS = "openvino_telemetry", "openvino.tools.ovc"


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def count_threads() -> int:
    """How many threads to compute with: OMP_NUM_THREADS, else the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(name: str) -> None:
    """Refuse a device that is not `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: it is none of them.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"{name!r} is not auto, cpu or cuda.", "device")


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: it is none of them, or there is no CUDA device.
    """
    check_device(name)
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here. Use cpu or auto.", "device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # With its number, because every thread has another current device.
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def import_onnxruntime() -> Any:
    """ONNX Runtime, without its telemetry to Microsoft.

    Its own switch takes effect too late (1.32): by then it has looked up a server and stored an id of the device.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """OpenVINO, without its telemetry to Google Analytics and without an id of the user in `~/intel`.

    It works without its telemetry package, so that package is hidden while it is imported (2026.4), and so are its
    converters, which take as long to import as the rest.

    Raises:
        ImportError: it is not installed.
    """
    return _import_without("openvino", (_TELEMETRY, _CONVERTERS))


def import_openvino_converters() -> Any:
    """The converters of OpenVINO, as `import_openvino`."""
    import_openvino()
    return _import_without(_CONVERTERS, (_TELEMETRY,))


def _import_without(name: str, others: Sequence[str]) -> Any:
    """Import a module while others seem not to be installed, unless they were imported before."""
    modules: dict[str, Any] = sys.modules
    hidden = [other for other in others if other not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        return importlib.import_module(name)
    finally:
        for other in hidden:
            modules.pop(other, None)
