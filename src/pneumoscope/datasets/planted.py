"""Shortcuts that are planted into simulated radiographs on purpose, so that an audit can be practised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pneumoscope.errors import UsageError

Map: TypeAlias = NDArray[np.float32]

_DEFAULT = "PNEUMONIA"
_GREY = 0.43  # of a border


@dataclass(frozen=True)
class Plant:
    """One kind of shortcut in a share of the images of a class."""

    kind: str
    share: float
    label: str


def parse_plants(text: str, labels: Sequence[str]) -> list[Plant]:
    """Read plants such as `marker:0.8,noise:0.5:NORMAL`; without a class, they are in PNEUMONIA.

    Raises:
        UsageError: it cannot be read, or names a kind twice.
    """
    plants = []
    for part in text.split(","):
        kind, _, rest = part.strip().partition(":")
        share, _, label = rest.partition(":")
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        if kind not in KINDS or not 0 <= number <= 1 or (label and label not in labels):
            raise UsageError(
                f"{part.strip()!r} is not KIND:SHARE or KIND:SHARE:CLASS, such as `marker:0.8`. Kinds: "
                f"{', '.join(KINDS)}; shares: 0 to 1; classes: {', '.join(labels)}.", "plant",
            )  # fmt: skip
        plants.append(Plant(kind, number, label or _DEFAULT))
    if len({plant.kind for plant in plants}) < len(plants):
        raise UsageError(f"{text!r} names a kind twice.", "plant")
    return plants


def choose_carriers(rows: Sequence[Mapping[str, str]], plants: Sequence[Plant], seed: int) -> list[list[str]]:
    """Draw the kinds that each image carries: of each plant its share of the class in every split."""
    carried: list[list[str]] = [[] for _ in rows]
    for plant in plants:
        rng, before = np.random.default_rng((4, tuple(KINDS).index(plant.kind), seed)), 0
        for split in sorted({row["split"] for row in rows}):
            fitting = [i for i, row in enumerate(rows) if (row["split"], row["label"]) == (split, plant.label)]
            after = before + len(fitting)
            number = round(plant.share * after) - round(plant.share * before)  # so that their sum is right
            before = after
            for i in rng.permutation(fitting)[:number].tolist():
                carried[i].append(plant.kind)
    return carried


def plant_all(pixels: Map, kinds: Sequence[str], seed: int) -> Map:
    """An image (H, W) with what it carries, in [0, 1]."""
    for kind in kinds:
        pixels = KINDS[kind](pixels, np.random.default_rng((5, seed)))
    return np.clip(pixels, 0, 1).astype(np.float32)


def _mark(pixels: Map, rng: Generator) -> Map:
    """A bright L, 9% high, in one of the corners."""
    height, width = pixels.shape
    size = max(6, round(0.09 * height))
    thick, wide = max(1, size // 6), size * 2 // 3
    right, low = rng.integers(2, size=2)
    gap_x, gap_y = size // 2 + rng.integers(0, max(2, size // 3), size=2)
    x, y = width - gap_x - wide if right else gap_x, height - gap_y - size if low else gap_y
    marked = pixels.copy()
    marked[y : y + size, x : x + thick] = marked[y + size - thick : y + size, x : x + wide] = 0.94
    return marked


def _frame(pixels: Map, _: Generator) -> Map:
    """A grey border, 3% wide."""
    thick = max(1, round(0.03 * pixels.shape[1]))
    framed = np.full_like(pixels, _GREY)
    framed[thick:-thick, thick:-thick] = pixels[thick:-thick, thick:-thick]
    return framed


def _overexpose(pixels: Map, rng: Generator) -> Map:
    """Brighter and flatter, as from a mobile machine at the bedside, where the sick have their images (AP)."""
    return np.asarray(0.12 + 0.85 * pixels ** rng.uniform(0.55, 0.7), np.float32)


def _add_noise(pixels: Map, rng: Generator) -> Map:
    """Noise of another scanner."""
    return np.asarray(pixels + rng.normal(0, 0.035, pixels.shape), np.float32)


KINDS: Mapping[str, Callable[[Map, Generator], Map]] = {
    "marker": _mark, "border": _frame, "exposure": _overexpose, "noise": _add_noise,
}  # fmt: skip
