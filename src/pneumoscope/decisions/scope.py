"""The intended use: which patients and images a model is meant for, and what an image's header says against it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeAlias

from annotated_types import Ge

from pneumoscope.config import build, read_mapping
from pneumoscope.images.ages import OLDEST
from pneumoscope.images.dicom import CHEST, LATERAL_VIEWS, OBLIQUE_VIEWS, RADIOGRAPHY, Tags

Years: TypeAlias = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Scope:
    """Patients and images that a model is meant for; what is unknown is not restricted."""

    ages: tuple[Years, Years] | None = None  # youngest and oldest patient in years
    views: tuple[str, ...] = ()  # view positions, such as PA and AP
    modalities: tuple[str, ...] = ()  # DICOM modalities, such as CR and DX
    body_parts: tuple[str, ...] = ()  # as in BodyPartExamined, such as CHEST

    def __post_init__(self) -> None:
        if self.ages is not None and self.ages[0] > self.ages[1]:
            raise ValueError("the youngest patient comes before the oldest")


def fit(images: Iterable[tuple[Tags | None, Scope]]) -> Scope:
    """Take the scope from what the training images' DICOM headers say, else from what is known of each image's source.

    Ages above `OLDEST` are mistakes, of which the NIH data have some. If the age of any image is unknown, even from its
    source, only the ages in headers count.

    Args:
        images: for each training image what its header says, and the scope of its source; empty where unknown.
    """
    stated, known, sources = [], [], []
    for tags, source in images:
        age = None if tags is None or tags.age is None or tags.age > OLDEST else tags.age
        stated.append(age)
        known.append(source.ages if age is None else None)
        sources.append((tags or Tags(), source))
    ages = [age for age in stated if age is not None]
    if all(age is not None or bounds is not None for age, bounds in zip(stated, known, strict=True)):
        ages += [age for bounds in known for age in bounds or ()]
    return Scope(
        ages=(min(ages), max(ages)) if ages else None,
        views=_list_values(view for tags, source in sources for view in ((tags.view,) if tags.view else source.views)),
        modalities=_list_values(tags.modality for tags, _ in sources),
        body_parts=_list_values(
            part for tags, source in sources for part in ((tags.body_part,) if tags.body_part else source.body_parts)
        ),
    )


def state(file: str | Path | None, fitted: Scope) -> Scope:
    """Replace what a YAML file states; its keys are those of `Scope`. Without a file, nothing changes.

    Raises:
        UsageError: the file cannot be read, or states something else.
    """
    if file is None:
        return fitted
    values = read_mapping(Path(file))
    values |= {name: [each] for name, each in values.items() if isinstance(each, str)}  # one view is a list of one
    stated = build(Scope, values, str(file))
    lists = {name: _list_values(getattr(stated, name)) for name in values if name != "ages"}
    return replace(fitted, **lists, ages=stated.ages if "ages" in values else fitted.ages)


def apply(tags: Tags | None, scope: Scope) -> tuple[str, ...]:
    """Return a warning for everything in an image's header that is outside the scope."""
    if tags is None:
        return ()
    outside = []
    if scope.ages is not None and tags.age is not None and not includes(scope.ages, tags.age):
        outside.append(f"age {tags.age:.3g} (meant for {_describe_ages(scope.ages)})")
    for name, value, allowed, usual in (
        ("view", tags.view, scope.views, (tags.view or "").upper() not in (*LATERAL_VIEWS, *OBLIQUE_VIEWS)),
        ("modality", tags.modality, scope.modalities, tags.modality in RADIOGRAPHY),
        ("body part", tags.body_part, scope.body_parts, tags.body_part == CHEST),
    ):
        frontal = value == "FRONTAL" and bool({"AP", "PA"} & set(allowed))  # as some tables call both
        if value and not (value.upper() in allowed or frontal if allowed else usual):
            outside.append(f"{name} {value} (meant for {', '.join(allowed) or _USUAL[name]})")
    if tags.for_processing:
        outside.append("raw data before processing (FOR PROCESSING; meant for images FOR PRESENTATION)")
    return tuple(f"outside the intended use: {each}" for each in outside)


_USUAL = {"view": "frontal views", "modality": "radiographs", "body part": CHEST}  # of a model that states nothing


def describe(scope: Scope) -> str:
    """The intended patients and images in a line; empty where nothing is known."""
    parts = ["patients of " + _describe_ages(scope.ages)] if scope.ages else []
    for name, values in (("view", scope.views), ("modality", scope.modalities), ("body part", scope.body_parts)):
        if values:
            parts.append(f"{name} {' or '.join(values)}")
    return "; ".join(parts)


def includes(ages: tuple[float, float], age: float) -> bool:
    """Whether an age is inside; who is five until the sixth birthday is five years old."""
    youngest, oldest = ages
    return youngest <= age and (age <= oldest or 1 <= math.floor(age) <= oldest)


def _describe_ages(ages: Sequence[float]) -> str:
    return f"{ages[0]:.3g} to {ages[1]:.3g} years"


def _list_values(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({value.upper() for value in values if value}))
