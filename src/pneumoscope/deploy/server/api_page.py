"""The OpenAPI document as a page, without anything from elsewhere."""

from __future__ import annotations

from typing import Any


def render_api(document: dict[str, Any]) -> str:
    """Write the page.

    Args:
        document: of OpenAPI 3.1.
    """
    from jinja2 import Environment, PackageLoader

    pages = Environment(autoescape=True, loader=PackageLoader("pneumoscope.deploy.server"))
    return pages.get_template("api.html").render(document=document)
