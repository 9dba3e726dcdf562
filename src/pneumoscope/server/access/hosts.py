"""Names of hosts in requests and settings: what the header `Host` may hold, and addresses of networks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from pneumoscope.errors import UsageError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?P<name>\[[0-9a-f:.]{{2,45}}\]|{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII)
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", re.ASCII)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Host:
    """A host as the header `Host` names it (RFC 9110, 7.2).

    Attributes:
        name: in lower case; an IPv6 address is in brackets and in its shortest form.
        port: None where it is left out.
    """

    name: str
    port: int | None = None

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


@dataclass(frozen=True)
class PublicUrl:
    """The address under which browsers and programs reach the service.

    Attributes:
        scheme: `http` or `https`.
        host: its host.
        path: without a slash at the end; empty for the root.
    """

    scheme: str
    host: Host
    path: str

    @property
    def origin(self) -> str:
        """Scheme and host, as browsers write it in the header `Origin`."""
        port = None if self.host.port == _PORTS[self.scheme] else self.host.port
        return f"{self.scheme}://{Host(self.host.name, port)}"


def parse_host(text: str) -> Host | None:
    """Read a header `Host`; None if it is none."""
    found = _HOST.fullmatch(text.lower())
    if found is None or len(found["name"]) > 253:
        return None
    name, port = found["name"], int(found["port"]) if found["port"] else None
    if port is not None and port > 65535:
        return None
    try:
        if name.startswith("["):
            name = f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]"
        elif name.rpartition(".")[2].isdigit() or re.fullmatch(r"0x[0-9a-f]*", name.rpartition(".")[2]):
            ipaddress.IPv4Address(name)  # browsers take a name whose last part is a number for an address
    except ValueError:
        return None
    return Host(name, port)


def name_address(address: str) -> str:
    """Write an address or name to listen on as the header `Host` has it."""
    try:
        return f"[{ipaddress.IPv6Address(address).compressed}]"
    except ValueError:
        return address.lower()


def parse_public_url(text: str) -> PublicUrl:
    """Read the address of the service.

    Raises:
        UsageError: it is none, or has parts that the address of a service cannot have.
    """
    try:
        parts = urlsplit(text)
        host = parse_host(parts.netloc)
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in _PORTS or host is None or parts.query or parts.fragment:
        raise UsageError(
            f"{text!r} is not the address of a service. Give scheme, host and perhaps a path, such as "
            "https://xray.example.org/pneumoscope.",
            parameter="public_url",
        )
    return PublicUrl(parts.scheme, host, parse_root_path(parts.path, "public_url"))


def parse_root_path(text: str, parameter: str = "root_path") -> str:
    """Read the path below which the service is reached; without a slash at its end.

    Raises:
        UsageError: it does not begin with a slash, or has characters that would have to be escaped.
    """
    path = text.rstrip("/")
    if not _PATH.fullmatch(path):
        raise UsageError(
            f"{text!r} is not a path. Use a slash, then letters, digits and -._~, such as /pneumoscope.",
            parameter=parameter,
        )
    return path


def parse_networks(texts: Iterable[str], parameter: str) -> tuple[Network, ...]:
    """Read addresses and networks.

    Raises:
        UsageError: one is neither, or a network's address has bits that its length leaves out.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip()))
        except ValueError as problem:
            raise UsageError(
                f"{text!r} is neither an address nor a network ({problem}). Write for example 127.0.0.1 or 10.0.0.0/8.",
                parameter=parameter,
            ) from None
    return tuple(networks)


def parse_address(text: str) -> Address | None:
    """Read the address of a peer, which may have a port; an IPv4 address inside an IPv6 one is returned as itself."""
    bare = text.strip()
    if found := re.fullmatch(r"\[([^\]]*)\](?::[0-9]{1,5})?", bare, re.ASCII):
        bare = found[1]
    elif re.fullmatch(r"[0-9.]+:[0-9]{1,5}", bare, re.ASCII):
        bare = bare.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_within(address: Address | None, networks: Sequence[Network]) -> bool:
    """Whether an address belongs to one of these networks."""
    return address is not None and any(address in network for network in networks)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
