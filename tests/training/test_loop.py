from __future__ import annotations

import copy
import math
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.augment import Augmentation
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.features import Wanted, extract_features
from pneumoscope.models.backbones import find_backbone, load_backbone, resize_input
from pneumoscope.models.classifier import Classifier, batchnorms, build_head
from pneumoscope.training.batches import Draw, FeatureBatches, ImageBatches
from pneumoscope.training.loop import Phase, choose_precision, compute_loss, fit
from pneumoscope.training.settings import Settings, resolve_settings

CPU = torch.device("cpu")


def settings(**changes: Any) -> Settings:
    return resolve_settings({"path": "images", "recipe": "baseline", **changes}, {})


def clouds(classes: int = 2, n: int = 60, width: int = 8, seed: int = 0) -> FeatureBatches:
    """Features of classes that overlap a little; features of the mirror image, too."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=2 * n)
    centres = 1.5 * np.eye(classes, width)[targets][:, None]
    vectors = (rng.standard_normal((2 * n, 2, width)) + centres).astype(np.float32)
    return FeatureBatches(Draw(targets[:n], 16, 0.5, False, seed), vectors[:n], vectors[n:, 0], targets[n:], CPU)


def head(classes: int = 2, width: int = 8) -> nn.Linear:
    torch.manual_seed(0)
    return build_head(width, classes)


def test_an_epoch_leaves_nothing_behind_for_devices_that_are_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head()

    def refuse(*_: object) -> list[str]:
        raise AssertionError("`torch.manual_seed` keeps a stack trace for each kind of device")

    monkeypatch.setattr(traceback, "format_stack", refuse)
    fit(model, clouds(), settings(epochs=5), Phase("head", 5))


def test_the_compiler_is_kept_away_from_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    seen: list[bool] = []

    class Late(nn.Linear):
        """Imports what it needs when its parameters are asked for, as a stored backbone does."""

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            seen.append("torch._dynamo" in sys.modules)
            return super().parameters(recurse)

    model = Late(8, 1)
    fit(model, clouds(), settings(epochs=2), Phase("head", 2, on_epoch=lambda _: seen.append(listed())))
    assert not seen[0]
    assert seen[-2:] == [False, False]
    assert not listed()


def listed() -> bool:
    return "torch._dynamo" in sys.modules


def test_training_on_cached_features_equals_training_through_the_frozen_network(images: Path) -> None:
    spec = find_backbone("efficientnet_lite0")
    look = resize_input(spec, 64, None)
    backbone = load_backbone(spec).eval()
    statistics = [norm.running_mean.clone() for norm in batchnorms(backbone) if norm.running_mean is not None]
    train = sorted((images / "train").rglob("*.png"))
    val = sorted((images / "val").rglob("*.png"))
    targets, val_targets = (
        np.array([int(path.parent.name == "PNEUMONIA") for path in paths]) for paths in (train, val)
    )
    draw = Draw(targets, 8, 0.5, False, seed=3)
    chosen = settings(epochs=5, seed=3)

    engine = TorchEngine(backbone, look.size, "cpu")
    vectors = []
    for paths in (train, val):
        extracts = extract_features(paths, engine, look, Wanted(mirror=True))
        vectors.append(np.stack([each.features for each in extracts if each.features is not None]))
    cached = head(width=backbone.width)
    through = copy.deepcopy(cached)
    quick = fit(cached, FeatureBatches(draw, vectors[0], vectors[1][:, 0], val_targets, CPU), chosen, Phase("head", 5))
    network = Classifier(backbone, through, frozen=True)
    fitted, kept = ([Sample(path) for path in paths] for paths in (train, val))
    images_batches = ImageBatches(draw, fitted, kept, val_targets, look, Augmentation(), CPU)
    slow = fit(network, images_batches, chosen, Phase("head", 5))

    for cached_row, row in zip(quick.history, slow.history, strict=True):
        assert cached_row["train_loss"] == pytest.approx(row["train_loss"], abs=1e-4)
        assert cached_row["val_loss"] == pytest.approx(row["val_loss"], abs=1e-4)
    assert quick.best_epoch == slow.best_epoch
    torch.testing.assert_close(cached.weight, through.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(cached.bias, through.bias, rtol=0, atol=1e-4)
    after = [norm.running_mean for norm in batchnorms(backbone) if norm.running_mean is not None]
    assert all(torch.equal(a, b) for a, b in zip(statistics, after, strict=True))


def test_the_best_epoch_is_the_model() -> None:
    model = head()
    result = fit(model, clouds(), settings(lr=0.3), Phase("head", 30))
    losses = [row["val_loss"] for row in result.history]
    assert result.best_loss == min(losses)
    assert result.best_epoch == 1 + int(np.argmin(losses))
    model.load_state_dict(result.weights)
    ((inputs, targets),) = clouds().validation()
    assert float(compute_loss(model(inputs), targets).detach()) == pytest.approx(min(losses), abs=1e-6)


def test_training_stops_when_patience_is_over_and_the_rate_falls_on_a_plateau() -> None:
    result = fit(head(), clouds(), settings(lr=0.5, patience=5), Phase("head", 200))
    assert len(result.history) == result.best_epoch + 5 < 200
    rates = [row["lr"] for row in result.history]
    stale, expected, best = 0, [0.5], math.inf
    for row in result.history[:-1]:  # torch's rule: halve after more than 2 epochs without 1e-4 relative improvement
        stale = 0 if row["val_loss"] < best * (1 - 1e-4) else stale + 1
        best = min(best, row["val_loss"])
        expected.append(expected[-1] / 2 if stale > 2 else expected[-1])
        stale = 0 if stale > 2 else stale
    assert rates == pytest.approx(expected)
    assert rates[-1] < rates[0]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resuming_after_any_epoch_ends_as_if_nothing_had_happened(optimizer: str, ema: float, tmp_path: Path) -> None:
    chosen = settings(optimizer=optimizer, ema=ema, lr=0.05, patience=4, weight_decay=1e-3)
    whole = fit(head(), clouds(), chosen, Phase("head", 9))
    for stop in (1, 4, 8, 9):
        checkpoint = tmp_path / f"{stop}.pt"

        class KilledError(Exception):
            pass

        def kill(row: dict[str, Any], stop: int = stop) -> None:
            if row["epoch"] == stop:
                raise KilledError

        if stop <= len(whole.history):
            with pytest.raises(KilledError):
                fit(head(), clouds(), chosen, Phase("head", 9, checkpoint=checkpoint, on_epoch=kill))
        resumed = fit(head(), clouds(), chosen, Phase("head", 9, checkpoint=checkpoint))
        assert resumed.history == whole.history
        assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_a_cosine_schedule_rises_and_falls_to_nothing_whatever_validation_says() -> None:
    model = head()
    result = fit(
        model, clouds(), settings(schedule="cosine", train_backbone=True, lr=0.5, patience=1), Phase("head", 20)
    )
    losses = [row["val_loss"] for row in result.history]
    assert len(losses) == result.best_epoch == 20
    assert losses != sorted(losses, reverse=True)  # an epoch did not improve, and nothing came of it
    assert all(torch.equal(tensor, result.weights[name]) for name, tensor in model.state_dict().items())
    rates = [row["lr"] for row in result.history]
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert rates[0] < 0.1
    assert rates[-1] < 0.05
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_resuming_under_a_cosine_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    chosen = settings(schedule="cosine", train_backbone=True, lr=0.01, patience=20)
    whole = fit(head(), clouds(), chosen, Phase("head", 6))

    class StopError(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise StopError

    with pytest.raises(StopError):
        fit(head(), clouds(), chosen, Phase("head", 6, checkpoint=tmp_path / "c.pt", on_epoch=stop))
    resumed = fit(head(), clouds(), chosen, Phase("head", 6, checkpoint=tmp_path / "c.pt"))
    assert resumed.history == whole.history
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in resumed.weights.items())


def test_a_damaged_checkpoint_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "head.pt").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"head\.pt: damaged.* `overwrite=True`"):
        fit(head(), clouds(), settings(), Phase("head", 3, checkpoint=tmp_path / "head.pt"))


def test_a_loss_that_is_no_longer_finite_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="learning rate"):
        fit(head(), clouds(), settings(lr=1e38, optimizer="sgd"), Phase("head", 5))


def test_more_classes_are_learned_with_one_output_each() -> None:
    model = head(classes=4)
    result = fit(model, clouds(classes=4, n=300), settings(lr=0.05), Phase("head", 30))
    assert model.weight.shape == (4, 8)
    assert max(row["val_accuracy"] for row in result.history) > 0.5


@pytest.mark.parametrize("classes", [2, 5])
def test_the_loss_is_torchs_own(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 1 if classes == 2 else classes, generator=generator)
    targets = torch.randint(classes, (20,), generator=generator)
    weights = torch.rand(classes, generator=generator) + 0.5
    if classes == 2:
        expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
        weighted = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float(), weights[targets])
    else:
        expected = nn.functional.cross_entropy(logits, targets)
        weighted = nn.functional.cross_entropy(logits, targets, weights, reduction="sum") / 20
    torch.testing.assert_close(compute_loss(logits, targets), expected)
    torch.testing.assert_close(compute_loss(logits, targets, weights), weighted)
    torch.testing.assert_close(compute_loss(logits, targets, reduction="sum"), 20 * expected)


def test_an_epoch_shows_every_image_once_and_flips_half() -> None:
    draw = Draw(np.arange(1000) % 2, 32, 0.5, False, 0)
    order, flips = (np.concatenate(parts) for parts in zip(*draw.epoch(1), strict=True))
    assert sorted(order) == list(range(1000))
    assert 400 < flips.sum() < 600
    assert not np.array_equal(order, np.concatenate([part for part, _ in draw.epoch(2)]))
    assert np.array_equal(order, np.concatenate([part for part, _ in draw.epoch(1)]))


def test_sampling_draws_unequal_classes_equally_often() -> None:
    targets = (np.arange(2000) < 100).astype(np.int64)
    order = np.concatenate([part for part, _ in Draw(targets, 32, 0.5, True, 0).epoch(1)])
    assert 0.45 < targets[order].mean() < 0.55


def test_a_network_with_a_trained_backbone_can_keep_its_batchnorm_statistics() -> None:
    for freeze in (True, False):
        backbone = load_backbone(find_backbone("efficientnet_lite0"))
        model = Classifier(backbone, build_head(backbone.width, 2), frozen=False, freeze_batchnorm=freeze).train()
        before = [norm.running_mean.clone() for norm in batchnorms(backbone) if norm.running_mean is not None]
        model(torch.randn(2, 3, 64, 64))
        after = [norm.running_mean for norm in batchnorms(backbone) if norm.running_mean is not None]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == freeze
        assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_choosing_the_precision_leaves_the_network_unchanged() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    before = copy.deepcopy(model.state_dict())
    inputs, targets = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 0, 1])
    assert choose_precision(model, inputs, targets) in ("float32", "bfloat16")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
