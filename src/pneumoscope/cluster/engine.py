"""Ray: connect to a cluster, or start one on this machine that nothing outside it can reach."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pneumoscope.errors import MissingExtraError, ServiceError
from pneumoscope.text import shorten

_STORE = 100 * 2**20  # bytes of shared memory: only models and names of parts go through it
_LOOPBACK = "127.0.0.1"


@contextmanager
def open_ray(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Use the cluster at an address, else one on this machine that ends with the context; a running one is kept.

    Nothing is reported to the makers of Ray, there is no dashboard, a cluster on this machine listens on loopback only,
    and every cluster needs its token (`RAY_AUTH_TOKEN`), unless `RAY_AUTH_MODE` says otherwise.

    Args:
        address: `HOST:PORT` or `auto`; by default `$RAY_ADDRESS`, else none.
        cpus: of a cluster on this machine; by default all cores.

    Yields:
        The module `ray`.

    Raises:
        MissingExtraError: Ray is not installed.
        ServiceError: there is no cluster at the address, or it refuses.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its messages are about itself; errors are raised, too
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    local = {"include_dashboard": False, "_node_ip_address": _LOOPBACK, "object_store_memory": _STORE, "num_cpus": cpus}
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except Exception as problem:  # Ray raises errors of many kinds
        reason = shorten(str(problem) or type(problem).__name__, 300)
        raise ServiceError(
            f"{address or 'this machine'}: no Ray cluster could be used ({reason}). Check the address, and that "
            "RAY_AUTH_TOKEN is the token of the cluster."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.data
    except ImportError:
        raise MissingExtraError('Predicting on a cluster needs Ray: pip install "pneumoscope[ray]".') from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray
