"""Predictions, reviews and properties: the tables called schema 1 before there were revisions."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0001"
down_revision = None


def upgrade(operations: Operations) -> None:
    """Make the tables."""
    operations.create_table(
        "properties",
        sql.Column("key", sql.String(40), primary_key=True),
        sql.Column("value", sql.Text, nullable=False),
    )
    operations.create_table(
        "predictions",
        sql.Column("sha256", sql.String(64), nullable=False),
        sql.Column("name", sql.Text, nullable=False),
        sql.Column("patient", sql.String(16), nullable=False),
        sql.Column("model", sql.Text, nullable=False),
        sql.Column("fingerprint", sql.String(64), nullable=False),
        sql.Column("decision", sql.Text, nullable=False),
        sql.Column("predicted_label", sql.Text, nullable=False),
        sql.Column("probability", sql.Double),
        sql.Column("probabilities", sql.JSON, nullable=False),
        sql.Column("prediction_set", sql.JSON, nullable=False),
        sql.Column("ood_score", sql.Double),
        sql.Column("warnings", sql.JSON, nullable=False),
        sql.Column("width", sql.Integer, nullable=False),
        sql.Column("height", sql.Integer, nullable=False),
        sql.Column("format", sql.String(16), nullable=False),
        sql.Column("invert", sql.Boolean, nullable=False),
        sql.Column("any_modality", sql.Boolean, nullable=False),
        sql.Column("id", sql.String(32), primary_key=True),
        sql.Column("created_at", sql.DateTime, nullable=False),
    )
    operations.create_index("ix_predictions_sha256", "predictions", ["sha256"])
    operations.create_index("ix_predictions_created_at", "predictions", ["created_at"])
    operations.create_table(
        "reviews",
        sql.Column("prediction_id", sql.String(32), sql.ForeignKey("predictions.id"), nullable=False),
        sql.Column("agrees", sql.Boolean, nullable=False),
        sql.Column("label", sql.Text),
        sql.Column("comment", sql.Text, nullable=False),
        sql.Column("reviewer", sql.Text, nullable=False),
        sql.Column("created_at", sql.DateTime, nullable=False),
        sql.Column("number", sql.Integer, primary_key=True),
    )
    operations.create_index("ix_reviews_prediction_id", "reviews", ["prediction_id"])
