"""Every command that a message, a page or a document of the package quotes can be run as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import pneumoscope
from pneumoscope.cli.main import app

SOURCE = Path(pneumoscope.__file__).parent
QUOTED = re.compile(r"`(pneumoscope [^`]+)`")


def list_texts(path: Path) -> Iterator[str]:
    """Every text in a module, with X for what is filled in; of other files the whole."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield re.sub(r"\{\{.*?\}\}", "X", content)
        return
    tree = ast.parse(content)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def list_quoted() -> list[str]:
    files = [path for suffix in ("py", "html", "md") for path in SOURCE.rglob(f"*.{suffix}")]
    found = {each for path in files for text in list_texts(path) for each in QUOTED.findall(text)}
    return sorted(re.sub(r"\s+", " ", each) for each in found)


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words begin with, and the other words."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check(quoted: str) -> None:
    command, rest = find_command(shlex.split(quoted))
    if all(word.startswith("--") for word in rest):  # names the command, or one of its options
        parameters = command.get_params(typer.Context(command))
        known = {flag for each in parameters for flag in (*each.opts, *each.secondary_opts)}
        assert set(rest) <= known, quoted
        return
    command.make_context(command.name, rest)


@pytest.mark.parametrize("quoted", list_quoted())
def test_a_quoted_command_is_complete(quoted: str) -> None:
    check(quoted)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("pneumoscope data split DATA --redraw", "Missing parameter: out"),
        ("pneumoscope train DATA --outt RUN", "No such option: --outt"),
        ("pneumoscope predict --no-od", "predict --no-od"),
    ],
)
def test_an_incomplete_command_would_be_found(wrong: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        check(wrong)
