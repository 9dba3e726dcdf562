"""An audit log that the database itself refuses to change, and reviews whose reviewer's name may be verified.

Rows leave the log only by `database audit --delete-older`, which takes the guard away until its transaction ends.
"""

from __future__ import annotations

from alembic.operations import Operations

revision = "0007"
down_revision = "0006"

_COLUMNS = """
      at {moment} NOT NULL,
      caller TEXT NOT NULL,
      role VARCHAR(16) NOT NULL,
      source VARCHAR(16) NOT NULL,
      address TEXT NOT NULL,
      action VARCHAR(32) NOT NULL,
      prediction_id VARCHAR(32),
      patient VARCHAR(16),
      study VARCHAR(16),
      count INTEGER NOT NULL,
      status INTEGER NOT NULL,
      request VARCHAR(64) NOT NULL,
"""
_REFUSE = "SELECT RAISE(ABORT, 'the audit log cannot be changed')"
_SQLITE = (
    "ALTER TABLE reviews ADD COLUMN verified BOOLEAN NOT NULL DEFAULT 0",
    f"CREATE TABLE audit ({_COLUMNS.format(moment='DATETIME')} number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT)",
    "CREATE INDEX ix_audit_at ON audit (at)",
    f"CREATE TRIGGER audit_update BEFORE UPDATE ON audit BEGIN {_REFUSE}; END",
    f"CREATE TRIGGER audit_delete BEFORE DELETE ON audit BEGIN {_REFUSE}; END",
    # INSERT OR REPLACE deletes without asking the trigger above.
    f"""
    CREATE TRIGGER audit_replace BEFORE INSERT ON audit
    WHEN EXISTS (SELECT 1 FROM audit WHERE number = NEW.number) BEGIN {_REFUSE}; END
    """,  # noqa: S608
)
_POSTGRESQL = (
    "ALTER TABLE reviews ADD COLUMN verified BOOLEAN NOT NULL DEFAULT false",
    f"CREATE TABLE audit ({_COLUMNS.format(moment='TIMESTAMP WITHOUT TIME ZONE')} number SERIAL PRIMARY KEY)",
    "CREATE INDEX ix_audit_at ON audit (at)",
    """
    CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'the audit log cannot be changed'; END $$
    """,
    """
    CREATE TRIGGER audit_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
    """,
)


def upgrade(operations: Operations) -> None:
    """Add the log with its guard, and the column."""
    bind = operations.get_bind()
    for statement in _SQLITE if bind.dialect.name == "sqlite" else _POSTGRESQL:
        operations.execute(statement)
