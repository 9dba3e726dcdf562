"""How far the readers of a service agree with each other, from their reviews."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pneumoscope.evaluation.agreement import Agreement, measure_cohen_kappa, measure_fleiss_kappa
from pneumoscope.evaluation.agreement import measure_krippendorff_alpha as measure_alpha
from pneumoscope.server.messages.monitoring import (
    CoefficientMessage,
    PairMessage,
    ReaderAgreementMessage,
    ReaderMessage,
)
from pneumoscope.server.storage.image_reviews import list_counting
from pneumoscope.server.storage.store import PredictionRecord, Review

_PAIRS_OF = 8  # readers, those who have read most


def measure_readers(reviews: Sequence[tuple[PredictionRecord, Review]], days: int) -> ReaderAgreementMessage:
    """Measure the agreement of readers.

    Args:
        reviews: with their predictions, in any order.
        days: that they are of.
    """
    ratings: dict[str, dict[tuple[str, bool], str]] = {}
    patients: dict[str, str] = {}
    unnamed = 0
    for record, review in list_counting(reviews):
        rating = "cannot_tell" if review.answer == "cannot_tell" else review.label
        if rating is None:
            continue
        if not review.reviewer:
            unnamed += 1
            continue
        ratings.setdefault(record.sha256, {})[review.reviewer, review.verified] = rating
        patients[record.sha256] = record.patient or f"image {record.sha256}"
    count = Counter(reader for each in ratings.values() for reader in each)
    readers = [reader for reader, _ in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))]
    owners = [patients[image] for image in ratings]
    table = [[each.get(reader) for reader in readers] for each in ratings.values()]
    columns = list(zip(*table, strict=True)) if table else []
    pairs = [
        PairMessage(
            first=readers[i][0], second=readers[j][0], **vars(measure_cohen_kappa(columns[i], columns[j], owners))
        )
        for i, j in combinations(range(min(len(readers), _PAIRS_OF)), 2)
    ]
    return ReaderAgreementMessage(
        days=days,
        reviews=len(reviews),
        readers=[
            ReaderMessage(name=name, verified=verified, images=count[name, verified]) for name, verified in readers
        ],
        unnamed=unnamed,
        pairs=[pair for pair in pairs if pair.images],
        fleiss=_to_message(measure_fleiss_kappa(table, owners)) if len(readers) > 2 else None,
        alpha=_to_message(measure_alpha(table, owners)),
    )


def _to_message(found: Agreement) -> CoefficientMessage:
    values: dict[str, Any] = vars(found)
    return CoefficientMessage(**values)
