"""Calls addresses of other programs when a job is finished: only those that the settings allow, with a signature."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import sqlalchemy as sql

from pneumoscope.errors import DataError, UsageError
from pneumoscope.server.messages.predictions import JobMessage
from pneumoscope.server.problems import RequestError, log_internal_error, logger
from pneumoscope.server.storage.store import JobRecord
from pneumoscope.server.stored import StoredPredictions

SIGNATURE = "Pneumoscope-Signature"
_ATTEMPTS = 8
_FIRST_PAUSE, _FACTOR = 2.0, 4.0  # seconds; the last pause is about 2 h
_LEASE = 60.0  # seconds after which another service takes over a call that was begun
_TIMEOUT = 10.0  # seconds of a call; less than the lease
_AT_ONCE = 8  # calls at once, so that one without an answer does not delay the others
_POLL = 2.0  # seconds between two looks for what is due
_MIN_SECRET = 16  # characters


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of the header: the time, and the HMAC-SHA256 of time and body under the secret."""
    mac = hmac.new(secret.encode(), str(timestamp).encode() + b"." + body, hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


class Callbacks:
    """The calls that are due.

    Args:
        stored: where the jobs are.
        describe: gives the message of a job.
        hosts: the addresses that may be called, such as `https://ris.example.org` or `http://127.0.0.1:9000`.
        secret: for signatures.

    Raises:
        UsageError: an address is not valid, or the secret is missing or short.
    """

    def __init__(
        self, stored: StoredPredictions, describe: Callable[[JobRecord], JobMessage], hosts: tuple[str, ...],
        secret: str | None,
    ) -> None:  # fmt: skip
        self._stored, self._describe = stored, describe
        self._allowed = {_parse_host(host) for host in hosts}
        if hosts and len(secret or "") < _MIN_SECRET:
            raise UsageError(
                f"callbacks need a secret of at least {_MIN_SECRET} characters, such as the output of: openssl rand "
                "-hex 32. Set PNEUMOSCOPE_CALLBACK_SECRET.",
                parameter="callback_secret",
            )
        self._secret = secret or ""
        self._due = asyncio.Event()

    def check(self, address: str) -> None:
        """Refuse an address that is not allowed.

        Raises:
            RequestError: 422, it is not.
        """
        try:
            origin = _parse(address)
        except ValueError:
            origin = None
        if origin is None or origin not in self._allowed:
            raise RequestError(
                422, "callback: this service may not call that address. Its operator can allow the host by the setting "
                "callback_hosts.", code="callback-refused",
            )  # fmt: skip

    def notice(self) -> None:
        """Look for what is due at once."""
        self._due.set()

    async def run(self) -> None:
        """Call what is due, until it is cancelled."""
        if not self._allowed:
            return
        threads = ThreadPoolExecutor(_AT_ONCE, "callback")
        try:
            while True:
                try:
                    claimed = await self._stored.call(self._claim)
                    await asyncio.gather(*(self._deliver(each, threads) for each in claimed))
                except DataError as problem:
                    logger.error("Callbacks are delayed: %s", problem)
                self._due.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL):
                        await self._due.wait()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _deliver(self, record: JobRecord, threads: Executor) -> None:
        try:
            delivered = await asyncio.get_running_loop().run_in_executor(threads, self._call, record)
        except Exception as problem:  # it must not end the calls of other jobs
            log_internal_error(problem, "A callback has failed")
            delivered = False
        await self._stored.call(self._note, record, delivered)

    def _claim(self) -> list[JobRecord]:
        """The calls that are due and that no other service makes at the moment."""
        own, now = JobRecord, time.time()
        query = sql.select(own).where(own.callback_state == "due", own.callback_due_at <= now).limit(_AT_ONCE)
        with self._stored.store.begin() as session:
            found = list(session.scalars(query))
        claimed = []
        for record in found:
            mine = sql.update(own).where(own.number == record.number, own.callback_due_at == record.callback_due_at)
            with self._stored.store.begin() as session:
                if session.connection().execute(mine.values(callback_due_at=now + _LEASE)).rowcount:
                    claimed.append(record)
        return claimed

    def _call(self, record: JobRecord) -> bool:
        """Make a call; whether it was answered with success. It follows no redirection."""
        import urllib3

        message = self._describe(record).model_copy(update={"predictions": None, "callback_state": None})
        body = message.model_dump_json().encode()
        headers = {"content-type": "application/json", SIGNATURE: sign(self._secret, int(time.time()), body)}
        try:
            if _parse(record.callback) not in self._allowed:  # the settings have changed
                return False
            limit = urllib3.Timeout(total=_TIMEOUT)
            with urllib3.PoolManager() as pool:
                options: dict[str, Any] = {"retries": False, "redirect": False, "preload_content": False}
                answer = pool.request("POST", record.callback, body=body, headers=headers, timeout=limit, **options)
                answer.close()
                return 200 <= answer.status < 300
        except (urllib3.exceptions.HTTPError, ValueError, OSError):
            return False

    def _note(self, record: JobRecord, delivered: bool) -> None:
        attempts = record.callback_attempts + 1
        values: dict[str, Any] = {"callback_attempts": attempts}
        if delivered:
            values["callback_state"] = "sent"
        elif attempts >= _ATTEMPTS:
            values["callback_state"] = "failed"
            logger.error("The callback of a job has failed %d times and is given up.", attempts)
        else:
            values["callback_due_at"] = time.time() + _FIRST_PAUSE * _FACTOR ** (attempts - 1)
        with self._stored.store.begin() as session:
            session.execute(sql.update(JobRecord).where(JobRecord.number == record.number).values(**values))


def _parse(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address.

    Raises:
        ValueError: it is none of HTTP, or it names a user.
    """
    from urllib3.util import parse_url

    try:
        url = parse_url(address)
    except Exception:
        raise ValueError from None
    if url.scheme not in ("http", "https") or not url.host or url.auth is not None:
        raise ValueError
    if not address.isprintable() or set(address) & {"\\", " "}:  # other programs may find another host in it
        raise ValueError
    return url.scheme, url.host.lower(), url.port or (443 if url.scheme == "https" else 80)


def _parse_host(host: str) -> tuple[str, str, int]:
    address = host if "://" in host else f"https://{host}"
    try:
        if set(address.partition("://")[2].rstrip("/")) & set("/?#"):  # a path would seem to limit the calls
            raise ValueError
        return _parse(address)
    except ValueError:
        raise UsageError(
            f"{host!r}: give scheme and host without a path, such as https://ris.example.org or http://127.0.0.1:9000.",
            parameter="callback_hosts",
        ) from None
