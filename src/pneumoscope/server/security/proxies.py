"""What a proxy in front says about a request: where it comes from, how the client addressed it, and who it is.

Only trusted proxies are believed. From anybody else these headers are ignored, and nobody behind this module sees them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from pneumoscope.server.access.callers import ROLES, Role
from pneumoscope.server.access.hosts import Address, is_within, parse_address, parse_networks
from pneumoscope.server.problems import RequestError
from pneumoscope.server.settings import Settings, parse_group_roles
from pneumoscope.text import to_line

_FORWARDED = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip", "forwarded")
_PAIR = re.compile(r"\s*(?P<name>[A-Za-z]+)=(?P<value>\"(?:[^\"\\]|\\.)*\"|[^\s;,\"]*)\s*", re.ASCII)
_UNREADABLE = "The proxy's header Forwarded cannot be read (RFC 7239)."
_LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class Identity:
    """The person that a proxy has asked to log in.

    Attributes:
        name: as the proxy writes it.
        email: empty where it sends none.
        role: the highest that a group has; None without such a group.
    """

    name: str
    email: str = ""
    role: Role | None = None


class Proxies:
    """Reads what trusted proxies add to requests."""

    def __init__(self, settings: Settings) -> None:
        self.networks = parse_networks(settings.trusted_proxies, "trusted_proxies")
        self._standard = settings.forwarded == "forwarded"
        names = (settings.user_header, settings.email_header, settings.groups_header)
        self._user, self._email, self._groups = (name.lower() if name else None for name in names)
        self._roles = parse_group_roles(settings.group_roles)
        self._hidden = {*_FORWARDED, *(name for name in (self._user, self._email, self._groups) if name)}

    def resolve(self, scope: Scope) -> tuple[Scope, Identity | None]:
        """Replace the proxy's address and host by those of the client, and say who the client is.

        Raises:
            RequestError: 400, a trusted proxy sends what cannot be read.
        """
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if (key := name.decode("latin-1").lower()) in self._hidden:
                headers.setdefault(key, []).append(value.decode("utf-8", "replace"))
        peer = parse_address(scope["client"][0]) if scope.get("client") else None
        trusted = is_within(peer, self.networks)
        if not headers and not trusted:
            return scope, None
        kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() not in self._hidden]
        scope = {**scope, "headers": kept}
        if peer is None or not trusted:
            return scope, None
        read = _read_standard if self._standard else _read_usual
        hops, scheme, host = read(headers)
        scope["client"] = (str(self._find_client(peer, hops)), 0)
        if scheme in ("http", "https"):
            scope["scheme"] = scheme
        elif scheme:
            raise RequestError(400, "The proxy forwards neither http nor https.", code="request-malformed")
        if host:
            others = [(name, value) for name, value in kept if name.lower() != b"host"]
            scope["headers"] = [(b"host", host.encode("utf-8", "replace")), *others]
        return scope, self._identify(headers)

    def _find_client(self, peer: Address, hops: Sequence[str]) -> Address:
        """The nearest address that is no trusted proxy's; whatever lies behind it could be made up."""
        client = peer
        for hop in reversed(hops):
            address = parse_address(hop)
            if address is None:  # hidden on purpose, or made up
                break
            client = address
            if not is_within(client, self.networks):
                break
        return client

    def _identify(self, headers: dict[str, list[str]]) -> Identity | None:
        def read(name: str | None) -> str:
            values = headers.get(name, []) if name else []
            if len(values) > 1:
                detail = f"The header {name} occurs twice. The proxy must replace what clients send."
                raise RequestError(400, detail, code="request-malformed")
            return to_line(values[0]) if values else ""

        name, email = read(self._user)[:_LONGEST], read(self._email)[:_LONGEST]
        groups = {group.strip() for group in read(self._groups).split(",")}
        if not (name or email):
            return None
        roles = [role for group, role in self._roles.items() if group in groups or group == "*"]
        return Identity(name or email, email, max(roles, key=ROLES.index, default=None))


def _read_usual(headers: dict[str, list[str]]) -> tuple[list[str], str, str]:
    """Read X-Forwarded-For, -Proto and -Host; of the latter two the last value, which the nearest proxy has set."""
    hops = [hop.strip() for value in headers.get("x-forwarded-for", []) for hop in value.split(",")]
    scheme, host = (
        ",".join(headers.get(f"x-forwarded-{name}", [])).rpartition(",")[2].strip() for name in ("proto", "host")
    )
    return hops, scheme.lower(), host


def _read_standard(headers: dict[str, list[str]]) -> tuple[list[str], str, str]:
    """Read Forwarded (RFC 7239); scheme and host are those of the last element, as above."""
    text = ",".join(headers.get("forwarded", []))
    elements: list[dict[str, str]] = [{}]
    place = 0
    while text and place <= len(text):
        found = _PAIR.match(text, place)
        if found is None:
            raise RequestError(400, _UNREADABLE, code="request-malformed")
        elements[-1][found["name"].lower()] = re.sub(r"\\(.)", r"\1", found["value"].strip('"'))
        place = found.end()
        if place < len(text) and text[place] not in ",;":
            raise RequestError(400, _UNREADABLE, code="request-malformed")
        if text[place : place + 1] == ",":
            elements.append({})
        place += 1
    hops = [element.get("for", "unknown") for element in elements] if text else []
    return hops, elements[-1].get("proto", "").lower(), elements[-1].get("host", "")
