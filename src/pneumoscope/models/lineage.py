"""The lineage of a model: the models that it was made from, the first one first, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Strict

from pneumoscope.datasets.sources import find_sources
from pneumoscope.models.about import About

TRAINED = "train"  # the step of a model whose training continued from its parent
_SHOWN = 16  # of the hexadecimal digits of a checksum

Count = Annotated[int, Strict(), Ge(0)]


@dataclass(frozen=True)
class Parent:
    """A model that another one was made from."""

    name: str  # of its folder
    weights_sha256: str
    data_fingerprint: str | None = None  # of its training samples
    sources: tuple[str, ...] = ()  # the public datasets that these are from, as far as they are known
    version: str = ""  # of the pneumoscope that made it
    about: About = dataclasses.field(default_factory=About)  # what its makers state


@dataclass(frozen=True)
class LocalImages:
    """The images that a model was adapted to."""

    fingerprint: str
    images: dict[str, Count]  # by label
    patients: Count


@dataclass(frozen=True)
class Step:
    """How a model was made of its parent: by training that continued from it, or by `adapt`."""

    parent: Parent
    step: str  # TRAINED, or what `adapt` chose
    version: str = ""  # of the pneumoscope that made the step
    data: LocalImages | None = None  # this and what follows: of `adapt` only
    changes: tuple[str, ...] = ()  # what was changed and why
    candidates: tuple[dict[str, Any], ...] = ()
    wishes: dict[str, Any] = dataclasses.field(default_factory=dict)
    finetuning: dict[str, Any] | None = None


def find_adaptations(lineage: Sequence[Step]) -> tuple[Step, ...]:
    """The steps since the training that the model is described by."""
    trained = [place for place, each in enumerate(lineage) if each.step == TRAINED]
    return tuple(lineage[trained[-1] + 1 if trained else 0 :])


def name_earlier_sources(lineage: Sequence[Step]) -> tuple[str, ...]:
    """Names of the public datasets of the models that training continued from, each once."""
    return tuple(dict.fromkeys(name for each in lineage if each.step == TRAINED for name in each.parent.sources))


def describe_lineage(lineage: Sequence[Step]) -> str:
    """The lineage in a line; empty where the model was made from no other."""
    return "; then ".join(map(_describe, lineage))


def _describe(step: Step) -> str:
    parent = f"{step.parent.name} (weights {step.parent.weights_sha256[:_SHOWN]})"
    if step.data is not None:
        images = ", ".join(f"{count:,} {name}" for name, count in step.data.images.items())
        fingerprint = step.data.fingerprint[:_SHOWN]
        return f"adapted from {parent} on {images} images (fingerprint {fingerprint}): {' '.join(step.changes)}"
    titles = ", ".join(each.title for each in find_sources(step.parent.sources))
    return f"training continued from {parent}, trained on {titles or 'images that it does not name'}"
