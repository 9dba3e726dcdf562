"""Reading ahead: a few threads work on the next items while the current one is used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 16, workers: int | None = None
) -> Iterator[Result]:
    """Apply a function to items in threads; results come in the order of the items.

    Args:
        function: called in several threads; an exception is raised when its item's turn comes.
        items: taken only as needed, so that memory stays bounded.
        ahead: how many results may be under way or waiting.
        workers: number of threads; by default half of the cores, at least 2. With 0 the caller's thread does the work.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers or max(2, (os.cpu_count() or 2) // 2), "prefetch") as pool:
        remaining = iter(items)
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(remaining, ahead))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
