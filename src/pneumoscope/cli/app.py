"""The Typer app, and its help in panels: options and commands are listed under the title of their `rich_help_panel`.

Typer's own panels need Rich, whose import alone takes longer than `--help` may take.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from pneumoscope.cli.flags import set_flags
from pneumoscope.cli.options import IMAGES, option

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter, Parameter


class PanelCommand(TyperCommand):
    """A command whose options are shown in panels, and whose messages name its own flags only."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write arguments and options, panel by panel."""
        _write_options(self, ctx, formatter)

    def invoke(self, ctx: Context) -> Any:
        """Run the command."""
        set_flags(flag for option in self.get_params(ctx) for flag in (*option.opts, *option.secondary_opts))
        return super().invoke(ctx)


class TableCommand(PanelCommand):
    """A command with options that name the columns and classes of a table; `ctx.obj` holds them as a `Naming`."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """All parameters: its own, and those of `Naming`."""
        return [*super().get_params(ctx), *_make_naming_options()]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        from pneumoscope.datasets.columns import Naming

        rest = super().parse_args(ctx, args)
        ctx.obj = Naming(**{str(option.name): ctx.params.pop(str(option.name)) for option in _make_naming_options()})
        return rest


@functools.cache
def _make_naming_options() -> tuple[Parameter, ...]:
    from pneumoscope.datasets.columns import Naming

    hints = get_type_hints(Naming, include_extras=True)
    return make_options((name, str, hint.__metadata__[-1].documentation, IMAGES) for name, hint in hints.items())


def make_options(options: Iterable[tuple[str, Any, str, str]]) -> tuple[Parameter, ...]:
    """Options of name, type, help and panel; their value is None where they are not given."""

    def stub(**options: Any) -> None: ...

    parameters = []
    for name, kind, text, panel in options:
        annotation: Any = Annotated[kind | None, option(text, panel)]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    vars(stub)["__signature__"] = inspect.Signature(parameters)
    stub.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(stub)
    return tuple(typer.main.get_command(app).params)


class PanelGroup(TyperGroup):
    """A group of commands that are shown in panels."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the commands, then the group's own options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(width)))
        _write_panels(panels, formatter)
        _write_options(self, ctx, formatter)


def _write_options(command: Command, ctx: Context, formatter: HelpFormatter) -> None:
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is not None:
            title = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or title, []).append(record)
    _write_panels(panels, formatter)


def _write_panels(panels: dict[str, list[tuple[str, str]]], formatter: HelpFormatter) -> None:
    for title, rows in panels.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def describe_parsing(problem: TyperException) -> str:
    """Say in plain words what is wrong with a command line, or show the help if it names no command."""
    from pydantic import ValidationError

    from pneumoscope.config import describe_problem

    message, context = problem.format_message(), getattr(problem, "ctx", None)
    if context is None or message.startswith("Usage: "):
        return message
    parameter, cause = getattr(problem, "param", None), problem.__cause__
    if parameter is not None and isinstance(cause, ValidationError):
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.display_name_raw
        message = f"{name}: {describe_problem(cause)}"
    owners = _find_owners(problem, context)
    message = f"{message.rstrip('.')}.{owners}" if owners else message
    return f"{message}\nSee: {context.command_path} --help"


def _find_owners(problem: TyperException, context: Context) -> str:
    """Which other commands have an option that this one does not have."""
    flag = getattr(problem, "option_name", None)
    commands = getattr(context.find_root().command, "commands", {})
    owners = [
        name for name, command in commands.items()
        if any(flag in parameter.opts for parameter in command.get_params(context))
    ]  # fmt: skip
    return f" These commands have it: {', '.join(owners)}." if flag and owners else ""


def make_group(text: str, name: str | None = None) -> typer.Typer:
    """A group of commands with this help."""
    return typer.Typer(
        cls=PanelGroup,
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
