"""Whether a machine reaches the data and the output folder under the paths that the machine of the command uses."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import DataError

_IMAGES = 3  # that each machine looks for


@dataclass(frozen=True)
class Places:
    """What each machine must reach.

    Attributes:
        folder: the output.
        file: one that the machine of the command wrote there.
        digest: SHA-256 of its content.
        images: some of the images.
    """

    folder: Path
    file: Path
    digest: str
    images: Sequence[Path]


def describe_places(folder: Path, file: Path, images: Sequence[Path]) -> Places:
    """Name an output folder with a file in it that was just written, and the data, for `check_places`."""
    step = max(1, (len(images) - 1) // (_IMAGES - 1))
    found = [each for each in images[::step] if each.exists()]
    return Places(folder, file, hashlib.sha256(file.read_bytes()).hexdigest(), found)


def check_places(places: Places) -> None:
    """Check that this machine reads and writes where the machine of the command does.

    Raises:
        DataError: it does not.
    """
    try:
        shared = hashlib.sha256(places.file.read_bytes()).hexdigest() == places.digest
        with tempfile.TemporaryFile(dir=places.folder):
            pass
    except OSError as problem:
        raise _refuse(places.folder, f"cannot be written ({problem.strerror or problem})") from None
    if not shared:
        raise _refuse(places.folder, "is another folder than on the machine of the command")
    for image in places.images:
        try:
            with image.open("rb") as file:
                file.read(1)
        except OSError as problem:
            raise _refuse(image, f"cannot be read ({problem.strerror or problem})") from None


def _refuse(path: Path, problem: str) -> DataError:
    return DataError(
        f"{platform.node()}: {path} {problem}. Every machine of the cluster must reach the data and the output folder "
        "under the same path: choose paths on a disk that they share, and give them from the root (/…)."
    )
