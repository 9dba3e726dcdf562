"""The intended use: which patients and images a model was trained on, and warnings for others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from annotated_types import Ge

from pneumoscope.images.dicom import LATERAL_VIEWS, Tags

Years: TypeAlias = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Scope:
    """Patients and images that a model is meant for; what is unknown is not restricted."""

    ages: tuple[Years, Years] | None = None  # youngest and oldest patient in years
    views: tuple[str, ...] = ()  # view positions, such as PA and AP
    modalities: tuple[str, ...] = ()  # DICOM modalities, such as CR and DX


def fit(tags: Iterable[Tags | None]) -> Scope:
    """Take the scope from what the training images' DICOM headers say."""
    known = [each for each in tags if each is not None]
    ages = [each.age for each in known if each.age is not None]
    return Scope(
        ages=(min(ages), max(ages)) if ages else None,
        views=tuple(sorted({each.view for each in known if each.view})),
        modalities=tuple(sorted({each.modality for each in known if each.modality})),
    )


def apply(tags: Tags | None, scope: Scope) -> tuple[str, ...]:
    """Return warnings if an image's header shows that it is outside the scope."""
    if tags is None:
        return ()
    warnings = []
    if scope.ages is not None and tags.age is not None and not scope.ages[0] <= tags.age < scope.ages[1] + 1:
        youngest, oldest = scope.ages
        warnings.append(f"age {tags.age:.3g} is outside the intended use ({youngest:.3g} to {oldest:.3g} years)")
    for name, value, allowed in (("view", tags.view, scope.views), ("modality", tags.modality, scope.modalities)):
        if value and allowed and value not in allowed:
            warnings.append(f"{name} {value} is outside the intended use ({', '.join(allowed)})")
    if not scope.views and (tags.view or "").upper() in LATERAL_VIEWS:
        warnings.append(f"view {tags.view} is lateral; the model was probably trained on frontal views")
    return tuple(warnings)
