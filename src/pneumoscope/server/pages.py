"""The web pages: templates, scripts and styles, all served from here."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, PackageLoader, Template

from pneumoscope.server.access.hosts import Host, parse_host
from pneumoscope.server.problem_types import PROBLEMS
from pneumoscope.server.problems import RequestError

_MEDIA_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
_BASE = "https://base.invalid"  # in templates; the address that the caller used takes its place
_PAGES = (
    ("/", "index.html", "Reading room", "reading_room.js"),
    ("/monitoring", "monitoring.html", "Monitoring", "monitoring.js"),
    ("/node", "node.html", "DICOM node", "node.js"),
    ("/docs", "api.html", "API", "api.js"),
)


def add_pages(app: FastAPI) -> None:
    """Serve the pages; `/docs` describes the other routes."""
    environment = Environment(autoescape=True, loader=PackageLoader("pneumoscope.server"))
    for path, name, title, script in _PAGES:
        facts = {"path": path, "title": title, "script": script, "problems": PROBLEMS, "base": _BASE}
        page = partial(_render, environment.get_template(name), facts, app)
        app.add_api_route(path, _make_route(page, name), include_in_schema=False)
        if path != "/":  # the addresses on a page are relative, and would be wrong with a slash at its end
            app.add_api_route(f"{path}/", _make_redirect(path), include_in_schema=False)
    folder = files("pneumoscope.server") / "page"
    parts = {  # read now: an upgrade of the program must not change a service that runs
        part.name: _make_route(partial(bytes, part.read_bytes()), part.name)
        for part in folder.iterdir()
        if "." in part.name
    }

    @app.get("/openapi.json", include_in_schema=False)
    def document(request: Request) -> dict[str, Any]:  # in a thread, because the first answer takes a while
        root = request.scope.get("root_path", "").rstrip("/")
        return app.openapi() | ({"servers": [{"url": root}]} if root else {})

    @app.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        if name not in parts:
            raise RequestError(404, "The page has no part of this name.")
        return parts[name](request)


def find_address(request: Request) -> str:
    """The address of the service as the caller reaches it, without a slash at its end."""
    host = parse_host(request.headers.get("host", "")) or Host("localhost")
    return f"{request.url.scheme}://{host}{request.scope.get('root_path', '')}"


def _make_redirect(path: str) -> Callable[[], Response]:
    return lambda: RedirectResponse(path, 308)


def _render(template: Template, facts: Mapping[str, object], app: FastAPI) -> bytes:
    return template.render(facts, make_document=app.openapi).encode()


def _make_route(read: Callable[[], bytes], name: str) -> Callable[[Request], Response]:
    @cache
    def pack() -> tuple[bytes, bytes]:
        return (content := read()), gzip.compress(content, mtime=0)

    def answer(request: Request) -> Response:
        content, packed = pack()
        page = content.replace(_BASE.encode(), find_address(request).encode()) if _BASE.encode() in content else content
        headers = {"etag": f'W/"{hashlib.sha256(page).hexdigest()[:32]}"', "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if page is content and "gzip" in request.headers.get("accept-encoding", ""):
            page, headers = packed, {**headers, "content-encoding": "gzip"}
        headers["vary"] = "accept-encoding"
        return Response(page, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    return answer
