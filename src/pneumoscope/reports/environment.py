"""Describes the software and hardware that a result was computed with."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pneumoscope import __version__

PACKAGES = ("pneumoscope", "torch", "timm", "numpy", "scipy", "scikit-learn", "pillow", "pydicom")


def describe_environment() -> dict[str, str]:
    """Return versions, operating system, processor and threads, each under its name."""
    return {
        "Versions": ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "System": platform.platform(),
        "Processor": _processor(),
        "Threads": _threads(),
    }


def _version(package: str) -> str | None:
    if package == "pneumoscope":  # what runs, whatever is installed
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _threads() -> str:
    cores = f"{os.cpu_count()} processors"
    torch = sys.modules.get("torch")  # asked only where it works already
    if torch is None:
        return cores
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{torch.get_num_threads()} (PyTorch) on {cores}{device}"
