"""The command line: it reads options, calls one function, and prints the result.

Standard output carries results alone; progress and messages go to standard error.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from pneumoscope import __version__
from pneumoscope.cli.adapt import adapt
from pneumoscope.cli.app import PanelCommand, TableCommand, describe_parsing, make_group
from pneumoscope.cli.cluster import cluster_app
from pneumoscope.cli.crossval import crossval
from pneumoscope.cli.data import data_app
from pneumoscope.cli.database import database_app
from pneumoscope.cli.dicom import dicom_app
from pneumoscope.cli.evaluate import audit, compare, evaluate
from pneumoscope.cli.flags import describe_error
from pneumoscope.cli.grade import grade
from pneumoscope.cli.models import backbones, export, models_app
from pneumoscope.cli.node import node
from pneumoscope.cli.output import echo, open_streams, report_escapes
from pneumoscope.cli.papers import plot, report
from pneumoscope.cli.predict import explain, predict
from pneumoscope.cli.serve import ServiceCommand, reviews_app, serve
from pneumoscope.cli.summary import summarize
from pneumoscope.cli.tokens import tokens_app
from pneumoscope.cli.train import SettingsCommand, demo, train
from pneumoscope.cli.tune import tune
from pneumoscope.errors import PneumoscopeError, find_missing_extra
from pneumoscope.training.distributed import find_rank, refuse_several

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # in bytes; parameters of mallopt(3)
_TRAINING, _USING, _DATA, _MODELS = "Train and evaluate", "Use a model", "Data", "Models"  # panels of --help

app = make_group(
    "Turn a set of chest radiographs into a classifier. For research; not a medical device.", "pneumoscope"
)
_CLASSES: dict[Any, type[PanelCommand]] = {
    train: SettingsCommand,
    crossval: SettingsCommand,
    tune: SettingsCommand,
    adapt: TableCommand,
    evaluate: TableCommand,
    compare: TableCommand,
    grade: TableCommand,
    audit: TableCommand,
    export: TableCommand,
    serve: ServiceCommand,
}
for _panel, _command in (
    (_TRAINING, demo),
    (_TRAINING, train),
    (_TRAINING, crossval),
    (_TRAINING, tune),
    (_TRAINING, adapt),
    (_TRAINING, evaluate),
    (_TRAINING, compare),
    (_TRAINING, summarize),
    (_TRAINING, grade),
    (_TRAINING, report),
    (_TRAINING, plot),
    (_USING, predict),
    (_USING, explain),
    (_USING, export),
    (_USING, serve),
    (_DATA, audit),
    (_MODELS, backbones),
):
    app.command(cls=_CLASSES.get(_command, PanelCommand), rich_help_panel=_panel)(_command)
app.add_typer(models_app, name="models", rich_help_panel=_MODELS)
app.add_typer(data_app, name="data", rich_help_panel=_DATA)
dicom_app.command(cls=PanelCommand)(node)
app.add_typer(dicom_app, name="dicom", rich_help_panel=_USING)
app.add_typer(cluster_app, name="cluster", rich_help_panel=_USING)
app.add_typer(reviews_app, name="reviews", rich_help_panel=_USING)
app.add_typer(database_app, name="database", rich_help_panel=_USING)
app.add_typer(tokens_app, name="tokens", rich_help_panel=_USING)


def _tune_process() -> None:
    """Choose what suits a process that reads many images; the user's own environment variables come first."""
    # Idle threads of OpenMP soon sleep instead of spinning: on a busy machine spinning costs several times the work.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Pillow and glibc keep the memory of an image for the next one: with memory that was given back to the kernel,
    # reading a large image takes a fifth longer (docs/performance.md).
    os.environ.setdefault("PILLOW_BLOCKS_MAX", "8")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look through all packages
    # Imports create many objects that stay alive. Collecting garbage among them, during the imports and at exit, slows
    # every command (docs/performance.md).
    gc.set_threshold(10_000)
    atexit.register(_leave_garbage)
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or chosen or "--help" in sys.argv:  # the import would slow the help
        return
    import ctypes

    with suppress(OSError, AttributeError):  # a C library without it, such as musl
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        ctypes.CDLL(None).mallopt(_TRIM_THRESHOLD, 256 * 2**20)


def _leave_garbage() -> None:
    """Skip the garbage collection at exit, except with triton, which would then print a list of leaks."""
    if "triton" not in sys.modules:
        gc.freeze()


def main() -> None:
    """Run the command line. Every error ends in its exit code and a message, not in a stack trace."""
    _tune_process()
    open_streams()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except TyperException as problem:  # the command line cannot be parsed
        if find_rank():  # the first of several processes says so
            sys.exit(problem.exit_code)
        _fail(describe_parsing(problem), problem.exit_code)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # nobody reads the output any more; Click's code is 1
            sys.exit(0)
        raise
    except PneumoscopeError as problem:
        _fail(describe_error(problem), problem.exit_code)
    except BrokenPipeError:  # nobody reads the output any more
        sys.exit(0)
    except OSError as problem:
        _fail(f"{problem.filename or 'file'}: {problem.strerror or problem}.", 2)
    except Exception as problem:
        missing = find_missing_extra(problem) if isinstance(problem, ModuleNotFoundError) else None
        if missing is not None:
            _fail(missing.message, missing.exit_code)
        if os.environ.get("PNEUMOSCOPE_DEBUG"):
            raise
        _fail(
            f"internal error, or out of memory: {type(problem).__name__}: {problem}\n"
            "Set PNEUMOSCOPE_DEBUG=1 to see where it happened, and please report it.",
            1,
        )
    finally:
        report_escapes()
        _close()


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """What all commands share."""
    if version:
        echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in (None, "train"):
        refuse_several(str(context.invoked_subcommand))


def _fail(message: str, code: int) -> NoReturn:
    echo(message if message.startswith("Usage: ") else f"error: {message}", err=True)
    sys.exit(code)


def _close() -> None:
    """Drop what could not be written, or Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
