"""Erasing a patient or a study from a database and a folder of kept images.

The audit log keeps its entries: they have pseudonyms, no names, and say who saw what was erased.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sql
from sqlalchemy.orm import Session

from pneumoscope.errors import UsageError
from pneumoscope.server.problems import RequestError
from pneumoscope.server.storage.audit import SERVICE, Actor
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.schema import share
from pneumoscope.server.storage.store import AuditEntry, PredictionRecord, Store

_PSEUDONYM = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Erased:
    """What was erased, or would be.

    Attributes:
        predictions: how many.
        reviews: how many; 0 in a dry run.
        images: kept files, of which no prediction is left.
        studies: the Study Instance UIDs of the predictions.
        sha256s: of their images.
        unneeded: those of them that no other prediction has.
    """

    predictions: int
    reviews: int
    images: int
    studies: frozenset[str]
    sha256s: frozenset[str]
    unneeded: frozenset[str]


def erase(
    store: Store,
    kept: KeptImages | None,
    *,
    patient: str | None = None,
    study: str | None = None,
    dry_run: bool = False,
    actor: Actor = SERVICE,
) -> Erased:
    """Erase predictions, their reviews and kept images; after an interruption, run it again.

    Args:
        store: the database.
        kept: the folder of images, where there is one.
        patient: the original id, or the pseudonym in this database.
        study: a Study Instance UID.
        dry_run: whether to count only.
        actor: who does it, for the audit log.

    Raises:
        UsageError: neither or both of patient and study are given.
        DataError: something cannot be erased.
    """
    if bool(patient) == bool(study):
        raise UsageError("Give either `patient` or `study`.")
    pseudonyms = [store.pseudonymise(patient), *([patient] if patient and _PSEUDONYM.fullmatch(patient) else [])]
    ids, found = _find(store, pseudonyms, study)
    if dry_run:
        return found
    pseudonym = next((each for each in reversed(pseudonyms) if each), None)
    entry = actor.to_entry("erase", count=len(ids), patient=pseudonym, study=store.pseudonymise_study(study))
    with store.lock() as connection, Session(connection) as session:  # from here on, no job stores more of them
        session.add(entry)
        session.flush()
    ids, found = _find(store, pseudonyms, study)  # a job may have stored more while this waited for the lock
    # Images first: an interrupted run leaves the predictions, by which the next run finds the rest.
    images = kept.delete(found.unneeded) if kept is not None else 0
    predictions, reviews = store.delete(ids)
    return replace(found, predictions=predictions, reviews=reviews, images=images)


def _find(store: Store, pseudonyms: Sequence[str], study: str | None) -> tuple[list[str], Erased]:
    """The ids of predictions that would be erased, and what goes with them."""
    rows = store.find_images(patients=pseudonyms, study=study)
    ids = {row.id for row in rows}
    sha256s = frozenset(row.sha256 for row in rows)
    studies = frozenset(row.study_uid for row in rows if row.study_uid) | ({study} if study else set())
    unneeded = sha256s - {row.sha256 for row in store.find_images(sha256s=sha256s) if row.id not in ids}
    return list(ids), Erased(len(ids), 0, 0, studies, sha256s, unneeded)


def find_mark(session: Session) -> int:
    """The number of the latest entry of the audit log: `add_predictions` looks for erasures after it."""
    return session.scalar(sql.select(sql.func.max(AuditEntry.number))) or 0


def add_predictions(
    store: Store, new: Sequence[tuple[PredictionRecord, AuditEntry]], marks: Sequence[int | None]
) -> set[str]:
    """Store predictions with their audit entries, but not those whose patient or study was erased meanwhile.

    Args:
        store: the database.
        new: predictions and entries.
        marks: for each prediction, the mark after which erasures count; None: erasures do not count.

    Returns:
        The ids of those that were not stored.
    """
    since = min((mark for mark in marks if mark is not None), default=None)
    if since is None:
        store.add([row for pair in new for row in pair])
        return set()
    own, refused = AuditEntry, set()
    with store.begin() as session:
        share(session.connection())
        columns = (own.number, own.patient, own.study)
        erasures = session.execute(sql.select(*columns).where(own.action == "erase", own.number > since)).all()
        for (record, entry), mark in zip(new, marks, strict=True):
            study = store.pseudonymise_study(record.study_uid)
            if mark is not None and any(
                each.number > mark
                and ((record.patient and each.patient == record.patient) or (study and each.study == study))
                for each in erasures
            ):
                refused.add(record.id)
            else:
                session.add_all([record, entry])
    return refused


def drop_deleted(session: Session, predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The predictions of an answer that is about to be stored, with an error for each that has been deleted since.

    The transaction must have written something before, so that nothing is deleted meanwhile.
    """
    ids = [each["id"] for each in predictions if each.get("id")]
    own = PredictionRecord
    query = sql.select(own.id).where(own.id.in_(ids)).with_for_update(read=True, key_share=True)
    there = set(session.scalars(query)) if ids else set()
    gone = deleted_meanwhile()
    return [
        each
        if not each.get("id") or each["id"] in there
        else {"name": f"image-{number}", "error": gone.detail, "code": gone.code}
        for number, each in enumerate(predictions, 1)
    ]


def deleted_meanwhile() -> RequestError:
    """The problem of an image whose prediction was deleted before the answer was stored."""
    return RequestError(410, "It was deleted before the request was finished.", code="prediction-deleted")
