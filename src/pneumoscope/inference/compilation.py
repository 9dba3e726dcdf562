"""Networks compiled by OpenVINO, cached on disk.

With an empty cache, `predict` of one image takes about a quarter of a second longer on a quiet machine. Trainings with
a packaged backbone use the cache, too.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError
from pneumoscope.files import cache_folder, write_bytes
from pneumoscope.inference.runtimes import import_openvino
from pneumoscope.models.pretrained import pretrained_folder

_MAX_BYTES = 512 * 2**20  # of all networks that are kept
_DIGEST_BYTES = 32  # of the SHA-256 with which a file begins
# What fails here costs time, never a result.
_HARMLESS = (OSError, RuntimeError, MemoryError, UsageError)


def compile_graph(graph: bytes | Path, size: int, options: Mapping[str, object], name: str = "") -> Any:
    """Compile a graph, content or file, with OpenVINO for one image of `size` pixels at a time.

    Args:
        graph: the graph.
        size: the side of its input.
        options: OpenVINO's properties.
        name: names the function that the graph computes; if given, the compiled network is kept in the cache folder.
    """
    core = import_openvino().Core()
    # Otherwise someone who changes the file while OpenVINO reads it could get another network cached under this name.
    path = _locate(core, f"{name} {size} {sorted(options.items())}") if name and _is_safe(graph) else None
    if path is not None and (kept := _load(core, path, options)) is not None:
        return kept
    found = core.read_model(io.BytesIO(graph) if isinstance(graph, bytes) else graph)
    found.reshape({0: [1, 3, size, size]})
    compiled = core.compile_model(found, "CPU", dict(options))
    if path is not None:
        _keep(compiled, path)
    return compiled


def _is_safe(graph: bytes | Path) -> bool:
    """Whether a graph, and the weights beside it, belong to the user or root and are not writable by everybody."""
    if isinstance(graph, bytes) or graph.is_relative_to(pretrained_folder()):  # which is as safe as the package's code
        return True
    with suppress(OSError):
        return all(map(_is_own, (graph.parent, *graph.parent.iterdir())))
    return False


def _is_own(path: Path) -> bool:
    """Whether a file or folder is the user's own or root's, and not everybody can write it."""
    status = path.stat()
    return not hasattr(os, "geteuid") or (status.st_uid in (0, os.geteuid()) and not status.st_mode & stat.S_IWOTH)


def _locate(core: Any, name: str) -> Path | None:
    """The file for a network on this kind of processor; None without a cache folder of this user's own."""
    with suppress(*_HARMLESS):
        kind = [core.get_property("CPU", each) for each in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        key = f"{name} {import_openvino().get_version()} {kind}"
        folder = cache_folder() / "networks"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / hashlib.sha256(key.encode()).hexdigest() if _is_own(folder) else None
    return None


def _load(core: Any, path: Path, options: Mapping[str, object]) -> Any:
    """The network in a file; None where there is none, or it is damaged, which OpenVINO would not notice."""
    with suppress(*_HARMLESS):
        with path.open("rb") as file:
            digest, content = file.read(_DIGEST_BYTES), file.read()
        if hashlib.sha256(content).digest() == digest:
            with suppress(OSError):  # of a folder that cannot be written
                os.utime(path)
            return core.import_model(io.BytesIO(content), "CPU", dict(options))
    return None


def _keep(compiled: Any, path: Path) -> None:
    """Write a network, and delete the least recently used ones."""
    with suppress(*_HARMLESS):
        content = compiled.export_model().getvalue()
        if len(content) <= _MAX_BYTES // 2:
            write_bytes(path, hashlib.sha256(content).digest() + content, private=True)
            _delete_oldest(path.parent)


def _delete_oldest(folder: Path) -> None:
    files = [(each.stat(), each) for each in folder.iterdir() if each.is_file()]
    left = _MAX_BYTES
    for status, file in sorted(files, key=lambda each: -each[0].st_mtime):
        left -= status.st_size
        if left < 0:
            with suppress(OSError):
                file.unlink()
