"""Lists, monitoring and deletion stay fast with millions of predictions.

Indices are made in the transaction of the upgrade, which is whole or not at all, so nothing can be stored meanwhile.
Whoever has a large PostgreSQL makes those of `INDICES` beforehand with CREATE INDEX CONCURRENTLY, while the service
runs; what is there already is left as it is.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sql
from alembic.operations import Operations

revision = "0012"
down_revision = "0011"

INDICES = {  # table and columns of each
    "ix_predictions_patient_number": "predictions (patient, number)",
    "ix_predictions_study_uid_number": "predictions (study_uid, number)",
    "ix_predictions_decision_number": "predictions (decision, number)",
    "ix_predictions_model_number": "predictions (model, number)",
    "ix_predictions_fingerprint_number": "predictions (fingerprint, number)",
    "ix_audit_patient_number": "audit (patient, number)",
    "ix_audit_prediction_id_number": "audit (prediction_id, number)",
    "ix_audit_caller_number": "audit (caller, number)",
    "ix_audit_action_number": "audit (action, number)",
    "ix_reviews_created_at": "reviews (created_at)",
    "ix_readings_reader_number": "readings (reader, number)",
    "ix_shadow_predictions_created_at": "shadow_predictions (created_at)",
}
_ID = re.compile("(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_AT_ONCE = 500


def upgrade(operations: Operations) -> None:
    """Add the indices, and the table of the predictions that kept answers tell of."""
    # No valid UID is longer, and PostgreSQL cannot index what has some thousand characters.
    operations.execute("UPDATE predictions SET study_uid = NULL WHERE length(study_uid) > 64")
    for name, columns in INDICES.items():
        operations.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {columns}")
    links = operations.create_table(
        "answered_predictions",
        sql.Column("prediction_id", sql.String(32), nullable=False),
        sql.Column("request_key", sql.String(64), sql.ForeignKey("answered_requests.key", ondelete="CASCADE")),
        sql.Column("job_number", sql.Integer, sql.ForeignKey("jobs.number", ondelete="CASCADE")),
        sql.Column("number", sql.Integer, primary_key=True),
        sqlite_autoincrement=True,
    )
    for column in ("prediction_id", "request_key", "job_number"):
        operations.create_index(f"ix_answered_predictions_{column}", "answered_predictions", [column])
    connection = operations.get_bind()
    for table, key, column in (("answered_requests", "key", "request_key"), ("jobs", "number", "job_number")):
        owner: sql.ColumnClause[Any] = sql.column(key)
        known = connection.scalars(sql.select(owner).select_from(sql.table(table))).all()
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            query = sql.select(owner, sql.column("content")).select_from(sql.table(table)).where(owner.in_(some))
            rows = [
                {"prediction_id": each, "request_key": None, "job_number": None, column: name}
                for name, content in connection.execute(query)
                for each in sorted(set(_ID.findall(content)))
            ]
            if rows:
                connection.execute(sql.insert(links), rows)
