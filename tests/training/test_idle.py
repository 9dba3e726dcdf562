"""Settings that have no effect are said, each with its reason, whether or not they differ from their defaults."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.augment import Augmentation
from pneumoscope.training.data import Setup
from pneumoscope.training.idle import IDLE, log_idle
from pneumoscope.training.settings import find_groups, resolve_settings

WHOLE = {"recipe": "finetune"}
UNCHANGED = {each.name: 0 for each in fields(Augmentation)}
PLATEAU = "no phase with the schedule plateau has enough epochs"


class Network:
    """Stands for a backbone."""

    def __init__(self, *modules: object) -> None:
        self._modules = modules

    def modules(self) -> tuple[object, ...]:
        return self._modules


def make(given: dict[str, Any], images: int = 64, drawn: tuple[str, ...] = ("val", "test")) -> Setup:
    import torch

    settings = resolve_settings({"path": "-", **given}, {})
    samples = [Sample(Path(f"{i}.png"), "NORMAL", None, "train") for i in range(images)]
    network: Any = Network(torch.nn.BatchNorm2d(4))
    none: Any = None
    spec: Any = SimpleNamespace(name=settings.network.backbone)
    return Setup(settings, samples, ("A", "B"), spec, network, none, torch.device("cpu"), drawn)


def said(setup: Setup, given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, "pneumoscope"):
        log_idle(setup, given)
    return caplog.messages


@pytest.mark.parametrize(
    ("given", "name", "reason"),
    [
        ({"momentum": 0.9}, "momentum", "only the optimizer sgd uses it"),
        ({"precision": "float32"}, "precision", "the backbone is frozen"),
        ({"rotate": 0.0}, "rotate", "the backbone is frozen, and `augmented_copies` is 0"),
        ({"schedule": "plateau"}, "schedule", "the backbone is frozen"),
        ({"patient_ids": True}, "patient_ids", "no patient is known"),
        ({"epochs": 5, "patience": 4}, "patience", PLATEAU),
        ({"epochs": 5, "plateau_patience": 3}, "plateau_patience", PLATEAU),
        ({**WHOLE, "warmup_epochs": 0, "plateau_factor": 0.1}, "plateau_factor", PLATEAU),
        ({**WHOLE, "warmup_epochs": 0, "patience": 1}, "patience", PLATEAU),
        ({**WHOLE, "epochs": 2, "min_steps": 50}, "epochs", "`min_steps` needs more epochs"),
        ({**WHOLE, "epochs": 50, "min_steps": 50}, "min_steps", "`epochs` already gives as many batches or more"),
        ({**WHOLE, "crop": 0.0, "full_crop_from": 100}, "full_crop_from", "`crop` is 0"),
        ({**WHOLE, "full_crop_from": 64}, "full_crop_from", "there are at least as many training images"),
        ({**WHOLE, **UNCHANGED, "augmented_copies": 2}, "augmented_copies", "there is no augmentation"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_said_with_its_reason(
    given: dict[str, Any], name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert f"`{name}` has no effect: {reason}." in said(make(given), given, caplog)


@pytest.mark.parametrize(
    "given",
    [
        {}, {"recipe": "baseline"}, WHOLE, {"recipe": "best"},
        {"optimizer": "sgd", "momentum": 0.9},
        {"epochs": 6, "patience": 4, "plateau_patience": 3},
        {**WHOLE, "patience": 5, "plateau_factor": 0.1},  # of the phase that trains the head alone
        {**WHOLE, "epochs": 3}, {**WHOLE, "full_crop_from": 65, "precision": "float32", "freeze_batchnorm": True},
        {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0, "ema": 0.0, "balance": "none"},
    ],
)  # fmt: skip
def test_a_setting_with_an_effect_is_not(given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert said(make(given), given, caplog) == []


def test_splits_that_exist_and_norms_that_do_not(caplog: pytest.LogCaptureFixture) -> None:
    given = {**WHOLE, "val_fraction": 1 / 3, "test_fraction": 0.25, "freeze_batchnorm": True}
    setup = make(given, drawn=())
    network: Any = setup.backbone
    network._modules = ()
    assert said(setup, given, caplog) == [
        "`val_fraction` has no effect: the data have a validation split.",
        "`test_fraction` has no effect: the data have a test split.",
        "`freeze_batchnorm` has no effect: the backbone has no batch norms.",
    ]


def test_the_table_names_settings_that_there_are() -> None:
    assert {name for idle in IDLE for name in idle.names} <= find_groups().keys()
