"""A request with a key shows that it is still being executed."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0011"
down_revision = "0010"


def upgrade(operations: Operations) -> None:
    """Add the column."""
    column = sql.Column("beat_at", sql.Double, nullable=False, server_default="0")
    operations.add_column("answered_requests", column)
