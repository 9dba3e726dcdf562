"""What `tune` may change: settings with their choices or ranges, from a YAML file, a mapping, or a named space."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from annotated_types import Gt

from pneumoscope.config import Finite, build, quote, read_mapping
from pneumoscope.errors import UsageError
from pneumoscope.training.settings import (
    BACKBONE_ONLY,
    COPIES_ONLY,
    Settings,
    find_groups,
    list_options,
    resolve_settings,
)

SPACES: dict[str, dict[str, Any]] = {
    "head": {
        "lr": {"low": 1e-4, "high": 3e-2, "log": True},
        "weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
        "batch_size": [16, 32, 64, 128],
        "balance": ["none", "weights", "sampling"],
        "flip": [0.0, 0.5],
    },
    "finetune": {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "backbone_lr": {"low": 3e-5, "high": 1e-3, "log": True},
        "weight_decay": {"low": 1e-3, "high": 1e-1, "log": True},
        "ema": [0.0, 0.9, 0.97],
        "rotate": {"low": 0.0, "high": 16.0},
        "crop": {"low": 0.0, "high": 0.4},
        "contrast": {"low": 0.0, "high": 0.5},
    },
}
_FIXED = ("run", "data")  # groups of settings that say what is compared, and what is shown of it
_FIRST = ("train_backbone", "augmented_copies", "optimizer")  # which other settings have an effect depends on these


@dataclass(frozen=True)
class Choices:
    """The values that a setting may have."""

    values: tuple[str | int | float | bool | None, ...]


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, both ends included."""

    low: Finite
    high: Finite
    log: bool = False  # whether to draw from the logarithms
    step: Annotated[float, Gt(0)] | None = None  # between values, from `low` on; None: any number, or any whole number


Space: TypeAlias = Mapping[str, Choices | Range]


def read_space(space: str | Path | Mapping[str, Any] | None, base: Settings) -> dict[str, Choices | Range]:
    """Read and check a search space.

    Args:
        space: a name of `SPACES`, a YAML file, or its content; None chooses by whether the backbone is trained.
        base: all settings that the space does not name.

    Raises:
        UsageError: there is no such space, setting or value, or a range is empty.
    """
    if space is None:
        space = "finetune" if base.network.train_backbone else "head"
    named = SPACES.get(str(space)) if not isinstance(space, Mapping) else None
    source = "space" if named or isinstance(space, Mapping) else str(space)
    if isinstance(space, Mapping):
        content: Mapping[str, Any] = space
    elif named is not None:
        content = named
    elif not Path(space).exists():
        raise UsageError(f"{space}: no such file, and no space of this name ({', '.join(SPACES)}).", "space")
    else:
        content = read_mapping(Path(space))
    if not content:
        raise UsageError(f"{source}: no setting to tune. Name at least one.")
    found: dict[str, Choices | Range] = {}
    for key, value in _flatten(content, source):
        name = _find_name(key, source)
        if name in found:
            raise UsageError("given twice; leave one out.", f"{source}: {key}")
        found[name] = _read_domain(name, value, f"{source}: {key}")
    found = dict(sorted(found.items(), key=lambda item: item[0] not in _FIRST))
    list_variants(found, base, source)
    return found


def to_plain(space: Space) -> dict[str, Any]:
    """A space as `read_space` takes it, for a file."""
    return {
        name: list(domain.values) if isinstance(domain, Choices) else asdict(domain) for name, domain in space.items()
    }


def has_effect(name: str, chosen: Mapping[str, Any], base: Settings) -> bool:
    """Whether a setting has an effect, given those that were chosen before it."""
    trained = chosen.get("train_backbone", base.network.train_backbone)
    if name in BACKBONE_ONLY:
        return bool(trained)
    if name in COPIES_ONLY:
        return bool(trained or chosen.get("augmented_copies", base.decisions.augmented_copies))
    return name != "momentum" or chosen.get("optimizer", base.optimisation.optimizer) == "sgd"


def contains(domain: Choices | Range, value: Any) -> bool:
    """Whether a value is among the choices or in the range."""
    if isinstance(domain, Choices):
        return value in domain.values
    if not isinstance(value, int | float) or not domain.low <= value <= domain.high:
        return False
    return domain.step is None or abs((steps := (value - domain.low) / domain.step) - round(steps)) < 1e-9


def is_whole(name: str) -> bool:
    """Whether a setting is a whole number."""
    return _find_kinds()[name] is int


def _find_kinds() -> dict[str, Any]:
    groups = find_groups()
    return {each.name: each.kind for each in list_options() if groups[each.name] not in _FIXED}


def _flatten(content: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """Names and domains: `lr`, `optimisation.lr`, or `lr` below `optimisation`, as in a run's `config.yaml`."""
    groups = set(find_groups().values())
    for key, value in content.items():
        if key not in groups:
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            raise UsageError(f"must be a mapping, found {quote(value)}.", f"{source}: {key}")


def _find_name(key: str, source: str) -> str:
    """The setting that a key names.

    Raises:
        UsageError: none, or one that cannot be tuned.
    """
    groups, kinds = find_groups(), _find_kinds()
    group, _, name = key.rpartition(".")
    if name in groups and groups[name] in _FIXED:
        raise UsageError(
            "cannot be tuned: it changes which images are compared, or what is shown. Set it for all trials instead.",
            f"{source}: {key}",
        )
    if name not in kinds:
        close = difflib.get_close_matches(name, kinds, 3)
        hint = f"Do you mean {' or '.join(close)}?" if close else f"These can be tuned: {', '.join(kinds)}."
        raise UsageError(f"no such setting. {hint}", f"{source}: {key}")
    if group and group != groups[name]:
        raise UsageError(f"no such setting. It belongs under `{groups[name]}:`.", f"{source}: {key}")
    return name


def _read_domain(name: str, value: Any, place: str) -> Choices | Range:
    if isinstance(value, list | tuple):
        wrong = [each for each in value if not isinstance(each, str | int | float | bool | None)]
        if wrong or not value:
            found = f"found {quote(wrong[0])}" if wrong else "but it is empty"
            raise UsageError(f"the list must hold numbers, text, true, false or null, {found}.", place)
        if twice := [each for i, each in enumerate(value) if each in value[:i]]:
            raise UsageError(f"{quote(twice[0])} is listed twice. Leave one out.", place)
        return Choices(tuple(value))
    if not isinstance(value, Mapping):
        raise UsageError(
            f"must be a list of values, or `{{low: …, high: …}}` with `log` or `step` if needed, found {quote(value)}.",
            place,
        )
    if _find_kinds()[name] not in (int, float):
        raise UsageError("is not a number, so it has no range. Give a list of values.", place)
    domain = build(Range, value, place.rpartition(": ")[0], prefix=f"{place.rpartition(': ')[2]}.")
    _check_range(domain, is_whole(name), place)
    return domain


def _check_range(domain: Range, whole: bool, place: str) -> None:
    low, high, step = domain.low, domain.high, domain.step
    if low >= high:
        raise UsageError(f"the range is empty: low is {low:g}, high is {high:g}. Swap them, or set one value.", place)
    if domain.log and low <= 0:
        raise UsageError(f"with log, low must be above 0, found {low:g}.", place)
    if domain.log and step is not None:
        raise UsageError("has both log and step. Leave out one of the two.", place)
    if whole and any(number != int(number) for number in (low, high, step or 1)):
        raise UsageError("is a whole number, so low, high and step must be whole numbers.", place)
    if step is not None and abs((steps := (high - low) / step) - round(steps)) > 1e-9:
        raise UsageError(f"high is not a whole number of steps of {step:g} above low. Change one of them.", place)


def list_variants(space: Space, base: Settings, source: str = "space") -> list[Settings]:
    """Settings with each value of a space, or the ends of its range, with the other settings that it needs.

    Raises:
        UsageError: a setting does not accept one of its values.
    """
    enabled: dict[str, Any] = {}
    variants: list[Settings] = []
    for name, domain in space.items():
        values = domain.values if isinstance(domain, Choices) else (domain.low, domain.high)
        for value in values:
            given = int(value) if isinstance(domain, Range) and is_whole(name) and value is not None else value
            try:
                variants.append(apply(base, enabled | {name: given}))
            except UsageError as problem:
                raise UsageError(problem.message, f"{source}: {name}") from None
        if name in _FIRST:
            enabled[name] = max(values, key=lambda value: (value == "sgd", value is True, str(value)))
    return variants


def apply(base: Settings, chosen: Mapping[str, Any]) -> Settings:
    """The settings of a trial.

    Raises:
        UsageError: a value that a setting cannot have.
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    empty = {name for name, value in chosen.items() if value is None}
    groups = {
        group: {name: None if name in empty else value for name, value in values.items()}
        for group, values in asdict(base).items()
    }
    return resolve_settings(given, groups)


def describe(domain: Choices | Range) -> str:
    """A domain in words."""
    if isinstance(domain, Choices):
        return ", ".join(map(show, domain.values))
    more = ", logarithmic" if domain.log else f" in steps of {domain.step:g}" if domain.step else ""
    return f"{domain.low:g} to {domain.high:g}{more}"


def show(value: object) -> str:
    """A value in few digits; a dash for none."""
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
