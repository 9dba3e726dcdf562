"""Joins the rows of two tables by the names of their images: paths, file names or ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pneumoscope.datasets.image_files import DICOM_SUFFIXES, RASTER_SUFFIXES
from pneumoscope.errors import DataError

_DEPTH = 8  # folders that are compared, at most
_EXACT = 10**9  # more than any number of folders


@dataclass(frozen=True)
class Joined:
    """How the rows of a table belong to those of another."""

    partners: tuple[int | None, ...]  # for each row of the table, the row of the other
    by_name: int  # rows joined by the file name alone, although both name other folders


def join_names(names: Sequence[str], others: Sequence[str], place: str) -> Joined:
    r"""Find for each name the one of `others` that names the same image.

    Names are compared from their end: file name without the suffix of an image, then folder by folder, with `\` as
    `/`. The one that agrees in most parts is taken. A name may occur twice; `others` are different.

    Args:
        names: (N,).
        others: (M,).
        place: where `names` are, for messages.

    Raises:
        DataError: several fit equally well.
    """
    if len(known := {name: i for i, name in enumerate(others)}) == len(others) and known.keys() >= set(names):
        return Joined(tuple(known[name] for name in names), 0)  # as they stand
    parts = [_split(name) for name in names]
    other_parts = [_split(name) for name in others]
    by_tail: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, (folders, stem, _) in enumerate(other_parts):
        for depth in range(min(len(folders), _DEPTH) + 1):
            by_tail[(*folders[len(folders) - depth :], stem)].append(i)
    found: list[tuple[int, int] | None] = []  # the other one, and how many parts agree
    for name, (folders, stem, suffix) in zip(names, parts, strict=True):
        if name in known:
            found.append((known[name], _EXACT))
            continue
        depths = range(min(len(folders), _DEPTH), -1, -1)
        tails = (
            (depth, by_tail[tail]) for depth in depths if (tail := (*folders[len(folders) - depth :], stem)) in by_tail
        )
        depth, fitting = next(tails, (0, []))
        if len(fitting) > 1:
            fitting = [i for i in fitting if other_parts[i][2] == suffix] or fitting
            fitting = [i for i in fitting if len(other_parts[i][0]) == depth] or fitting
        if len(fitting) > 1:
            raise DataError(
                f"{place}: {name!r} fits {len(fitting)} images, such as {others[fitting[0]]!r} and "
                f"{others[fitting[1]]!r}. "
                "Name images by more of their path, alike in both tables."
            )
        found.append((fitting[0], depth) if fitting else None)
    return _settle(names, found, parts, other_parts, place)


def _settle(
    names: Sequence[str],
    found: Sequence[tuple[int, int] | None],
    parts: Sequence[tuple[tuple[str, ...], str, str]],
    other_parts: Sequence[tuple[tuple[str, ...], str, str]],
    place: str,
) -> Joined:
    """Give each image to the name that agrees with it best."""
    best: dict[int, tuple[int, str]] = {}
    for name, pair in zip(names, found, strict=True):
        if pair is None:
            continue
        i, depth = pair
        if i in best and depth == best[i][0] and name != best[i][1]:
            raise DataError(
                f"{place}: {best[i][1]!r} and {name!r} fit the same image. Name images by more of their path, alike "
                "in both tables."
            )
        if i not in best or depth > best[i][0]:
            best[i] = depth, name
    partners = tuple(
        pair[0] if pair is not None and best[pair[0]][1] == name else None
        for name, pair in zip(names, found, strict=True)
    )
    by_name = sum(
        partner is not None and pair is not None and pair[1] < min(len(each[0]), len(other_parts[partner][0]))
        for partner, pair, each in zip(partners, found, parts, strict=True)
    )
    return Joined(partners, by_name)


def _split(name: str) -> tuple[tuple[str, ...], str, str]:
    """The folders of a path, its file name without the suffix of an image, and that suffix."""
    *folders, last = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")] or [""]
    place = last.rfind(".")
    suffix = last[place:].lower() if 0 < place < len(last) - 1 else ""  # as pathlib finds it, which takes longer
    if suffix not in RASTER_SUFFIXES | DICOM_SUFFIXES:
        return tuple(folders), last, ""
    return tuple(folders), last[: -len(suffix)], suffix
