"""The training loop: learning-rate schedule, early stopping, best epoch, and exact resuming from a checkpoint."""

from __future__ import annotations

import copy
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pneumoscope.errors import DataError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.training.batches import Batches
from pneumoscope.training.distributed import Processes
from pneumoscope.training.settings import OptimisationSettings, Settings

Row = dict[str, Any]

_APART = 0x9E3779B1  # between the seeds of processes; PyTorch's generator on a processor uses 32 bits


@dataclass(frozen=True)
class Phase:
    """One phase of training."""

    name: str  # `head` or `finetune`, as in the history
    epochs: int  # how many at most
    class_weights: Tensor | None = None  # (C,) weights of the classes in the training loss; None: all equal
    val_class_weights: Tensor | None = None  # (C,) likewise in the validation loss
    checkpoint: Path | None = None  # file written after every epoch; training continues from it if it exists
    on_epoch: Callable[[Row], None] = lambda _: None  # called with each new row of the history


@dataclass
class TrainingState:
    """The state of training."""

    # a row for each epoch: phase, epoch, lr, train_loss, val_loss, val_accuracy
    history: list[Row] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)  # those of the best epoch
    best_epoch: int = 0  # the epoch with the lowest validation loss; with a cosine schedule, the last one
    best_loss: float = math.inf  # its validation loss
    finished: bool = False  # whether training is over


@dataclass(frozen=True)
class _Parts:
    """What changes in training: the model, its moving average if there is one, the optimizer and the scheduler."""

    model: nn.Module
    shared: nn.Module  # the model as it is called in training; see `Processes.wrap`
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    averaged: AveragedModel | None
    peak_rates: tuple[float, ...]

    @property
    def validated(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged.module

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "plateau": self.plateau}
        return parts if self.averaged is None else {**parts, "averaged": self.averaged}


def fit(model: nn.Module, batches: Batches, settings: Settings, phase: Phase) -> TrainingState:
    """Train until all epochs are done or the validation loss has not improved for `patience` epochs.

    Only parameters that require gradients are trained. All randomness comes from the seed and the epoch's number, so
    training that resumes from a checkpoint gives the same weights as training that was never interrupted.

    Args:
        model: inputs -> logits, (B, 1) for two classes or (B, C).
        batches: training and validation batches.
        settings: optimisation and seed.
        phase: name, epochs, class weights, checkpoint.

    Raises:
        DataError: the loss is not finite.
        UsageError: the checkpoint is damaged.
    """
    list(model.parameters())  # builds a `StoredBackbone`: timm and torchvision need the compiler to be imported
    with _without_compiler():
        parts = _build_parts(model, settings.optimisation, batches.processes)
        state = _load(phase.checkpoint, parts, batches.processes)
    for epoch in range(len(state.history) + 1, phase.epochs + 1):
        if state.finished:
            break
        with _without_compiler():
            # For dropout, where a backbone has it: other draws in each epoch and each process.
            seed_torch(settings.run.seed * 1_000_003 + epoch + batches.processes.rank * _APART)
            row = _run_epoch(parts, batches, settings.optimisation, phase, epoch)
            if not math.isfinite(row["train_loss"] + row["val_loss"]):
                raise DataError(f"{phase.name}, epoch {epoch}: the loss is not finite. Lower the learning rate (`lr`).")
            _update(state, row, parts, settings.optimisation)
            state.finished |= epoch == phase.epochs
            if phase.checkpoint is not None and batches.processes.leads:
                _save(phase.checkpoint, parts, state)
        phase.on_epoch(row)  # may import anything
    return state


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Keep optimizers from importing PyTorch's compiler only to switch it off, which takes longer than a second.

    If it is imported already, nothing changes.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    absent = ModuleType(name)
    vars(absent).update(disable=lambda function, *_, **__: function, graph_break=lambda *_, **__: None)
    vars(absent)["utils"] = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")  # the default
    sys.modules[name] = absent
    try:
        yield
    finally:
        if sys.modules.get(name) is absent:
            del sys.modules[name]


def seed_torch(seed: int) -> None:
    """Seed the generators of the processor and of GPUs in use.

    `torch.manual_seed` would also queue the call, with a formatted stack trace, for each kind of device that is not in
    use: a millisecond and some memory for every epoch.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


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


def choose_precision(model: nn.Module, inputs: Tensor, targets: Tensor) -> Literal["float32", "bfloat16"]:
    """Choose bfloat16 if the device computes in it and a trial step on one batch is clearly faster, else float32."""
    if not _supports_bfloat16(inputs.device):
        return "float32"
    trial = copy.deepcopy(model).train()
    rounds = [[_time_step(trial, inputs, targets, name) for name in ("bfloat16", "float32")] for _ in range(4)]
    bfloat16, float32 = (min(seconds) for seconds in zip(*rounds, strict=True))
    # Only a clear gain counts: chance would decide a close race, and two runs would differ.
    return "bfloat16" if bfloat16 < 0.8 * float32 else "float32"


def _supports_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _time_step(model: nn.Module, inputs: Tensor, targets: Tensor, precision: str) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    loss = compute_loss(_forward(model, inputs, precision), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    float(loss.detach())
    return time.perf_counter() - start


def _forward(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: Tensor = model(inputs)
    return logits.float()


def _run_epoch(parts: _Parts, batches: Batches, settings: OptimisationSettings, phase: Phase, epoch: int) -> Row:
    """Train for one epoch, validate, and give the epoch's row of the history."""

    def set_rates(step: int) -> None:
        if settings.schedule == "cosine":
            factor = _cosine((epoch - 1 + step / batches.draw.steps) / phase.epochs)
            for group, peak in zip(parts.optimizer.param_groups, parts.peak_rates, strict=True):
                group["lr"] = peak * factor

    set_rates(0)
    row: Row = {"phase": phase.name, "epoch": epoch, "lr": parts.optimizer.param_groups[0]["lr"]}
    parts.model.train()
    total, count = 0.0, 0
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        for step, batch in enumerate(batches.training(epoch)):
            set_rates(step)
            logits = _forward(parts.shared, batch.inputs, settings.precision)
            loss = compute_loss(logits, batch.targets, phase.class_weights)
            parts.optimizer.zero_grad(set_to_none=True)
            (loss * batch.weight).backward()  # type: ignore[no-untyped-call]
            parts.optimizer.step()
            if parts.averaged is not None:
                parts.averaged.update_parameters(parts.model)
            total += float(loss.detach()) * batch.counted
            count += batch.counted
        val_loss, val_accuracy = _validate(parts.validated, batches, phase.val_class_weights, settings.precision)
    total, images = batches.processes.sum(total, count)
    return {**row, "train_loss": total / images, "val_loss": val_loss, "val_accuracy": val_accuracy}


def _validate(model: nn.Module, batches: Batches, class_weights: Tensor | None, precision: str) -> tuple[float, float]:
    """Mean loss and accuracy (at a probability of 0.5) of the validation images."""
    model.eval()
    total, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in batches.validation():
            logits = _forward(model, inputs, precision)
            total += float(compute_loss(logits, targets, class_weights, "sum"))
            predicted = (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(1)
            correct += int((predicted == targets).sum())
            count += len(targets)
    total, right, images = batches.processes.sum(total, correct, count)
    return total / images, right / images


def _update(state: TrainingState, row: Row, parts: _Parts, settings: OptimisationSettings) -> None:
    """Record an epoch, keep its weights if it is the best, and decide whether to stop early."""
    if settings.schedule == "plateau":
        parts.plateau.step(row["val_loss"])
    state.history.append(row)
    # Validation loss punishes overconfidence, which calibration corrects later. With a cosine schedule, where the rates
    # fall to zero, the last epoch is therefore the model.
    if row["val_loss"] < state.best_loss or settings.schedule == "cosine":
        state.best_loss, state.best_epoch = row["val_loss"], row["epoch"]
        state.weights = {name: tensor.detach().clone() for name, tensor in parts.validated.state_dict().items()}
    state.finished = row["epoch"] - state.best_epoch >= settings.patience


def _build_parts(model: nn.Module, settings: OptimisationSettings, processes: Processes) -> _Parts:
    optimizer = _build_optimizer(model, settings)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
    )
    averaged = None
    if settings.ema:
        average = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    peak_rates = tuple(group["lr"] for group in optimizer.param_groups)
    return _Parts(model, processes.wrap(model), optimizer, plateau, averaged, peak_rates)


def _build_optimizer(model: nn.Module, settings: OptimisationSettings) -> torch.optim.Optimizer:
    """Build the optimizer; the backbone and the head have learning rates of their own."""
    backbone: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else head).append(parameter)
    rates = ((head, settings.lr), (backbone, settings.backbone_lr))
    groups: list[dict[str, Any]] = [{"params": params, "lr": rate} for params, rate in rates if params]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=settings.weight_decay)


def _cosine(share: float) -> float:
    """Factor of the learning rate after a share of training: a warm-up of a tenth, then half a cosine down to 0."""
    return min(1.0, 0.01 + share / 0.1) if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


def _save(checkpoint: Path, parts: _Parts, state: TrainingState) -> None:
    content = io.BytesIO()
    states = {name: part.state_dict() for name, part in parts.saved.items()}
    torch.save({**states, "training": vars(state)}, content)
    write_bytes(checkpoint, content.getvalue())


def _load(checkpoint: Path | None, parts: _Parts, processes: Processes) -> TrainingState:
    """The state in a checkpoint, or that of the beginning if there is none; the first process alone reads it."""
    content = processes.once(
        lambda: checkpoint.read_bytes() if checkpoint is not None and checkpoint.exists() else None
    )
    if content is None:
        return TrainingState()
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for name, part in parts.saved.items():
            part.load_state_dict(saved[name])
        return TrainingState(**saved["training"])
    except Exception:  # torch's unpickler raises many kinds of errors on a damaged file
        raise UsageError(
            f"{checkpoint}: damaged, or written with other settings. Start the run again with `overwrite=True`."
        ) from None
