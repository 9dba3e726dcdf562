"""Settings of the DICOM node, from a YAML file, the environment and flags."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from annotated_types import Ge, Gt, Interval

from pneumoscope.config import Count, build, read_mapping
from pneumoscope.dicomnet.rules import Rule
from pneumoscope.errors import UsageError

ENVIRONMENT = "PNEUMOSCOPE_NODE_"
Port: TypeAlias = Annotated[int, Interval(ge=0, le=65535)]
Seconds: TypeAlias = Annotated[float, Gt(0)]
Wait: TypeAlias = Annotated[float, Ge(0)]
Verify: TypeAlias = Literal["none", "find", "commitment", "qido"]
_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2: AE, without backslash and control characters
Kind: TypeAlias = Literal["sr", "sc", "map", "seg"]
_TUPLES = ("calling", "modality", "body_part", "view", "to", "allowed", "sop_classes", "kinds")
_NAME = 200  # characters of a destination's name that the database keeps


@dataclass(frozen=True)
class Tls:
    """Certificates of one direction, as PEM files.

    Attributes:
        certificate: our own, with its chain.
        key: its private key.
        authorities: those whose certificates the other side has to have. A server with authorities refuses clients
            without a certificate; a client without them trusts those of the system.
    """

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None


@dataclass(frozen=True)
class Destination:
    """Where results go: an AE of DICOM (`host`, `port`, `title`), or a DICOMweb server (`url`).

    Attributes:
        name: in messages and metrics; by default TITLE@HOST:PORT or the URL.
        host: of an AE.
        port: of an AE.
        title: the AE title to call.
        url: of a DICOMweb service, to which `/studies` is added.
        token_file: holds a token for the header Authorization of a URL.
        login_file: holds USER:PASSWORD for a URL.
        verify: how it is found out that a result has been stored: not at all, by C-FIND, by storage commitment, or by
            QIDO-RS.
        secure: whether an AE speaks TLS.
        tls: certificates; a client certificate is sent where there is one.
    """

    name: str = ""
    host: str = ""
    port: Port = 104
    title: str = ""
    url: str = ""
    token_file: Path | None = None
    login_file: Path | None = None
    verify: Verify = "none"
    secure: bool = False
    tls: Tls = Tls()


@dataclass(frozen=True)
class Retries:
    """How delivering is tried again.

    Attributes:
        first: seconds to wait after the first failure; each further one doubles them.
        longest: seconds to wait at most.
        refusals: how often a destination may refuse a result before it counts as failed. While a destination is out of
            reach, this does not count.
        verify_after: seconds after sending, when it is first asked whether a result is there.
        verify_within: seconds after sending, when a result that is not there counts as not sent.
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
        silence: seconds that a sender may be silent in the middle of something.
        idle: seconds that an association may be open without anything sent.
        free_bytes: of the disk, below which images are refused.
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
        token: what callers of STOW-RS and metrics must send; needed on any address but this machine's own.
        watch: folder from which files are taken, too; it is only read.
        spool: folder for what is received and what is to be sent.
        database: SQLAlchemy's URL, or the path of a SQLite file; None for the user's own file.
        model: what `--model` takes; None for the pretrained one.
        kinds: which objects are sent; see `ResultSettings`, as for the next two.
        report_class: of structured reports.
        unit: of probabilities in structured reports.
        allowed: AE titles that may call; empty for all.
        any_called: also accept associations for other AE titles than `title`.
        sop_classes: that are received, by keyword of the standard's or UID.
        quiet: seconds without a new image after which a study is answered.
        longest_wait: seconds after which a study is answered in any case.
        batch: images that are predicted together, of several studies.
        keep_days: how long images and results stay in the spool after all is delivered.
        dry_run: whether nothing is sent.
        retry_failed: whether to try results again that destinations have refused for good.
        log_format: of the log on standard error.
        tls: certificates of the DICOM listener; with a certificate it speaks TLS.
        limits: what is accepted.
        retries: how delivering is tried again.
        destinations: where results go.
        rules: which images are answered; the first that fits decides.
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
    tls: Tls = Tls()
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


def check_title(title: str) -> None:
    """Refuse what is no AE title.

    Raises:
        UsageError: it is empty, too long, or has other characters than AE titles may have.
    """
    if not _TITLE.fullmatch(title) or not title.strip():
        raise UsageError(f"{title!r} is no AE title: 1 to 16 ASCII characters without backslash.", "title")


def check_destination(each: Destination) -> None:
    """Refuse a destination that is dangerous, or has settings without effect.

    Raises:
        UsageError: names the setting.
    """
    if bool(each.url) == bool(each.host):
        raise UsageError(f"{each.name}: a destination has either a `host` or a `url`.", "destinations")
    if len(each.name) > _NAME:
        raise UsageError(f"{each.name[:60]}…: longer than {_NAME} characters. Give it a shorter `name`.", "name")
    wrong = ("find", "commitment") if each.url else ("qido",)
    if each.verify in wrong:
        over = "a URL is asked by qido" if each.url else "an AE is asked by find or commitment"
        raise UsageError(f"{each.name}: {each.verify} does not suit it; {over}.", "verify")
    if each.tls.certificate is None and each.tls.key is not None:
        raise UsageError(f"{each.name}: no effect without a `certificate`.", "tls.key")
    secret = "token_file" if each.token_file is not None else "login_file" if each.login_file is not None else ""
    if not each.url:
        check_title(each.title)
        if secret:
            raise UsageError(f"{each.name}: an AE takes none; it is for the `url` of a DICOMweb service.", secret)
        return
    parts = urlsplit(each.url)
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"{each.name}: the URL has to begin with http:// or https://.", "destinations")
    if each.token_file is not None and each.login_file is not None:
        raise UsageError(f"{each.name}: it has both `token_file` and `login_file`. Leave one out.", "destinations")
    if each.secure:
        raise UsageError(f"{each.name}: for an AE only. A URL speaks TLS if it begins with https://.", "secure")
    if parts.scheme == "http" and each.tls != Tls():
        raise UsageError(f"{each.name}: no effect, unless the URL begins with https://.", "tls")
    if parts.scheme == "http" and secret and not is_loopback(parts.hostname or ""):
        raise UsageError(f"{each.name}: everybody on the way could read it. Use https://.", secret)


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


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(
    config: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> NodeSettings:
    """Build settings: flags come before the environment, and that before the file.

    Args:
        config: a YAML file, or None.
        flags: by name of the setting, None where not given. `to` is a list of addresses (see `parse_destination`),
            `verify` says how they are asked, and `http` whether there is a port for HTTP.
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
    named = tuple(dataclasses.replace(each, name=each.name or _name(each)) for each in destinations)
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
    """One text stands for a list of one, where a list is wanted."""
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


def parse_destination(address: str, verify: Verify = "none") -> Destination:
    """Read an address: `dicom://TITLE@HOST:PORT`, `dicoms://` for TLS, or `http(s)://…` of a DICOMweb service.

    Raises:
        UsageError: it is neither.
    """
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme in ("http", "https") and parts.hostname:
        if parts.username is not None:
            raise UsageError("no names or passwords in addresses; put them into a file (`login_file`).", "to")
        return Destination(name=address.rstrip("/"), url=address.rstrip("/"), verify=verify)
    if parts.scheme not in ("dicom", "dicoms") or not parts.hostname or not parts.username or port is None:
        raise UsageError(
            f"{address}: must be dicom://TITLE@HOST:PORT, dicoms://TITLE@HOST:PORT, or the http(s) address of a "
            "DICOMweb service.",
            "to",
        )
    title = unquote(parts.username)
    return Destination(
        name=f"{title}@{parts.hostname}:{port}",
        host=parts.hostname,
        port=port,
        title=title,
        verify=verify,
        secure=parts.scheme == "dicoms",
    )


def _name(each: Destination) -> str:
    return each.url or f"{each.title}@{each.host}:{each.port}"
