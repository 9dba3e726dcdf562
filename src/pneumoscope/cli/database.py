"""`database`: upgrade the database of the reading room and of DICOM nodes."""

from __future__ import annotations

from pneumoscope.cli.app import PanelCommand, make_group
from pneumoscope.cli.output import echo
from pneumoscope.cli.serve import Database

database_app = make_group("Look after the database of the reading room and of DICOM nodes.")


@database_app.command(cls=PanelCommand)
def upgrade(database: Database = None) -> None:
    """Bring a database of an earlier version up to date.

    Stop what uses it, and back it up first.
    """
    from pneumoscope.dicomnet.tables import TABLES as NODE
    from pneumoscope.server.schema import upgrade_database
    from pneumoscope.server.store import TABLES as READING_ROOM

    for tables, before, after in upgrade_database(database, (READING_ROOM, NODE)):
        what = "was up to date" if before == after else f"upgraded from revision {before}"
        echo(f"Tables of {tables.name}: revision {after}, {what}.", err=True)
