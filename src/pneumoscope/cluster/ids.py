"""A set of ids of images in about 30 bytes each: Python's own set takes about 90 (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIZE = 16  # bytes of an id


class IdSet:
    """Ids that were added, in sorted arrays, each at least twice as long as the next one."""

    def __init__(self) -> None:
        self._parts: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def add(self, ids: Sequence[str]) -> list[bool]:
        """Add ids, hexadecimal; say for each whether it was new, the first of equal ones."""
        given = _pack(ids)
        own, places = np.unique(given, return_index=True)
        old = self._find(own)
        self._parts.append(own[~old])
        while len(self._parts) > 1 and len(self._parts[-2]) < 2 * len(self._parts[-1]):
            merged = np.concatenate([self._parts.pop(), self._parts.pop()])
            merged.sort(kind="stable")
            self._parts.append(merged)
        new = np.zeros(len(given), bool)
        new[places[~old]] = True
        found: list[bool] = new.tolist()
        return found

    def has(self, ids: Sequence[str]) -> list[bool]:
        """Say for each id whether it was added."""
        found: list[bool] = self._find(_pack(ids)).tolist()
        return found

    def _find(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of these are in the set."""
        old = np.zeros(len(ids), bool)
        for part in self._parts:
            if len(part):
                near = np.minimum(np.searchsorted(part, ids), len(part) - 1)
                old |= part[near] == ids
        return old


def _pack(ids: Sequence[str]) -> NDArray[Any]:
    return np.frombuffer(b"".join(map(bytes.fromhex, ids)), f"S{_SIZE}")
