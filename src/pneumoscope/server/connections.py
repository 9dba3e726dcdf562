"""Closes connections whose other side is too slow.

Uvicorn has no time limit for the head of a request, nor for a client that does not take its answer, and an ASGI
application can see neither. So this extends uvicorn's protocol by methods that asyncio defines for every protocol, and
asks its h11 connection (`conn`) whether a request is being answered. Uvicorn does not promise that attribute, so
pyproject.toml bounds its version.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pneumoscope.server.settings import Limits


class _TimedProtocol(H11Protocol):
    """HTTP with time limits."""

    silence = 10.0
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection opens; the head of its first request is due."""
        super().connection_made(transport)
        # asyncio does so only for sockets created as TCP, which accepted ones may not be: 40 ms an answer otherwise.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head_timer = self._abort_later()

    def data_received(self, data: bytes) -> None:
        """Bytes arrive; between two requests they begin a head, whose rest is due."""
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
        _cancel(self._head_timer)
        _cancel(self._answer_timer)
        super().connection_lost(exc)

    def _abort_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.silence, self.transport.abort)


def configure_uvicorn(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """Set up uvicorn to serve an application: slow clients are dropped, and nothing they send is logged."""
    protocol = type("TimedProtocol", (_TimedProtocol,), {"silence": limits.silence})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=4 * limits.requests,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=limits.stopping,
    )


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
