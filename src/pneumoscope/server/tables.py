"""Tables of monitoring, and what all tables of the reading room have in common."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

import sqlalchemy as sql
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """A table of the reading room."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {list[str]: sql.JSON, dict[str, float]: sql.JSON}


class UnreadableFiles(Base):
    """How many files could not be read on a day (UTC), by the code of the problem; nothing else is kept of them."""

    __tablename__ = "unreadable_files"

    day: Mapped[str] = mapped_column(sql.String(10), primary_key=True)
    code: Mapped[str] = mapped_column(sql.String(40), primary_key=True)
    files: Mapped[int]


class ShadowPrediction(Base):
    """What another model than the one that answered says of the same image; deleted with the prediction."""

    __tablename__ = "shadow_predictions"

    prediction_id: Mapped[str] = mapped_column(sql.ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sql.String(64), primary_key=True)
    model: Mapped[str] = mapped_column(sql.Text)
    decision: Mapped[str] = mapped_column(sql.Text)
    predicted_label: Mapped[str] = mapped_column(sql.Text)
    probabilities: Mapped[dict[str, float]]
    ood_score: Mapped[float | None] = mapped_column(sql.Double)
    created_at: Mapped[datetime.datetime]
