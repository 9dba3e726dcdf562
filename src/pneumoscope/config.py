"""Settings are frozen dataclasses; this reads them from YAML and JSON, checks them, and writes them back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from annotated_types import Interval, Predicate

from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)


Finite: TypeAlias = Annotated[float, Predicate(math.isfinite)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Rate: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]
# Called with a task, how much of it is done, and the total (0 where that is not known).
Progress: TypeAlias = Callable[[str, int, int], None]


def silent(task: str, done: int, total: int) -> None:
    """Show no progress."""


def build(
    kind: type[Settings], values: Mapping[str, Any], source: str, error: type[PneumoscopeError] = UsageError
) -> Settings:
    """Make a dataclass of checked values; types, ranges and unknown keys are looked at.

    Args:
        kind: the frozen dataclass; ranges are given by `Annotated[int, Ge(1)]` and the like.
        values: plain values as YAML or JSON gives them.
        source: where they come from, for the message.
        error: the kind of error to raise.

    Raises:
        error: naming the key, what was found and what is allowed.
    """
    import pydantic

    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise error(f"{source}: unknown key {key!r}. Known keys: {', '.join(known)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"{source}: {key}: a finite number is needed, found {value}.")
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f", found {first['input']!r}"
        raise error(f"{source}: {where}: {first['msg']}{found}.") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UsageError: the file is missing, is no YAML, or holds something else.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as problem:  # what YAML calls a date or a number raises nearly anything where it is none
        raise UsageError(f"{path}: cannot be read as YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected lines of `key: value`, found {type(values).__name__}.")
    return values


def write_mapping(path: Path, settings: DataclassInstance) -> None:
    """Write a dataclass as YAML, in the order of its fields."""
    import yaml

    values = dataclasses.asdict(settings)
    # PyYAML loses odd line ends, such as U+0085, unless it escapes everything beyond ASCII.
    plain = all(value.isprintable() for value in values.values() if isinstance(value, str))
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=plain))
