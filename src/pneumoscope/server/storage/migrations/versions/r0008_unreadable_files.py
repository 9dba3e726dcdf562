"""Files that could not be read are counted by day and reason."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0008"
down_revision = "0007"


def upgrade(operations: Operations) -> None:
    """Add the table."""
    operations.create_table(
        "unreadable_files",
        sql.Column("day", sql.String(10), primary_key=True),
        sql.Column("code", sql.String(40), primary_key=True),
        sql.Column("files", sql.Integer, nullable=False),
    )
