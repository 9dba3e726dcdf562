"""ONNX Runtime and OpenVINO, without what they would tell their makers about this machine."""

from __future__ import annotations

import os
import sys
from typing import Any

_TELLER = "openvino_telemetry"


def import_onnxruntime() -> Any:
    """ONNX Runtime, which else looks up a server of Microsoft's and keeps a number of the device in the user's cache.

    What its Python interface offers against that comes too late (1.32).

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """OpenVINO, which else tells Google Analytics that it is imported, and keeps a number of the user in `~/intel`.

    It does without the package that tells, so it is made to find none (2026.4).

    Raises:
        ImportError: it is not installed.
    """
    modules: dict[str, Any] = sys.modules
    absent = _TELLER not in modules
    if absent:
        modules[_TELLER] = None
    try:
        import openvino
    finally:
        if absent:
            del modules[_TELLER]
    return openvino
