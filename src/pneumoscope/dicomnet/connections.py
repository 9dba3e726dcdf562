"""Connections of the DICOM listener, with the limits that pynetdicom lacks.

pynetdicom 3.0 makes the TLS handshake in the thread that accepts connections, reads a PDU of any length into memory,
and waits forever for a sender that stops in the middle of one. Here each handshake runs in its own thread, the size of
a PDU and of an object is limited, and a connection ends if its sender is silent for too long.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from socketserver import BaseServer
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pneumoscope.dicomnet.node_settings import Limits

MAX_PDU = 131_072  # bytes that we ask senders to send at most; DCMTK sends no more
_LARGEST_PDU = 2**20  # accepted: not all senders keep to what they are asked
_CHUNK = 65_536
_HEAD = 6  # bytes of a PDU's head
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_AHEAD = 2  # messages that are read before earlier ones are answered
_HANDSHAKE = 10.0  # seconds for one of TLS
_WAITING = 16  # connections more than associations, which wait to be refused with a reason


class Socket(AssociationSocket):
    """A socket with limits of size and time."""

    silence = 30.0
    object_bytes = 2**28
    object_seconds = 600.0
    received = 0  # bytes of the object that is being received
    since = 0.0  # when its first bytes came; 0: none is being received

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes, or fewer if the connection ends.

        Raises:
            OSError: there are too many, or they do not arrive in time.
        """
        if nr_bytes > _LARGEST_PDU:
            raise OSError(f"a PDU of {nr_bytes:,} bytes")
        while self.assoc.dimse.msg_queue.qsize() > _AHEAD:  # of a sender that does not wait for answers
            time.sleep(0.005)
        self.received += nr_bytes
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since > self.object_seconds:
            raise TimeoutError(f"an object that takes more than {self.object_seconds:g} s")
        if self.received > self.object_bytes + _LARGEST_PDU:
            raise OSError(f"an object of more than {self.object_bytes:,} bytes")
        link = cast(socket.socket, self.socket)
        content = bytearray(nr_bytes)
        view, end = memoryview(content), time.monotonic() + self.silence
        while view:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("the sender is silent in the middle of a message")
            link.settimeout(left)
            count = link.recv_into(view[:_CHUNK])
            if not count:
                return content[: nr_bytes - len(view)]
            view = view[count:]
        if nr_bytes == _HEAD and _QUICKACK is not None:
            # Senders such as DCMTK wait for it between two small packets, and Linux would delay it by 40 ms.
            link.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return content

    def send(self, bytestream: bytes) -> None:
        """Send bytes; a receiver that does not take them ends the connection."""
        if self.socket is not None:
            self.socket.settimeout(self.silence)
        super().send(bytestream)


def hasten(event: Event) -> None:
    """Make connections to archives as fast as those to us: a handler of `EVT_CONN_OPEN`.

    Otherwise each side waits up to 40 ms in each message for an acknowledgement that the other delays.
    """
    plain = cast(AssociationSocket, event.assoc.dul.socket)
    plain.__class__ = Socket
    cast(socket.socket, plain.socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    event.assoc.bind(evt.EVT_DIMSE_RECV, _begin_again)


def _begin_again(event: Event) -> None:
    """A message is complete: start the limits of size and time anew."""
    limited = cast(Socket, event.assoc.dul.socket)
    limited.received, limited.since = 0, 0.0


class Server(ThreadedAssociationServer):
    """Accepts connections; one that has not finished its handshake does not block others."""

    limits = Limits()
    beginning = 0  # connections that have no association yet
    counting = threading.Lock()
    daemon_threads = True
    request_queue_size = 128

    def get_request(self) -> Any:
        """Accept a connection; the handshake comes later."""
        return cast(socket.socket, self.socket).accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Whether there are few enough connections, including those whose handshake is not finished."""
        with self.counting:
            count = self.beginning + len(self.active_associations)
            accepted = count < self.limits.associations + _WAITING
            self.beginning += accepted
        return accepted

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the handshake in the connection's own thread, then begin the association."""
        try:
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.ssl_context is not None:
                request = _shake_hands(request, self.ssl_context, min(_HANDSHAKE, self.limits.silence))
            request.settimeout(self.limits.silence)
            super().finish_request(request, client_address)
        finally:
            with self.counting:
                self.beginning -= 1

    def shutdown(self) -> None:
        """Stop accepting, and close the listener."""
        BaseServer.shutdown(self)  # pynetdicom's expects that its entity has started the server
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to show: `refused` has been called, or the other side has gone."""


def _shake_hands(plain: socket.socket, context: ssl.SSLContext, seconds: float) -> ssl.SSLSocket:
    """Make the handshake of TLS within some seconds, however slowly bytes come.

    Raises:
        OSError: it fails, or takes longer.
    """
    secure = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    end = time.monotonic() + seconds
    try:
        secure.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(secure, selectors.EVENT_READ)
            while True:
                try:
                    secure.do_handshake()
                    return secure
                except ssl.SSLWantReadError:
                    selector.modify(secure, selectors.EVENT_READ)
                except ssl.SSLWantWriteError:
                    selector.modify(secure, selectors.EVENT_WRITE)
                left = end - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError("the handshake takes too long")
    except BaseException:
        secure.close()
        raise


class Handler(RequestHandler):
    """Begins associations with sockets that have limits."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        limits = cast(Server, self.server).limits
        plain = cast(AssociationSocket, association.dul.socket)
        plain.__class__ = Socket
        limited = cast(Socket, plain)
        limited.silence, limited.object_bytes = limits.silence, limits.object_bytes
        limited.object_seconds = limits.object_seconds
        association.bind(evt.EVT_DIMSE_RECV, _begin_again)
        return association


def start_server(
    entity: ApplicationEntity, address: tuple[str, int], limits: Limits, context: ssl.SSLContext | None, handlers: Any
) -> Server:
    """Listen; the caller runs `serve_forever`.

    Raises:
        OSError: the address cannot be used.
    """
    kind = type("LimitedServer", (Server,), {"limits": limits})
    server = entity.make_server(
        address, ssl_context=context, evt_handlers=handlers, server_class=kind, request_handler=Handler
    )
    return cast(Server, server)
