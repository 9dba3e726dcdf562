"""The one training loop: plateau, early stopping, best checkpoint, and resuming as if nothing had happened."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.training.data import Batches
from pneumoscope.training.settings import Settings

State = dict[str, Tensor]


@dataclass
class Fit:
    """How far training has come.

    Attributes:
        history: a row an epoch: stage, epoch, lr, train_loss, val_loss, val_accuracy.
        state: the weights with the best validation loss.
        best_epoch: when that was; under a cosine schedule the last.
        best_loss: what it was.
        finished: whether there is nothing left to do.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    state: State = field(default_factory=dict)
    best_epoch: int = 0
    best_loss: float = math.inf
    finished: bool = False


def fit(
    model: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    stage: str,
    epochs: int,
    class_weights: Tensor | None = None,
    val_class_weights: Tensor | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Fit:
    """Train until the epochs are over or the validation loss has not improved for `settings.patience` epochs.

    The model is the epoch with the lowest validation loss; under a cosine schedule it is the last one.

    Only parameters that require gradients are trained. Everything random is drawn from the seed and the epoch, so
    that training resumed from the checkpoint of an epoch goes on as it would have.

    Args:
        model: inputs -> logits, (B, 1) for two classes or (B, C).
        batches: what it is trained and validated on.
        settings: optimizer, plateau, patience, moving average, precision, seed.
        stage: name of this stage in the history.
        epochs: at most this many.
        class_weights: (C,) weights of the classes in the training loss.
        val_class_weights: (C,) likewise in the validation loss.
        checkpoint: written after every epoch; taken up where it exists.
        on_epoch: called with each new row of the history.

    Raises:
        DataError: the loss is no longer finite, or the checkpoint is damaged.
    """
    optimizer = _build_optimizer(model, settings)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    averaged = _average(model, settings.ema) if settings.ema else None
    judged = averaged.module if averaged is not None else model
    moving: dict[str, Any] = {"model": model, "optimizer": optimizer, "plateau": plateau}
    if averaged is not None:
        moving["averaged"] = averaged
    progress = _resume(checkpoint, moving) if checkpoint is not None and checkpoint.exists() else Fit()

    def set_rates(epoch: int, step: int) -> None:
        if settings.schedule == "cosine":
            factor = _cosine((epoch - 1 + step / batches.steps) / epochs)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    for epoch in range(len(progress.history) + 1, epochs + 1):
        if progress.finished:
            break
        torch.manual_seed(settings.seed * 1_000_003 + epoch)  # dropout, where a backbone has it
        set_rates(epoch, 0)
        row: dict[str, Any] = {"stage": stage, "epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            row["train_loss"] = _train_epoch(
                model, batches, epoch, optimizer, averaged, class_weights, settings, set_rates
            )
            row["val_loss"], row["val_accuracy"] = _validate(judged, batches, val_class_weights, settings)
        if not math.isfinite(row["train_loss"] + row["val_loss"]):
            raise DataError(f"{stage}, epoch {epoch}: the loss is no longer finite. Lower the learning rate with --lr.")
        if settings.schedule == "plateau":
            plateau.step(row["val_loss"])
        progress.history.append(row)
        # A network that fits its images becomes surer than it should be, which calibration mends and the validation loss
        # punishes: where the rates fall to nothing, the last epoch is the model.
        if row["val_loss"] < progress.best_loss or settings.schedule == "cosine":
            progress.best_loss, progress.best_epoch = row["val_loss"], epoch
            progress.state = {name: tensor.detach().clone() for name, tensor in judged.state_dict().items()}
        progress.finished = epoch == epochs or epoch - progress.best_epoch >= settings.patience
        if checkpoint is not None:
            _save(checkpoint, moving, progress)
        if on_epoch is not None:
            on_epoch(row)
    return progress


def compute_loss(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy of one logit, or cross-entropy of C; each image counts by its class's weight."""
    if logits.shape[1] == 1:
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], targets.to(logits.dtype), reduction="none"
        )
    else:
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    if class_weights is not None:
        losses = losses * class_weights[targets]
    return losses.mean() if reduction == "mean" else losses.sum()


def choose_precision(
    model: nn.Module, inputs: Tensor, targets: Tensor, settings: Settings
) -> Literal["float32", "bfloat16"]:
    """Resolve `auto`: bfloat16 where the processor computes in it and a trial step is clearly faster, else float32.

    Args:
        model: left as it was.
        inputs: one batch.
        targets: its classes.
        settings: precision and more.
    """
    if settings.precision != "auto":
        return settings.precision
    if not _computes_bfloat16(inputs.device):
        return "float32"
    trial = copy.deepcopy(model).train()
    rounds = [[_time_step(trial, inputs, targets, name) for name in ("bfloat16", "float32")] for _ in range(4)]
    fast, exact = (min(seconds) for seconds in zip(*rounds, strict=True))
    # Only a clear gain counts: a close race would be decided by chance, and two runs would differ.
    return "bfloat16" if fast < 0.8 * exact else "float32"


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _time_step(model: nn.Module, inputs: Tensor, targets: Tensor, precision: str) -> float:
    import time

    start = time.perf_counter()
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = compute_loss(model(inputs).float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    float(loss.detach())
    return time.perf_counter() - start


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    averaged: torch.optim.swa_utils.AveragedModel | None,
    class_weights: Tensor | None,
    settings: Settings,
    set_rates: Callable[[int, int], None],
) -> float:
    model.train()
    total, count = 0.0, 0
    for step, (inputs, targets) in enumerate(batches.training(epoch)):
        set_rates(epoch, step)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits = model(inputs)
        loss = compute_loss(logits.float(), targets, class_weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if averaged is not None:
            averaged.update_parameters(model)
        total += float(loss.detach()) * len(targets)
        count += len(targets)
    return total / count


def _validate(
    model: nn.Module, batches: Batches, class_weights: Tensor | None, settings: Settings
) -> tuple[float, float]:
    """Mean loss and accuracy (at probability 0.5) over the validation images."""
    model.eval()
    total, right, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in batches.validation():
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                logits = model(inputs)
            logits = logits.float()
            total += float(compute_loss(logits, targets, class_weights, "sum"))
            decided = (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(1)
            right += int((decided == targets).sum())
            count += len(targets)
    return total / count, right / count


def _build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("backbone.")].append(parameter)
    described = [
        {"params": parameters, "lr": settings.backbone_lr if of_backbone else settings.lr}
        for of_backbone, parameters in reversed(groups.items())
        if parameters
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(described, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(described, weight_decay=settings.weight_decay)


def _cosine(share: float) -> float:
    """Factor of the learning rate after a share of training: a tenth of warming up, then half a cosine down to 0."""
    return min(1.0, 0.01 + share / 0.1) if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


def _average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def _save(checkpoint: Path, moving: dict[str, Any], progress: Fit) -> None:
    content = io.BytesIO()
    torch.save({**{name: part.state_dict() for name, part in moving.items()}, "progress": vars(progress)}, content)
    write_bytes(checkpoint, content.getvalue())


def _resume(checkpoint: Path, moving: dict[str, Any]) -> Fit:
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, part in moving.items():
            part.load_state_dict(saved[name])
        return Fit(**saved["progress"])
    except Exception:  # torch's unpickler raises nearly anything on a damaged file
        raise UsageError(
            f"{checkpoint}: damaged, or of other settings; cannot be taken up. Start again with --overwrite."
        ) from None
