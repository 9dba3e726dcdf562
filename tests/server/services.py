"""Services for tests: real processes, or a thread where limits have to be small."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import sqlalchemy as sql
import uvicorn
from PIL import Image

from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.server.access.hosts import parse_networks
from pneumoscope.server.app import build_app
from pneumoscope.server.predictions import PredictionService
from pneumoscope.server.security.connections import configure_uvicorn
from pneumoscope.server.settings import Settings
from processes import Started, start_command

ADDRESS = re.compile(r"(http://[^\s/]+)/?\s")


@dataclass
class Process:
    """A service in a process of its own."""

    url: str
    process: Started
    database: str

    @property
    def lines(self) -> list[str]:
        """What it has printed."""
        return self.process.shown.splitlines(keepends=True)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.end(how)
        return self.process.wait(120)


@contextmanager
def run_process(model: Path | None, database: str | None, *options: str, **environment: str) -> Iterator[Process]:
    """A service in a process; without a model or a database, with the default one."""
    words = [
        "serve",
        "--port",
        "0",
        *(["--model", model] if model else []),
        *(["--database", database] if database else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, environment):
            process = start_command([*words, *options], Path(folder) / "log.txt")
        try:
            wait_until(lambda: ADDRESS.search(process.shown) or not process.runs)
            found = ADDRESS.search(process.shown)
            assert found, process.shown
            service = Process(found[1], process, database or "")
            wait_until(lambda: answers(service.url))
            yield service
        finally:
            process.end()
            process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(met: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@contextmanager
def run_thread(settings: Settings) -> Iterator[str]:
    """A service in this process; gives its address."""
    settings = replace(settings, port=0)
    settings.check()
    app = build_app(settings, PredictionService(settings))
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    trusted = parse_networks(settings.trusted_proxies, "trusted_proxies")
    server = uvicorn.Server(configure_uvicorn(app, settings.limits, trusted))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield address
        finally:
            server.should_exit = True
            thread.join(60)


@cache
def draw(seed: int, size: int = 128) -> bytes:
    phantom = draw_phantom(seed, pneumonia=bool(seed % 2), size=size)
    stream = io.BytesIO()
    Image.fromarray(np.rint(phantom.pixels * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def create_database(server: str) -> str:
    """The URL of a new database of a PostgreSQL."""
    engine = sql.create_engine(server.replace("postgresql:", "postgresql+pg8000:"), isolation_level="AUTOCOMMIT")
    name = f"test_{uuid.uuid4().hex}"
    with engine.connect() as connection:
        connection.execute(sql.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server.rpartition('/')[0]}/{name}"
