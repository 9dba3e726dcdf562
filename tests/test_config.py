"""Settings: they are read back as written, and an error names the wrong one and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pneumoscope.config import build, read_mapping, write_mapping
from pneumoscope.errors import ModelError, PneumoscopeError, UsageError
from pneumoscope.images.prepare import InputSpec
from pneumoscope.training.settings import (
    RECIPES,
    DataSettings,
    DecisionSettings,
    NetworkSettings,
    OptimisationSettings,
    RunSettings,
    Settings,
    flatten,
    list_options,
    nest,
    resolve_settings,
)

texts = st.text(st.characters(codec="utf-8"), min_size=1)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
amounts = st.floats(0, 1e6)
BASELINE = resolve_settings({"path": "images", "recipe": "baseline"}, {})
ANYTHING: Any = ["x"]
WORDS = ["no", "null", "1e-3", "~", "07", "2026-13-45", "a: b", "# x", "- y", "\x85\u2028", "=", "<<", "C:\\images\\1"]


def yaml_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@settings(max_examples=100, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {"path": texts | st.sampled_from(WORDS)},
        optional={
            "recipe": st.sampled_from(["baseline", "head", "finetune"]),
            "positive": st.none() | texts | st.sampled_from(WORDS),
            "patient_pattern": st.none() | texts,
            "val_fraction": shares,
            "balance": st.sampled_from(["none", "weights", "sampling"]),
            "backbone": texts,
            "size": st.none() | st.integers(32, 2048),
            "fit": st.sampled_from([None, "crop", "pad", "squash"]),
            "epochs": st.integers(1, 10**9),
            "lr": st.floats(0, 1e6, exclude_min=True),
            "weight_decay": amounts,
            "ema": st.floats(0, 1, exclude_max=True),
            "seed": st.integers(0, 2**32 - 1),
            "train_backbone": st.just(True),
        },
    ),
    augmentation=st.fixed_dictionaries({}, optional={"rotate": amounts, "gamma": amounts, "zoom": shares}),
)
@example(values={"path": "images", "lr": 1e-05, "positive": "no"}, augmentation={})
def test_settings_come_back_from_their_file_as_they_were(
    values: dict[str, Any], augmentation: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if values.get("train_backbone") or values.get("recipe") == "finetune":
        values |= augmentation | {"train_backbone": True}
    before = resolve_settings(values, {})
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    write_mapping(path, before)
    assert resolve_settings({}, read_mapping(path), str(path)) == before
    assert flatten(read_mapping(path)) == flatten(dataclasses.asdict(before))


@settings(deadline=None)
@given(
    spec=st.builds(
        InputSpec,
        st.integers(32, 2048),
        st.sampled_from(["crop", "pad", "squash"]),
        st.sampled_from(["bilinear", "bicubic"]),
        st.tuples(*[st.floats(-10, 10)] * 3),
        st.tuples(*[st.floats(1e-6, 10)] * 3),
    )
)
def test_the_input_of_a_network_comes_back_from_its_file_as_it_was(
    spec: InputSpec, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "input.yaml"
    write_mapping(path, spec)
    assert build(InputSpec, read_mapping(path), str(path)) == spec


def test_an_option_overrides_the_file_the_file_the_recipe_and_the_recipe_the_defaults() -> None:
    config = {"data": {"path": "images"}, "run": {"recipe": "head"}, "optimisation": {"epochs": 7}}
    found = resolve_settings({"path": None, "batch_size": 5, "lr": None}, config)
    recipe, usual = RECIPES["head"], BASELINE.optimisation
    assert (found.data.path, found.optimisation.batch_size, found.optimisation.epochs) == ("images", 5, 7)
    assert recipe["epochs"] != 7
    assert recipe["batch_size"] != 5
    assert found.optimisation.optimizer == recipe["optimizer"] != usual.optimizer
    assert found.optimisation.plateau_factor == usual.plateau_factor


def test_every_setting_has_a_name_of_its_own_a_panel_and_a_line_of_help() -> None:
    options = list(list_options())
    names = [option.name for option in options]
    assert len(set(names)) == len(names) == sum(len(group) for group in dataclasses.asdict(BASELINE).values()) - 1
    assert len({option.panel for option in options}) == len(dataclasses.fields(Settings))
    assert all(option.help.endswith(".") for option in options)
    assert all(name in names for recipe in RECIPES.values() for name in recipe)


@pytest.mark.parametrize(
    "idle",
    [
        {"schedule": "cosine"},
        {"min_steps": 100},
        {"zoom": 0.1},
        {"rotate": 5.0},
        {"backbone_lr": 0.1},
        {"warmup_epochs": 3},
        {"freeze_batchnorm": True},
    ],
)
def test_what_has_no_effect_on_a_frozen_backbone_is_refused(idle: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(idle))}.*`train_backbone=True`"):
        resolve_settings({"path": "images", **idle}, {})
    assert resolve_settings({"path": "images", "train_backbone": True, **idle}, {}).network.train_backbone


def test_augmentation_has_an_effect_on_a_frozen_backbone_through_augmented_copies() -> None:
    given = {"path": "images", "augmented_copies": 2, "zoom": 0.1}
    assert resolve_settings(given, {}).augmentation.zoom == 0.1
    with pytest.raises(UsageError, match=r"warmup_epochs.*`train_backbone=True`"):
        resolve_settings({**given, "warmup_epochs": 3}, {})


def test_the_baseline_is_the_defaults() -> None:
    assert resolve_settings({"path": "images", "recipe": "baseline"}, {}) == BASELINE
    assert resolve_settings({"path": "images"}, {}) == resolve_settings({"path": "images", "recipe": "head"}, {})


@pytest.mark.parametrize("key", ["learning_rate", "epoch", "Epochs", "data ", 7, None])
def test_an_unknown_key_is_an_error_that_names_it_and_the_known_ones(key: Any) -> None:
    with pytest.raises(UsageError, match=rf"^my\.yaml: {key}: unknown key\. Known keys: run, data, network"):
        resolve_settings({}, {"data": {"path": "images"}, key: 1}, "my.yaml")
    with pytest.raises(UsageError, match=rf"^my\.yaml: optimisation\.{key}: unknown key\. Known keys: epochs"):
        resolve_settings({}, {"data": {"path": "images"}, "optimisation": {key: 1}}, "my.yaml")
    with pytest.raises(ModelError, match=rf"^model\.json: {key}: unknown key\. Known keys: size, fit"):
        build(InputSpec, {key: 1}, "model.json", ModelError)


def test_a_key_outside_its_group_is_an_error_that_names_the_group() -> None:
    with pytest.raises(UsageError, match=r"^my\.yaml: lr: unknown key\. It belongs under `optimisation:`\.$"):
        resolve_settings({}, {"lr": 0.1}, "my.yaml")
    with pytest.raises(UsageError, match=r"^my\.yaml: data: must be a mapping, found 'images'\.$"):
        resolve_settings({}, {"data": "images"}, "my.yaml")


def test_an_unknown_option_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"^epoch: no such setting\. The settings are .*epochs.*lr"):
        resolve_settings({"path": "images", "epoch": 3}, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "many"}, "epochs: must be a whole number, found 'many'"),
        ({"epochs": 2.5}, "epochs: must be a whole number, found 2.5"),
        ({"epochs": [1]}, r"epochs: must be a whole number, found \[1\]"),
        ({"epochs": None}, "epochs: must be a whole number, found None"),
        ({"path": 3}, "path: must be text, found 3"),
        ({"positive": False}, "positive: must be text, found False"),
        ({"train_backbone": "perhaps"}, "train_backbone: must be true or false, found 'perhaps'"),
        ({"fit": "stretch"}, "fit: must be 'crop', 'pad' or 'squash', found 'stretch'"),
        ({"lr": {}}, r"lr: must be a number, found \{\}"),
        ({"path": ""}, "path: must have at least 1 character, found ''"),
        ({"epochs": 0}, "epochs: must be greater than or equal to 1, found 0"),
        ({"lr": 0}, "lr: must be greater than 0, found 0"),
        ({"size": 31}, "size: must be greater than or equal to 32, found 31"),
        ({"size": 2049}, "size: must be less than or equal to 2048, found 2049"),
        ({"val_fraction": 1}, "val_fraction: must be less than 1, found 1"),
        ({"val_fraction": 0.0}, "val_fraction: must be greater than 0, found 0.0"),
        ({"flip": 1.1}, "flip: must be less than or equal to 1, found 1.1"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, found -1"),
        ({"lr": math.inf}, "lr: must be a finite number, found inf"),
        ({"weight_decay": math.nan}, "weight_decay: must be a finite number, found nan"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key_and_what_is_allowed(values: dict[str, Any], message: str) -> None:
    (group,) = nest(values)
    with pytest.raises(UsageError, match=rf"^my\.yaml: {group}\.{message}"):
        resolve_settings({}, nest({"path": "images", **values}), "my.yaml")
    if None not in values.values():  # an option that is None is one that is not given
        with pytest.raises(UsageError, match=rf"^{group}\.{message}"):
            resolve_settings({"path": "images", **values}, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"std": (1, 0, 1)}, r"std\.1: .*greater than or equal to 0.000001, found 0"),
        ({"std": (1, 1, math.nan)}, "std: must be a finite number, found nan"),
        ({"mean": (1, 1, 1e300)}, r"mean\.2: .*less than or equal to 1000000"),
        ({"mean": [0, 0]}, r"mean\.2: is missing"),
        ({"mean": "grey"}, "mean: must be a list, found"),
        ({"fit": "CROP"}, "fit: "),
    ],
)
def test_the_error_is_of_the_kind_asked_for(values: dict[str, Any], message: str) -> None:
    for error in (UsageError, ModelError):
        with pytest.raises(error, match=rf"^source: {message}"):
            build(InputSpec, values, "source", error)


def test_a_missing_value_is_named_without_repeating_everything_else() -> None:
    with pytest.raises(PneumoscopeError, match=r"^source: data: is missing\.$"):
        build(Settings, {"optimisation": {"lr": 0.1}}, "source")


def test_without_data_and_with_an_unknown_recipe_it_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"No data given\. Pass a folder or a table"):
        resolve_settings({"epochs": 3}, {})
    with pytest.raises(
        UsageError, match=r"^recipe: 'magic' does not exist\. Choose one of baseline, head, finetune, best"
    ):
        resolve_settings({"path": "images", "recipe": "magic"}, {})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"optimisation": OptimisationSettings(epochs=ANYTHING)}, "optimisation.epochs: must be a whole number"),
        ({"optimisation": OptimisationSettings(lr=math.nan)}, "optimisation.lr: must be a finite number, found nan"),
        ({"run": RunSettings(seed=-1)}, "run.seed: must be greater than or equal to 0, found -1"),
        ({"network": NetworkSettings(size=31)}, "network.size: must be greater than or equal to 32, found 31"),
        ({"network": NetworkSettings(fit=ANYTHING)}, "network.fit: must be 'crop', 'pad' or 'squash'"),
        ({"decisions": DecisionSettings(threshold=ANYTHING)}, "decisions.threshold: must be text"),
        ({"network": 3}, "network: must be NetworkSettings, found 3"),
    ],
)
def test_settings_made_in_python_are_checked_as_those_of_a_file(group: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^{message}"):
        Settings(data=DataSettings(path="images"), **group)


def test_settings_made_in_python_hold_what_a_file_would_give() -> None:
    found = Settings(data=DataSettings(path="images"), decisions=DecisionSettings(threshold=0.4))  # type: ignore[arg-type]
    assert found == resolve_settings({"path": "images", "recipe": "baseline", "threshold": 0.4}, {})


@pytest.mark.parametrize(
    ("text", "line"),
    [("seed: 1\nseed: 2\n", 2), ("run:\n  seed: 1\n  x: 1\n  seed: 1\n", 4), ("{a: [{seed: 1, seed: 2}]}", 1)],
)
def test_a_key_that_is_there_twice_is_refused(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"the key seed occurs twice; leave one out\n.*line {line}, column"):
        read_mapping(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "data: &a [1]\nrun: *a\n",
        "data: &a {path: x}\nrun: {<<: *a}\n",
        "data: {<<: {path: x}}\n",
        "data: {? !!merge x : {path: y}}\n",
        "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    ],
)
def test_aliases_and_merges_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read as YAML: (aliases|merges) .* are not read; write the value"):
        read_mapping(yaml_file(tmp_path, text))


def test_what_a_message_quotes_is_short(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, f"data: {{path: images, positive: [{'x' * 50_000}]}}\n")
    with pytest.raises(UsageError, match="positive") as caught:
        resolve_settings({}, read_mapping(path), str(path))
    assert len(str(caught.value)) < 500
    for text in (f"data: '{'x' * 50_000}", f"{'x' * 50_000}: 1\n"):
        with pytest.raises(UsageError) as caught:
            resolve_settings({}, read_mapping(yaml_file(tmp_path, text)), "my.yaml")
        assert len(str(caught.value)) < 1000


def test_a_large_file_a_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = yaml_file(tmp_path, "a: 1\n" * 100_000)
    for path, reason in (
        (large, "the limit is"),
        (tmp_path / "pipe", "not a regular"),
        (Path("/dev/zero"), "not a reg"),
    ):
        with pytest.raises(UsageError, match=f"cannot be read as YAML: .*{reason}"):
            read_mapping(path)


def test_a_normalisation_that_is_not_finite_is_refused_in_python_too() -> None:
    for values in ({"mean": (0.5, math.nan, 0.5)}, {"std": (1.0, 0.0, 1.0)}, {"std": (1.0, math.inf, 1.0)}):
        with pytest.raises(UsageError, match="no image has such values"):
            InputSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", ["list", "str", "int", "NoneType"])
def test_a_file_that_holds_no_mapping_is_an_error_that_names_it(tmp_path: Path, found: str) -> None:
    text = {"list": "- a\n- b\n", "str": "epochs 3\n", "int": "3\n", "NoneType": "# all commented out\n"}[found]
    with pytest.raises(UsageError, match=rf"config\.yaml: expected lines of `key: value`, found {found}"):
        read_mapping(yaml_file(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        b"data: [images\n",
        b"data: images\n  lr: 1\n",
        b"\tlr: 1\n",
        b"data: f\xfcr\n",
        b"data: \0\n",
        b"data: *unknown\n",
        b"{[1]: 2}\n",
        b"data: 2026-13-45\n",
        b"data: !!int x\n",
        b"data: !!bool maybe\n",
        b"data: !!timestamp x\n",
        b"data: !!python/object/apply:os.getcwd []\n",
        b"[" * 5000,
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(UsageError, match=r"config\.yaml: cannot be read as YAML: "):
        read_mapping(yaml_file(tmp_path, text))


def test_a_missing_file_and_a_folder_are_errors_that_name_them(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(UsageError, match=f"{path}: cannot be read as YAML"):
            read_mapping(path)


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=40) | st.text(alphabet="ab01:-!{}[],&*?|>'\"%@`#~.e \n\t", max_size=40).map(str.encode))
def test_any_file_gives_a_mapping_or_a_usage_error(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = yaml_file(tmp_path_factory.getbasetemp(), text)
    try:
        values = read_mapping(path)
    except UsageError as problem:
        assert str(problem).startswith(f"{path}: ")  # noqa: PT017 - either outcome is right
    else:
        assert values == yaml.safe_load(text.decode("utf-8"))
