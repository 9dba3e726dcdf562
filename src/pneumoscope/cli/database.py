"""`database`: back up, restore, upgrade and clean the database of the reading room and of DICOM nodes."""

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli import options
from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.options import OUTPUT, option
from pneumoscope.cli.output import echo
from pneumoscope.cli.serve import STORAGE, Database

database_app = make_group("Look after the database of the reading room and of DICOM nodes.")
_REMAINS = (
    "Not erased: backups, exported tables, copies in archives and elsewhere, and what models learned from images."
)


@database_app.command(cls=PanelCommand)
def upgrade(database: Database = None) -> None:
    """Bring a database of an earlier version up to date.

    Stop what uses it, and back it up first.
    """
    from pneumoscope.dicomnet.tables import TABLES as NODE
    from pneumoscope.server.storage.schema import upgrade_database
    from pneumoscope.server.storage.store import TABLES as READING_ROOM

    for tables, before, after in upgrade_database(database, (READING_ROOM, NODE)):
        what = "was up to date" if before == after else f"upgraded from revision {before}"
        echo(f"Tables of {tables.name}: revision {after}, {what}.", err=True)


@database_app.command(cls=PanelCommand)
def backup(
    out: Annotated[Path, option("File to write.", OUTPUT)],
    database: Database = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Copy a SQLite database, also while it is in use.

    Kept images and the spool of a node are not part of it.
    """
    from pneumoscope.server.storage.audit_table import log_command
    from pneumoscope.server.storage.backups import back_up

    file = back_up(database, out, overwrite)
    _report(log_command(str(file), "backup"))
    echo(f"{out}: a copy of {file}. It may say who patients are: protect it like the database.", err=True)


@database_app.command(cls=PanelCommand)
def restore(
    backup: Annotated[Path, typer.Argument(help="File that `database backup` has written.", metavar="BACKUP")],
    database: Database = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Put a backup in the place of a SQLite database that is not in use."""
    from pneumoscope.dicomnet.tables import TABLES as NODE
    from pneumoscope.server.storage import backups
    from pneumoscope.server.storage.audit_table import log_command
    from pneumoscope.server.storage.store import TABLES as READING_ROOM

    file = backups.restore(backup, database, (READING_ROOM, NODE), overwrite)
    _report(log_command(str(file), "restore"))
    echo(f"{file}: restored from {backup}.", err=True)


@database_app.command(cls=PanelCommand)
def erase(
    patient: Annotated[str | None, option("Original id of a patient, or the pseudonym in this database.")] = None,
    study: Annotated[str | None, option("Study Instance UID.")] = None,
    database: Database = None,
    images: Annotated[Path | None, option("Folder of `serve --keep-images`.", STORAGE)] = None,
    spool: Annotated[Path | None, option("Spool of a DICOM node that is stopped.", STORAGE)] = None,
    dry_run: Annotated[bool, option("Count only.", None, "--dry-run")] = False,
) -> None:
    """Erase what the database, kept images and the spool of a node have of a patient or a study."""
    from pneumoscope.dicomnet.erasure import erase_images
    from pneumoscope.server.storage import erasure
    from pneumoscope.server.storage.audit import find_user
    from pneumoscope.server.storage.kept_images import KeptImages
    from pneumoscope.server.storage.schema import has_node
    from pneumoscope.server.storage.store import Store

    with Store(database, create=False) as store:
        with store.read() as connection:
            node = has_node(connection)
        counted = erasure.erase(store, None, patient=patient, study=study, dry_run=True)
        # The node comes first: predictions say which studies are the patient's.
        of_node = erase_images(database, spool, counted.studies, counted.sha256s, dry_run=dry_run) if node else None
        kept = KeptImages(images) if images is not None else None
        remaining = of_node.remaining if of_node is not None else 0
        waits = patient is not None and remaining > 0  # the next run needs the predictions to find these images
        erased = counted
        if not dry_run and not waits:
            erased = erasure.erase(store, kept, patient=patient, study=study, actor=find_user())
    what, more = "Erased", f", {erased.reviews} reviews, {erased.images} kept images"
    if dry_run:
        what, more = "Would erase", " with their reviews and kept images"
    in_node = of_node.images if of_node is not None else 0
    predictions = 0 if waits and not dry_run else erased.predictions
    echo(f"{what}: {predictions} predictions{more}; {in_node} images of a DICOM node.")
    if remaining:
        echo(f"{remaining} images of a DICOM node remain: stop it and give --spool.", err=True)
    if waits and not dry_run:
        echo("The predictions are kept until then, because they say which images those are.", err=True)
    elif erased.unneeded and images is None:
        echo("Kept images were not searched.", err=True)
        if dry_run:
            echo("Give --images if the service keeps them.", err=True)
        else:
            echo("If the service keeps them, delete files of these names (with any ending) from its folder:", err=True)
            echo("\n".join(sorted(erased.unneeded)), err=True)
    if patient is not None:
        echo("Images whose patient was not known can be found only by --study.", err=True)
    echo(_REMAINS, err=True)


@database_app.command(cls=PanelCommand)
def move_key(
    out: Annotated[Path, option("File to move it to.", OUTPUT)],
    database: Database = None,
) -> None:
    """Move the key behind the pseudonyms of patients out of the database into a file.

    Pseudonyms stay the same.
    """
    from pneumoscope.datasets.pseudonyms import KEY_FILE
    from pneumoscope.server.storage.store import Store

    with Store(database, create=False) as store:
        store.move_key(out)
    echo(
        f"{out}: contains the key now. Set {KEY_FILE} to it wherever the database is used, and back it up apart from "
        "the database. Without it, known patients cannot be recognised. Earlier backups still hold it.",
        err=True,
    )


@database_app.command(cls=PanelCommand)
def audit(
    out: Annotated[Path, option("Table to write (.csv).", OUTPUT)],
    database: Database = None,
    delete_older: Annotated[
        str | None,
        option("Delete entries older than this from the database when they are written, such as 365d.", STORAGE),
    ] = None,
    excel: options.Excel = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the audit log as a table: who saw, predicted, reviewed, exported or deleted what.

    That is logged, too.
    """
    from pneumoscope.server.periods import read_period
    from pneumoscope.server.storage.audit import find_user
    from pneumoscope.server.storage.audit_table import export_entries
    from pneumoscope.server.storage.store import Store

    older = None if delete_older is None else read_period(delete_older, "delete_older")
    with Store(database, create=False) as store:
        written, deleted = export_entries(store, out, find_user(), overwrite, excel=excel, delete_older=older)
    echo(f"{out}: {written} entries.")
    if older is not None:
        echo(f"{deleted} of them are no longer in the database.", err=True)


def _report(reason: str) -> None:
    if reason:
        echo(f"Not in the audit log: {reason}", err=True)
