"""How two models that see the same images differ."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sql

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.evaluation.decision_summary import measure_rate
from pneumoscope.server.messages.monitoring import Discordant, ModelComparison, ReviewedDiscordance, Share
from pneumoscope.server.models.served import ServedModel
from pneumoscope.server.storage.image_reviews import list_counting
from pneumoscope.server.storage.records import ShadowPrediction
from pneumoscope.server.storage.store import PredictionRecord, Review, Store

_COMPARED = 50_000  # images, at most
_LISTED = 50  # discordant images


@dataclass(frozen=True)
class _Outcome:
    """What a model says of an image."""

    decision: str
    predicted_label: str
    probabilities: dict[str, float]


def compare_models(
    store: Store, first: ServedModel, second: ServedModel, canary: float, since: datetime.datetime
) -> ModelComparison:
    """Compare the latest predictions of two models for the same images since a moment (UTC).

    Raises:
        DataError: the database does not answer.
    """
    pairs = _list_pairs(store, first, second, since)
    labels = _find_labels(store, since)
    different = [pair for pair in pairs if pair[0].decision != pair[1].decision]
    positive = first.predictor.model.positive
    differences = [_probability(two, positive) - _probability(one, positive) for one, two, _ in pairs if positive]
    reviewed = [(one, two, labels[row.sha256]) for one, two, row in different if row.sha256 in labels]
    low, median, high = np.quantile(differences, [0.05, 0.5, 0.95]).tolist() if differences else (None, None, None)
    return ModelComparison(
        name=second.name,
        fingerprint=second.fingerprint,
        canary=canary,
        images=len(pairs),
        answered_by_second=sum(row.fingerprint == second.fingerprint for _, _, row in pairs),
        same_decision=_measure([one.decision == two.decision for one, two, _ in pairs]),
        same_label=_measure([one.predicted_label == two.predicted_label for one, two, _ in pairs]),
        difference_p05=low,
        difference_median=median,
        difference_p95=high,
        mean_absolute_difference=float(np.mean(np.abs(differences))) if differences else None,
        discordant=len(different),
        reviewed=ReviewedDiscordance(
            images=len(reviewed),
            first_matches=sum(one.decision == label for one, _, label in reviewed),
            second_matches=sum(two.decision == label for _, two, label in reviewed),
        ),
        latest=[
            Discordant(
                prediction_id=row.id,
                created_at=row.created_at,
                first=one.decision,
                second=two.decision,
                first_probability=_show(one, positive),
                second_probability=_show(two, positive),
                label=labels.get(row.sha256),
            )
            for one, two, row in reversed(different[-_LISTED:])
        ],
    )


def _list_pairs(
    store: Store, first: ServedModel, second: ServedModel, since: datetime.datetime
) -> list[tuple[Any, Any, Any]]:
    """What the first and the second say of each image, and the prediction that was answered; the oldest first."""
    own, other = PredictionRecord, ShadowPrediction
    both = (first.fingerprint, second.fingerprint)
    shared = ("fingerprint", "decision", "predicted_label", "probabilities")
    query = (
        sql.select(
            own.id, own.number, own.sha256, own.created_at,
            *(getattr(own, name) for name in shared), *(getattr(other, name).label(f"other_{name}") for name in shared),
        )
        .join_from(other, own, own.id == other.prediction_id)
        .where(own.created_at >= since, own.fingerprint.in_(both), other.fingerprint.in_(both))
        .order_by(own.number.desc())
        .limit(_COMPARED)
    )  # fmt: skip
    with store.read() as connection:
        rows = {row.sha256: row for row in reversed(connection.execute(query).all())}
    found = []
    for row in sorted(rows.values(), key=lambda row: row.number):
        answered = _Outcome(row.decision, row.predicted_label, row.probabilities)
        beside = _Outcome(row.other_decision, row.other_predicted_label, row.other_probabilities)
        first_answered = row.fingerprint == first.fingerprint
        found.append((*((answered, beside) if first_answered else (beside, answered)), row))
    return found


def _find_labels(store: Store, since: datetime.datetime) -> dict[str, str]:
    """The class that the latest review of each image names."""
    reviews: Sequence[tuple[PredictionRecord, Review]] = store.list_reviews(since, _COMPARED)
    return {record.sha256: review.label for record, review in list_counting(reviews) if review.label is not None}


def _probability(outcome: _Outcome, positive: str | None) -> float:
    return outcome.probabilities.get(positive or "", 0.0)


def _show(outcome: _Outcome, positive: str | None) -> float | None:
    """The probability, unless it would mean nothing."""
    return None if positive is None or outcome.decision == OUT_OF_DISTRIBUTION else _probability(outcome, positive)


def _measure(hits: list[bool]) -> Share:
    return Share.model_validate(measure_rate(hits))
