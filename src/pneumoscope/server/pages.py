"""The pages: what they share is said once, and nothing in them comes from elsewhere."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader


def render_pages(document: dict[str, Any]) -> dict[str, bytes]:
    """Write all pages, by their addresses.

    Args:
        document: of OpenAPI 3.1, which `/docs` lays out.
    """
    pages = Environment(autoescape=True, loader=PackageLoader("pneumoscope.server"))
    return {
        here: pages.get_template(name).render(here=here, title=title, script=script, document=document).encode()
        for here, name, title, script in (
            ("/", "index.html", "Reading room", "room.js"),
            ("/monitoring", "monitoring.html", "Monitoring", "monitoring.js"),
            ("/docs", "api.html", "API", ""),
        )
    }
