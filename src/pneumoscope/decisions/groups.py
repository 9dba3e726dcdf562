"""Groups of images, such as those of children, whose logits, prediction sets and OOD limit are fitted to them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import NDArray

from pneumoscope.config import build, quote, read_mapping
from pneumoscope.decisions import calibration, prediction_sets, scope
from pneumoscope.decisions.calibration import PLATT_FROM, Bounded, Calibration
from pneumoscope.decisions.ood import OOD, pool_copies
from pneumoscope.decisions.prediction_sets import PredictionSets
from pneumoscope.decisions.scope import Scope
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import Tags
from pneumoscope.text import counted

Floats: TypeAlias = NDArray[np.floating[Any]]
LONGEST = 60  # characters of a group's name
PRIOR = 1.0  # standard deviation of the intercept's change in log odds; 0.5 leaves 0.5 of a shift by 2 (docs/log.md)


@dataclass(frozen=True)
class Group:
    """Images that are decided in a way of their own, because the model's probabilities or sets do not suit them.

    The logits of two classes become slope * logit + intercept. The model's calibration and threshold follow, and then
    hold within the group.
    """

    name: str
    scope: Scope  # ages and views, of which at least one is restricted
    slope: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    intercept: Bounded = 0.0
    prediction_sets: PredictionSets | None = None  # None: those of all images
    ood: OOD | None = None  # distances of its images; None: those of all images
    images: dict[str, Annotated[int, Ge(0)]] = field(default_factory=dict)  # that it was fitted on, by class

    @property
    def moves_logits(self) -> bool:
        """Whether its logits are not those of the network."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def at(self, alpha: float | None, false_alarms: float | None) -> Group:
        """Return the same at another alpha and another rate of false alarms."""
        sets = self.prediction_sets and self.prediction_sets.at(alpha)
        return replace(self, prediction_sets=sets, ood=self.ood and self.ood.at(false_alarms))


class Pooled(Protocol):
    """What was fitted to the images of all groups, such as `Decisions`."""

    @property
    def calibration(self) -> Calibration:
        """Logits to probabilities."""

    @property
    def prediction_sets(self) -> PredictionSets | None:
        """Prediction sets, if the model has any."""

    @property
    def ood(self) -> OOD | None:
        """The OOD limit, if the model has one."""


@dataclass(frozen=True)
class _Members:
    """A group in a file."""

    ages: tuple[scope.Years, scope.Years] | None = None
    views: tuple[str, ...] = ()


def read_groups(file: str | Path | None) -> tuple[Group, ...]:
    """Read groups that are still to be fitted: names with `ages` (youngest and oldest) and `views`, as YAML.

    Raises:
        UsageError: the file cannot be read, or a group in it is not valid.
    """
    if file is None:
        return ()
    found = []
    for name, values in read_mapping(Path(file)).items():
        if not isinstance(values, dict):
            raise UsageError(f"must be a mapping with `ages` or `views`, found {quote(values)}.", f"{file}: {name}")
        listed = {key: [each] if isinstance(each, str) else each for key, each in values.items()}  # one view alone
        members = build(_Members, listed, str(file), prefix=f"{name}.")
        try:
            found.append(Group(name, Scope(members.ages, tuple(sorted({view.upper() for view in members.views})))))
        except ValueError as problem:
            raise UsageError(f"{problem}.", f"{file}: {name}") from None
    try:
        check_names(found)
    except ValueError as problem:
        raise UsageError(f"{problem}.", str(file)) from None
    if not found:
        raise UsageError("names no group. Write lines such as `children: {ages: [0, 17]}`.", str(file))
    return tuple(found)


def check_names(groups: Sequence[Group]) -> None:
    """Check names, and that each group restricts something.

    Raises:
        ValueError: what is wrong with them.
    """
    names = [group.name for group in groups]
    for group in groups:
        name = group.name
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > LONGEST:
            raise ValueError(f"a group's name must be text of 1 to {LONGEST} characters, found {quote(name)}")
        if names.count(name) > 1:
            raise ValueError(f"two groups have the name {quote(name)}")
        if group.scope.ages is None and not group.scope.views:
            raise ValueError(f"the group {quote(name)} restricts neither `ages` nor `views`")
        if group.scope.modalities or group.scope.body_parts:
            raise ValueError(f"the group {quote(name)} restricts something other than ages and views")


@dataclass(frozen=True, eq=False)
class Images:
    """A group's N images, from which the network did not learn."""

    logits: NDArray[np.float64]  # (N, 1) or (N, C), as the network gives them
    labels: NDArray[np.int64]  # (N,) class indices
    distances: NDArray[np.float64]  # (N,) or (N, K) of K copies of each, by the OOD detector
    patients: Sequence[str | None]  # (N,), kept together in cross-validation

    def take(self, places: Sequence[int]) -> Images:
        """Return some of the images."""
        chosen = np.array(places, np.intp)
        own = [self.patients[place] for place in places]
        return Images(self.logits[chosen], self.labels[chosen], self.distances[chosen], own)


def find(groups: Sequence[Group], tags: Tags | None, source: Scope | None = None) -> Group | None:
    """The first group that an image fits; one whose age or view is unknown fits no group that restricts it.

    Args:
        groups: to choose from.
        tags: what is known of the image.
        source: what is known of all images of its dataset; it counts where the tags say nothing.
    """
    return next((group for group in groups if _fits(group.scope, tags or Tags(), source or Scope())), None)


def _fits(members: Scope, tags: Tags, source: Scope) -> bool:
    ages = source.ages if tags.age is None else (tags.age, tags.age)
    if members.ages is not None and not (ages and all(scope.includes(members.ages, age) for age in ages)):
        return False
    views = (tags.view.upper(),) if tags.view else source.views
    frontal = {"FRONTAL"} if {"AP", "PA"} <= set(members.views) else set()  # as some tables call both
    return not members.views or (bool(views) and set(views) <= {*members.views, *frontal})


def align(logits: NDArray[np.float64], group: Group | None) -> NDArray[np.float64]:
    """Logits (N, 1) or (N, C) of a group's images in the form that the model's calibration takes."""
    return logits if group is None or not group.moves_logits else group.slope * logits + group.intercept


def restore(logits: NDArray[np.float64], group: Group | None) -> NDArray[np.float64]:
    """The network's logits from those that `align` gave."""
    return logits if group is None or not group.moves_logits else (logits - group.intercept) / group.slope


def align_head(weight: Floats, bias: Floats, group: Group | None) -> tuple[Floats, Floats]:
    """A head's weight (1, D) or (C, D) and bias (1,) or (C,) that give the group's logits directly."""
    if group is None or not group.moves_logits:
        return weight, bias
    return weight.astype(np.float64) * group.slope, align(bias.astype(np.float64), group)


def fit(
    group: Group,
    images: Images,
    classes: Sequence[str],
    pooled: Pooled,
    trained_for: Sequence[float],
) -> Group:
    """Fit what a group has of its own, as far as its images suffice.

    Slope and intercept need two classes with 20 images each. They are those that calibrate the group's images best,
    with a prior towards no change, and are taken only if they lower the cross-validated log loss. Prediction sets need
    enough images of every class for their alpha, the OOD limit for its rate of false alarms.

    Args:
        group: whose images they are.
        images: the group's images, from which the network did not learn.
        classes: names in the order of the labels.
        pooled: what was fitted to the images of all groups.
        trained_for: (C,) class fractions that the network was trained for.
    """
    counts = np.bincount(images.labels, minlength=len(classes))
    fitted = replace(group, images=dict(zip(classes, counts.tolist(), strict=True)))
    if len(classes) == 2 and counts.min() >= PLATT_FROM and pooled.calibration.method != "isotonic":
        slope, intercept = _fit_line(images, pooled.calibration, trained_for)
        fitted = replace(fitted, slope=slope, intercept=intercept)
    if pooled.prediction_sets is not None and counts.min() >= count_needed(pooled.prediction_sets.alpha):
        probabilities = np.exp(calibration.apply(align(images.logits, fitted), pooled.calibration))
        sets = prediction_sets.fit(images.labels, probabilities, classes, pooled.prediction_sets.alpha)
        fitted = replace(fitted, prediction_sets=sets)
    if pooled.ood is not None and counts.min() >= count_needed(pooled.ood.false_alarms):
        by_class = {name: pool_copies(images.distances[images.labels == i]) for i, name in enumerate(classes)}
        fitted = replace(fitted, ood=replace(pooled.ood, distances=by_class))
    return fitted


def count_needed(rate: float) -> int:
    """The fewest images of a class for which a conformal limit can keep a rate of misses or false alarms."""
    return math.ceil(1 / rate - 1 - 1e-9)


def _fit_line(images: Images, pooled: Calibration, trained_for: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept for the logits of two classes; 1 and 0 if others do not lower the log loss.

    A slope and an intercept are fitted to the log odds that the calibration gives, and are then undone through it.
    """
    log_odds = pooled.slope * images.logits + pooled.intercept
    own = calibration.fit(
        log_odds, images.labels, method="platt", class_fractions=pooled.class_fractions, trained_for=trained_for,
        patients=images.patients, intercept_prior=PRIOR,
    )  # fmt: skip
    if own.after["log_loss"] >= own.before["log_loss"]:
        return 1.0, 0.0
    return own.slope, ((own.slope - 1) * pooled.intercept + own.intercept) / pooled.slope


def find_gaps(groups: Sequence[Group], pooled: Pooled, kind: str = "validation image") -> tuple[str, ...]:
    """Say what groups lack because they have too few images of this kind."""
    sets, limits = pooled.prediction_sets, pooled.ood
    notes = []
    if groups and pooled.calibration.method == "isotonic":
        notes.append(
            "Groups have no probabilities of their own: isotonic calibration, which cross-validation chose, does not "
            "follow their logits. Use platt or temperature."
        )
    for group in groups:
        name, fewest = min(group.images.items(), key=lambda each: each[1])
        parts = [("probabilities", PLATT_FROM)] if len(group.images) == 2 else []
        parts += [("prediction sets", count_needed(sets.alpha))] if sets else []
        parts += [("an OOD limit", count_needed(limits.false_alarms))] if limits else []
        if lacking := [f"{part} ({needed} needed)" for part, needed in parts if fewest < needed]:
            notes.append(
                f"Group {group.name}: {counted(fewest, kind)} of {name} "
                f"{'is' if fewest == 1 else 'are'} too few for {_join(lacking)} of its own; those fitted to all images "
                "are used."
            )
    return tuple(notes)


def describe(group: Group, *, adapted: bool = False) -> str:
    """Say in a line whom a group holds and what it has of its own; `adapted`: fitted before the adaptation."""
    parts = ["probabilities"] if group.moves_logits else []
    parts += ["prediction sets"] if group.prediction_sets else []
    parts += ["OOD limit"] if group.ood else []
    own = f"{_join(parts)} of its own" if parts else "nothing of its own"
    counts = " and ".join(f"{count} {name}" for name, count in group.images.items())
    how = "fitted before the adaptation to" if adapted else "from"
    fitted = f", {how} {counts} images" if counts and parts else ""
    return f"{group.name} ({scope.describe(group.scope)}): {own}{fitted}"


def _join(parts: Sequence[str]) -> str:
    """Join parts of a sentence, such as `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
