"""Near-duplicates: the same image saved twice, found whatever was done to its size, contrast or margins."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import ImageError, UsageError
from pneumoscope.images.hash import SIDE, Vectors, project_hashes
from pneumoscope.images.read import read_bytes

# Measured on 5,216 squashed images and 298 centre crops of them; see docs/log.md.
SAME = 0.975
_ALIKE = 0.9  # at the coarse first look, where a window fits only roughly
_STEPS = ((0.03, 0.73), (0.03, 0.78), (0.015, 0.83), (0.015, 0.83), (0.0075, 0.83))  # move by, if already as alike as
_COARSE, _FINE = 12, 20  # frequencies
_SHARES = tuple(1.1**-step for step in range(13))
_WHOLE = np.array([[0.0, 1.0, 0.0, 1.0]])  # top, bottom, left, right
_CANDIDATE = np.dtype([("whole", "i4"), ("seen", "i4"), ("window", "u1"), ("similarity", "f4")])
_BLOCK = 1024


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """Two images that are nearly the same.

    Attributes:
        first: the smaller index.
        second: the larger one.
        similarity: of the images, one seen through the window that fits best; at most 1.
    """

    first: int
    second: int
    similarity: float


def find_near_duplicates(
    hashes: Vectors,
    *,
    same: float = SAME,
    crops: bool = True,
    confirm: Callable[[int, int], bool] | None = None,
    progress: Progress = silent,
) -> list[Pair]:
    """Find images that were saved twice: as another format or size, with another contrast, squashed, padded or cropped.

    Every image is compared with every other one, the other one also through centred windows. Two images of one patient
    are not near-duplicates, nor is an image and its mirror image. Blank images resemble nothing.

    Args:
        hashes: float32 (N, SIDE, SIDE) from `hash_pixels`.
        same: the similarity that makes a pair, in (0, 1].
        crops: look through windows too; without it only whole images are compared, which is much faster.
        confirm: asked for each pair found, by index; False drops it.
        progress: called after each window.

    Returns:
        The pairs, in order of their indices.

    Raises:
        UsageError: the hashes are not of that shape, or `same` is out of range.
    """
    if hashes.ndim != 3 or hashes.shape[1:] != (SIDE, SIDE):
        raise UsageError(f"Hashes are (N, {SIDE}, {SIDE}), as hash_pixels gives them; found {hashes.shape}.")
    if not 0 < same <= 1:
        raise UsageError(f"same {same}: a similarity lies above 0 and is at most 1.")
    windows = _windows() if crops else _WHOLE
    pairs = _find_candidates(hashes, windows, progress)
    found = []
    for start in range(0, len(pairs), _BLOCK):
        whole, seen, window = (pairs[name][start : start + _BLOCK] for name in ("whole", "seen", "window"))
        similarities = _align(hashes[whole], hashes[seen], windows[window], _STEPS if crops else ())
        either = np.flatnonzero(crops & (window == 0))  # one may be a little crop of the other, nobody knows which
        turned = _align(hashes[seen[either]], hashes[whole[either]], windows[window[either]], _STEPS)
        similarities[either] = np.maximum(similarities[either], turned)
        found += [
            Pair(int(min(i, j)), int(max(i, j)), round(min(float(value), 1.0), 4))
            for i, j, value in zip(whole, seen, similarities, strict=True)
            if value >= same
        ]
    return [pair for pair in sorted(found) if confirm is None or confirm(pair.first, pair.second)]


def group_identical(samples: Sequence[Sample]) -> list[int | None]:
    """Number the groups of files that are the same to the byte; only files of one size are read.

    Args:
        samples: N samples; one that cannot be read is alone.

    Returns:
        For each its group, or None where it is alone.
    """
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        with suppress(OSError, ValueError):
            sizes[sample.path.stat().st_size].append(i)
    first: dict[bytes, int] = {}
    pairs = []
    for some in sizes.values():
        for i in some if len(some) > 1 else ():
            with suppress(ImageError):
                pairs.append((first.setdefault(hashlib.sha256(read_bytes(samples[i].path)).digest(), i), i))
    return group_pairs(pairs, len(samples))


def group_pairs(pairs: Iterable[tuple[int, int]], count: int) -> list[int | None]:
    """Number the groups of items that pairs connect, directly or through others.

    Args:
        pairs: indices.
        count: of all items.

    Returns:
        For each item its group, from 0 in the order of their first items, or None where it is alone.
    """
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    roots = [root(item) for item in range(count)]
    shared = sorted({top for item, top in enumerate(roots) if item != top})
    numbers = {top: number for number, top in enumerate(shared)}
    return [numbers.get(top) for top in roots]


def _windows() -> NDArray[np.float64]:
    """What is left by crops and by the removal of padding: the middle of one side or both. The whole comes first."""
    sides = {(a, b) for wide in _SHARES[:2] for narrow in _SHARES for a, b in ((wide, narrow), (narrow, wide))}
    sides |= {(share, share) for share in _SHARES[:6]}
    return np.array([(0.5 - a / 2, 0.5 + a / 2, 0.5 - b / 2, 0.5 + b / 2) for a, b in sorted(sides, reverse=True)])


def _find_candidates(hashes: Vectors, windows: NDArray[np.float64], progress: Progress) -> NDArray[np.void]:
    """Pairs of which one looks like the other through a window, each with the window it fits best.

    Every image meets every other one, in blocks: a matrix product is faster than an index of so few dimensions, and
    misses nothing.
    """
    whole = project_hashes(hashes, _WHOLE, _COARSE)
    best = np.zeros(0, _CANDIDATE)
    for number, window in enumerate(windows):
        seen = project_hashes(hashes, window[None], _COARSE)
        blocks = [best]
        for row in range(0, len(hashes), _BLOCK):
            # Through the whole window a pair looks the same from both sides.
            for column in range(0 if number else row, len(hashes), _BLOCK):
                similarity = whole[row : row + _BLOCK] @ seen[column : column + _BLOCK].T
                i, j = np.nonzero(similarity > _ALIKE)
                new = i + row < j + column if number == 0 else i + row != j + column
                block = np.empty(int(new.sum()), _CANDIDATE)
                block["whole"], block["seen"], block["window"] = i[new] + row, j[new] + column, number
                block["similarity"] = similarity[i[new], j[new]]
                blocks.append(block)
        best = np.concatenate(blocks)
        low, high = np.minimum(best["whole"], best["seen"]), np.maximum(best["whole"], best["seen"])
        order = np.lexsort((-best["similarity"], high, low))
        repeated = (np.diff(low[order], prepend=-1) == 0) & (np.diff(high[order], prepend=-1) == 0)
        best = best[order[~repeated]]
        progress("Comparing", number + 1, len(windows))
    return best


def _align(
    whole: Vectors, seen: Vectors, windows: NDArray[np.float64], steps: Sequence[tuple[float, float]]
) -> NDArray[np.float32]:
    """How alike images are (n,) once the window on the second of each pair has been moved to where it fits best."""
    target = project_hashes(whole, _WHOLE, _FINE)

    def compare(some: NDArray[np.intp], at: NDArray[np.float64]) -> NDArray[np.float32]:
        similarity: NDArray[np.float32] = (target[some] * project_hashes(seen[some], at, _FINE)).sum(axis=1)
        return similarity

    placed = windows.copy()
    best = compare(np.arange(len(whole)), placed)
    for step, least in steps:
        if not len(some := np.flatnonzero(best > least)):
            break
        for edge in (0, 1, 2, 3):
            for sign in (1, -1):
                moved = placed[some].copy()
                other = moved[:, edge ^ 1]
                moved[:, edge] = np.clip(moved[:, edge] + sign * step * np.abs(moved[:, edge] - other), 0, 1)
                similarity = compare(some, moved)
                better = similarity > best[some]
                placed[some[better]], best[some[better]] = moved[better], similarity[better]
    return best
