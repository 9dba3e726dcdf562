"""`serve` and `reviews`: run the reading room, and export its reviews."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, make_group, make_options
from pneumoscope.cli.options import OUTPUT, option
from pneumoscope.cli.output import echo
from pneumoscope.cli.readers import print_pairs, print_performance

if TYPE_CHECKING:
    from typer._click import Context, Parameter

    from pneumoscope.server.predictions import PredictionService

_SERVICE, STORAGE = "Service", "Storage"

Database = Annotated[
    str | None,
    option(
        "Where predictions are stored: a SQLite file, or postgresql://USER@HOST/NAME. [default: "
        "$PNEUMOSCOPE_DATABASE, else a file in your data folder]",
        STORAGE,
    ),
]

_Upgrade = Annotated[
    bool, option("Bring a database of an earlier version up to date; back it up first.", STORAGE, "--upgrade")
]
_KeepFor = Annotated[
    str | None,
    option(
        "Delete predictions, reviews and kept images after this time, such as 12h, 30d or 52w. [default: never]",
        STORAGE,
    ),
]

reviews_app = make_group("Export the reviews of the reading room, and measure its readers.")


class ServiceCommand(PanelCommand):
    """A command with an option for every setting of the service; they are made when it is called, not on import."""

    def get_params(self, ctx: "Context") -> "list[Parameter]":
        """All parameters: its own, and the settings."""
        return [*super().get_params(ctx), *_make_options()]

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Parse the command line; the settings go to `ctx.obj`, all else to the function."""
        rest = super().parse_args(ctx, args)
        ctx.obj = {str(option.name): ctx.params.pop(str(option.name)) for option in _make_options()}
        return rest


@functools.cache
def _make_options() -> "tuple[Parameter, ...]":
    from pneumoscope.server.setting_sources import list_options

    return make_options((each.name, each.kind, each.help, each.panel) for each in list_options())


def serve(
    context: typer.Context,
    config: Annotated[
        Path | None,
        option(
            "Settings as YAML. Variables such as PNEUMOSCOPE_PORT override it, and flags override both. [default: "
            "$PNEUMOSCOPE_CONFIG]",
            _SERVICE,
        ),
    ] = None,
    make_token: Annotated[bool, option("Make a token for this run, and show it.", "Access", "--make-token")] = False,
) -> None:
    """Open the reading room, a web page, and a service for programs.

    Ctrl-C stops it.
    """
    from pneumoscope.server import app
    from pneumoscope.server.access.strength import make_token as make
    from pneumoscope.server.setting_sources import read_settings

    token = make() if make_token else None
    settings = read_settings(config, {**context.obj, "token": token})

    def announce(address: str, service: "PredictionService") -> None:
        images = f"kept in {settings.keep_images}" if settings.keep_images else "not kept"
        facts = f"Model: {service.name}. Predictions and reviews: {service.store.location}. Images: {images}."
        secret = f"\nToken: {token}" if token else ""
        public = f", for others {settings.public_url}" if settings.public_url else ""
        echo(f"{facts}\nReading room: {address}{public} (Ctrl-C stops it){secret}", err=True)

    from pneumoscope.cli.logs import show_log

    with show_log(settings.log_format, "pneumoscope.server"):
        app.serve(settings, announce)


@reviews_app.command(cls=PanelCommand)
def export(
    out: Annotated[Path, option("Table to write (.csv).", OUTPUT)],
    images: Annotated[list[Path], option("Folder with the images, such as that of `serve --keep-images`; repeatable.")],
    database: Database = None,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write reviewed images and their labels as a table to train on."""
    from pneumoscope.server.storage.audit import find_user
    from pneumoscope.server.storage.reviews import export_reviews
    from pneumoscope.server.storage.store import Store

    with Store(database, create=False) as store:
        result = export_reviews(store, out, images, overwrite, excel=excel)
        store.add([find_user().to_entry("export_reviews", count=result.images)])
    echo(f"{out}: {_count(result.images)}; the model disagreed on {result.disagreeing}.")
    for count, note in (
        (result.missing, "with a label, but no file in these folders"),
        (result.unlabelled, "reviewed without a label: left out"),
        (result.conflicting, "with several labels: the latest is written"),
        (result.unreadable, "in these folders: cannot be read"),
    ):
        if count:
            echo(f"{_count(count)} {note}", err=True)


@reviews_app.command(cls=PanelCommand)
def performance(
    truth: Annotated[
        Path | None,
        option("True classes: a table with sha256 and label, or labelled images. [default: those of teaching cases]"),
    ] = None,
    out: Annotated[Path | None, option("Folder to write: performance.html, .csv and .json.", OUTPUT)] = None,
    database: Database = None,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare readers before and after they knew the model's answer, and the model, on the images that they read."""
    import json
    from dataclasses import asdict

    from pneumoscope.errors import DataError, UsageError
    from pneumoscope.evaluation.results import without_nan
    from pneumoscope.files import check_folder, write_rows, write_text
    from pneumoscope.reports.pages import format_command
    from pneumoscope.server.readings.performance import measure_pairs, measure_readers, read_truth
    from pneumoscope.server.readings.performance_page import render_performance
    from pneumoscope.server.readings.readings import list_all
    from pneumoscope.server.storage.store import Store

    files = ("performance.csv", "performance.json", "performance.html")
    if out is None:
        for name, given in (("overwrite", overwrite), ("excel", excel)):
            if given:
                raise UsageError("no effect without `out`. Leave it out.", name)
    else:
        check_folder(out, files, overwrite)
    known = None if truth is None else read_truth(truth)
    with Store(database, create=False) as store:
        rows = list_all(store)
        readers, pairs = measure_readers(rows, known), measure_pairs(rows)
        if not readers:
            raise DataError(f"{store.location}: contains no readings without AI yet. The blind mode makes them.")
    for each in readers:
        print_performance(each)
    print_pairs(pairs)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / files[0], [row for each in readers for row in each.to_rows()], excel)
        found = {
            "readers": [each.to_json() for each in readers],
            "pairs": [without_nan(asdict(each)) for each in pairs],
        }
        write_text(out / files[1], json.dumps(found, indent=2) + "\n")
        command = format_command(
            "reviews", "performance", truth=None if truth is None else str(truth), out="NEW_FOLDER"
        )
        write_text(out / files[2], render_performance(readers, pairs, command))
        echo(f"Page and tables: {out}", err=True)


def _count(images: int) -> str:
    return f"{images} image{'' if images == 1 else 's'}"
