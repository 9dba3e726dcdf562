"""The connection of the client: it repeats requests where that is safe, and reads all pages of a list."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from pneumoscope.errors import ServiceError, UsageError
from pneumoscope.server.messages.predictions import PageMessage

Page = TypeVar("Page", bound=PageMessage)
_BUSY = (429, 503)
_LONGEST_PAUSE = 60.0  # seconds


class Connection:
    """The connection of a `Client`, whose docstring has the arguments."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000/", token: str | None = None, *, timeout: float = 120.0, retries: int = 5
    ) -> None:
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UsageError(f"found {url!r}; an address such as http://127.0.0.1:8000/ is needed.", parameter="url")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise UsageError(f"found {retries!r}; a whole number of at least 0 is needed.", parameter="retries")
        self.url = url if url.endswith("/") else f"{url}/"
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._timeout, self._retries = timeout, retries
        self._pool = urllib3.PoolManager()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> urllib3.BaseHTTPResponse:
        return self._request("GET", path, query=query)

    def _walk(self, path: str, kind: type[Page], query: Mapping[str, Any]) -> Iterator[Page]:
        cursor = ""
        while True:
            page = kind.model_validate_json(self._get(path, {**query, **({"cursor": cursor} if cursor else {})}).data)
            yield page
            if page.next is None:
                return
            cursor = page.next

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, and repeat it if that is safe."""
        url = urljoin(self.url, f"v1/{path}") + _write_query(query or {})
        left = self._retries
        while True:
            pause = min(2.0 ** (self._retries - left) / 4, _LONGEST_PAUSE)
            try:
                answer = self._pool.request(
                    method, url, headers={**self._headers, **(headers or {})}, body=body, timeout=self._timeout,
                    retries=False, redirect=False,
                )  # fmt: skip
            except urllib3.exceptions.HTTPError as problem:
                if not left or method == "DELETE":
                    raise ServiceError(f"{self.url} does not answer: {type(problem).__name__}.") from None
                left -= 1
                time.sleep(pause)
                continue
            if answer.status < 300:
                return answer
            refused = _read_problem(answer)
            if not left or not (answer.status in _BUSY or refused.code == "key-in-use"):
                raise refused
            left -= 1
            time.sleep(read_pause(answer, pause))


def _read_problem(answer: urllib3.BaseHTTPResponse) -> ServiceError:
    try:
        problem = json.loads(answer.data)
        return ServiceError(str(problem["detail"]), answer.status, problem)
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"The service answered {answer.status}, not as version 1 of the API does.", answer.status)


def read_pause(answer: urllib3.BaseHTTPResponse, otherwise: float) -> float:
    """The seconds that an answer asks to wait."""
    given = answer.headers.get("retry-after", "")
    return min(float(given), _LONGEST_PAUSE) if given.isdecimal() else otherwise


def _write_query(query: Mapping[str, Any]) -> str:
    plain = {
        name: str(value).lower()
        if isinstance(value, bool)
        else value.isoformat()
        if hasattr(value, "isoformat")
        else value
        for name, value in query.items()
        if value is not None
    }
    return f"?{urlencode(plain)}" if plain else ""
