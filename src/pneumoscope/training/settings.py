"""Every setting of a training run, and the named recipes that are nothing but values of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias

from annotated_doc import Doc
from annotated_types import Ge, Gt, Interval, Len

from pneumoscope.config import build
from pneumoscope.errors import UsageError

Share: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]
DEFAULT = "head"
Amount: TypeAlias = Annotated[float, Ge(0)]
_BACKBONE = (
    "backbone_lr", "schedule", "min_steps", "warmup_epochs", "freeze_batchnorm", "rotate", "shift", "zoom", "stretch",
    "crop", "crop_images", "brightness", "contrast", "gamma", "blur", "noise", "sharpen", "compress", "views",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All that fixes a run. Each field is an option of `train` and a key of its YAML file."""

    data: Annotated[str, Len(1), Doc("Folder or table of labelled radiographs.")]
    recipe: Annotated[
        str,
        Doc(
            "What the other settings start from: baseline (as published), head (seconds), finetune (all layers, "
            "minutes) or best (the same for longer)."
        ),
    ] = "baseline"

    positive: Annotated[str | None, Doc("The positive class of two; PNEUMONIA where there is one.")] = None
    patient_pattern: Annotated[str | None, Doc("Regular expression that finds the patient in a file name.")] = None
    invert: Annotated[bool, Doc("Images show air bright: exchange black and white.")] = False
    any_modality: Annotated[bool, Doc("Read DICOM files that are no projection radiographs, too.")] = False
    audit: Annotated[bool, Doc("Look for faults of the data first; `pneumoscope audit` looks harder.")] = True
    strict: Annotated[bool, Doc("Refuse to train where that finds an error.")] = False
    val_fraction: Annotated[Share, Doc("Share of the smallest class that a drawn validation split takes of each.")] = (
        1 / 3
    )
    test_fraction: Annotated[Share, Doc("Share of each class that a drawn test split takes.")] = 0.25
    balance: Annotated[
        Literal["none", "weights", "sampling"],
        Doc(
            "How classes of unequal size are met: not at all, by weights in the loss, or by drawing them equally often."
        ),
    ] = "none"

    backbone: Annotated[str, Doc("Name of the pretrained network; see `pneumoscope backbones`.")] = "efficientnet_lite0"
    weights: Annotated[str | None, Doc("File with its weights (.pth or .safetensors), for machines offline.")] = None
    size: Annotated[
        Annotated[int, Interval(ge=32, le=2048)] | None,
        Doc("Side of the input in pixels; the backbone's own by default."),
    ] = None
    fit: Annotated[Literal["crop", "pad", "squash"] | None, Doc("How an image becomes square.")] = None
    train_backbone: Annotated[bool, Doc("Train the whole network, not only the head.")] = False

    epochs: Annotated[int, Ge(1), Doc("At most this many.")] = 50
    batch_size: Annotated[int, Ge(1), Doc("Images a step.")] = 32
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Doc("The optimizer.")] = "adam"
    lr: Annotated[float, Gt(0), Doc("Learning rate of the head.")] = 1e-3
    backbone_lr: Annotated[float, Gt(0), Doc("Learning rate of the backbone, where it is trained.")] = 1e-4
    momentum: Annotated[float, Interval(ge=0, lt=1), Doc("Momentum of sgd.")] = 0.9
    weight_decay: Annotated[Amount, Doc("L2 penalty (adam, sgd) or decoupled decay (adamw).")] = 0.0
    schedule: Annotated[
        Literal["plateau", "cosine"],
        Doc(
            "How learning rates fall: when validation stalls; or steadily to nothing, the last epoch being the model "
            "(with --train-backbone)."
        ),
    ] = "plateau"
    min_steps: Annotated[
        int, Ge(0), Doc("Epochs are added until so many batches are made (with --train-backbone).")
    ] = 0
    plateau_factor: Annotated[Share, Doc("The rates are multiplied by this when the validation loss stalls.")] = 0.5
    plateau_patience: Annotated[int, Ge(0), Doc("Epochs without a better validation loss before that.")] = 2
    patience: Annotated[int, Ge(1), Doc("Epochs without a better validation loss before training stops (plateau).")] = 5
    warmup_epochs: Annotated[
        int, Ge(0), Doc("Epochs of the head alone before the backbone is trained, under a plateau.")
    ] = 0
    ema: Annotated[
        float, Interval(ge=0, lt=1), Doc("Decay of the moving average of the weights that becomes the model; 0: none.")
    ] = 0.0
    freeze_batchnorm: Annotated[bool, Doc("Keep batch-norm statistics while the backbone is trained.")] = False

    flip: Annotated[float, Interval(ge=0, le=1), Doc("Probability of a left-right flip in training.")] = 0.5
    rotate: Annotated[Amount, Doc("Random rotation, up to this many degrees (with --train-backbone).")] = 0.0
    shift: Annotated[Amount, Doc("Random shift, up to this share of the side (with --train-backbone).")] = 0.0
    zoom: Annotated[float, Interval(ge=0, lt=1), Doc("Random zoom, up to this share (with --train-backbone).")] = 0.0
    stretch: Annotated[
        Amount, Doc("Random change of width against height, up to this logarithm of their ratio (likewise).")
    ] = 0.0
    crop: Annotated[
        float, Interval(ge=0, lt=0.5), Doc("Random cut at each edge, up to this share of the side (likewise).")
    ] = 0.0
    crop_images: Annotated[
        int, Ge(0), Doc("With fewer training images than this, that share is smaller in proportion (likewise).")
    ] = 0
    brightness: Annotated[Amount, Doc("Random brightness, up to this share (with --train-backbone).")] = 0.0
    contrast: Annotated[float, Interval(ge=0, lt=1), Doc("Random contrast, likewise (with --train-backbone).")] = 0.0
    gamma: Annotated[Amount, Doc("Random gamma, up to this logarithm (with --train-backbone).")] = 0.0
    blur: Annotated[float, Interval(ge=0, lt=1), Doc("Random loss of resolution, up to this share (likewise).")] = 0.0
    noise: Annotated[Amount, Doc("Random noise, up to this standard deviation of the range (likewise).")] = 0.0
    sharpen: Annotated[Amount, Doc("Random sharpening, up to this many times the fine detail (likewise).")] = 0.0
    compress: Annotated[
        float, Interval(ge=0, lt=1), Doc("Random JPEG compression, up to this share of its quality (likewise).")
    ] = 0.0
    views: Annotated[
        int, Interval(ge=0, le=100), Doc("Fit decisions on so many random views of each image, too (--train-backbone).")
    ] = 0

    calibration: Annotated[
        Literal["auto", "none", "temperature", "platt", "isotonic"],
        Doc("How logits become probabilities, fitted on validation images; auto goes by their number."),
    ] = "temperature"  # which leaves the published calls, at 0.5, as they are
    threshold: Annotated[
        str,
        Doc(
            "From which probability on an image is called positive (two classes): a number, or a rule for the validation "
            "images: likelihood (as likely under either class), youden, f1, sensitivity>=0.95, specificity>=0.95, "
            "cost=5 (a miss is as bad as five false alarms)."
        ),
    ] = "0.5"
    prevalence: Annotated[
        Share | None,
        Doc("Share of the positive class that probabilities are stated for; the training images' by default."),
    ] = None
    alpha: Annotated[Share, Doc("How often a prediction set may miss the truth, in each class.")] = 0.1
    false_alarms: Annotated[Share, Doc("Share of ordinary images that may be called ood.")] = 0.01
    half: Annotated[bool, Doc("Keep the weights in half precision; decisions are fitted on them as they are kept.")] = (
        False
    )
    resamples: Annotated[int, Ge(1), Doc("Bootstrap resamples behind each interval.")] = 2000
    seed: Annotated[int, Interval(ge=0, lt=2**32), Doc("Fixes every random choice.")] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], Doc("Where to compute.")] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Doc("Arithmetic of backbone training; auto measures which is faster.")
    ] = "auto"

    def __post_init__(self) -> None:
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        idle = [] if self.train_backbone else [name for name in changed if name in _BACKBONE]
        if idle:
            raise UsageError(
                f"{', '.join(idle)}: a frozen backbone does not heed that; its images are only flipped, and its head is "
                "trained until validation says that it is done. Add --train-backbone, or take --recipe finetune."
            )
        from pneumoscope.decisions.threshold import parse_rule  # which needs NumPy, and --help is to be light

        parse_rule(self.threshold)


def find_recipe(name: str) -> dict[str, Any]:
    """What a recipe changes from the defaults of `Settings`, which are the published procedure.

    Raises:
        UsageError: no such recipe.
    """
    finetune: dict[str, Any] = {
        "fit": "squash",
        "train_backbone": True,
        "freeze_batchnorm": True,
        "warmup_epochs": 50,
        "schedule": "cosine",
        "optimizer": "adamw",
        "weight_decay": 2e-2,
        "lr": 1e-3,
        "backbone_lr": 3e-4,
        "ema": 0.97,
        "balance": "sampling",
        "rotate": 8.0,
        "shift": 0.12,
        "zoom": 0.2,
        "stretch": 0.7,  # squashed images tell their proportions, which go with the class (docs/log.md)
        "crop": 0.3,
        "crop_images": 2000,  # few images do not teach a network to look away from a frame (docs/log.md)
        "brightness": 0.15,
        "contrast": 0.3,
        "gamma": 0.3,
        "blur": 0.4,
        "noise": 0.04,
        "sharpen": 1.0,
        "compress": 0.8,
        "calibration": "auto",
        "threshold": "likelihood",
        "alpha": 0.05,  # at 0.1 a network that is right more often leaves every tenth image without a label
        "half": True,
    }
    recipes: dict[str, dict[str, Any]] = {
        "baseline": {},
        "head": {
            "epochs": 300,
            "batch_size": 64,
            "optimizer": "adamw",
            "weight_decay": 1e-2,
            "plateau_patience": 10,
            "patience": 30,
            "balance": "weights",
            "calibration": "auto",
            "threshold": "likelihood",
        },
        "finetune": {**finetune, "epochs": 1, "min_steps": 50, "views": 2},
        "best": {**finetune, "epochs": 8, "min_steps": 150, "views": 4},
    }
    if name not in recipes:
        raise UsageError(f"--recipe {name}: no such recipe. There are {', '.join(recipes)}.")
    return recipes[name]


def _read_plainly(values: Mapping[str, Any]) -> dict[str, Any]:
    """Take settings as they are meant: a threshold may be a number, and who gives epochs wants so many."""
    changes: dict[str, Any] = {}
    if isinstance(values.get("threshold"), int | float):
        changes["threshold"] = str(values["threshold"])
    if "epochs" in values and "min_steps" not in values:
        changes["min_steps"] = 0
    return {**values, **changes}


def resolve_settings(options: Mapping[str, Any], config: Mapping[str, Any], source: str = "--config") -> Settings:
    """Put settings together: an option beats the file, the file beats the recipe, the recipe beats the default.

    Args:
        options: as given; None means not given.
        config: the mapping of a YAML file, perhaps empty.
        source: the file's name, for messages.

    Raises:
        UsageError: an unknown key, a wrong type, a value out of range, or no data.
    """
    given = {key: value for key, value in options.items() if value is not None}
    given, config = _read_plainly(given), _read_plainly(config)
    if config:  # what is wrong in the file is said of the file
        build(Settings, {**find_recipe(str(config.get("recipe", DEFAULT))), "data": "-", **config}, source)
    recorded = config.get("recipe")
    if recorded is not None and given.get("recipe", recorded) != recorded:
        raise UsageError(
            f"--recipe {given['recipe']}: {source} holds the settings of the recipe {recorded}. Leave one of them out."
        )
    values = {**config, **given}
    if "data" not in values:
        raise UsageError("No data. Name a folder or a table: pneumoscope train DATA --out RUN.")
    values.setdefault("recipe", DEFAULT)
    return build(Settings, {**find_recipe(str(values["recipe"])), **values}, "settings")
