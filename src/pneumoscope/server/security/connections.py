"""Closes connections whose other side is too slow, and keeps those of unknown callers from using up the rest.

Uvicorn has no time limit for the head of a request, nor for a client that does not take its answer, and an ASGI
application can see neither. So this extends uvicorn's protocol by methods that asyncio defines for every protocol, and
asks its h11 connection (`conn`) whether a request is being answered. Uvicorn does not promise that attribute, nor
`app_state`, by which a request finds its connection, so pyproject.toml bounds its version.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from pneumoscope.server.access.hosts import Network, is_within, parse_address
from pneumoscope.server.settings import Limits

_CONNECTION = "connection"  # its key in the state of a request


class _Unknown:
    """Connections that have brought no valid token yet: their number is bounded, and no address can take all.

    The connection of a token's holder is one of them until the head of its first request has arrived. So that many
    others cannot push it out, a connection beyond the limit closes the oldest one of the address that has most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._by_address: dict[str, OrderedDict[_TimedProtocol, None]] = {}

    def add(self, address: str, connection: _TimedProtocol) -> None:
        self._by_address.setdefault(address, OrderedDict())[connection] = None
        self._count += 1
        if self._count > self._most:
            crowd = max(self._by_address.values(), key=len)
            oldest = next(iter(crowd))
            oldest.leave()
            oldest.transport.abort()

    def remove(self, address: str, connection: _TimedProtocol) -> None:
        crowd = self._by_address.get(address)
        if crowd is not None and connection in crowd:
            del crowd[connection]
            self._count -= 1
            if not crowd:
                del self._by_address[address]


class _TimedProtocol(H11Protocol):
    """HTTP with time limits."""

    silence = 10.0
    unknown = _Unknown(256)
    trusted: Sequence[Network] = ()
    _address = ""
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app_state = {**self.app_state, _CONNECTION: self}

    def connection_made(self, transport: Any) -> None:
        """A connection opens; the head of its first request is due."""
        super().connection_made(transport)
        # asyncio does so only for sockets created as TCP, which accepted ones may not be: 40 ms an answer otherwise.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head_timer = self._abort_later()
        self._address = self.client[0] if self.client else ""
        if not is_within(parse_address(self._address), self.trusted):  # a proxy's connections bring many callers
            self.unknown.add(self._address, self)

    def leave(self) -> None:
        """No longer count as unknown."""
        self.unknown.remove(self._address, self)

    def data_received(self, data: bytes) -> None:
        """Bytes arrive; between two requests, they begin a head, and the rest of it is due."""
        super().data_received(data)
        if self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY):  # the head has arrived
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self._abort_later()

    def pause_writing(self) -> None:
        """The client does not receive what is sent."""
        super().pause_writing()
        self._answer_timer = self._abort_later()

    def resume_writing(self) -> None:
        """The client receives again."""
        _cancel(self._answer_timer)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ends."""
        self.leave()
        _cancel(self._head_timer)
        _cancel(self._answer_timer)
        super().connection_lost(exc)

    def _abort_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.silence, self.transport.abort)


def recognise(scope: Scope) -> None:
    """Say that the caller of a request is known, so that its connection counts among those of known callers."""
    connection = scope.get("state", {}).get(_CONNECTION)
    if isinstance(connection, _TimedProtocol):
        connection.leave()


def configure_uvicorn(app: ASGIApp, limits: Limits, trusted: Sequence[Network] = ()) -> uvicorn.Config:
    """Set up uvicorn to serve an application: slow clients are dropped, and nothing they send is logged.

    Args:
        app: the application.
        limits: of connections and times.
        trusted: proxies, whose connections bring many callers and count as known.
    """
    own = {"silence": limits.silence, "unknown": _Unknown(limits.unknown), "trusted": tuple(trusted)}
    return uvicorn.Config(
        app,
        http=type("TimedProtocol", (_TimedProtocol,), own),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # SecurityMiddleware reads them, from the proxies that the settings name
        limit_concurrency=4 * limits.requests + limits.unknown,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=limits.stopping,
    )


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
