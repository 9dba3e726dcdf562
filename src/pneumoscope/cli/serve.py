"""`serve` and `reviews`: run the reading room, and export its reviews."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.logs import LogFormat, show_log
from pneumoscope.cli.options import OUTPUT, option
from pneumoscope.cli.output import echo
from pneumoscope.errors import UsageError

if TYPE_CHECKING:
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

reviews_app = make_group("Export the reviews of the reading room.")


def serve(
    model: options.Model = None,
    host: Annotated[
        str, option("Address to listen on. Any address but this computer's own needs a token.", _SERVICE)
    ] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on; 0 takes any free port.", _SERVICE, least=0, most=65535)] = 8000,
    token_file: Annotated[
        Path | None, option("File with the token that callers must send. [default: $PNEUMOSCOPE_TOKEN]", _SERVICE)
    ] = None,
    batch_wait: Annotated[
        float, option("Milliseconds that an image may wait for others to share a batch.", _SERVICE)
    ] = 5.0,
    database: Database = None,
    upgrade: _Upgrade = False,
    keep_images: Annotated[
        Path | None, option("Folder to keep image files in. [default: none are kept]", STORAGE)
    ] = None,
    keep_for: _KeepFor = None,
    keep_names: Annotated[bool, option("Store file names.", STORAGE)] = True,
    keep_uids: Annotated[bool, option("Store accession numbers and UIDs of DICOM files.", STORAGE)] = True,
    refuse_out_of_scope: options.RefuseOutOfScope = False,
    device: options.Device = "auto",
    log_format: LogFormat = None,
) -> None:
    """Open the reading room, a web page, and a service for programs.

    Ctrl-C stops it.
    """
    from pneumoscope.server import app
    from pneumoscope.server.retention import read_period
    from pneumoscope.server.settings import Settings

    settings = Settings(
        model=model,
        host=host,
        port=port,
        token=_read_token(token_file),
        database=database,
        upgrade=upgrade,
        keep_images=keep_images,
        keep_for=None if keep_for is None else read_period(keep_for),
        keep_names=keep_names,
        keep_uids=keep_uids,
        batch_wait=batch_wait,
        device=device,
        refuse_out_of_scope=refuse_out_of_scope,
    )

    def announce(address: str, service: PredictionService) -> None:
        images = f"kept in {keep_images}" if keep_images else "not kept"
        facts = f"Model: {service.name}. Predictions and reviews: {service.store.location}. Images: {images}."
        echo(f"{facts}\nReading room: {address} (Ctrl-C stops it)", err=True)

    with show_log(log_format or "text", "pneumoscope.server"):
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
    from pneumoscope.server.reviews import export_reviews
    from pneumoscope.server.store import Store

    with Store(database, create=False) as store:
        result = export_reviews(store, out, images, overwrite, excel=excel)
    echo(f"{out}: {_count(result.images)}; the model disagreed on {result.disagreeing}.")
    for count, note in (
        (result.missing, "with a label, but no file in these folders"),
        (result.unlabelled, "reviewed without a label: left out"),
        (result.conflicting, "with several labels: the latest is written"),
        (result.unreadable, "in these folders: cannot be read"),
    ):
        if count:
            echo(f"{_count(count)} {note}", err=True)


def _count(images: int) -> str:
    return f"{images} image{'' if images == 1 else 's'}"


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("PNEUMOSCOPE_TOKEN", "").strip() or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UsageError(f"{file} cannot be read: {reason}.", parameter="token_file") from None
    if not token:
        raise UsageError(
            f"{file} is empty. Put a token into it, for example from: openssl rand -hex 32", parameter="token_file"
        )
    return token
