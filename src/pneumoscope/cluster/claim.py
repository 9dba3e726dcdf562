"""One command at a time writes to a bucket: it leaves a claim there, and renews it while it runs.

A claim that is not renewed belongs to a command that was killed. Whether it is renewed shows by its content, not by
its time, because the clocks of machines differ.
"""

from __future__ import annotations

import json
import logging
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pneumoscope.cluster.storage import Storage
from pneumoscope.errors import DataError, PneumoscopeError, UsageError

CLAIM = "claim.json"
_RENEWED = 5.0  # seconds between renewals
_PATIENCE = 40.0  # without one, until a claim is taken over


class Claim:
    """The claim of this command on an output."""

    def __init__(self, out: Storage) -> None:
        self._out, self._owner, self._count = out, secrets.token_hex(16), 0
        self._ended = threading.Event()
        self._lost = False

    def take(self) -> None:
        """Take the claim, or wait until that of a killed command is given up.

        Raises:
            UsageError: another command writes there.
        """
        seen = self._read()
        if seen is not None:
            logging.getLogger("pneumoscope").info("%s: checking whether another command writes there.", self._out.url)
        end = time.monotonic() + _PATIENCE
        while seen is not None:
            time.sleep(_RENEWED / 5)
            now = self._read()
            if now is not None and now != seen:
                raise self._refuse(now)
            if now is None or time.monotonic() > end:
                break
        if seen is not None and now is not None:
            self._out.delete(CLAIM)
        if not self._out.create(CLAIM, self._describe()):
            raise self._refuse(self._read() or b"")
        if self._read() != self._describe():  # the storage may not be able to refuse a second one
            raise self._refuse(self._read() or b"")

    def renew(self) -> None:
        """Renew the claim until `end`."""
        while not self._ended.wait(_RENEWED):
            with suppress(PneumoscopeError):  # whoever writes predictions says so
                if self._is_of_another():
                    self._lost = True
                    return
                self._count += 1
                self._out.write(CLAIM, self._describe())

    def check(self) -> None:
        """Check that the claim still holds.

        Raises:
            UsageError: another command has taken it over.
        """
        if self._lost:
            raise self._refuse(b"")

    def release(self) -> None:
        """Let the next command write there, once `renew` has ended."""
        with suppress(PneumoscopeError):  # then the next command waits until this claim is given up
            if not self._lost and not self._is_of_another():
                self._out.delete(CLAIM)

    def end(self) -> None:
        """Let `renew` end."""
        self._ended.set()

    def _is_of_another(self) -> bool:
        """Whether the claim there has another owner; where none can be read now, it has not."""
        found = self._read()
        try:
            return found is not None and json.loads(found)["owner"] != self._owner
        except (ValueError, KeyError, TypeError):
            return True

    def _describe(self) -> bytes:
        return json.dumps({"owner": self._owner, "machine": platform.node(), "renewed": self._count}).encode()

    def _read(self) -> bytes | None:
        if not self._out.exists(CLAIM):
            return None
        try:
            return self._out.read(CLAIM)
        except DataError:  # just deleted
            return None

    def _refuse(self, other: bytes) -> UsageError:
        try:
            machine = f" on {json.loads(other)['machine']}"
        except (ValueError, KeyError, TypeError):
            machine = ""
        return UsageError(
            f"another command{machine} is writing to {self._out.url}. Wait until it ends, or choose another `out`.",
            "out",
        )


@contextmanager
def claim_output(out: Storage) -> Iterator[Claim]:
    """Keep other commands from writing to an output.

    Raises:
        UsageError: another command writes there.
    """
    claim = Claim(out)
    claim.take()
    renewing = threading.Thread(target=claim.renew, daemon=True)
    renewing.start()
    try:
        yield claim
    finally:
        claim.end()
        renewing.join()
        claim.release()
