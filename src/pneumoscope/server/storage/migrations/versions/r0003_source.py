"""Predictions have what is known about the image, and whose it is: schema 3."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0003"
down_revision = "0002"


def upgrade(operations: Operations) -> None:
    """Add the columns."""
    operations.add_column("predictions", sql.Column("age", sql.Double))
    for name in ("sex", "view", "laterality", "date", "accession_number", "study_uid", "series_uid", "sop_uid"):
        operations.add_column("predictions", sql.Column(name, sql.Text))
