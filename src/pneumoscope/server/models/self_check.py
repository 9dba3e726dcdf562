"""Checks at the start that a model says of simulated images what it said at first with the same database.

This finds a runtime, processor or package that computes differently, and damaged memory or files. It cannot say
whether the first numbers were right: those who made the model have evaluated it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from pneumoscope.errors import DataError
from pneumoscope.images.read import ImageBytes
from pneumoscope.server.inference.pictures import render_example
from pneumoscope.server.models.served import ServedModel
from pneumoscope.server.problems import log_internal_error, logger
from pneumoscope.server.storage.store import Store

_TOLERANCE = 0.05  # of a logit: runtimes and processors differ by less, and no probability changes by more than 0.0125
_EXAMPLES, _SIZE = 2, 256  # small images are drawn at once, so that the service starts without delay
_PROPERTIES = sql.table("properties", sql.column("key", sql.String), sql.column("value", sql.Text))


def find_mismatch(store: Store, model: ServedModel, renew: bool = False) -> str:
    """Say how a model differs from what it was at first; empty if it does not.

    Args:
        store: has what it said at first, or gets it.
        model: to be checked.
        renew: whether what it says now counts as the first.

    Raises:
        DataError: the database does not answer.
    """
    key = f"self-check {model.fingerprint[:24]}"
    found: list[list[float]] = []
    for number in range(_EXAMPLES):
        (prediction,) = model.predictor.run([ImageBytes(render_example(number, _SIZE), f"example {number}")])
        if prediction.error is not None or prediction.logits is None:
            return f"it cannot predict the simulated image {number}: {prediction.error}"
        found.append(list(prediction.logits))
    first = _read_or_write(store, key, found, renew)
    for number, (before, now) in enumerate(zip(first, found, strict=False)):
        if len(before) != len(now) or any(abs(a - b) > _TOLERANCE for a, b in zip(before, now, strict=False)):
            return f"for the simulated image {number} its logits are {_show(now)}, but were {_show(before)} at first"
    return ""


def check_model(store: Store, model: ServedModel, renew: bool) -> str:
    """Say in a sentence why a model must not answer; empty if it may."""
    try:
        mismatch = find_mismatch(store, model, renew)
    except DataError as problem:
        logger.error("The self-check of %s could not be compared: %s", model.name, problem)
        return ""
    except Exception as problem:
        log_internal_error(problem, "The self-check")
        mismatch = f"an internal error, {type(problem).__name__}"
    if not mismatch:
        return ""
    reason = (
        f"{model.name} gives other results than before: {mismatch}. Find out what has changed on this machine. If the "
        "difference is intended, start once with `pneumoscope serve --renew-self-check`."
    )
    logger.error("Not ready: %s", reason)
    return reason


def _read_or_write(store: Store, key: str, found: list[list[float]], renew: bool) -> Sequence[Sequence[float]]:
    if renew:
        with store.read() as connection:
            connection.execute(sql.delete(_PROPERTIES).where(_PROPERTIES.c.key == key))
    query = sql.select(_PROPERTIES.c.value).where(_PROPERTIES.c.key == key)
    with store.read() as connection:
        value = connection.scalar(query)
    if value is None:
        value = json.dumps(found)
        try:
            with store.read() as connection:
                connection.execute(sql.insert(_PROPERTIES).values(key=key, value=value))
        except IntegrityError:  # another service was first
            with store.read() as connection:
                value = connection.scalar(query) or value
    first: list[list[float]] = json.loads(value)
    return first


def _show(logits: Sequence[float]) -> str:
    return ", ".join(f"{each:.3f}" if math.isfinite(each) else str(each) for each in logits)
