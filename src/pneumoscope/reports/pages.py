"""What all pages share: one Jinja environment, and one way to write numbers, intervals and commands.

A page is one HTML file that needs no network and no other file; its content-security policy enforces that. Equal input
gives equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from pneumoscope import __version__
from pneumoscope.evaluation.intervals.differences import Difference
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.out_of_fold import MeanOverFolds
from pneumoscope.evaluation.results import Interval
from pneumoscope.text import shorten, tell_apart

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Estimate: TypeAlias = Interval | Difference | MeanOverFolds  # a value with an interval; nan where there is none


def render(template: str, script: str = "", **values: Any) -> str:
    """Fill a template, escaped as HTML unless it is Markdown; `script` names the file that the page may run."""
    environment = _make_environment()
    content = (Path(__file__).parent / "templates" / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return environment.get_template(template).render(script=content, script_digest=digest, **values)


def load_templates(*names: str) -> None:
    """Compile templates, so that `render` finds them compiled."""
    for name in names:
        _make_environment().get_template(name)


@cache
def _make_environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("pneumoscope.reports"), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"names": NAMES, "version": __version__}
    environment.filters |= {
        "number": format_number, "signed": format_signed, "interval": format_interval, "percent": format_percent,
        "p_value": format_p, "estimate": format_estimate, "place": place, "file_name": shorten_path,
        "apart": lambda paths: tell_apart([path.as_posix() for path in paths]),
        "md": escape_markdown, "prose": escape_prose, "code": mark_code,
        "breakable": lambda name: re.findall(r"[^_…-]*[_…-]|[^_…-]+", name),  # a line may break between these parts
    }  # fmt: skip
    return environment


def group_methods(methods: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of metrics by the method that computes their intervals; `none` is left out."""
    grouped: dict[str, list[str]] = {}
    for name, method in methods.items():
        if method != "none":
            grouped.setdefault(method, []).append(NAMES[name])
    return grouped


def mark_code(text: str) -> Markup:
    """Turn text into HTML, with what is in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - the text is escaped


def format_number(value: float) -> str:
    """A metric with three decimals."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def format_signed(value: float) -> str:
    """A difference with its sign."""
    return format_number(value) if math.isnan(value) or abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def format_interval(estimate: Estimate, signed: bool = False) -> str:
    """An interval such as `0.710 to 0.904`."""
    if math.isnan(estimate.value):
        return "not defined"
    if math.isnan(estimate.low):
        return "no interval"
    write = format_signed if signed else format_number
    return f"{write(estimate.low)} to {write(estimate.high)}"


def format_estimate(estimate: Estimate) -> str:
    """A value with its interval in brackets."""
    interval = "" if math.isnan(estimate.low) else f" ({format_interval(estimate)})"
    return format_number(estimate.value) + interval


def format_percent(value: float) -> str:
    """A proportion in percent, with no more digits than are known."""
    if 0 < value < 5e-4 or 1 - 5e-4 < value < 1:
        return "under 0.1%" if value < 0.5 else "over 99.9%"
    return "–" if math.isnan(value) else f"{100 * value:.3g}%"


def format_level(confidence: float) -> str:
    """The confidence of intervals."""
    return f"{100 * confidence:g}%"


def format_p(p: float) -> str:
    """A p value; none is ever 0."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def place(estimate: Estimate, start: float, end: float, tick: float | None = None) -> dict[str, float]:
    """Place a value, its interval and a tick on a scale, in percent of its length; nan is left out."""
    places = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    places["tick"] = math.nan if tick is None else tick
    return {
        key: round(100 * (at - start) / (end - start), 2) for key, at in places.items() if not math.isnan(at)
    }  # fmt: skip


def shorten_path(path: str, length: int = 40) -> str:
    """Return a file's name without its folder; a long one is cut in the middle, as names differ at both ends."""
    return shorten(PurePath(path).name, length, middle=True)


def escape_markdown(text: str) -> str:
    """Escape text for Markdown: on one line, with no markup in it."""
    return _mark(" ".join(text.split()))


def escape_prose(text: str) -> str:
    """Escape a message for Markdown, but keep its code, such as `invert=True`, which Markdown shows as it stands."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if i % 2 else _mark(part) for i, part in enumerate(parts))


def _mark(text: str) -> str:
    marked = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def format_command(*words: str, **options: str | float | None) -> str:
    """Format a command that repeats a result: options that are None or False are left out, and True is a bare flag."""
    line = ["pneumoscope", *words]
    for name, value in options.items():
        if value is not None and value is not False:
            line += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(line)
