"""`tokens`: make, list, rotate and revoke the tokens of persons and programs that call the reading room."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.options import option
from pneumoscope.cli.output import echo

if TYPE_CHECKING:
    from pneumoscope.server.access.tokens import Token, TokenFile

tokens_app = make_group("Make, list, rotate and revoke tokens for the reading room and its service.")

_Name = Annotated[str, typer.Argument(help="Name of the person or program.", metavar="NAME")]
_File = Annotated[
    Path,
    typer.Option(
        "--tokens",
        help="File of tokens, as `serve --tokens` reads it. Run this as its owner.",
        envvar="PNEUMOSCOPE_TOKENS",
        show_envvar=True,
    ),
]
_Expires = Annotated[str | None, option("How long it is valid, such as 12h, 90d or 4w. [default: for ever]")]


@tokens_app.command(cls=PanelCommand)
def add(
    name: _Name,
    tokens: _File,
    role: Annotated[
        Literal["read", "review", "admin"], option("What it allows; each role includes the ones before it.")
    ],
    expires: _Expires = None,
) -> None:
    """Make a token, and print it once: only its hash is kept."""
    lifetime = _read_duration(expires, "expires")
    echo(_open(tokens).add_token(name, role, lifetime))
    echo(f"Give it to {name}, and to nobody else: it is not shown again. {tokens} has its hash.", err=True)


@tokens_app.command("list", cls=PanelCommand)
def list_(tokens: _File) -> None:
    """List names, roles and dates."""
    rows = [("name", "role", "state", "created", "expires")]
    rows += [
        (each.name, each.role, _describe(each), _to_date(each.created), _to_date(each.expires))
        for each in _open(tokens).list_tokens()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@tokens_app.command(cls=PanelCommand)
def rotate(
    name: _Name,
    tokens: _File,
    keep_old: Annotated[str, option("How long the old token stays valid.")] = "1d",
    expires: Annotated[
        str | None, option("How long the new one is valid. [default: as long as the old one was meant to be]")
    ] = None,
) -> None:
    """Make a new token for a name, and print it; the old one stays valid for a while."""
    overlap, lifetime = _read_duration(keep_old, "keep_old"), _read_duration(expires, "expires")
    echo(_open(tokens).rotate_token(name, overlap or 0.0, lifetime))
    echo(f"It is not shown again. The old token of {name} is valid for {keep_old}.", err=True)


@tokens_app.command(cls=PanelCommand)
def revoke(name: _Name, tokens: _File) -> None:
    """Revoke all tokens of a name; a running service notices by itself."""
    count = _open(tokens).revoke_tokens(name)
    echo(f"{count} token{'' if count == 1 else 's'} of {name} revoked.", err=True)


def _open(path: Path) -> "TokenFile":
    from pneumoscope.server.access.tokens import TokenFile

    return TokenFile(path)


def _read_duration(text: str | None, parameter: str) -> float | None:
    from pneumoscope.server.periods import read_period

    return None if text is None else read_period(text, parameter).total_seconds()


def _describe(token: "Token") -> str:
    if token.revoked is not None:
        return "revoked"
    return "valid" if token.is_valid(time.time()) else "expired"


def _to_date(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(seconds))
