"""At the start, a model has to say of simulated images what it said at first."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
import sqlalchemy as sql
from services import run_thread

from pneumoscope.server.models.self_check import check_model, find_mismatch
from pneumoscope.server.models.served import open_model
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings


def change(store: Store, by: float) -> None:
    """As if the model had said something else at first."""
    with store.read() as connection:
        ((key, value),) = connection.execute(
            sql.text("SELECT key, value FROM properties WHERE key LIKE 'self-check%'")
        ).all()
        logits = json.loads(value)
        logits[0][0] += by
        update = sql.text("UPDATE properties SET value = :value WHERE key = :key")
        connection.execute(update, {"value": json.dumps(logits), "key": key})


def test_a_model_is_compared_with_what_it_said_at_first(url: str, settings: Settings) -> None:
    model = open_model(settings.model, settings)
    with Store(url) as store:
        assert find_mismatch(store, model) == ""
        assert find_mismatch(store, model) == ""
        change(store, 0.01)  # as another processor may differ
        assert find_mismatch(store, model) == ""
        change(store, 0.5)
        assert "the simulated image 0" in find_mismatch(store, model)
        assert find_mismatch(store, model, renew=True) == ""
        assert find_mismatch(store, model) == ""


@pytest.mark.parametrize("renew", [False, True])
def test_a_service_whose_model_has_changed_is_not_ready_until_told(settings: Settings, renew: bool) -> None:
    with run_thread(settings) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200
    with Store(settings.database) as store:
        change(store, 0.5)
    with run_thread(replace(settings, renew_self_check=renew)) as url:
        answer = httpx.get(f"{url}/readyz")
        assert answer.status_code == (200 if renew else 503)
        if not renew:
            assert "gives other results than before" in answer.json()["detail"]
            assert "--renew-self-check" in answer.json()["detail"]


def test_a_check_that_fails_is_said_and_does_not_end_the_service(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pneumoscope.inference.features.prepare_grey", fail)
    with Store(settings.database) as store:
        assert "ZeroDivisionError" in check_model(store, open_model(settings.model, settings), renew=False)
