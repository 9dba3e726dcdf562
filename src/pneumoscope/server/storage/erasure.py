"""Erasing what a database and a folder of kept images have of a patient or a study.

The audit log keeps its entries: they have pseudonyms, no names, and say who saw what was erased.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pneumoscope.errors import UsageError
from pneumoscope.server.storage.audit import SERVICE, Actor
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.store import Store

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
    found = store.find_images(patients=pseudonyms, study=study)
    sha256s = frozenset(row.sha256 for row in found)
    studies = frozenset(row.study_uid for row in found if row.study_uid) | ({study} if study else set())
    ids = {row.id for row in found}
    unneeded = sha256s - {row.sha256 for row in store.find_images(sha256s=sha256s) if row.id not in ids}
    if dry_run:
        return Erased(len(found), 0, 0, studies, sha256s, unneeded)
    # Images first: an interrupted run leaves the predictions, by which the next run finds the rest.
    images = kept.delete(unneeded) if kept is not None else 0
    pseudonym = next((each for each in reversed(pseudonyms) if each), None)
    entry = actor.to_entry("erase", count=len(found), patient=pseudonym, study=store.pseudonymise_study(study))
    predictions, reviews = store.delete([row.id for row in found], [entry])
    return Erased(predictions, reviews, images, studies, sha256s, unneeded)
