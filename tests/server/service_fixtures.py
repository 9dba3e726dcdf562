"""Services for tests, a real browser, and a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from services import Process, create_database, draw, run_process, wait_until

from pneumoscope.server.settings import Settings

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

PATIENCE = 60_000
"""Milliseconds that a browser waits for what a page should show: a busy machine is slow, and that is no fault."""
DEFAULT_TIMEOUT_CONFIG.read = PATIENCE / 1000  # of requests that name no limit, which would be 5 seconds


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A service with the model of the small simulated run."""
    with run_process(run.model, str(tmp_path_factory.mktemp("service") / "predictions.sqlite")) as process:
        yield process


@pytest.fixture
def settings(run: Run, tmp_path: Path) -> Settings:
    """For a service in a thread."""
    return Settings(model=run.model, database=str(tmp_path / "predictions.sqlite"), decoders=0)


@pytest.fixture(scope="session")
def image() -> bytes:
    """A simulated image as a PNG."""
    return draw(3)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium on this machine")
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        program = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield program
        program.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens pages; at the end, none has complained, and none has asked anybody else for anything."""
    pages: list[tuple[Any, str]] = []
    faults: list[str] = []
    asked: list[str] = []

    def open_(url: str, quiet: bool = True, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda problem: faults.append(str(problem)))
        if quiet:
            page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        pages.append((context, url))
        return page

    yield open_
    for context, _ in pages:
        context.close()
    assert faults == []
    homes = tuple(url.rsplit("/", 1)[0] if url.count("/") > 2 else url for _, url in pages)
    assert [url for url in asked if not url.startswith((*homes, "blob:", "data:"))] == []


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real PostgreSQL, started for these tests.

    It is not below pytest's folder, which another run of pytest closes to other users, such as that of PostgreSQL.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or [
        Path(program) for program in [shutil.which("postgres")] if program
    ]
    if not programs:
        pytest.skip("no PostgreSQL on this machine")
    with tempfile.TemporaryDirectory() as folder:
        yield from _run_postgresql(Path(folder), programs[-1].parent)


def _run_postgresql(folder: Path, bin_: Path) -> Iterator[str]:
    data = folder / "data"
    # PostgreSQL does not run as root.
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    subprocess.run(
        [*as_user, bin_ / "initdb", "-D", data, "-U", "reader", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    server = subprocess.Popen(
        [*as_user, bin_ / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"],
        stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        ready = [str(bin_ / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0)
        yield f"postgresql://reader@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind, empty."""
    if request.param == "sqlite":
        return str(tmp_path / "predictions.sqlite")
    return create_database(request.getfixturevalue("postgresql"))
