"""Reviews have an answer: agree, disagree, cannot tell, a comment alone, or that an earlier one is withdrawn."""

from __future__ import annotations

from alembic.operations import Operations

revision = "0005"
down_revision = "0004"

_COLUMNS = "prediction_id, agrees, label, comment, reviewer, created_at, number"
_ANSWER = "CASE WHEN agrees THEN 'agree' ELSE 'disagree' END"
_SQLITE = (
    """
    CREATE TABLE reviews_0005 (
      prediction_id VARCHAR(32) NOT NULL,
      answer VARCHAR(16) NOT NULL,
      agrees BOOLEAN,
      label TEXT,
      comment TEXT NOT NULL,
      reviewer TEXT NOT NULL,
      created_at DATETIME NOT NULL,
      number INTEGER NOT NULL,
      PRIMARY KEY (number),
      FOREIGN KEY(prediction_id) REFERENCES predictions (id)
    )
    """,
    f"INSERT INTO reviews_0005 ({_COLUMNS}, answer) SELECT {_COLUMNS}, {_ANSWER} FROM reviews",  # noqa: S608
    "DROP TABLE reviews",
    "ALTER TABLE reviews_0005 RENAME TO reviews",
    "CREATE INDEX ix_reviews_prediction_id ON reviews (prediction_id)",
)
_POSTGRESQL = (
    "ALTER TABLE reviews ADD COLUMN answer VARCHAR(16)",
    f"UPDATE reviews SET answer = {_ANSWER}",  # noqa: S608
    "ALTER TABLE reviews ALTER COLUMN answer SET NOT NULL",
    "ALTER TABLE reviews ALTER COLUMN agrees DROP NOT NULL",
)


def upgrade(operations: Operations) -> None:
    """Add the answer, and let `agrees` be empty where it neither agrees nor disagrees."""
    bind = operations.get_bind()
    for statement in _SQLITE if bind.dialect.name == "sqlite" else _POSTGRESQL:
        operations.execute(statement)
