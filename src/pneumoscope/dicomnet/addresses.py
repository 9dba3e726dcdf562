"""Destinations: where results go, how they are written as an address, and which are refused."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from annotated_types import Interval

from pneumoscope.errors import UsageError

Port: TypeAlias = Annotated[int, Interval(ge=0, le=65535)]
Verify: TypeAlias = Literal["none", "find", "commitment", "qido"]
_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2: AE, without backslash and control characters
_NAME = 200  # characters of a destination's name that the database keeps


@dataclass(frozen=True)
class Tls:
    """Certificates of one direction, as PEM files.

    Attributes:
        certificate: our own, with its chain.
        key: its private key.
        authorities: the authorities that must have issued the other side's certificate. A server with authorities
            refuses clients without a certificate; a client without them trusts those of the system.
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
        verify: how to check that a result has been stored: not at all, by C-FIND, by storage commitment, or by
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


def check_title(title: str) -> None:
    """Refuse a text that is not an AE title.

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
        raise UsageError(f"{each.name}: everybody on the network in between could read it. Use https://.", secret)


def is_loopback(host: str) -> bool:
    """Whether an address belongs to this machine alone, so that no other can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def name_destination(each: Destination) -> str:
    """The name of a destination that was given none."""
    return each.url or f"{each.title}@{each.host}:{each.port}"
