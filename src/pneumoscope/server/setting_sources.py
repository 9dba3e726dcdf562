"""Settings of the service from flags, the environment and a YAML file; all follow from the table in `settings`."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from pneumoscope.config import build, read_mapping
from pneumoscope.errors import UsageError
from pneumoscope.server.settings import Flag, Limits, Settings

ENVIRONMENT = "PNEUMOSCOPE_"
CONFIG = f"{ENVIRONMENT}CONFIG"
# Variables of other parts of the package, and those that Kubernetes makes for a service of this name.
_OTHERS = re.compile(
    "NODE_.*|CACHE|CONFIG|DATA|DATABASE_PASSWORD_FILE|DEBUG|HEALTH|MLFLOW|PSEUDONYM_KEY_FILE|(.*_)?(SERVICE_|PORT_).*"
)
_LONGEST_TOKEN = 10_000  # bytes of a file


@dataclass(frozen=True)
class Option:
    """A setting that is a flag.

    Attributes:
        name: of the setting.
        kind: of its value.
        help: what it does, and its default.
        panel: of the help.
    """

    name: str
    kind: Any
    help: str
    panel: str


def list_options() -> Iterator[Option]:
    """All settings that are flags, in their order."""
    defaults = Settings()
    for name, hint in _list_hints().items():
        flag = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Flag)), None)
        if flag is None or not flag.given:
            continue
        default = getattr(defaults, name)
        shown = "" if default in (None, "", ()) or isinstance(default, bool) else f" [default: {default}]"
        yield Option(name, _to_kind(hint), flag.text + shown, flag.panel)


def read_settings(
    config: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Build settings: flags override the environment, and the environment overrides the file.

    Args:
        config: a YAML file, or None for that of PNEUMOSCOPE_CONFIG, if there is one.
        flags: by name of the setting, None or empty where not given.
        environment: variables such as PNEUMOSCOPE_PORT or, of the group `limits`, PNEUMOSCOPE_LIMITS_REQUESTS.

    Raises:
        UsageError: names the key, variable or flag, what was found and what is allowed.
    """
    file = config or (Path(environment[CONFIG]) if environment.get(CONFIG) else None)
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    _refuse_secrets(given)
    settings = Settings()
    if file is not None:
        settings = _add(settings, _to_lists(read_mapping(file)), str(file))
    settings = _add(settings, _read_environment(environment), "environment")
    settings = _add(settings, given, None)
    settings.check()
    return settings


def _add(settings: Settings, values: Mapping[str, Any], source: str | None) -> Settings:
    """Put the values of a source in place of those before."""
    built = build(Settings, values, source)
    changes = {name: getattr(built, name) for name in values}
    if "limits" in changes:
        named = {name: getattr(built.limits, name) for name in values["limits"]}
        changes["limits"] = dataclasses.replace(settings.limits, **named)
    if changes.get("token_file") is not None:
        changes["token"] = _read_token(changes["token_file"])
    return dataclasses.replace(settings, **changes)


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = [name for name in _list_hints() if name != "limits"]
    limits = [each.name for each in dataclasses.fields(Limits)]
    for variable, text in environment.items():
        name = variable.removeprefix(ENVIRONMENT)
        if not variable.startswith(ENVIRONMENT) or not text.strip():
            continue
        if name.lower() in names:
            if not (name == "PORT" and text.startswith("tcp://")):  # Kubernetes
                found[name.lower()] = text.strip()
        elif name.lower().removeprefix("limits_") in limits and name.startswith("LIMITS_"):
            found.setdefault("limits", {})[name.lower().removeprefix("limits_")] = text.strip()
        elif not _OTHERS.fullmatch(name):
            known = ", ".join(f"{ENVIRONMENT}{name.upper()}" for name in sorted(names))
            raise UsageError(f"unknown variable. Known: {known}, {ENVIRONMENT}LIMITS_….", variable)
    return _to_lists(found)


def _to_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a text where a list of texts is wanted: its parts between spaces or commas."""
    lists = [name for name, hint in _list_hints().items() if get_origin(_bare(hint)) is tuple]
    return {
        name: value.replace(",", " ").split() if name in lists and isinstance(value, str) else value
        for name, value in values.items()
    }


def _refuse_secrets(flags: Mapping[str, Any]) -> None:
    """Refuse a password on the command line, which every program of the machine can read."""
    database = flags.get("database")
    try:
        password = urlsplit(database).password if database else None
    except ValueError:  # the database says what is wrong with it
        return
    if password:
        raise UsageError(
            "others can see a password on the command line. Put the address into the variable PNEUMOSCOPE_DATABASE, or "
            "the password into a file that PNEUMOSCOPE_DATABASE_PASSWORD_FILE names.",
            "database",
        )


def _read_token(file: Path) -> str:
    from pneumoscope.files import read_regular

    try:
        token = read_regular(file, _LONGEST_TOKEN).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UsageError(f"{file} cannot be read: {reason}.", parameter="token_file") from None
    if not token:
        raise UsageError(
            f"{file} is empty. Put a token into it, for example from: openssl rand -hex 32", parameter="token_file"
        )
    return token


def _list_hints() -> dict[str, Any]:
    hints: dict[str, Any] = get_type_hints(Settings, include_extras=True)
    return hints


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is typing.Annotated else hint


def _to_kind(hint: Any) -> Any:
    """The type of a flag's value."""
    kind = _bare(hint)
    if get_origin(kind) is tuple:
        return list[str]
    if isinstance(kind, types.UnionType) or get_origin(kind) is typing.Union:
        kinds = [each for each in get_args(kind) if each is not types.NoneType]
        return str if str in kinds else kinds[0]
    return kind if get_origin(kind) is Literal or isinstance(kind, type) else str
