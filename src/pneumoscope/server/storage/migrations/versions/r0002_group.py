"""Predictions have the group that decided: schema 2."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"


def upgrade(operations: Operations) -> None:
    """Add the column."""
    operations.add_column("predictions", sql.Column("group", sql.Text))
