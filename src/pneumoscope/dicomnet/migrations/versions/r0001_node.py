"""The node's tables: those called schema 1 before there were revisions."""

from __future__ import annotations

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0001"
down_revision = None


def upgrade(operations: Operations) -> None:
    """Make the tables."""
    operations.create_table(
        "node_properties",
        sql.Column("key", sql.String(40), primary_key=True),
        sql.Column("value", sql.Text, nullable=False),
    )
    operations.create_table(
        "node_images",
        sql.Column("node", sql.String(16), nullable=False),
        sql.Column("key", sql.String(61), nullable=False),
        sql.Column("study", sql.String(40), nullable=False),
        sql.Column("calling", sql.String(16), nullable=False),
        sql.Column("received_at", sql.Double, nullable=False),
        sql.Column("state", sql.String(12), nullable=False),
        sql.Column("reason", sql.Text, nullable=False),
        sql.Column("to", sql.JSON, nullable=False),
        sql.Column("version", sql.Integer, nullable=False),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("alone", sql.Integer, nullable=False),
        sql.Column("kept", sql.Boolean, nullable=False),
        sql.Column("answered_at", sql.Double),
        sql.Column("sha256", sql.String(64), nullable=False),
        sql.Column("decision", sql.Text, nullable=False),
        sql.Column("predicted_label", sql.Text, nullable=False),
        sql.Column("probability", sql.Double),
        sql.Column("warnings", sql.JSON, nullable=False),
        sql.Column("id", sql.Integer, primary_key=True),
        sql.UniqueConstraint("node", "key"),
    )
    operations.create_index("node_images_state", "node_images", ["node", "state", "received_at"])
    operations.create_index("ix_node_images_study", "node_images", ["study"])
    operations.create_table(
        "node_studies",
        sql.Column("node", sql.String(16), primary_key=True),
        sql.Column("study", sql.String(40), primary_key=True),
        sql.Column("version", sql.Integer, nullable=False),
        sql.Column("answered_at", sql.Double, nullable=False),
    )
    _make_deliveries(operations)


def _make_deliveries(operations: Operations) -> None:
    operations.create_table(
        "node_results",
        sql.Column("node", sql.String(16), nullable=False),
        sql.Column("image_id", sql.Integer, sql.ForeignKey("node_images.id"), nullable=False),
        sql.Column("kind", sql.String(16), nullable=False),
        sql.Column("sop_class_uid", sql.String(64), nullable=False),
        sql.Column("sop_uid", sql.String(64), nullable=False),
        sql.Column("file", sql.String(40), nullable=False),
        sql.Column("created_at", sql.Double, nullable=False),
        sql.Column("id", sql.Integer, primary_key=True),
        sql.UniqueConstraint("node", "sop_uid"),
    )
    operations.create_index("ix_node_results_image_id", "node_results", ["image_id"])
    operations.create_table(
        "node_deliveries",
        sql.Column("node", sql.String(16), nullable=False),
        sql.Column("result_id", sql.Integer, sql.ForeignKey("node_results.id"), nullable=False),
        sql.Column("destination", sql.String(200), nullable=False),
        sql.Column("state", sql.String(12), nullable=False),
        sql.Column("due_at", sql.Double, nullable=False),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("sent_at", sql.Double),
        sql.Column("commitment", sql.String(64), nullable=False),
        sql.Column("error", sql.Text, nullable=False),
        sql.Column("id", sql.Integer, primary_key=True),
        sql.UniqueConstraint("result_id", "destination"),
    )
    operations.create_index("node_deliveries_due", "node_deliveries", ["node", "destination", "state", "due_at"])
    operations.create_index("ix_node_deliveries_result_id", "node_deliveries", ["result_id"])
    operations.create_index("ix_node_deliveries_commitment", "node_deliveries", ["commitment"])
    operations.create_table(
        "node_transactions",
        sql.Column("node", sql.String(16), nullable=False),
        sql.Column("uid", sql.String(64), nullable=False),
        sql.Column("delivery_id", sql.Integer, sql.ForeignKey("node_deliveries.id"), nullable=False),
        sql.Column("id", sql.Integer, primary_key=True),
    )
    operations.create_index("ix_node_transactions_uid", "node_transactions", ["uid"])
    operations.create_index("ix_node_transactions_delivery_id", "node_transactions", ["delivery_id"])
