"""Files that stand for images, where no test opens them."""

from __future__ import annotations

import os
from pathlib import Path


def touch(root: Path, *names: str) -> Path:
    """Write files of any content below a folder, and return the folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root
