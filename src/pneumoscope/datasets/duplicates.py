"""Finds near-duplicates: an image saved twice, with any change of size, contrast or margins."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
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
_CANDIDATE_SIMILARITY = 0.9  # in the coarse search, where a window fits only roughly
_STEPS = ((0.03, 0.73), (0.03, 0.78), (0.015, 0.83), (0.015, 0.83), (0.0075, 0.83))  # shift, least similarity to try it
_COARSE, _FINE = 12, 20  # numbers of frequencies
_SHARES = tuple(1.1**-step for step in range(13))
_WHOLE = np.array([[0.0, 1.0, 0.0, 1.0]])  # top, bottom, left, right
_CANDIDATE = np.dtype([("whole", "i4"), ("windowed", "i4"), ("window", "u1"), ("similarity", "f4")])
_BLOCK = 1024


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """Two images that are nearly the same."""

    first: int  # the smaller index
    second: int  # the larger one
    similarity: float  # of one image to the best fitting window of the other; at most 1


def find_near_duplicates(
    hashes: Vectors,
    *,
    crops: bool = True,
    progress: Progress = silent,
) -> list[Pair]:
    """Find images that were saved twice: in another format or size, with another contrast, squashed, padded or cropped.

    Every image is compared with every other one, and with centred windows of it. Two images of one patient are not
    near-duplicates, nor are an image and its mirror image. Blank images are similar to nothing.

    Args:
        hashes: float32 (N, SIDE, SIDE) from `hash_pixels`.
        crops: compare with windows too; otherwise only whole images are compared, which is much faster.
        progress: called after each window.

    Returns:
        The pairs, in order of their indices.

    Raises:
        UsageError: the hashes are not of that shape.
    """
    if hashes.ndim != 3 or hashes.shape[1:] != (SIDE, SIDE):
        raise UsageError(f"must be (N, {SIDE}, {SIDE}), as `hash_pixels` returns them; found {hashes.shape}.", "hashes")
    windows = _windows() if crops else _WHOLE
    candidates = _find_candidates(hashes, windows, progress)
    pairs = []
    for start in range(0, len(candidates), _BLOCK):
        whole, windowed, window = (candidates[name][start : start + _BLOCK] for name in ("whole", "windowed", "window"))
        similarities = _align(hashes[whole], hashes[windowed], windows[window], _STEPS if crops else ())
        either = np.flatnonzero(crops & (window == 0))  # either may be a slight crop of the other
        swapped = _align(hashes[windowed[either]], hashes[whole[either]], windows[window[either]], _STEPS)
        similarities[either] = np.maximum(similarities[either], swapped)
        pairs += [
            Pair(int(min(i, j)), int(max(i, j)), round(min(float(value), 1.0), 4))
            for i, j, value in zip(whole, windowed, similarities, strict=True)
            if value >= SAME
        ]
    return sorted(pairs)


def group_identical(samples: Sequence[Sample]) -> list[int | None]:
    """Number the groups of identical files; only files of equal size are read.

    Args:
        samples: N samples; one that cannot be read is in no group.

    Returns:
        The group of each sample, or None if it is in none.
    """
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        with suppress(OSError, ValueError):
            sizes[sample.path.stat().st_size].append(i)
    first: dict[bytes, int] = {}
    pairs = []
    for same_size in sizes.values():
        for i in same_size if len(same_size) > 1 else ():
            with suppress(ImageError):
                pairs.append((first.setdefault(hashlib.sha256(read_bytes(samples[i].path)).digest(), i), i))
    return group_pairs(pairs, len(samples))


def group_pairs(pairs: Iterable[tuple[int, int]], count: int) -> list[int | None]:
    """Number the groups of items that pairs connect, directly or through others.

    Args:
        pairs: indices of items.
        count: number of all items.

    Returns:
        The group of each item, from 0 in the order of their first items, or None if it is in no pair with another.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not count:
        return []
    ends = np.array(list(pairs), np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(count, count))
    _, components = connected_components(graph, directed=False)  # numbered in the order of their first items
    shared = np.bincount(components) > 1
    numbers = np.cumsum(shared) - 1
    return [int(numbers[component]) if shared[component] else None for component in components]


def _windows() -> NDArray[np.float64]:
    """What crops and removed padding leave: the middle of one side or both. The whole image comes first."""
    sides = {(a, b) for wide in _SHARES[:2] for narrow in _SHARES for a, b in ((wide, narrow), (narrow, wide))}
    sides |= {(share, share) for share in _SHARES[:6]}
    return np.array([(0.5 - a / 2, 0.5 + a / 2, 0.5 - b / 2, 0.5 + b / 2) for a, b in sorted(sides, reverse=True)])


def _find_candidates(hashes: Vectors, windows: NDArray[np.float64], progress: Progress) -> NDArray[np.void]:
    """Find pairs of which one is similar to a window of the other, each with the best fitting window.

    Every image is compared with every other one, in blocks: at so few dimensions a matrix product is faster than an
    index, and misses nothing.
    """
    whole = project_hashes(hashes, _WHOLE, _COARSE)
    best = np.zeros(0, _CANDIDATE)
    for number, window in enumerate(windows):
        windowed = project_hashes(hashes, window[None], _COARSE)
        blocks = [best]
        for row in range(0, len(hashes), _BLOCK):
            # The whole window is symmetric: each pair is compared once.
            for column in range(0 if number else row, len(hashes), _BLOCK):
                similarity = whole[row : row + _BLOCK] @ windowed[column : column + _BLOCK].T
                i, j = np.nonzero(similarity > _CANDIDATE_SIMILARITY)
                new = i + row < j + column if number == 0 else i + row != j + column
                block = np.empty(int(new.sum()), _CANDIDATE)
                block["whole"], block["windowed"], block["window"] = i[new] + row, j[new] + column, number
                block["similarity"] = similarity[i[new], j[new]]
                blocks.append(block)
        best = np.concatenate(blocks)
        low, high = np.minimum(best["whole"], best["windowed"]), np.maximum(best["whole"], best["windowed"])
        order = np.lexsort((-best["similarity"], high, low))
        repeated = (np.diff(low[order], prepend=-1) == 0) & (np.diff(high[order], prepend=-1) == 0)
        best = best[order[~repeated]]
        progress("Comparing", number + 1, len(windows))
    return best


def _align(
    whole: Vectors, windowed: Vectors, windows: NDArray[np.float64], steps: Sequence[tuple[float, float]]
) -> NDArray[np.float32]:
    """Similarity (n,) of pairs after moving the window on the second image to where it fits best."""
    target = project_hashes(whole, _WHOLE, _FINE)

    def compare(rows: NDArray[np.intp], window: NDArray[np.float64]) -> NDArray[np.float32]:
        similarity: NDArray[np.float32] = (target[rows] * project_hashes(windowed[rows], window, _FINE)).sum(axis=1)
        return similarity

    placed = windows.copy()
    best = compare(np.arange(len(whole)), placed)
    for step, least in steps:
        if not len(rows := np.flatnonzero(best > least)):
            break
        for edge in (0, 1, 2, 3):
            for sign in (1, -1):
                moved = placed[rows].copy()
                other = moved[:, edge ^ 1]
                moved[:, edge] = np.clip(moved[:, edge] + sign * step * np.abs(moved[:, edge] - other), 0, 1)
                similarity = compare(rows, moved)
                better = similarity > best[rows]
                placed[rows[better]], best[rows[better]] = moved[better], similarity[better]
    return best
