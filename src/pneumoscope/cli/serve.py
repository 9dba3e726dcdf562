"""The commands of the reading room: run it, and get out what reviewers said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.models import ModelOption
from pneumoscope.cli.options import Device
from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.text import printable

if TYPE_CHECKING:
    from pneumoscope.server.predictions import Room

Database = Annotated[
    str | None,
    typer.Option(
        help="Where reads are kept: a SQLite file, or postgresql://USER@HOST/NAME; else $PNEUMOSCOPE_DATABASE, else "
        "reads.sqlite among your own data."
    ),
]

reviews_app = typer.Typer(help="What reviewers said in the reading room.", no_args_is_help=True, rich_markup_mode=None)


def serve(
    model: ModelOption = None,
    host: Annotated[str, typer.Option(help="Where to listen; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds the token callers have to show; else $PNEUMOSCOPE_TOKEN.")
    ] = None,
    database: Database = None,
    keep_images: Annotated[
        Path | None, typer.Option(help="Folder to keep the images' files in; without it none is kept.")
    ] = None,
    forget_names: Annotated[bool, typer.Option("--forget-names", help="Do not keep the names of files.")] = False,
    batch_wait: Annotated[
        float, typer.Option(help="Milliseconds that an image may wait for others to be computed with it.")
    ] = 5.0,
    device: Device = "auto",
) -> None:
    """Open the reading room: a web page for people, and a service for programs. Ctrl-C ends it."""
    import logging

    try:
        from pneumoscope.server import app
        from pneumoscope.server.settings import Settings
    except ModuleNotFoundError as problem:
        raise MissingExtraError(f'This needs {problem.name}: pip install "pneumoscope[serve]".') from None
    settings = Settings(
        model=model,
        host=host,
        port=port,
        token=_read_token(token_file),
        database=database,
        keep_images=keep_images,
        keep_names=not forget_names,
        wait=batch_wait / 1000,
        device=device,
    )
    logger = logging.getLogger("pneumoscope.server")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    def tell(address: str, room: Room) -> None:
        images = f"kept in {keep_images}" if keep_images else "not kept"
        said = f"Model: {room.name}. Reads and verdicts: {room.memory.shown}. Images: {images}."
        typer.echo(f"{printable(said)}\nReading room: {address} (Ctrl-C ends it)", err=True)

    app.serve(settings, tell)


@reviews_app.command()
def export(
    out: Annotated[Path, typer.Option(help="Table to write (.csv).")],
    images: Annotated[
        list[Path], typer.Option(help="Folder that the images are in, such as that of --keep-images; may be repeated.")
    ],
    database: Database = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow an earlier table to go.")] = False,
) -> None:
    """Write the images that reviewers gave a class as a table that train and evaluate accept."""
    try:
        from pneumoscope.server.reviews import export_reviews
        from pneumoscope.server.store import Memory
    except ModuleNotFoundError as problem:
        raise MissingExtraError(f'This needs {problem.name}: pip install "pneumoscope[serve]".') from None
    with Memory(database, create=False) as memory:
        done = export_reviews(memory, out, images, overwrite)
    several = "" if done.images == 1 else "s"
    typer.echo(f"{out}: {done.images} image{several}; the model had decided otherwise on {done.disagreeing}.")
    if done.missing:
        _note(done.missing, "has a label, but its file is", "have a label, but their files are", "not there.")
    if done.unlabelled:
        _note(done.unlabelled, "was", "were", "reviewed without naming a class: left out.")
    if done.conflicting:
        _note(done.conflicting, "was", "were", "given several labels; the latest counts.")
    if done.unreadable:
        _note(done.unreadable, "could", "could", "not be opened.")


def _note(count: int, one: str, several: str, rest: str) -> None:
    typer.echo(f"{count} {f'image {one}' if count == 1 else f'images {several}'} {rest}", err=True)


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("PNEUMOSCOPE_TOKEN", "").strip() or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(
            f"--token-file {file}: cannot be read: {getattr(problem, 'strerror', None) or problem}."
        ) from None
    if not token:
        raise UsageError(f"--token-file {file}: empty. Put a token into it, such as: openssl rand -hex 32.")
    return token
