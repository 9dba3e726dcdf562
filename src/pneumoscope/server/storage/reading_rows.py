"""The table of readings: what readers see in images before and after they know the model's answer."""

from __future__ import annotations

import sqlalchemy as sql


def define_readings(metadata: sql.MetaData) -> sql.Table:
    """Add the table to others.

    `sequence` counts the readings of one reader and prediction. `with_ai` says whether the reader knew the model's
    answer. `label` is empty if they cannot tell, and `confidence` (0 to 100) if they did not say how sure they are.
    `seconds` passed from showing the image to committing. `truth` is known of teaching cases only.
    """
    return sql.Table(
        "readings",
        metadata,
        sql.Column("prediction_id", sql.String(32), sql.ForeignKey("predictions.id"), nullable=False, index=True),
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
        sql.Index("ix_readings_reader_number", "reader", "number"),
        sqlite_autoincrement=True,
    )
