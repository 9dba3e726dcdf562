"""Networks compiled by OpenVINO, and kept on disk, because compiling takes a third of the time to a first answer."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError
from pneumoscope.files import cache_folder, read_regular, write_bytes
from pneumoscope.inference.runtimes import import_openvino

_MAX_BYTES = 512 * 2**20  # of all networks that are kept
_DIGEST = 32  # bytes of SHA-256, with which a file begins


def compile_graph(graph: bytes | Path, size: int, options: Mapping[str, object], name: str = "") -> Any:
    """Compile a graph, content or file, with OpenVINO for one image of `size` pixels at a time.

    Args:
        graph: the graph.
        size: the side of its input.
        options: OpenVINO's properties.
        name: names the function that the graph computes; if given, the compiled network is kept in the cache folder.
    """
    openvino = import_openvino()
    core = openvino.Core()
    path = _locate(core, f"{name} {size} {sorted(options.items())} {openvino.get_version()}") if name else None
    if path is not None and (kept := _load(core, path, options)) is not None:
        return kept
    found = core.read_model(io.BytesIO(graph) if isinstance(graph, bytes) else graph)
    found.reshape({0: [1, 3, size, size]})
    compiled = core.compile_model(found, "CPU", dict(options))
    if path is not None:
        _keep(compiled, path)
    return compiled


def _locate(core: Any, name: str) -> Path:
    """The file for a network on this kind of processor."""
    kind = [core.get_property("CPU", each) for each in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return cache_folder() / "networks" / hashlib.sha256(f"{name} {kind}".encode()).hexdigest()


def _load(core: Any, path: Path, options: Mapping[str, object]) -> Any:
    """The network in a file; None where there is none, or it is damaged, which OpenVINO would not notice."""
    with suppress(OSError, RuntimeError):
        content = memoryview(read_regular(path, _MAX_BYTES))
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            os.utime(path)
            return core.import_model(io.BytesIO(content[_DIGEST:]), "CPU", dict(options))
    return None


def _keep(compiled: Any, path: Path) -> None:
    """Write a network and delete those that were not used for longest; what fails costs time, never a result."""
    with suppress(OSError, RuntimeError, UsageError):
        content = compiled.export_model().getvalue()
        if len(content) > _MAX_BYTES // 2:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, hashlib.sha256(content).digest() + content)
        left = _MAX_BYTES
        for each in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True):
            left -= each.stat().st_size
            if left < 0:
                each.unlink(missing_ok=True)
