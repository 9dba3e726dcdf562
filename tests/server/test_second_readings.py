"""Readers find what needs a second reading and where they disagree, and how far they agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from services import Process, draw, run_thread
from test_audit_log import add_tokens
from test_store import make_record

from pneumoscope.server.access.callers import Caller
from pneumoscope.server.messages.predictions import ListQuery
from pneumoscope.server.readings.agreement import measure_readers
from pneumoscope.server.storage.queries import list_predictions
from pneumoscope.server.storage.store import PredictionRecord, Review, Store

if TYPE_CHECKING:
    from pathlib import Path

    from commands import Command
    from pneumoscope.server.settings import Settings

ANN = Caller("Ann", "review", "token")


def review(record: PredictionRecord, reviewer: str, answer: str = "agree", **values: Any) -> Review:
    agrees = {"agree": True, "disagree": False}.get(answer)
    label = {"agree": "PNEUMONIA", "disagree": "NORMAL"}.get(answer)
    usual = {"answer": answer, "agrees": agrees, "label": label, "reviewer": reviewer, "verified": True}
    return Review(prediction_id=record.id, **usual | values)


def fill(store: Store) -> dict[str, PredictionRecord]:
    names = ("nobody", "bob", "ann", "both", "again", "unsure", "apart", "against", "withdrawn", "comment", "typed")
    records = {name: make_record(name=name, sha256=f"{i:064}") for i, name in enumerate(names)}
    records["bob twice"] = make_record(name="bob twice", sha256=records["bob"].sha256)  # the same file again
    store.add(list(records.values()))
    for each in (
        review(records["bob"], "Bob"), review(records["ann"], "Ann"), review(records["both"], "Ann"),
        review(records["both"], "Bob"), review(records["again"], "Bob", "disagree"), review(records["again"], "Bob"),
        review(records["unsure"], "Bob", "cannot_tell"), review(records["unsure"], "Cem", "cannot_tell"),
        review(records["apart"], "Bob", label="A"), review(records["apart"], "Cem", label="B"),
        review(records["against"], "Ann", "disagree"), review(records["withdrawn"], "Bob"),
        review(records["withdrawn"], "Bob", "withdrawn"), review(records["comment"], "Bob", "comment", comment="?"),
        review(records["typed"], "Ann", verified=False),
    ):  # fmt: skip
        store.add([each])
    return records


def find(store: Store, caller: Caller | None = ANN, **query: Any) -> set[str]:
    return {each.record.name for each in list_predictions(store, ListQuery(**query), caller).entries}


def test_predictions_that_one_other_person_has_reviewed_are_listed(url: str) -> None:
    with Store(url) as store:
        fill(store)
        assert find(store, second_reading=True) == {"bob", "bob twice", "again", "unsure", "typed"}
        bob = Caller("Bob", "review", "token")
        assert find(store, bob, second_reading=True) == {"ann", "against", "typed"}
        local = Caller("local", "admin", "local")
        assert "typed" not in find(store, local, second_reading=True, reader="Ann")
        assert "ann" in find(store, local, second_reading=True, reader="Ann")  # a typed name is not that of a login


def test_predictions_on_which_readers_disagree_are_listed(url: str) -> None:
    with Store(url) as store:
        fill(store)
        assert find(store, disagreement=True) == {"apart", "against"}
        assert find(store, disagreement=True, second_reading=True) == set()


def test_the_agreement_of_readers_counts_each_image_once_and_no_nameless_reading() -> None:
    pairs = []
    number = 0
    for i in range(12):
        record = make_record(sha256=f"{i:064}", patient=f"{i:016}")
        for reviewer, label in (("Ann", "AB"[i % 2]), ("Bob", "AB"[i % 2 if i < 9 else 0]), ("", "A")):
            for answer in ("disagree", "agree"):  # the later one counts
                each = review(record, reviewer, answer, label=label if answer == "agree" else "C")
                number += 1
                each.number = number
                pairs.append((record, each))
    found = measure_readers(pairs, 30)
    assert [(each.name, each.images) for each in found.readers] == [("Ann", 12), ("Bob", 12)]
    assert found.unnamed == 12
    (pair,) = found.pairs
    assert pair.value == pytest.approx(2 / 3)  # 10 of 12 are equal, and 1/2 by chance
    assert pair.low is not None
    assert pair.low < 2 / 3
    assert found.fleiss is None
    assert found.alpha.images == 12
    assert measure_readers([], 30).alpha.value is None


def test_a_review_has_the_name_of_the_login_and_nobody_elses(
    settings: Settings, command: Command, tmp_path: Path, image: bytes
) -> None:
    headers = add_tokens(command, tmp_path / "tokens")
    with run_thread(replace(settings, tokens=tmp_path / "tokens")) as url, httpx.Client(base_url=url) as client:
        files = {"files": ("a.png", image)}
        (one,) = client.post("/v1/predictions", files=files, headers=headers["review"]).json()["predictions"]
        where = f"/v1/predictions/{one['id']}/reviews"
        for name in ({}, {"reviewer": "the review"}):
            stored = client.post(where, json={"answer": "cannot_tell", **name}, headers=headers["review"]).json()
            assert (stored["reviewer"], stored["verified"]) == ("the review", True)
        refused = client.post(where, json={"answer": "cannot_tell", "reviewer": "Dr B"}, headers=headers["review"])
        assert (refused.status_code, refused.json()["code"]) == (403, "reviewer-differs")
        listed = {"second_reading": "true"}
        for role, count in (("admin", 1), ("review", 0)):
            answer = client.get("/v1/predictions", params=listed, headers=headers[role])
            assert len(answer.json()["predictions"]) == count
        assert client.get("/v1/agreement", headers=headers["read"]).json()["readers"][0]["name"] == "the review"


def test_the_page_lists_second_readings_and_shows_agreement(service: Process, open_page: Any) -> None:
    with service.client() as client:
        for seed in range(4):
            file = {"files": (f"image-{seed}.png", draw(seed))}
            (one,) = client.post("/v1/predictions", files=file).json()["predictions"]
            for name in ("Ann", "Bob")[: 1 + seed % 2]:
                body = {"answer": "cannot_tell", "reviewer": name} if seed else {"answer": "cannot_tell"}
                assert client.post(f"/v1/predictions/{one['id']}/reviews", json=body).status_code == 201
            if seed == 3:
                body = {"answer": "disagree", "label": "NORMAL", "reviewer": "Ann"}
                answered = client.post(f"/v1/predictions/{one['id']}/reviews", json=body)
                if answered.status_code == 422:
                    answered = client.post(f"/v1/predictions/{one['id']}/reviews", json=body | {"label": "PNEUMONIA"})
                assert answered.status_code == 201
    page = open_page(service.url)
    page.click("#earlier summary")
    page.wait_for_selector("#earlier-list li >> nth=3")
    page.select_option("#earlier-which", label="with disagreement")
    page.wait_for_selector("#earlier-list:not(:has(li:nth-child(2))) li")
    assert "image-3" in page.inner_text("#earlier-list")
    page.goto(f"{service.url}/monitoring")
    page.wait_for_selector("#readers tr")
    assert "Cohen's kappa: Ann, Bob" in page.inner_text("#readers")
    assert "1 review without a name" in page.inner_text("#unnamed")
