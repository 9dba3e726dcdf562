"""Settings are frozen dataclasses, built from YAML or JSON with all checks, and written back."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeAlias, TypeVar, get_type_hints

from annotated_types import Ge, Interval, Predicate

from pneumoscope.errors import PneumoscopeError, UsageError, find_missing_extra
from pneumoscope.files import read_regular, write_text
from pneumoscope.text import shorten

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    Settings = TypeVar("Settings", bound=DataclassInstance)


MAX_BYTES = 100_000  # of a YAML file; the worst of this size takes PyYAML a second, one of 10 MB for ever
MAX_DEPTH = 32  # of groups and lists in each other
Finite: TypeAlias = Annotated[float, Predicate(math.isfinite)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Rate: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]
Seed: TypeAlias = Annotated[int, Interval(ge=0, lt=2**32)]
Count: TypeAlias = Annotated[int, Ge(1)]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# Called with a task, how much of it is done, and the total (0 where that is not known).
Progress: TypeAlias = Callable[[str, int, int], None]


def silent(task: str, done: int, total: int) -> None:
    """Show no progress."""


def build(
    kind: type[Settings],
    values: Mapping[str, Any],
    source: str | None = None,
    error: type[PneumoscopeError] = UsageError,
    prefix: str = "",
) -> Settings:
    """Build a dataclass from plain values, as YAML or JSON gives them, and check their types and ranges.

    Fields may be dataclasses themselves; ranges are declared with `Annotated[int, Ge(1)]` and the like. `source` is the
    file that the values come from; None for arguments. `prefix` comes before the names of keys in messages.

    Raises:
        error: names the key, the value found and what is allowed.
    """
    import pydantic

    check_mapping(kind, values, source, error, prefix)
    try:
        built: Settings = _find_adapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as problem:
        key = prefix + ".".join(str(part) for part in problem.errors()[0]["loc"])
        raise error(describe_problem(problem), _name(source, key)) from None
    return built


@functools.cache
def _find_adapter(kind: type) -> Any:
    """What checks a dataclass; making one takes longer than using it a hundred times."""
    import pydantic

    return pydantic.TypeAdapter(kind)


_EXPECTED = {  # by the first word of pydantic's type of error
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "tuple": "a list", "sequence": "a list",
    "iterable": "a list", "path": "a path", "bytes": "bytes", "dict": "a mapping", "dataclass": "a mapping",
}  # fmt: skip


_CLASSES = {"Path": "a path", "Sequence": "a list", "Collection": "a list", "Iterable": "a list", "iterable": "a list"}


def describe_problem(problem: ValidationError) -> str:
    """Say in a sentence what pydantic found first: what is allowed, and the value found."""
    return _describe_details(problem.errors()[0])


def _describe_details(first: ErrorDetails) -> str:
    kind, message = first["type"], first["msg"]
    if kind == "missing":
        return "is missing."
    if kind == "value_error":  # the message of a check of our own, or of Typer's, which quotes the value
        return shorten(message.removeprefix("Value error, ").rstrip("."), 300) + "."
    word = kind.partition("_")[0]
    if kind == "predicate_failed":
        message = "must be a finite number"
    elif kind == "string_unicode":  # a path from the command line
        message = "must be valid UTF-8"
    elif kind.endswith(("_type", "_parsing", "_from_float", "_str")) and word in _EXPECTED:
        message = f"must be {_EXPECTED[word]}"
    else:
        message = re.sub(r"^(Input|String|List|Tuple) should ", "must ", message).partition(" after validation")[0]
        message = shorten(message, 300)
    return f"{message}, found {quote(first['input'])}."


def check_mapping(
    kind: type[DataclassInstance],
    values: Mapping[str, Any],
    source: str | None,
    error: type[PneumoscopeError] = UsageError,
    prefix: str = "",
) -> None:
    """Check that all keys are fields of a dataclass or of its groups, that groups are mappings and all numbers finite.

    Pydantic takes NaN for a number of any range.

    Raises:
        error: names the key, the known ones, or the group that it belongs to.
    """
    groups: dict[str, Any] = {name: hint for name, hint in _find_types(kind).items() if dataclasses.is_dataclass(hint)}
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        name = _name(source, f"{prefix}{key}")
        if key not in known:
            place = [group for group, hint in groups.items() if key in (each.name for each in dataclasses.fields(hint))]
            hint = f"It belongs under `{place[0]}:`." if place else f"Known keys: {', '.join(known)}."
            raise error(f"unknown key. {hint}", name)
        if key not in groups:
            _check_finite(value, name, error)
            continue
        if not isinstance(value, Mapping):
            raise error(f"must be a mapping, found {quote(value)}.", name)
        check_mapping(groups[key], value, source, error, f"{prefix}{key}.")


@functools.cache
def _find_types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_finite(value: object, name: str, error: type[PneumoscopeError]) -> None:
    """Check that a value, and all inside it, is no NaN and no infinite number, and not nested without end."""
    level = [value]
    for _ in range(MAX_DEPTH):
        lowest = [each for each in level if isinstance(each, float)]
        if wrong := [each for each in lowest if not math.isfinite(each)]:
            raise error(f"must be a finite number, found {wrong[0]}.", name)
        mappings = [each for each in level if isinstance(each, Mapping)]
        lists = [each for each in level if isinstance(each, list | tuple)]
        level = [inner for each in mappings for inner in each.values()] + [inner for each in lists for inner in each]
        if not level:
            return
    raise error(f"nested more than {MAX_DEPTH} deep.", name)


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function check its arguments by their annotations: a wrong type or value is a UsageError that names it.

    A NumPy number is passed on as a number of Python. What has an annotation that exists for type checkers alone is
    not checked.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            plain = value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
            bound.arguments[name] = _check_argument(_read_types(function).get(name), name, plain)
        try:
            return function(*bound.args, **bound.kwargs)
        except ModuleNotFoundError as problem:
            if (missing := find_missing_extra(problem)) is None:
                raise
            raise missing from None

    return call


@functools.cache
def _read_types(function: Callable[..., Any]) -> dict[str, Any]:
    """What checks each parameter: a dataclass its instances, pydantic the rest."""
    import pydantic
    from pydantic_core import SchemaError

    types: dict[str, Any] = {}
    settings = pydantic.ConfigDict(arbitrary_types_allowed=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.annotation is inspect.Parameter.empty:
            continue
        shim = SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            hint = get_type_hints(shim, function.__globals__, include_extras=True)[name]
            adapter = pydantic.TypeAdapter(hint, config=settings) if not dataclasses.is_dataclass(hint) else None
            if adapter is None or adapter.pydantic_complete:
                types[name] = adapter or hint
        except (
            NameError,
            SchemaError,
            pydantic.PydanticSchemaGenerationError,
        ):  # arrays are checked where they are used
            continue
    return types


def _check_argument(kind: Any, name: str, value: object) -> object:
    import pydantic

    if isinstance(kind, type):
        if not isinstance(value, kind):
            raise UsageError(f"must be {kind.__name__}, found {quote(value)}.", name)
    elif kind is not None:
        try:
            kind.validate_python(value, strict=True)
        except pydantic.ValidationError as problem:
            errors = problem.errors()
            kinds = [str(each.get("ctx", {}).get("class_name") or _describe_details(each)) for each in errors]
            plain = [each.rpartition(", found ")[0].removeprefix("must be ") or each for each in kinds]
            plain = [_CLASSES.get(each, each) for each in (part.removeprefix("an instance of ") for part in plain)]
            choices = [each for each in dict.fromkeys(plain) if each != "text" or "a path" not in plain]
            raise UsageError(f"must be {' or '.join(choices)}, found {quote(value)}.", name) from None
    return value


def quote(value: object) -> str:
    """A value as Python writes it, cut to a length that fits a message."""
    try:
        return _QUOTES.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


_QUOTES = reprlib.Repr()
_QUOTES.maxstring = _QUOTES.maxother = _QUOTES.maxlong = 80


def _name(source: str | None, key: str) -> str:
    key = shorten(key, 100)
    return f"{source}: {key}" if source else key


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UsageError: the file is missing, too large, is not YAML, has aliases or merges, or holds something else.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML without what lets a few lines stand for gigabytes."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not read; write the value out", mark)
            return super().compose_node(parent, index)

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            seen = set[object]()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(None, None, "a key must be text", key.start_mark)
                if key.value in seen:
                    problem = f"the key {shorten(key.value, 100)} occurs twice; leave one out"
                    raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
                seen.add(key.value)
                if key.tag == "tag:yaml.org,2002:merge":
                    problem = "merges (<<) are not read; write the values out"
                    raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)

    try:
        values = yaml.load(read_regular(path, MAX_BYTES).decode("utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except Exception as problem:  # PyYAML raises many kinds of errors on malformed dates and numbers
        text = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise UsageError(f"{path}: cannot be read as YAML: {shorten(text or repr(problem), 500)}") from None
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
