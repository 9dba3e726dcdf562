"""Settings of the DICOM node, from a YAML file, the environment and flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt

from pneumoscope.config import Count, build, read_mapping
from pneumoscope.dicomnet.addresses import (
    Destination,
    Port,
    Tls,
    check_destination,
    check_title,
    is_loopback,
    name_destination,
    parse_destination,
)
from pneumoscope.dicomnet.rules import Rule
from pneumoscope.errors import UsageError

ENVIRONMENT = "PNEUMOSCOPE_NODE_"
Seconds: TypeAlias = Annotated[float, Gt(0)]
Wait: TypeAlias = Annotated[float, Ge(0)]
Kind: TypeAlias = Literal["sr", "sc", "map", "seg"]
_TUPLES = ("calling", "modality", "body_part", "view", "to", "allowed", "sop_classes", "kinds")


@dataclass(frozen=True)
class Retries:
    """How failed deliveries are tried again.

    Attributes:
        first: seconds to wait after the first failure; each further failure doubles them.
        longest: seconds to wait at most.
        refusals: how often a destination may refuse a result before it counts as failed. Attempts while a destination
            is out of reach do not count.
        verify_after: seconds after sending until the node first asks whether a result is there.
        verify_within: seconds after sending until a result that is not there counts as not sent.
        commit_within: the same for storage commitment, which archives may report after hours.
    """

    first: Seconds = 1.0
    longest: Seconds = 300.0
    refusals: Count = 12
    verify_after: Wait = 0.5
    verify_within: Seconds = 60.0
    commit_within: Seconds = 86_400.0


@dataclass(frozen=True)
class Limits:
    """What the node accepts.

    Attributes:
        associations: at a time.
        object_bytes: of one object.
        object_seconds: that one object may take.
        request_bytes: of one request of STOW-RS, which is held in memory.
        requests: of STOW-RS at a time.
        silence: seconds that a sender may be silent in the middle of a message.
        idle: seconds that an association may be open while nothing is sent.
        free_bytes: free space on the disk below which images are refused.
    """

    associations: Count = 32
    object_bytes: Count = 256 * 1024**2
    object_seconds: Seconds = 600.0
    request_bytes: Count = 256 * 1024**2
    requests: Count = 2
    silence: Seconds = 30.0
    idle: Seconds = 120.0
    free_bytes: Annotated[int, Ge(0)] = 1024**3


@dataclass(frozen=True)
class NodeSettings:
    """Settings of the node.

    Attributes:
        title: its AE title.
        host: address to listen on.
        port: for DICOM; 0 takes a free one.
        http_host: address for STOW-RS, health and metrics.
        http_port: its port; 0 takes a free one, None opens none.
        stow: whether images are received by STOW-RS.
        token: what callers of STOW-RS and metrics must send; needed if other machines can reach the address.
        watch: folder from which files are also taken; it is only read.
        spool: folder for what is received and what is to be sent.
        database: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        model: what `--model` takes; None for the pretrained one.
        kinds: which objects are sent; see `ResultSettings`, as for the next two.
        report_class: of structured reports.
        unit: of probabilities in structured reports.
        allowed: AE titles that may call; empty for all.
        any_called: also accept associations for other AE titles than `title`.
        sop_classes: those that are received, by the standard's keyword or by UID.
        quiet: seconds without a new image after which a study is answered.
        longest_wait: seconds after which a study is answered in any case.
        batch: images that are predicted together, of several studies.
        keep_days: how long images and results stay in the spool after everything is delivered.
        dry_run: whether nothing is sent.
        retry_failed: whether to try results again that destinations have refused for good.
        log_format: of the log on standard error.
        tls: certificates of the DICOM listener; with a certificate it speaks TLS.
        limits: what is accepted.
        retries: how failed deliveries are tried again.
        destinations: where results go.
        rules: which images are answered; the first rule that fits decides.
    """

    title: str = "PNEUMOSCOPE"
    host: str = "127.0.0.1"
    port: Port = 11112
    http_host: str = "127.0.0.1"
    http_port: Port | None = 11180
    stow: bool = False
    token: str | None = field(default=None, repr=False)
    watch: Path | None = None
    spool: Path = Path("spool")
    database: str | None = field(default=None, repr=False)
    model: str | None = None
    kinds: tuple[Kind, ...] = ("sr", "sc")
    report_class: Literal["comprehensive-3d", "comprehensive"] = "comprehensive-3d"
    unit: Literal["1", "%"] = "1"
    allowed: tuple[str, ...] = ()
    any_called: bool = False
    sop_classes: tuple[str, ...] = (
        "ComputedRadiographyImageStorage",
        "DigitalXRayImageStorageForPresentation",
        "DigitalXRayImageStorageForProcessing",
        "SecondaryCaptureImageStorage",
    )
    quiet: Wait = 5.0
    longest_wait: Seconds = 600.0
    batch: Count = 32
    keep_days: Wait = 7.0
    dry_run: bool = False
    retry_failed: bool = False
    log_format: Literal["text", "json"] = "text"
    tls: Tls = Tls()  # noqa: RUF009 - it is frozen
    limits: Limits = Limits()
    retries: Retries = Retries()
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = ()

    def check(self) -> None:
        """Refuse settings that are dangerous or contradict each other.

        Raises:
            UsageError: names the setting.
        """
        for each in self.destinations:
            check_destination(each)
        for title in (self.title, *self.allowed):
            check_title(title)
        if (self.tls.certificate is None) != (self.tls.key is None):
            raise UsageError("A certificate needs its private key, and the other way round.", "tls.key")
        if self.tls.authorities is not None and self.tls.certificate is None:
            raise UsageError("no effect without a certificate of the node.", "tls.authorities")
        if self.http_port is not None:
            _check_token(self.token, self.http_host)
        elif self.stow:
            raise UsageError("STOW-RS needs a port. Set `http_port`.", "stow")
        if not self.kinds:
            raise UsageError("names no kind of result. Choose from sr, sc, map, seg.", "kinds")
        if self.watch is not None and not self.watch.is_dir():
            raise UsageError(f"{self.watch}: not a folder.", "watch")
        names = [each.name for each in self.destinations]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"two destinations have the name {twice[0]}. Give one of them another `name`.", "to")
        for number, rule in enumerate(self.rules):
            if unknown := [name for name in rule.to if name not in names]:
                known = ", ".join(names) or "there are none"
                raise UsageError(f"no destination has the name {unknown[0]!r}. Known: {known}.", f"rules[{number}].to")
        if not self.destinations and not self.dry_run:
            raise UsageError("Results need a destination: give `to`, or `dry_run=True` to send nothing.", "to")


def _check_token(token: str | None, host: str) -> None:
    if token is None:
        if not is_loopback(host):
            raise UsageError(
                f"{host}: others can reach this address, so a token is needed. Set {ENVIRONMENT}TOKEN, for example to "
                "the output of: openssl rand -hex 32. Or listen on 127.0.0.1, the default.",
                "http_host",
            )
    elif len(token) < 16 or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("must be at least 16 ASCII characters without spaces.", "token")


def read_settings(
    config: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> NodeSettings:
    """Build settings: flags override the environment, and the environment overrides the file.

    Args:
        config: a YAML file, or None.
        flags: by name of the setting, None where not given. `to` is a list of addresses (see `parse_destination`),
            `verify` says how they are asked, and `http` says whether there is a port for HTTP.
        environment: variables such as PNEUMOSCOPE_NODE_PORT; PNEUMOSCOPE_NODE_TO holds addresses with spaces between.

    Raises:
        UsageError: names the key, variable or flag, what was found and what is allowed.
    """
    settings = NodeSettings() if config is None else _read_file(config)
    given = _read_environment(environment) | {name: value for name, value in flags.items() if value is not None}
    addresses, verify, http = given.pop("to", ()), given.pop("verify", None), given.pop("http", True)
    if addresses:
        several = tuple(parse_destination(each, verify or "none") for each in addresses)
        settings = dataclasses.replace(settings, destinations=several)
    elif verify is not None:
        raise UsageError("no effect without `to`. In a file, each destination has its own.", "verify")
    changed = build(NodeSettings, given)
    settings = dataclasses.replace(settings, **{name: getattr(changed, name) for name in given})
    if not http:
        settings = dataclasses.replace(settings, http_port=None)
    settings.check()
    return settings


def _read_file(config: Path) -> NodeSettings:
    values, source = read_mapping(config), str(config)
    destinations = _build_parts(Destination, values, "destinations", source)
    rules = _build_parts(Rule, values, "rules", source)
    settings = build(NodeSettings, _to_lists(values), source)
    named = tuple(dataclasses.replace(each, name=each.name or name_destination(each)) for each in destinations)
    return dataclasses.replace(settings, destinations=named, rules=tuple(rules))


def _build_parts(kind: Any, values: dict[str, Any], key: str, source: str) -> list[Any]:
    """Build the members of a list, which `build` would not check for unknown keys."""
    parts = values.pop(key, None) or []
    if not isinstance(parts, list):
        raise UsageError(f"must be a list, found {type(parts).__name__}.", f"{source}: {key}")
    built = []
    for number, part in enumerate(parts):
        if not isinstance(part, dict):
            raise UsageError(f"must be a mapping, found {type(part).__name__}.", f"{source}: {key}[{number}]")
        built.append(build(kind, _to_lists(part), source, prefix=f"{key}[{number}]."))
    return built


def _to_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a single text where a list is wanted, as a list of one."""
    return {key: _to_list(key, each) if isinstance(each, str) else each for key, each in values.items()}


def _to_list(key: str, text: str) -> str | list[str]:
    if key == "kinds":
        return text.replace(",", " ").split()
    if key not in _TUPLES:
        return text
    return [text]


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings in the environment, by name."""
    known = {each.name for each in dataclasses.fields(NodeSettings)} - {
        "tls",
        "limits",
        "retries",
        "destinations",
        "rules",
    }
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(ENVIRONMENT).lower()
        if not variable.startswith(ENVIRONMENT) or name == "config":
            continue
        if name not in known | {"to", "verify"}:
            raise UsageError(f"unknown variable. Known: {', '.join(sorted(known | {'to', 'verify'}))}.", variable)
        found[name] = text.replace(",", " ").split() if name == "kinds" else text
        if name in ("to", *_TUPLES) and name != "kinds":
            found[name] = text.split()
    return found
