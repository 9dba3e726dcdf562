"""Predictions have a number that rises with each one stored: the latest is found even if a clock was set back.

Earlier predictions get theirs in the order in which SQLite stored them, in PostgreSQL in that of their times.
"""

from __future__ import annotations

from alembic.operations import Operations

revision = "0004"
down_revision = "0003"

_COLUMNS = (
    "sha256, name, patient, model, fingerprint, decision, predicted_label, probability, probabilities, prediction_set, "
    'ood_score, warnings, width, height, format, invert, any_modality, "group", age, sex, "view", laterality, date, '
    "accession_number, study_uid, series_uid, sop_uid, id, created_at"
)
_SQLITE = (
    """
    CREATE TABLE predictions_0004 (
      sha256 VARCHAR(64) NOT NULL,
      name TEXT NOT NULL,
      patient VARCHAR(16) NOT NULL,
      model TEXT NOT NULL,
      fingerprint VARCHAR(64) NOT NULL,
      decision TEXT NOT NULL,
      predicted_label TEXT NOT NULL,
      probability DOUBLE,
      probabilities JSON NOT NULL,
      prediction_set JSON NOT NULL,
      ood_score DOUBLE,
      warnings JSON NOT NULL,
      width INTEGER NOT NULL,
      height INTEGER NOT NULL,
      format VARCHAR(16) NOT NULL,
      invert BOOLEAN NOT NULL,
      any_modality BOOLEAN NOT NULL,
      "group" TEXT,
      age DOUBLE,
      sex TEXT,
      "view" TEXT,
      laterality TEXT,
      date TEXT,
      accession_number TEXT,
      study_uid TEXT,
      series_uid TEXT,
      sop_uid TEXT,
      id VARCHAR(32) NOT NULL,
      created_at DATETIME NOT NULL,
      number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
      CONSTRAINT predictions_id_key UNIQUE (id)
    )
    """,
    f"INSERT INTO predictions_0004 ({_COLUMNS}) SELECT {_COLUMNS} FROM predictions ORDER BY rowid",  # noqa: S608
    "DROP TABLE predictions",
    "ALTER TABLE predictions_0004 RENAME TO predictions",
    "CREATE INDEX ix_predictions_sha256 ON predictions (sha256)",
    "CREATE INDEX ix_predictions_created_at ON predictions (created_at)",
)
_POSTGRESQL = (
    "ALTER TABLE predictions ADD COLUMN number INTEGER",
    """
    UPDATE predictions SET number = numbered.number
    FROM (SELECT id, row_number() OVER (ORDER BY created_at, id) AS number FROM predictions) AS numbered
    WHERE predictions.id = numbered.id
    """,
    "CREATE SEQUENCE predictions_number_seq AS INTEGER OWNED BY predictions.number",
    "SELECT setval('predictions_number_seq', (SELECT coalesce(max(number), 0) + 1 FROM predictions), false)",
    "ALTER TABLE predictions ALTER COLUMN number SET DEFAULT nextval('predictions_number_seq')",
    "ALTER TABLE reviews DROP CONSTRAINT reviews_prediction_id_fkey",
    "ALTER TABLE predictions DROP CONSTRAINT predictions_pkey",
    "ALTER TABLE predictions ADD CONSTRAINT predictions_pkey PRIMARY KEY (number)",
    "ALTER TABLE predictions ADD CONSTRAINT predictions_id_key UNIQUE (id)",
    """
    ALTER TABLE reviews ADD CONSTRAINT reviews_prediction_id_fkey
    FOREIGN KEY (prediction_id) REFERENCES predictions (id)
    """,
)


def upgrade(operations: Operations) -> None:
    """Make the number the primary key."""
    bind = operations.get_bind()
    for statement in _SQLITE if bind.dialect.name == "sqlite" else _POSTGRESQL:
        operations.execute(statement)
