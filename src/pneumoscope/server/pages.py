"""The web pages: templates, scripts and styles, all served from here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, PackageLoader

from pneumoscope.server.problem_types import PROBLEMS
from pneumoscope.server.problems import RequestError

_MEDIA_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
_PAGES = (
    ("/", "index.html", "Reading room", "reading_room.js"),
    ("/monitoring", "monitoring.html", "Monitoring", "monitoring.js"),
    ("/node", "node.html", "DICOM node", "node.js"),
    ("/docs", "api.html", "API", "api.js"),
)


def add_pages(app: FastAPI) -> None:
    """Serve the pages; `/docs` describes the routes that were added before."""
    environment = Environment(autoescape=True, loader=PackageLoader("pneumoscope.server"))
    document = app.openapi()
    for path, name, title, script in _PAGES:
        template = environment.get_template(name)
        page = template.render(path=path, title=title, script=script, document=document, problems=PROBLEMS)
        app.add_api_route(path, _make_route(page.encode(), name), include_in_schema=False)
    folder = files("pneumoscope.server") / "page"
    parts = {part.name: _make_route(part.read_bytes(), part.name) for part in folder.iterdir() if "." in part.name}

    @app.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        if name not in parts:
            raise RequestError(404, "The page has no part of this name.")
        return parts[name](request)


def _make_route(content: bytes, name: str) -> Callable[[Request], Response]:
    headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "cache-control": "no-cache"}

    def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    return answer
