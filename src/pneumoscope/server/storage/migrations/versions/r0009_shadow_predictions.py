"""Predictions may have those of another model beside them."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0009"
down_revision = "0008"


def upgrade(operations: Operations) -> None:
    """Add the table."""
    operations.create_table(
        "shadow_predictions",
        sql.Column(
            "prediction_id", sql.String(32), sql.ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True
        ),
        sql.Column("fingerprint", sql.String(64), primary_key=True),
        sql.Column("model", sql.Text, nullable=False),
        sql.Column("decision", sql.Text, nullable=False),
        sql.Column("predicted_label", sql.Text, nullable=False),
        sql.Column("probabilities", sql.JSON, nullable=False),
        sql.Column("ood_score", sql.Double),
        sql.Column("created_at", sql.DateTime, nullable=False),
    )
