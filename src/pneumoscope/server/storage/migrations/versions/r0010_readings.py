"""Readings: what readers see in images before and after they know the model's answer."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0010"
down_revision = "0009"


def upgrade(operations: Operations) -> None:
    """Make the table."""
    operations.create_table(
        "readings",
        sql.Column("prediction_id", sql.String(32), sql.ForeignKey("predictions.id"), nullable=False),
        sql.Column("sequence", sql.Integer, nullable=False),
        sql.Column("reader", sql.Text, nullable=False),
        sql.Column("with_ai", sql.Boolean, nullable=False),
        sql.Column("label", sql.Text),
        sql.Column("confidence", sql.Integer),
        sql.Column("comment", sql.Text, nullable=False),
        sql.Column("seconds", sql.Double),
        sql.Column("truth", sql.Text),
        sql.Column("created_at", sql.DateTime, nullable=False),
        sql.Column("number", sql.Integer, primary_key=True),
        sql.UniqueConstraint("prediction_id", "reader", "sequence", name="readings_sequence_key"),
        sqlite_autoincrement=True,
    )
    operations.create_index("ix_readings_prediction_id", "readings", ["prediction_id"])
