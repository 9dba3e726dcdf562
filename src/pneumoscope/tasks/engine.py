"""Ray: connect to a cluster, or start one on this machine that nothing outside it can reach."""

from __future__ import annotations

import gc
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from pneumoscope.errors import EXTRAS, MissingExtraError, ServiceError
from pneumoscope.text import shorten

_LOOPBACK = ("127.0.0.1", "localhost")
_PATIENCE = 10  # seconds to wait for a cluster at an address
_LOG_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [^]]*\] .*\.cc:\d+: ")
_STORE = 100 * 2**20  # bytes of shared memory; what does not fit, such as many features, Ray keeps in files


def check_ray() -> None:
    """Check that Ray is installed, before anything is read.

    Raises:
        MissingExtraError: it is not installed.
    """
    if any(find_spec(name) is None for name in EXTRAS["ray"]):  # not imported: `open_ray` sets its variables first
        raise MissingExtraError('Ray is not installed: pip install "pneumoscope[ray]".')


@contextmanager
def open_ray(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Use the cluster at an address, or start one on this machine and stop it at the end of the context.

    If this process is connected to a cluster already, that one is used and left running. Ray sends no usage reports. A
    cluster on this machine has no dashboard and listens on loopback only. Every cluster needs its token
    (`RAY_AUTH_TOKEN`), unless `RAY_AUTH_MODE` says otherwise. If Ray was imported before, its own defaults hold.

    Args:
        address: `HOST:PORT` or `auto`; by default `$RAY_ADDRESS`, else none.
        cpus: cores of a cluster on this machine; by default all.

    Yields:
        The module `ray`.

    Raises:
        ServiceError: there is no cluster at the address, or it refuses.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if "ray" not in sys.modules:  # Ray reads these when it is imported
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # errors are raised, too
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_worker_niceness", "0")  # else workers wait for all other programs of the machine
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # else a wrong address takes 10 minutes
        if address is None or address.startswith(_LOOPBACK):
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system, this means loopback only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns about its own modules, and about processes that it has ended
        import ray

        if ray.is_initialized():
            yield ray
            return
        with _secure(address):
            _start(ray, address, cpus)
            try:
                yield ray
            finally:
                ray.shutdown()
                gc.collect()


@contextmanager
def _secure(address: str | None) -> Iterator[None]:
    """Give a cluster on this machine a token that nobody else knows, and forget it at the end."""
    if address is not None or os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _read_token_again()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        _read_token_again()


def _read_token_again() -> None:
    """Let Ray read its token from the environment: it reads it once, but other clusters have other tokens."""
    with suppress(ImportError, AttributeError):  # not part of Ray's API
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _without_log_lines() -> Iterator[None]:
    """Hide what Ray's core logs to standard error at its start, at any level; show everything else."""
    if sys.stderr is None:  # a service may have none
        yield
        return
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(shown, 2)
                file.seek(0)
                os.write(shown, b"".join(line for line in file if not _LOG_LINE.match(line)))
    finally:
        os.close(shown)


def _start(ray: Any, address: str | None, cpus: int | None) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _STORE, "num_cpus": cpus}
    try:
        if address is not None and (found := re.fullmatch(r"(.+):(\d+)", address)) and "/" not in address:
            socket.create_connection((found[1], int(found[2])), _PATIENCE).close()
        with _without_log_lines():
            ray.init(address=address or "local", **options)
    except Exception as problem:  # Ray raises errors of many kinds
        reason = shorten(str(problem) or type(problem).__name__, 300)
        raise ServiceError(
            f"{address or 'this machine'}: no Ray cluster could be used ({reason}). Check the address, and that "
            "RAY_AUTH_TOKEN is the token of the cluster."
        ) from None
