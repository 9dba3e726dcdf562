"""Finds near-duplicates: an image saved twice, with any change of size, contrast or margins."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import ImageError, UsageError
from pneumoscope.images.hash import SIDE, Vectors, compute_cosines, project_hashes, scale_spectrum
from pneumoscope.images.prefetch import prefetch
from pneumoscope.images.read import read_bytes
from pneumoscope.text import counted

Hashes: TypeAlias = NDArray[np.floating[Any]]  # (N, SIDE, SIDE), float16 or float32

# Measured on 5,216 squashed images and 298 centre crops of them; see docs/log.md.
SAME = 0.975
_CANDIDATE_SIMILARITY = 0.9  # in the coarse search, where a window fits only roughly
_STEPS = ((0.03, 0.73), (0.03, 0.78), (0.015, 0.83), (0.015, 0.83), (0.0075, 0.83))  # shift, least similarity to try it
_COARSE, _FINE = 12, 20  # numbers of frequencies
_SHARES = tuple(1.1**-step for step in range(13))
_WHOLE = np.array([[0.0, 1.0, 0.0, 1.0]])  # top, bottom, left, right
_CANDIDATE = np.dtype([("whole", "i4"), ("windowed", "i4"), ("window", "u1"), ("similarity", "f4")])
_NOTHING = np.zeros((0, 1), np.float32)
_BLOCK = 1024
_TILE = 512  # images compared with as many at once: fits the processor's caches
_PART = 128  # pairs aligned at once: fits them too
_FEW = 32  # components of the bound that excludes most pairs
_EXCLUDED = 100  # the bound is used unless more than one pair in so many remains
_ROUNDING = 1e-4  # added to the length of the rest, so that rounding excludes no pair
# Many look-alikes, such as one phantom a thousand times, must not cost time and memory with the square of their number.
_COPY = 0.995  # similarity of whole images from which one stands for the other in the search
_ROWS = 256  # images compared with all leaders at once
MOST = 30  # candidates kept of an image that looks like many others
_WAITING = 1 << 21  # candidates before all but the best are dropped


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """Two images that are nearly the same."""

    first: int  # the smaller index
    second: int  # the larger one
    similarity: float  # of one image to the best fitting window of the other; at most 1


def find_near_duplicates(
    hashes: Hashes,
    *,
    crops: bool = True,
    progress: Progress = silent,
    crowded: list[int] | None = None,
) -> list[Pair]:
    """Find images that were saved twice: in another format or size, with another contrast, squashed, padded or cropped.

    Every image is compared with every other one, and with centred windows of it. Two images of one patient are not
    near-duplicates, nor are an image and its mirror image. Blank images are similar to nothing.

    Args:
        hashes: float32 or float16 (N, SIDE, SIDE) from `hash_pixels`.
        crops: compare with windows too; otherwise only whole images are compared, which is much faster.
        progress: called after each window.
        crowded: gets the indices of images that look like more than `MOST` others, of which only the most similar ones
            are compared closely; the log says how many there are, too.

    Returns:
        Pairs that connect each group of such images, in order of their indices; pairs of images that others connect may
        be left out.

    Raises:
        UsageError: the hashes are not of that shape.
    """
    if hashes.ndim != 3 or hashes.shape[1:] != (SIDE, SIDE):
        raise UsageError(f"must be (N, {SIDE}, {SIDE}), as `hash_pixels` returns them; found {hashes.shape}.", "hashes")
    windows = _windows() if crops else _WHOLE
    copies = _pair_copies(hashes)
    distinct = np.setdiff1d(np.arange(len(hashes)), [copy.second for copy in copies])
    candidates, many = _find_candidates(hashes, distinct, windows, progress)
    if crowded is not None:
        crowded += distinct[many].tolist()
    if many.any():
        logging.getLogger("pneumoscope").info(
            "%s like more than %d others. Only the %d most similar ones to each are compared with it closely, so a "
            "cropped or changed copy may be missed.", describe_crowded(int(many.sum())), MOST, MOST,
        )  # fmt: skip
    for end in ("whole", "windowed"):
        candidates[end] = distinct[candidates[end]]
    return sorted(copies + _confirm(hashes, candidates, windows, _STEPS if crops else ()))


def describe_crowded(count: int) -> str:
    """The subject and verb of a sentence such as `5 images look` alike."""
    return f"{counted(count, 'image')} look{'s' * (count == 1)}"


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
    components = number_components(pairs, count)
    shared = np.bincount(components, minlength=1) > 1
    numbers = np.cumsum(shared) - 1
    return [int(numbers[component]) if shared[component] else None for component in components]


def number_components(pairs: Iterable[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """Number the groups of items that pairs connect, (count,), in the order of their first items.

    Args:
        pairs: indices of items.
        count: number of all items; one without a pair is its own group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.zeros(0, np.int64)
    ends = np.array(list(pairs), np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _windows() -> NDArray[np.float64]:
    """What crops and removed padding leave: the middle of one side or both. The whole image comes first."""
    sides = {(a, b) for wide in _SHARES[:2] for narrow in _SHARES for a, b in ((wide, narrow), (narrow, wide))}
    sides |= {(share, share) for share in _SHARES[:6]}
    return np.array([(0.5 - a / 2, 0.5 + a / 2, 0.5 - b / 2, 0.5 + b / 2) for a, b in sorted(sides, reverse=True)])


def _pair_copies(hashes: Hashes) -> list[Pair]:
    """Pair images that hardly differ from an earlier one with it, so that a thousand copies are compared once."""
    coarse = project_hashes(hashes, _WHOLE, _COARSE)
    leaders, count = np.empty(len(hashes), np.intp), 0
    led = np.empty_like(coarse)  # those of the leaders, the images that are no copies
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _ROWS):
        block = coarse[start : start + _ROWS]
        free = np.ones(len(block), bool)
        if count:
            similarity = block @ led[:count].T
            nearest = similarity.argmax(axis=1)
            free = similarity[np.arange(len(block)), nearest] < _COPY
            pairs += [(int(leaders[nearest[i]]), start + int(i)) for i in np.flatnonzero(~free)]
        alike = block @ block.T >= _COPY
        for i in range(len(block)):
            if free[i]:
                leaders[count], led[count], count = start + i, block[i], count + 1
                followers = i + 1 + np.flatnonzero(alike[i, i + 1 :] & free[i + 1 :])
                free[followers] = False
                pairs += [(start + i, start + int(j)) for j in followers]
    found = np.array(pairs, np.intp).reshape(-1, 2)
    copies: list[Pair] = []
    for part in _slice(found):
        first, second = (project_hashes(hashes[part[:, end]], _WHOLE, _FINE) for end in (0, 1))
        copies += [
            Pair(int(i), int(j), round(min(float(similarity), 1.0), 4))
            for (i, j), similarity in zip(part, (first * second).sum(axis=1), strict=True)
            if similarity >= _COPY
        ]
    return copies


def _find_candidates(
    hashes: Hashes, distinct: NDArray[np.intp], windows: NDArray[np.float64], progress: Progress
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Find pairs of `distinct` images of which one is similar to a window of the other, with the best fitting window.

    Every image is compared with every other one, in blocks, and none is missed (see `_Comparison`). For images that
    look like many others, only the `MOST` best candidates are kept; also return which images these are (n,).
    """
    whole = _project(hashes, distinct, _WHOLE)
    basis = np.linalg.eigh(whole.T @ whole)[1][:, -_FEW:]
    starts = range(0, len(distinct), _TILE)
    best, found, waiting = np.zeros(0, _CANDIDATE), [np.zeros(0, _CANDIDATE)], 0
    least = np.full(len(distinct), _CANDIDATE_SIMILARITY, np.float32)  # similarity that a further candidate must exceed
    for number, window in enumerate(windows):
        windowed = _project(hashes, distinct, window[None]) if number else whole
        comparison = _Comparison(whole, windowed, _shorten(whole, basis), _shorten(windowed, basis), least, number)
        # The whole window is symmetric: each pair is compared once.
        corners = [(row, column) for row in starts for column in starts if number or column >= row]
        for block in prefetch(comparison.find, corners):
            found.append(block)
            waiting += len(block)
            if waiting > _WAITING:
                best, waiting = _keep_best(np.concatenate([best, *found]), least), 0
                found.clear()
        progress("Comparing", number + 1, len(windows))
    best = _keep_best(np.concatenate([best, *found]), least)
    return best, least > _CANDIDATE_SIMILARITY


def _project(hashes: Hashes, rows: NDArray[np.intp], window: NDArray[np.float64]) -> Vectors:
    """Describe a window of some images."""
    return np.concatenate([project_hashes(hashes[part], window, _COARSE) for part in _slice(rows)] or [_NOTHING])


def _shorten(vectors: Vectors, basis: Vectors) -> Vectors:
    """The components of vectors along a basis, and the length of the rest.

    By the Cauchy-Schwarz inequality, the dot product of two shortened vectors is at least that of the vectors. It
    takes less time, so it serves to exclude most pairs.
    """
    components = vectors @ basis
    squares = (vectors**2).sum(axis=1) - (components**2).sum(axis=1)
    return np.hstack([components, np.sqrt(np.maximum(squares, 0))[:, None] + np.float32(_ROUNDING)])


@dataclass(frozen=True)
class _Comparison:
    """Whole images, compared with a window of each."""

    whole: Vectors
    windowed: Vectors
    short_whole: Vectors  # from `_shorten`
    short_windowed: Vectors
    least: NDArray[np.float32]
    number: int  # of the window

    def find(self, corner: tuple[int, int]) -> NDArray[np.void]:
        """Find the candidates in a block of the matrix of similarities."""
        row, column = corner
        rows, columns = slice(row, row + _TILE), slice(column, column + _TILE)
        least, other = self.least[rows].copy(), self.least[columns].copy()  # another thread raises them
        bound = self.short_whole[rows] @ self.short_windowed[columns].T
        lowest = min(least.min(), other.min())
        possible = np.flatnonzero(bound > lowest)
        if len(possible) > bound.size // _EXCLUDED:
            similarity = (self.whole[rows] @ self.windowed[columns].T).ravel()
            possible = np.flatnonzero(similarity > lowest)
            i, j = np.divmod(possible, len(other))
            similar = similarity[possible]
        else:
            i, j = np.divmod(possible, len(other))
            similar = np.einsum("ij,ij->i", self.whole[row + i], self.windowed[column + j])
        whole, windowed = i + row, j + column
        new = whole < windowed if self.number == 0 else whole != windowed
        new &= similar > np.minimum(least[i], other[j])
        block = np.empty(int(new.sum()), _CANDIDATE)
        block["whole"], block["windowed"], block["window"] = whole[new], windowed[new], self.number
        block["similarity"] = similar[new]
        return block


def _keep_best(candidates: NDArray[np.void], least: NDArray[np.float32]) -> NDArray[np.void]:
    """Keep each pair once, with its best window, and only if it is among the best of either image; raise `least`."""
    low = np.minimum(candidates["whole"], candidates["windowed"])
    high = np.maximum(candidates["whole"], candidates["windowed"])
    order = np.lexsort((-candidates["similarity"], high, low))
    repeated = (np.diff(low[order], prepend=-1) == 0) & (np.diff(high[order], prepend=-1) == 0)
    candidates = candidates[order[~repeated]]
    ends = np.concatenate([candidates["whole"], candidates["windowed"]])
    similarity = np.tile(candidates["similarity"], 2)
    order = np.lexsort((-similarity, ends))
    counts = np.bincount(ends, minlength=len(least))
    rank = np.empty(len(ends), np.intp)
    rank[order] = np.arange(len(ends)) - np.repeat(np.cumsum(counts) - counts, counts)
    last = (rank == MOST - 1) & (counts[ends] > MOST)
    least[ends[last]] = similarity[last]
    return candidates[(rank < MOST).reshape(2, -1).any(axis=0)]


def _confirm(
    hashes: Hashes,
    candidates: NDArray[np.void],
    windows: NDArray[np.float64],
    steps: Sequence[tuple[float, float]],
) -> list[Pair]:
    """Compare candidates closely, the best first; those that other pairs connect already are left out."""
    pairs: list[Pair] = []
    group = np.arange(len(hashes))
    for part in _slice(candidates[np.argsort(-candidates["similarity"], kind="stable")]):
        chosen = part[group[part["whole"]] != group[part["windowed"]]]
        whole, windowed, window = (chosen[name] for name in ("whole", "windowed", "window"))
        similarities = _align(hashes[whole], hashes[windowed], windows[window], steps)
        either = np.flatnonzero(bool(steps) & (window == 0))  # either may be a slight crop of the other
        swapped = _align(hashes[windowed[either]], hashes[whole[either]], windows[window[either]], steps)
        similarities[either] = np.maximum(similarities[either], swapped)
        new = [
            Pair(int(min(i, j)), int(max(i, j)), round(min(float(value), 1.0), 4))
            for i, j, value in zip(whole, windowed, similarities, strict=True)
            if value >= SAME
        ]
        if new:
            pairs += new
            group = number_components([(pair.first, pair.second) for pair in pairs], len(hashes))
    return pairs


def _slice(items: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array in blocks."""
    for start in range(0, len(items), _BLOCK):
        yield items[start : start + _BLOCK]


def _align(
    whole: Hashes, windowed: Hashes, windows: NDArray[np.float64], steps: Sequence[tuple[float, float]]
) -> NDArray[np.float32]:
    """Similarity (n,) of pairs after moving the window on the second image to where it fits best."""
    parts = [slice(start, start + _PART) for start in range(0, len(whole), _PART)]
    found = prefetch(lambda part: _align_part(whole[part], windowed[part], windows[part], steps), parts)
    return np.concatenate([*found, np.zeros(0, np.float32)])


def _align_part(
    whole: Hashes, windowed: Hashes, windows: NDArray[np.float64], steps: Sequence[tuple[float, float]]
) -> NDArray[np.float32]:
    target = project_hashes(whole, _WHOLE, _FINE)
    pictures, placed = windowed.astype(np.float32), windows.copy()
    best: NDArray[np.float32] = (target * project_hashes(pictures, placed, _FINE)).sum(axis=1)
    for step, least in steps:
        if not len(rows := np.flatnonzero((best > least) & (best < SAME))):
            break
        for first in (0, 2):  # the edges of one direction; meanwhile those of the other stay where they are
            cosines = compute_cosines(placed[rows, 2 - first], placed[rows, 3 - first], _FINE)
            # Transposed where rows move: the spectrum is then turned as well.
            across = cosines @ (pictures[rows].transpose(0, 2, 1) if first == 0 else pictures[rows])
            for edge in (first, first + 1):
                for sign in (1, -1):
                    moved = placed[rows]
                    span = np.abs(moved[:, edge] - moved[:, edge ^ 1])
                    moved[:, edge] = np.clip(moved[:, edge] + sign * step * span, 0, 1)
                    along = compute_cosines(moved[:, first], moved[:, first + 1], _FINE)
                    spectrum = along @ across.transpose(0, 2, 1)
                    vectors = scale_spectrum(spectrum if first == 0 else spectrum.transpose(0, 2, 1))
                    similarity = (target[rows] * vectors).sum(axis=1)
                    better = similarity > best[rows]
                    placed[rows[better]], best[rows[better]] = moved[better], similarity[better]
    return best
