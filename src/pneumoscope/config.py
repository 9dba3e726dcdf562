"""Settings are frozen dataclasses, built from YAML or JSON with all checks, and written back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_type_hints

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
    kind: type[Settings],
    values: Mapping[str, Any],
    source: str | None = None,
    error: type[PneumoscopeError] = UsageError,
) -> Settings:
    """Build a dataclass from plain values, as YAML or JSON gives them, and check their types and ranges.

    Fields may be dataclasses themselves; ranges are declared with `Annotated[int, Ge(1)]` and the like. `source` is the
    file that the values come from; None for arguments.

    Raises:
        error: names the key, the value found and what is allowed.
    """
    import pydantic

    check_mapping(kind, values, source, error)
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f", found {first['input']!r}"
        raise error(f"{first['msg']}{found}.", _name(source, key)) from None


def check_mapping(
    kind: type[DataclassInstance],
    values: Mapping[str, Any],
    source: str | None,
    error: type[PneumoscopeError] = UsageError,
    prefix: str = "",
) -> None:
    """Check that all keys are fields of a dataclass or of its groups, that groups are mappings and numbers finite.

    Raises:
        error: names the key, the known ones, or the group that it belongs to.
    """
    groups: dict[str, Any] = {
        name: hint for name, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(hint)
    }
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        name = _name(source, f"{prefix}{key}")
        if key not in known:
            place = [group for group, hint in groups.items() if key in (each.name for each in dataclasses.fields(hint))]
            hint = f"It belongs under `{place[0]}:`." if place else f"Known keys: {', '.join(known)}."
            raise error(f"unknown key. {hint}", name)
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"must be a finite number, found {value}.", name)
        if key in groups:
            if not isinstance(value, Mapping):
                raise error(f"must be a mapping, found {value!r}.", name)
            check_mapping(groups[key], value, source, error, f"{prefix}{key}.")


def _name(source: str | None, key: str) -> str:
    return f"{source}: {key}" if source else key


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UsageError: the file is missing, is not YAML, or holds something else.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as problem:  # PyYAML raises many kinds of errors on malformed dates and numbers
        raise UsageError(f"{path}: cannot be read as YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected lines of `key: value`, found {type(values).__name__}.")
    return values


def write_mapping(path: Path, settings: DataclassInstance) -> None:
    """Write a dataclass as YAML, in the order of its fields."""
    import yaml

    values = dataclasses.asdict(settings)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not text.replace("\n", "").isprintable():  # PyYAML loses unusual line ends, such as U+0085, unless escaped
        text = yaml.safe_dump(values, sort_keys=False)
    write_text(path, text)
