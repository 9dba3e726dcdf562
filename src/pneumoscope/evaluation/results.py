"""What an evaluation finds, as values: a figure and its limits, and all the figures of one model on one split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SMALL = 30  # images below which one more mistake moves a rate by over 3 points


@dataclass(frozen=True)
class Interval:
    """A value and its limits; nan where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Adjusted:
    """The same images judged for other shares of the classes.

    Attributes:
        shares: of the classes, by name.
        prevalence: the positive class's of two; limits where it was estimated.
        estimated: from the images, without their labels; then `metrics` are of the images as they are. Else the shares
            were given, and `metrics` are of images weighted by them.
        threshold: on the adjusted probabilities.
        metrics: with their limits.
    """

    shares: Mapping[str, float]
    prevalence: Interval | None
    estimated: bool
    threshold: float
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class Subgroup:
    """A part of the images, and the metrics that it defines.

    Attributes:
        kind: what the images were told apart by, such as `Sex`.
        name: which of the parts.
        n: its images.
        counts: how many of each class.
        metrics: by name; no sensitivity without a positive image, no AUROC without both classes.
    """

    kind: str
    name: str
    n: int
    counts: Mapping[str, int]
    metrics: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        """Whether a class that it holds has so few images that its interval says more than its value."""
        return any(0 < count < SMALL for count in self.counts.values())


@dataclass(frozen=True)
class Evaluation:
    """What one model did on one split.

    `patients` is how many distinct ones are known, None if none is. `positive`, and `prevalence` and `threshold` other
    than nan, are for two classes only. `shares` are the classes' shares of the images. `methods` names what each
    metric's limits come from. `decisions` count what was decided and how often prediction sets held the truth
    (`conformal.summarise_decisions`); `uncalibrated` are Brier score and calibration error as they would be without
    calibration; `adjusted` is there where it was asked for. `notes` are warnings that a reader has to know, `seen` is
    how many of the images were used in training, `subgroups` are parts of them, measured alone.
    """

    split: str
    n: int
    patients: int | None
    classes: tuple[str, ...]
    positive: str | None
    prevalence: float
    shares: Mapping[str, float]
    threshold: float
    metrics: Mapping[str, Interval]
    confusion: Mapping[str, Any]
    resamples: int
    confidence: float
    seed: int
    methods: Mapping[str, str] = field(default_factory=dict)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    uncalibrated: Mapping[str, Interval] = field(default_factory=dict)
    adjusted: Adjusted | None = None
    notes: tuple[str, ...] = ()
    seen: int = 0
    subgroups: tuple[Subgroup, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of metrics.json; what is undefined is None, as JSON has no nan."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def without_nan(value: Any) -> Any:
    """Plain values as JSON has them: None for nan, lists for tuples, through all that is nested."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
