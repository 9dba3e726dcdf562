"""Monitoring over time, and by groups of images."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.evaluation.decision_summary import measure_rate
from pneumoscope.models.model_folder import Model
from pneumoscope.server.storage.store import PredictionRecord

Outcome: TypeAlias = PredictionRecord | Any  # or a row with the same names
UNKNOWN, OTHERS = "unknown", "others"
MIN_POOLED = 20  # images; fewer are added to those of the days or weeks after them
_LONGEST_BY_DAY = 31  # days; a longer period is shown by week
_WEEK = 7
_SHOWN = 8  # groups of a kind
_AGES = ((18.0, "0–17"), (40.0, "18–39"), (65.0, "40–64"))


def measure_shares(images: Sequence[Outcome], model: Model) -> dict[str, Any]:
    """The shares of images that are positive, of those in distribution; uncertain; and out of distribution."""
    inside = [each for each in images if each.decision != OUT_OF_DISTRIBUTION]
    return {
        "positive": measure_rate([each.predicted_label == model.positive for each in inside if model.positive]),
        "uncertain": measure_rate([each.decision == UNCERTAIN for each in images]),
        "out_of_distribution": measure_rate([each.decision == OUT_OF_DISTRIBUTION for each in images]),
    }


def list_series(images: Sequence[Outcome], model: Model, first: datetime.date, days: int) -> list[dict[str, Any]]:
    """The shares of images by day, or by week if the period is longer than a month; the oldest first.

    Days or weeks with few images are pooled with those after them, and the last ones with those before, so that each
    part has at least `MIN_POOLED` images, if there are as many.

    Args:
        images: of the period.
        model: the model that decided.
        first: the first day of the period (UTC).
        days: how many it has.
    """
    step = 1 if days <= _LONGEST_BY_DAY else _WEEK
    parts: dict[int, list[Outcome]] = {}
    for each in images:
        place = min(max(0, (each.created_at.date() - first).days), days - 1)
        parts.setdefault(place // step, []).append(each)
    pooled: list[tuple[int, int, list[Outcome]]] = []
    start, some = 0, list[Outcome]()
    for part in sorted(parts):
        start = part if not some else start
        some = some + parts[part]
        if len(some) >= MIN_POOLED:
            pooled.append((start, part, some))
            some = []
    if some:
        last = max(parts)
        if pooled:
            start, _, before = pooled.pop()
            some = before + some
        pooled.append((start, last, some))
    return [
        {
            "first_day": (first + datetime.timedelta(days=start * step)).isoformat(),
            "last_day": (first + datetime.timedelta(days=min(days, (end + 1) * step) - 1)).isoformat(),
            "images": len(part_images),
            "shares": measure_shares(part_images, model),
        }
        for start, end, part_images in pooled
    ]


def list_groups(
    images: Sequence[Outcome], reviewed: Sequence[tuple[Outcome, bool]], model: Model
) -> dict[str, list[dict[str, Any]]]:
    """The shares of images by view, age, sex, model group and file format; where a value is missing: `unknown`.

    Args:
        images: each with its latest prediction.
        reviewed: those with a review, and whether it agrees.
        model: the model that decided.
    """
    return {kind: _list_kind(images, reviewed, model, find) for kind, find in _KINDS.items()}


def _list_kind(
    images: Sequence[Outcome],
    reviewed: Sequence[tuple[Outcome, bool]],
    model: Model,
    find: Callable[[Outcome], str],
) -> list[dict[str, Any]]:
    counts = Counter(find(each) for each in images)
    known = [name for name, _ in counts.most_common() if name != UNKNOWN]
    shown = set(known if len(known) <= _SHOWN else known[: _SHOWN - 1])  # values of a header may be of any number

    def place(each: Outcome) -> str:
        name = find(each)
        return name if name in shown or name == UNKNOWN else OTHERS

    members: dict[str, list[Outcome]] = {}
    for each in images:
        members.setdefault(place(each), []).append(each)
    answers: dict[str, list[bool]] = {}
    for each, agrees in reviewed:
        answers.setdefault(place(each), []).append(agrees)
    return [
        {
            "name": name,
            "images": len(members[name]),
            "shares": measure_shares(members[name], model),
            "agreement": measure_rate(answers.get(name, [])),
        }
        for name in sorted(members, key=lambda name: (name == UNKNOWN, name == OTHERS, name))
    ]


def _name_age(outcome: Outcome) -> str:
    if outcome.age is None:
        return UNKNOWN
    return next((name for limit, name in _AGES if outcome.age < limit), "65 and over")


_KINDS: Mapping[str, Callable[[Outcome], str]] = {
    "view": lambda each: each.view or UNKNOWN,
    "age": _name_age,
    "sex": lambda each: each.sex or UNKNOWN,
    "model_group": lambda each: each.group or "none",
    "format": lambda each: each.format or UNKNOWN,
}
