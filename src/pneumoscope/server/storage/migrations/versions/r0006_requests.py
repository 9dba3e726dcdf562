"""Requests with an Idempotency-Key and their answers, and jobs."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0006"
down_revision = "0005"


def upgrade(operations: Operations) -> None:
    """Make the tables."""
    operations.create_table(
        "answered_requests",
        sql.Column("key", sql.String(64), primary_key=True),
        sql.Column("request", sql.String(64), nullable=False),
        sql.Column("began_at", sql.Double, nullable=False),
        sql.Column("status", sql.Integer),
        sql.Column("location", sql.Text, nullable=False),
        sql.Column("content", sql.Text, nullable=False),
    )
    operations.create_index("ix_answered_requests_began_at", "answered_requests", ["began_at"])
    operations.create_table(
        "jobs",
        sql.Column("state", sql.String(16), nullable=False),
        sql.Column("files", sql.Integer, nullable=False),
        sql.Column("beat_at", sql.Double, nullable=False),
        sql.Column("callback", sql.Text, nullable=False),
        sql.Column("callback_state", sql.String(16), nullable=False),
        sql.Column("callback_attempts", sql.Integer, nullable=False),
        sql.Column("callback_due_at", sql.Double, nullable=False),
        sql.Column("content", sql.Text, nullable=False),
        sql.Column("id", sql.String(32), nullable=False),
        sql.Column("created_at", sql.DateTime, nullable=False),
        sql.Column("finished_at", sql.DateTime),
        sql.Column("number", sql.Integer, primary_key=True),
        sql.UniqueConstraint("id", name="jobs_id_key"),
        sqlite_autoincrement=True,
    )
    operations.create_index("ix_jobs_created_at", "jobs", ["created_at"])
