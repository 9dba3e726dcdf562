"""Services for tests: real processes, or a thread where limits have to be small."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

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


@dataclass
class Process:
    """A service in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    database: str
    lines: list[str]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(120)


@contextmanager
def run_process(model: Path | None, database: str | None, *options: str, **environment: str) -> Iterator[Process]:
    """A service in a process; without a model or a database, with the default one."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0"]
    command += ["--model", str(model)] if model else []
    command += ["--database", database] if database else []
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    if lines[0].startswith("Model: "):
        lines.append(process.stderr.readline())
    first = lines[-1]
    assert "http://" in first, first + process.stderr.read()
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    service = Process(first.split()[2].rstrip("/"), process, database or "", lines)
    try:
        wait_until(lambda: answers(service.url))
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(10)
        process.stderr.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(met: Callable[[], bool], seconds: float = 120) -> None:
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
