"""Published subsets by name: which images of a full download they are, and how they were split."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, UsageError


def list_subsets() -> tuple[str, ...]:
    """The names that `select_subset` knows."""
    lists = files("pneumoscope.datasets").joinpath("lists").iterdir()
    return tuple(sorted(entry.name.removesuffix(".csv") for entry in lists if entry.name.endswith(".csv")))


def select_subset(samples: Sequence[Sample], name: str) -> list[Sample]:
    """Pick the images of a published subset, and give them its splits.

    An image is known by its class and its file name without the ending, wherever it lies: published subsets may draw
    their own splits, and copies are often saved as another format.

    Args:
        samples: of the full data set, with labels.
        name: one of `list_subsets()`. `seed-400` are the 400 images of the Kermany data that the baseline recipe was
            published with: 200 for training, 100 for validation, 100 for testing, half of each NORMAL.

    Returns:
        The subset's images, in input order.

    Raises:
        DataError: an image is missing, or is there more than once.
        UsageError: no subset of that name.
    """
    if name not in list_subsets():
        raise UsageError(f"--subset {name}: no such subset. Known: {', '.join(list_subsets())}.")
    text = files("pneumoscope.datasets").joinpath("lists", f"{name}.csv").read_text(encoding="utf-8")
    splits = {(row["label"], row["name"]): row["split"] for row in csv.DictReader(text.splitlines())}
    found: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if (key := (str(sample.label), sample.path.stem)) in splits:
            found[key].append(sample)
    if missing := [f"{label}/{stem}" for label, stem in splits if (label, stem) not in found]:
        raise DataError(
            f"{len(missing)} of the {len(splits)} images of {name} are missing: {_some(missing)}. It is drawn from the "
            "full data set, its test split included: get that with `pneumoscope data fetch kermany`."
        )
    if twice := [_some([str(sample.path) for sample in copies]) for copies in found.values() if len(copies) > 1]:
        raise DataError(
            f"{len(twice)} images of {name} are there more than once, such as {twice[0]}. Give one copy of the data set."
        )
    return [
        replace(sample, split=splits[key])
        for sample in samples
        if (key := (str(sample.label), sample.path.stem)) in splits
    ]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
