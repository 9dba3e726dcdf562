"""Serves the node's HTTP addresses in a thread."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pneumoscope.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from pneumoscope.dicomnet.node_settings import NodeSettings
    from pneumoscope.dicomnet.receiver import Watcher
    from pneumoscope.dicomnet.spool import Spool
    from pneumoscope.dicomnet.stow import Health


@contextmanager
def serve_web(settings: NodeSettings, spool: Spool, watcher: Watcher, health: Health) -> Iterator[int]:
    """Listen, and give the port.

    Raises:
        UsageError: the address cannot be used.
        MissingExtraError: what serves HTTP is not installed.
    """
    try:
        import uvicorn

        from pneumoscope.dicomnet.stow import build_app
        from pneumoscope.server.security.connections import configure_uvicorn
        from pneumoscope.server.settings import Limits
    except ModuleNotFoundError as problem:
        raise MissingExtraError(
            f'{problem.name} is not installed: pip install "pneumoscope[serve]". Or do without STOW-RS, health and '
            "metrics: --no-http of `pneumoscope dicom node`.",
            "http_port",
        ) from None
    host, port = settings.http_host, settings.http_port or 0
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UsageError(
            f"Cannot listen on {host}, port {port}: {reason}. Choose another `http_host` or `http_port`."
        ) from None
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    limits = Limits(silence=settings.limits.silence, requests=16 * settings.limits.requests)
    with listener:
        server = uvicorn.Server(configure_uvicorn(build_app(settings, spool, watcher, health), limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
