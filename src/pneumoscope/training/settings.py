"""Every setting of a training run, in groups, and the recipes: named sets of values for the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from annotated_doc import Doc
from annotated_types import Ge, Gt, Interval, Len

from pneumoscope.config import build, check_mapping, quote
from pneumoscope.datasets.columns import Naming
from pneumoscope.errors import UsageError
from pneumoscope.images.augment import Augmentation
from pneumoscope.models.about import About, check_licence

DEFAULT_RECIPE = "head"
Share: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]

# What has no effect on a frozen backbone.
BACKBONE_ONLY = ("freeze_batchnorm", "min_steps", "backbone_lr", "schedule", "warmup_epochs")
# What has an effect on it only through `augmented_copies`. Its training uses the flip alone.
COPIES_ONLY = tuple(each.name for each in fields(Augmentation) if each.name != "flip")


@dataclass(frozen=True)
class RunSettings:
    """The run as a whole."""

    recipe: Annotated[
        str,
        Doc(
            "Values that all other settings start from: baseline (as published), head (seconds), finetune (all layers, "
            "minutes) or best (like finetune, but longer)."
        ),
    ] = "baseline"
    seed: Annotated[int, Interval(ge=0, lt=2**32), Doc("Seed of every random choice.")] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], Doc("Device to compute on.")] = "auto"
    resamples: Annotated[int, Ge(1), Doc("Bootstrap resamples for each interval.")] = 2000
    plot_formats: Annotated[str, Doc("Formats of the plot files, such as svg,pdf,png.")] = "svg"
    patient_ids: Annotated[bool, Doc("Name patients in report, metrics and model card.")] = False
    excel: Annotated[bool, Doc("Begin predictions.csv with a byte order mark, so that Excel reads UTF-8.")] = False


@dataclass(frozen=True, kw_only=True)
class DataSettings(Naming):
    """The images, what their table calls things, and how they are read, checked and split."""

    path: Annotated[str, Len(1), Doc("Folder or table of labelled radiographs.")]
    positive: Annotated[
        str | None, Doc("Positive class, if there are two; by default PNEUMONIA, if it is one of them.")
    ] = None
    patient_pattern: Annotated[str | None, Doc("Regular expression that finds the patient in the path of a file.")] = (
        None
    )
    invert: Annotated[bool, Doc("Air is bright in these images: swap black and white.")] = False
    any_modality: Annotated[bool, Doc("Also read DICOM files that are not projection radiographs.")] = False
    intended_use: Annotated[
        str | None,
        Doc(
            "YAML file with what the model is meant for: ages, views, modalities and body_parts; by default those of "
            "the training images, as far as their headers or names tell."
        ),
    ] = None
    audit: Annotated[bool, Doc("Check the data first; `pneumoscope audit` checks more.")] = True
    strict: Annotated[bool, Doc("Stop if this check finds an error.")] = False
    val_fraction: Annotated[
        Share, Doc("Size of a random validation split: this share of the smallest class, from each class.")
    ] = 1 / 3
    test_fraction: Annotated[Share, Doc("Size of a random test split: this share of each class.")] = 0.25


@dataclass(frozen=True)
class NetworkSettings:
    """The network and its input."""

    backbone: Annotated[str, Doc("Name of the pretrained network; see `pneumoscope backbones`.")] = "efficientnet_lite0"
    init: Annotated[
        str | None,
        Doc(
            "Model to continue from, instead of a backbone's weights: a run, a model folder, a .zip of one, a "
            "pretrained model, an https:// address, or hf:OWNER/NAME. Its last layer is kept if the classes are the "
            "same."
        ),
    ] = None
    weights: Annotated[str | None, Doc("File with its weights (.pth or .safetensors), for offline use.")] = None
    size: Annotated[
        Annotated[int, Interval(ge=32, le=2048)] | None,
        Doc("Side of the square input in pixels; by default what the backbone was pretrained with."),
    ] = None
    fit: Annotated[Literal["crop", "pad", "squash"] | None, Doc("How an image is made square.")] = None
    train_backbone: Annotated[bool, Doc("Train the whole network, not only the head.")] = False
    freeze_batchnorm: Annotated[bool, Doc("Keep batch-norm statistics while the backbone is trained.")] = False
    half_precision: Annotated[
        bool, Doc("Store the weights in half precision; decisions are fitted with the rounded weights.")
    ] = False


@dataclass(frozen=True)
class OptimisationSettings:
    """The training loop."""

    epochs: Annotated[int, Ge(1), Doc("Maximum number of epochs.")] = 50
    min_steps: Annotated[int, Ge(0), Doc("Add epochs up to this number of batches (if the backbone is trained).")] = 0
    batch_size: Annotated[int, Ge(1), Doc("Images in a batch.")] = 32
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Doc("Optimizer.")] = "adam"
    lr: Annotated[float, Gt(0), Doc("Learning rate of the head.")] = 1e-3
    backbone_lr: Annotated[float, Gt(0), Doc("Learning rate of the backbone, if it is trained.")] = 1e-4
    momentum: Annotated[float, Interval(ge=0, lt=1), Doc("Momentum (sgd).")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("L2 penalty (adam, sgd) or decoupled weight decay (adamw).")] = 0.0
    schedule: Annotated[
        Literal["plateau", "cosine"],
        Doc(
            "When learning rates fall. plateau: when the validation loss stalls; the best epoch is kept. cosine: "
            "steadily to zero; the last epoch is kept (if the backbone is trained)."
        ),
    ] = "plateau"
    plateau_factor: Annotated[Share, Doc("Factor applied to learning rates when the validation loss stalls.")] = 0.5
    plateau_patience: Annotated[int, Ge(0), Doc("Epochs without improvement before learning rates fall (plateau).")] = 2
    patience: Annotated[int, Ge(1), Doc("Epochs without improvement before training stops (plateau).")] = 5
    warmup_epochs: Annotated[
        int, Ge(0), Doc("Maximum number of epochs of the head alone, before the backbone is trained.")
    ] = 0
    ema: Annotated[
        float, Interval(ge=0, lt=1), Doc("Keep an exponential moving average of the weights with this decay; 0: none.")
    ] = 0.0
    balance: Annotated[
        Literal["none", "weights", "sampling"],
        Doc("How to balance classes: not at all, with weights in the loss, or by drawing them equally often."),
    ] = "none"
    balance_by: Annotated[
        str | None,
        Doc(
            "Columns of the table, such as source,view: within each class, draw the groups that they define equally "
            "often (sampling)."
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Doc("Precision of arithmetic while the backbone is trained; auto picks the faster."),
    ] = "auto"


@dataclass(frozen=True)
class DecisionSettings:
    """What is fitted on the validation images."""

    calibration: Annotated[
        Literal["auto", "none", "temperature", "platt", "isotonic"],
        Doc("How logits become probabilities; auto chooses by cross-validation, none included."),
    ] = "temperature"  # keeps the published predicted labels, at a threshold of 0.5
    threshold: Annotated[
        str,
        Doc(
            "Predict the positive class at or above this probability: a number, or a rule applied to validation "
            "images: likelihood (as likely under either class), youden, f1, sensitivity>=0.95, specificity>=0.95, "
            "cost=5 (a miss is as bad as five false alarms). For more than two classes: likelihood (the same "
            "weight for each class), or 0.5 (the likeliest class)."
        ),
    ] = "0.5"
    prevalence: Annotated[
        Share | None,
        Doc("Share of the positive class that probabilities are adjusted to; by default that of the training images."),
    ] = None
    alpha: Annotated[Share, Doc("How often a prediction set may miss the true class, in each class.")] = 0.1
    false_alarms: Annotated[Share, Doc("Share of ordinary images that may be flagged as out of distribution.")] = 0.01
    augmented_copies: Annotated[
        int,
        Interval(ge=0, le=100),
        Doc("Also fit on this number of augmented copies of each validation image."),
    ] = 0
    groups: Annotated[
        str | None,
        Doc(
            "YAML file that names groups of images by ages or views, such as `children: {ages: [0, 17]}`, whose "
            "probabilities, prediction sets and OOD limit are fitted to them alone where images suffice."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. Each field of a group is an option of `train` and a key of the group in YAML."""

    run: Annotated[RunSettings, Doc("Run")] = field(default_factory=RunSettings)
    data: Annotated[DataSettings, Doc("Data")]
    network: Annotated[NetworkSettings, Doc("Network")] = field(default_factory=NetworkSettings)
    optimisation: Annotated[OptimisationSettings, Doc("Optimisation")] = field(default_factory=OptimisationSettings)
    augmentation: Annotated[
        Augmentation, Doc("Augmentation (all but --flip need --train-backbone or --augmented-copies)")
    ] = field(default_factory=Augmentation)
    decisions: Annotated[DecisionSettings, Doc("Decisions, fitted on validation images")] = field(
        default_factory=DecisionSettings
    )
    about: Annotated[About, Doc("About the model, for its card")] = field(default_factory=About)

    def __post_init__(self) -> None:
        from pneumoscope.decisions.threshold import parse_rule  # needs NumPy, which `train --help` must not load
        from pneumoscope.reports.figures import parse_formats

        for group in fields(self):
            self._check_group(group.name)
        parse_rule(self.decisions.threshold)
        parse_formats(self.run.plot_formats)
        object.__setattr__(self, "about", replace(self.about, licence=check_licence(self.about.licence)))
        if self.network.train_backbone:
            return
        without_effect = BACKBONE_ONLY if self.decisions.augmented_copies else (*BACKBONE_ONLY, *COPIES_ONLY)
        groups = [getattr(self, group.name) for group in fields(self)]
        changed = [each.name for group in groups for each in fields(group) if getattr(group, each.name) != each.default]
        if unused := [name for name in changed if name in without_effect]:
            others = f", like {', '.join(f'`{name}`' for name in unused[1:])}" if unused[1:] else ""
            raise UsageError(
                f"no effect while the backbone is frozen{others}. Pass `train_backbone=True` or `recipe='finetune'`.",
                unused[0],
            )

    def _check_group(self, name: str) -> None:
        """Check the types and values of a group made in Python, as those of a file are; numbers may stand for text."""
        found, kind = getattr(self, name), get_type_hints(type(self))[name]
        if not isinstance(found, kind):
            raise UsageError(f"must be {kind.__name__}, found {quote(found)}.", name)
        checked = build(kind, _adjust_types(asdict(found)), prefix=f"{name}.")
        object.__setattr__(self, name, checked)  # frozen for all others


class Option(NamedTuple):
    """A setting as a command-line option; `panel` is the title of its group."""

    name: str
    panel: str
    kind: Any
    default: Any
    help: str


_FINETUNE: dict[str, Any] = {
    "fit": "squash",
    "train_backbone": True,
    "freeze_batchnorm": True,
    "half_precision": True,
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
    "stretch": 0.7,  # squashed images reveal their proportions, which correlate with the class (docs/log.md)
    "crop": 0.3,
    "full_crop_from": 2000,  # few images do not teach a network to ignore a frame (docs/log.md)
    "brightness": 0.15,
    "contrast": 0.3,
    "gamma": 0.3,
    "blur": 0.4,
    "noise": 0.04,
    "sharpen": 1.0,
    "compress": 0.8,
    "calibration": "auto",
    "threshold": "likelihood",
    "alpha": 0.05,  # at 0.1, an accurate network leaves every tenth image without a label
}

# What each recipe changes from the defaults of `Settings`, which are the published procedure.
RECIPES: dict[str, dict[str, Any]] = {
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
    "finetune": {**_FINETUNE, "epochs": 1, "min_steps": 50, "augmented_copies": 2},
    "best": {**_FINETUNE, "epochs": 8, "min_steps": 150, "augmented_copies": 4},
}


def list_options() -> Iterator[Option]:
    """List every setting except the path of the data, with the defaults of the default recipe."""
    usual = {"recipe": DEFAULT_RECIPE, **RECIPES[DEFAULT_RECIPE]}
    for group in get_type_hints(Settings, include_extras=True).values():
        kind, (panel,) = group.__origin__, group.__metadata__
        hints = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            if each.name != "path":
                hint, default = hints[each.name], usual.get(each.name, each.default)
                yield Option(each.name, panel.documentation, _strip(hint), default, hint.__metadata__[-1].documentation)


def _strip(hint: Any) -> Any:
    """The type in a hint, without annotations and None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    choices = [each for each in get_args(hint) if each is not type(None)]
    return _strip(choices[0]) if type(None) in get_args(hint) else hint


def find_groups() -> dict[str, str]:
    """The group of each setting, by the setting's name."""
    return {each.name: group for group, kind in get_type_hints(Settings).items() for each in fields(kind)}


def flatten(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings by name, from settings by group and name. Names are unique over all groups."""
    return {name: value for group in groups.values() for name, value in group.items()}


def nest(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by group and name, from settings by name.

    Raises:
        UsageError: there is no such setting.
    """
    groups = find_groups()
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in groups:
            raise UsageError(f"no such setting. The settings are {', '.join(groups)}.", name)
        nested.setdefault(groups[name], {})[name] = value
    return nested


def resolve_settings(options: Mapping[str, Any], config: Mapping[str, Any], source: str = "config") -> Settings:
    """Combine settings: an option overrides the file, the file overrides the recipe, the recipe overrides the defaults.

    Args:
        options: settings by name; None means not given.
        config: settings by group and name, from a YAML file; may be empty.
        source: the file's name, for messages.

    Raises:
        UsageError: an unknown key, a wrong type, a value out of range, or no data.
    """
    check_mapping(Settings, config, source)
    in_file = _adjust(flatten(config))
    given = _adjust({name: value for name, value in options.items() if value is not None})
    if in_file:  # an error in the file names the file
        build(Settings, nest({**find_recipe(in_file), "path": "-", **in_file}), source)
    recorded = in_file.get("recipe")
    if recorded is not None and given.get("recipe", recorded) != recorded:
        raise UsageError(f"{source} holds the settings of the recipe {recorded}. Leave out one of the two.", "recipe")
    values = {"recipe": DEFAULT_RECIPE, **in_file, **given}
    if "path" not in values:
        raise UsageError("No data given. Pass a folder or a table: `pneumoscope train DATA --out RUN`.")
    return build(Settings, nest({**find_recipe(values), **values}))


def find_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the recipe that settings name, or of the default recipe.

    Raises:
        UsageError: there is no such recipe.
    """
    name = str(values.get("recipe", DEFAULT_RECIPE))
    if name not in RECIPES:
        raise UsageError(f"{name!r} does not exist. Choose one of {', '.join(RECIPES)}.", "recipe")
    return RECIPES[name]


def _adjust(values: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a number as threshold, and let a given number of epochs replace the recipe's minimum of steps."""
    changes: dict[str, Any] = _adjust_types(values)
    if "epochs" in values and "min_steps" not in values:
        changes["min_steps"] = 0
    return {**values, **changes}


def _adjust_types(values: Mapping[str, Any]) -> dict[str, Any]:
    number = isinstance(values.get("threshold"), int | float)
    return {**values, "threshold": str(values["threshold"])} if number else dict(values)
