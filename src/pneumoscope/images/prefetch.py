"""Reading ahead: a few threads work on the next items while the current one is used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 16, pool: Executor | None = None
) -> Iterator[Result]:
    """Apply a function to items in threads; results come in the order of the items.

    Args:
        function: called in several threads; an exception is raised when its item's turn comes.
        items: taken only as needed, so that memory stays bounded.
        ahead: how many results may be under way or waiting.
        pool: the threads; by default new ones, as many as half of the cores and at least 2.
    """
    new = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), "prefetch") if pool is None else nullcontext(pool)
    with new as threads:
        remaining = iter(items)
        pending: deque[Future[Result]] = deque(threads.submit(function, item) for item in islice(remaining, ahead))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(threads.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
