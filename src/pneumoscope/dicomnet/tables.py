"""The node's tables in a database, SQLite or PostgreSQL; it may be the one of the reading room."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from pneumoscope.server.storage.databases import opening
from pneumoscope.server.storage.schema import NODE_REVISION, Tables, prepare


class _Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    pass


class NodeProperty(_Base):
    """A property of the tables themselves: their version."""

    __tablename__ = "node_properties"

    key: Mapped[str] = mapped_column(sql.String(40), primary_key=True)
    value: Mapped[str] = mapped_column(sql.Text)


class Image(_Base):
    """An image that a node has received. Times are seconds since 1970.

    Attributes:
        node: the spool that holds it.
        key: its name in the spool, from hashes of its SOP Instance UID and its content.
        study: a hash of its Study Instance UID; empty where the file cannot be read.
        calling: who sent it.
        received_at: when.
        state: `waiting`, `answered`, `skipped` (by a rule, or a result of our own), `set_aside` or `lost` (its file is
            gone).
        reason: why it is skipped, set aside or lost; of an answered one, why it has no results.
        to: names of the destinations of its results, as JSON; empty for all.
        version: of the study's answer that it is part of.
        attempts: how often answering it has begun without an end.
        alone: how often of these it was answered alone.
        kept: whether its file may still be in the spool.
    """

    __tablename__ = "node_images"
    __table_args__ = (
        sql.UniqueConstraint("node", "key"),
        sql.Index("node_images_state", "node", "state", "received_at"),
    )

    node: Mapped[str] = mapped_column(sql.String(16))
    key: Mapped[str] = mapped_column(sql.String(61))
    study: Mapped[str] = mapped_column(sql.String(40), index=True)
    calling: Mapped[str] = mapped_column(sql.String(16))
    received_at: Mapped[float] = mapped_column(sql.Double)
    state: Mapped[str] = mapped_column(sql.String(12), default="waiting")
    reason: Mapped[str] = mapped_column(sql.Text, default="")
    to: Mapped[list[str]] = mapped_column(sql.JSON, default_factory=list)
    version: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    alone: Mapped[int] = mapped_column(default=0)
    kept: Mapped[bool] = mapped_column(default=True)
    answered_at: Mapped[float | None] = mapped_column(sql.Double, default=None)
    sha256: Mapped[str] = mapped_column(sql.String(64), default="")
    decision: Mapped[str] = mapped_column(sql.Text, default="")
    predicted_label: Mapped[str] = mapped_column(sql.Text, default="")
    probability: Mapped[float | None] = mapped_column(sql.Double, default=None)
    warnings: Mapped[list[str]] = mapped_column(sql.JSON, default_factory=list)
    id: Mapped[int] = mapped_column(primary_key=True, init=False)


class Study(_Base):
    """How often a study has been answered: late images make another version."""

    __tablename__ = "node_studies"

    node: Mapped[str] = mapped_column(sql.String(16), primary_key=True)
    study: Mapped[str] = mapped_column(sql.String(40), primary_key=True)
    version: Mapped[int]
    answered_at: Mapped[float] = mapped_column(sql.Double)


class ResultRecord(_Base):
    """A result in the spool: one DICOM object."""

    __tablename__ = "node_results"
    __table_args__ = (sql.UniqueConstraint("node", "sop_uid"),)

    node: Mapped[str] = mapped_column(sql.String(16))
    image_id: Mapped[int] = mapped_column(sql.ForeignKey("node_images.id"), index=True)
    kind: Mapped[str] = mapped_column(sql.String(16))
    sop_class_uid: Mapped[str] = mapped_column(sql.String(64))
    sop_uid: Mapped[str] = mapped_column(sql.String(64))
    file: Mapped[str] = mapped_column(sql.String(40))
    created_at: Mapped[float] = mapped_column(sql.Double)
    id: Mapped[int] = mapped_column(primary_key=True, init=False)


class Delivery(_Base):
    """A result on its way to one destination.

    Attributes:
        destination: its name.
        state: `due`, `sent` (not yet verified), `delivered`, `failed` or `held` (by a dry run, for good).
        due_at: when to try next; of `sent`, when to ask next.
        attempts: how often the destination has refused it.
        sent_at: when it was last accepted.
        commitment: the transaction UID of the storage commitment that was last asked for.
        error: what went wrong last.
    """

    __tablename__ = "node_deliveries"
    __table_args__ = (
        sql.UniqueConstraint("result_id", "destination"),
        sql.Index("node_deliveries_due", "node", "destination", "state", "due_at"),
    )

    node: Mapped[str] = mapped_column(sql.String(16))
    result_id: Mapped[int] = mapped_column(sql.ForeignKey("node_results.id"), index=True)
    destination: Mapped[str] = mapped_column(sql.String(200))
    state: Mapped[str] = mapped_column(sql.String(12))
    due_at: Mapped[float] = mapped_column(sql.Double)
    attempts: Mapped[int] = mapped_column(default=0)
    sent_at: Mapped[float | None] = mapped_column(sql.Double, default=None)
    commitment: Mapped[str] = mapped_column(sql.String(64), index=True, default="")
    error: Mapped[str] = mapped_column(sql.Text, default="")
    id: Mapped[int] = mapped_column(primary_key=True, init=False)


class Transaction(_Base):
    """A request of storage commitment for a result; kept until that is delivered, as reports may come late.

    Attributes:
        uid: the transaction UID (PS3.4 J.3).
    """

    __tablename__ = "node_transactions"

    node: Mapped[str] = mapped_column(sql.String(16))
    uid: Mapped[str] = mapped_column(sql.String(64), index=True)
    delivery_id: Mapped[int] = mapped_column(sql.ForeignKey("node_deliveries.id"), index=True)
    id: Mapped[int] = mapped_column(primary_key=True, init=False)


TABLES = Tables(
    "the DICOM node", _Base.metadata, Path(__file__).parent / "migrations", NODE_REVISION, NodeProperty.__tablename__
)


def open_tables(url: str | None, *, create: bool = True, upgrade: bool = False) -> tuple[sql.Engine, str]:
    """Open a database, make the tables where there are none, and give the engine and the database's name.

    Args:
        url: SQLAlchemy's URL, the path of a SQLite file, or None for the user's own file.
        create: whether to make a SQLite file that does not exist.
        upgrade: whether to bring the tables of an earlier version up to date.

    Raises:
        UsageError: it cannot be reached, or is not a database of pneumoscope.
        DataError: another version of pneumoscope made the tables.
        MissingExtraError: its driver is not installed.
    """
    with opening(url) as database:
        engine = database.connect(create)
        try:
            prepare(engine, database.location, TABLES, upgrade=upgrade)
        except BaseException:
            engine.dispose()
            raise
    return engine, database.location
