"""Settings that have no effect on a run's data or with its other settings: one table, from which a run warns.

What contradicts the data or another setting is refused elsewhere: see `Settings`, `data.read` and `datasets.reading`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

from torch.nn.modules.batchnorm import _BatchNorm

from pneumoscope.decisions.groups import find, read_groups
from pneumoscope.images.augment import Augmentation
from pneumoscope.training.data import Setup
from pneumoscope.training.decisions import find_known
from pneumoscope.training.settings import BACKBONE_ONLY, COPIES_ONLY, RECIPES, Settings


class Idle(NamedTuple):
    """Settings that have no effect, why, and when."""

    names: Collection[str]
    reason: str
    applies: Callable[[Setup], bool]


def _count_images(setup: Setup) -> int:
    return sum(sample.split == "train" for sample in setup.samples)


def _count_steps(setup: Setup) -> int:
    """Batches in all `epochs`."""
    optimisation = setup.settings.optimisation
    return optimisation.epochs * math.ceil(_count_images(setup) / optimisation.batch_size)


def _count_plateau_epochs(setup: Setup) -> int:
    """Epochs of the longest phase whose learning rates fall, and which may stop early, by validation loss."""
    optimisation = setup.settings.optimisation
    if not _is_whole(setup):
        return optimisation.epochs
    batches = math.ceil(_count_images(setup) / optimisation.batch_size)
    whole = max(optimisation.epochs, math.ceil(optimisation.min_steps / batches))
    return max(optimisation.warmup_epochs, whole if optimisation.schedule == "plateau" else 0)


def _is_whole(setup: Setup) -> bool:
    return setup.settings.network.train_backbone


def _is_unchanged(augmentation: Augmentation) -> bool:
    amounts = (each.name for each in fields(augmentation) if each.name != "full_crop_from")
    return not any(getattr(augmentation, name) for name in amounts)


def _has_groups(setup: Setup) -> bool:
    """Whether any validation image belongs to a group."""
    stated = read_groups(setup.settings.decisions.groups)
    learned = [sample for sample in setup.samples if sample.split != "test"]
    known = zip(learned, find_known(learned), strict=True)
    return any(sample.split == "val" and find(stated, *facts) for sample, facts in known)


_NO_PLATEAU = "no phase with the schedule plateau has enough epochs"
# A phase of E epochs can stop after epoch `patience` + 1 at the earliest, and rates fall after epoch
# `plateau_patience` + 2: neither matters after the last.
IDLE = (
    Idle((*BACKBONE_ONLY, "precision"), "the backbone is frozen", lambda setup: not _is_whole(setup)),
    Idle(
        COPIES_ONLY, "the backbone is frozen, and `augmented_copies` is 0",
        lambda setup: not _is_whole(setup) and not setup.settings.decisions.augmented_copies,
    ),
    Idle(
        ("val_fraction",), "the data have a validation split",
        lambda setup: "val" not in setup.drawn,
    ),
    Idle(("test_fraction",), "the data have a test split", lambda setup: "test" not in setup.drawn),
    Idle(
        ("patient_ids",), "no patient is known",
        lambda setup: setup.settings.run.patient_ids and not any(sample.patient for sample in setup.samples),
    ),
    Idle(
        ("momentum",), "only the optimizer sgd uses it",
        lambda setup: setup.settings.optimisation.optimizer != "sgd",
    ),
    Idle(
        ("epochs",), "`min_steps` needs more epochs",
        lambda setup: _is_whole(setup) and _count_steps(setup) < setup.settings.optimisation.min_steps,
    ),
    Idle(
        ("min_steps",), "`epochs` already gives as many batches or more",
        lambda setup: _is_whole(setup) and 0 < setup.settings.optimisation.min_steps <= _count_steps(setup),
    ),
    Idle(
        ("patience",), _NO_PLATEAU,
        lambda setup: setup.settings.optimisation.patience + 2 > _count_plateau_epochs(setup),
    ),
    Idle(
        ("plateau_patience", "plateau_factor"), _NO_PLATEAU,
        lambda setup: setup.settings.optimisation.plateau_patience + 3 > _count_plateau_epochs(setup),
    ),
    Idle(
        ("freeze_batchnorm",), "the backbone has no batch norms",
        lambda setup: _is_whole(setup)
        and setup.settings.network.backbone == setup.spec.name  # not another one of a search
        and not any(isinstance(each, _BatchNorm) for each in setup.backbone.modules()),
    ),
    Idle(
        ("full_crop_from",), "`crop` is 0",
        lambda setup: _is_whole(setup) and setup.settings.augmentation.crop == 0,
    ),
    Idle(
        ("full_crop_from",), "there are at least as many training images",
        lambda setup: _is_whole(setup)
        and setup.settings.augmentation.crop > 0
        and 0 < setup.settings.augmentation.full_crop_from <= _count_images(setup),
    ),
    Idle(("groups",), "no validation image is known to belong to one", lambda setup: not _has_groups(setup)),
    Idle(
        ("augmented_copies",), "there is no augmentation",
        lambda setup: _is_unchanged(setup.settings.augmentation),
    ),
)  # fmt: skip


def log_idle(setup: Setup, given: Collection[str] = (), variants: Sequence[Settings] = ()) -> None:
    """Warn of settings that have no effect.

    Args:
        setup: of the run.
        given: names of settings that were given, even if with the value that they have anyway; those that differ from
            their recipe count too.
        variants: other settings that the images are used with; what has an effect with one of them has one.
    """
    named = {*given, *_find_changed(setup.settings)}
    found = _find_idle(setup, named)
    for variant in variants:
        also = {name for name, _ in _find_idle(replace(setup, settings=variant), named)}
        found = [(name, reason) for name, reason in found if name in also]
    for name, reason in found:
        logging.getLogger("pneumoscope").warning("`%s` has no effect: %s.", name, reason)


def _find_idle(setup: Setup, named: Collection[str]) -> list[tuple[str, str]]:
    """Those of these settings that have no effect, each with the reason."""
    return [
        (name, idle.reason)
        for idle in IDLE
        if (names := [name for name in idle.names if name in named]) and idle.applies(setup)
        for name in names
    ]


def _find_changed(settings: Settings) -> list[str]:
    """Settings that differ from those of their recipe."""
    usual = RECIPES[settings.run.recipe]
    groups = [getattr(settings, group.name) for group in fields(settings)]
    return [
        each.name
        for group in groups
        for each in fields(group)
        if getattr(group, each.name) != usual.get(each.name, each.default)
    ]
