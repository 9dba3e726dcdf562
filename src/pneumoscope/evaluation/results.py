"""What an evaluation finds, as values: a metric with its interval, and all metrics of one model on one split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pneumoscope.notebook import Drawn, to_frame, to_html

SMALL = 30  # images below which one more error moves a rate by over 3 points


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; nan where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupDifference(Interval):
    """How a metric of some images differs from that of all others: theirs minus the others'."""

    rest: float = math.nan  # the others' value
    p: float = math.nan  # two-sided p value of no difference
    adjusted: float = math.nan  # p after Holm's correction for all differences of an evaluation


@dataclass(frozen=True)
class ClassMetrics:
    """How one class is recognised, against all others."""

    precision: Interval  # share of the images labelled as this class that are of it
    recall: Interval  # share of the images of this class that are labelled so
    f1: Interval  # harmonic mean of the two
    support: int  # number of images of this class


@dataclass(frozen=True)
class Adjusted:
    """Metrics of the same images for other shares of the classes."""

    shares: Mapping[str, float]  # of the classes, by name
    prevalence: Interval | None  # of the positive class if there are two, with an interval where it was estimated
    # whether the shares were estimated from the images without labels; `metrics` are then those of the images as they
    # are. Otherwise the shares were given, and `metrics` weight the images by them.
    estimated: bool
    threshold: float  # for the adjusted probabilities; nan where each class has its own
    metrics: Mapping[str, Interval]  # by name


@dataclass(frozen=True)
class Subgroup:
    """A part of the images, with the metrics that are defined for it."""

    kind: str  # what the images were divided by, such as `Sex`
    name: str  # of the part
    n: int  # number of images
    counts: Mapping[str, int]  # images of each class
    # by name; no sensitivity without a positive image, no AUROC without both classes
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    differences: Mapping[str, GroupDifference] = field(default_factory=dict)  # from all other images, by metric

    @property
    def small(self) -> bool:
        """Whether a class has so few images that its interval says more than its value."""
        return any(0 < count < SMALL for count in self.counts.values())


@dataclass(frozen=True)
class Evaluation(Drawn):
    """The performance of one model on one split."""

    split: str  # name of what was measured
    n: int  # number of images
    patients: int | None  # number of distinct known patients; None if none is known
    classes: tuple[str, ...]  # their names; if there are two, the second is positive
    positive: str | None  # the positive class if there are two; None for more
    prevalence: float  # share of the positive class; nan for more than two classes
    shares: Mapping[str, float]  # of the classes among the images
    threshold: float  # for two classes; nan for more
    metrics: Mapping[str, Interval]  # by name
    confusion: Mapping[str, Any]  # counts of the confusion matrix
    resamples: int  # bootstrap resamples
    confidence: float  # of the intervals
    seed: int  # of the resamples
    methods: Mapping[str, str] = field(default_factory=dict)  # how each metric's interval was computed
    # how often each decision was made, and the coverage of prediction sets (see `decision_summary`)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    # Brier score and calibration error without calibration
    uncalibrated: Mapping[str, Interval] = field(default_factory=dict)
    adjusted: Adjusted | None = None  # the same for other shares of the classes, where requested
    notes: tuple[str, ...] = ()  # warnings that a reader must know
    seen: int = 0  # number of images that were used in training
    subgroups: tuple[Subgroup, ...] = ()  # parts of the images, each measured by itself
    per_class: Mapping[str, ClassMetrics] = field(default_factory=dict)  # by class
    # by class, for more than two: the class that reaches the largest multiple of its own is predicted; empty where
    # that is the likeliest
    thresholds: Mapping[str, float] = field(default_factory=dict)
    # beside a test that ends a training: the same for the validation split, which is too good
    validation: Evaluation | None = None

    @property
    def cut(self) -> float | tuple[float, ...]:
        """The threshold, or for more than two classes the thresholds (0.5 where there are none), as metrics need it."""
        return self.threshold if self.positive else tuple(self.thresholds.values()) or 0.5

    def __repr__(self) -> str:
        return f"Evaluation({self.summary})"

    def _repr_html_(self) -> str:
        return to_html(self.summary, self.to_rows())

    @property
    def summary(self) -> str:
        """What was measured, and the main metric."""
        name, title = ("auroc", "AUROC") if "auroc" in self.metrics else ("accuracy", "accuracy")
        main = f", {title} {self.metrics[name].value:.3f}" if name in self.metrics else ""
        return f"{self.split}: {self.n} images{main}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each metric, with its interval; undefined values are None."""
        return [{"metric": name, **without_nan(asdict(interval))} for name, interval in self.metrics.items()]

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each metric.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_frame(self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return the content of metrics.json; undefined values are None, as JSON has no nan."""
        plain: dict[str, Any] = without_nan(asdict(replace(self, validation=None)))
        del plain["validation"]
        return plain if self.validation is None else plain | {"validation": self.validation.to_json()}


def without_nan(value: Any) -> Any:
    """Plain values as JSON has them, at any depth: None for nan, lists for tuples."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
