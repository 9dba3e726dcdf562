"""Slows down whoever guesses tokens, by the address that the guesses come from."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from pneumoscope.server.access.hosts import parse_address

_FREE = 10  # guesses before the first wait
_LONGEST = 300.0  # seconds
_FORGOTTEN = 900.0  # seconds after the last guess
_ADDRESSES = 4096  # remembered at most, each with less than 1 kB
_RECENT = 8  # wrong tokens remembered per address


@dataclass
class _Guesses:
    count: int = 0
    last: float = 0.0
    until: float = 0.0
    recent: list[bytes] = field(default_factory=list)


class Throttle:
    """Counts wrong tokens by address: after ten, each further one doubles the wait, up to five minutes.

    While an address waits, no token from it is checked, not even a right one: otherwise the answer would tell which one
    is right. A wrong token that is sent again and again, such as an old one of a program, is one guess. An IPv6 client
    usually has a whole /64, so that is what counts as its address. Memory is bounded: the addresses that have been
    quiet longest are forgotten first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guesses: OrderedDict[str, _Guesses] = OrderedDict()

    def __len__(self) -> int:
        return len(self._guesses)

    def find_wait(self, address: str) -> float:
        """Seconds until tokens from an address are looked at again; 0 if they are now."""
        guesses = self._guesses.get(_to_key(address))
        return max(0.0, guesses.until - self._clock()) if guesses else 0.0

    def count(self, address: str, token: str) -> None:
        """Count a wrong token."""
        key, now = _to_key(address), self._clock()
        guesses = self._guesses.pop(key, None)
        if guesses is None or now - max(guesses.last, guesses.until) > _FORGOTTEN:
            guesses = _Guesses()
        self._guesses[key] = guesses  # the last one of the order
        guesses.last = now
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()[:8]
        if digest not in guesses.recent:
            guesses.recent = [*guesses.recent, digest][-_RECENT:]
            guesses.count += 1
            if guesses.count >= _FREE:
                guesses.until = now + min(_LONGEST, 2.0 ** min(guesses.count - _FREE, 16))
        while len(self._guesses) > _ADDRESSES:
            self._guesses.popitem(last=False)


def _to_key(text: str) -> str:
    address = parse_address(text)
    if address is None or address.version == 4:
        return str(address or text[:64])
    return str(int(address) >> 64)
