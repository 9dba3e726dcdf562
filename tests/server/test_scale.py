"""Pages stay bounded: they are read part by part, by indices, and what was looked for in parts is found whole."""

from __future__ import annotations

import datetime
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from test_migrations import connect
from test_second_readings import ANN, fill, find
from test_store import make_record

from pneumoscope.inference.prediction import Prediction
from pneumoscope.server.messages.predictions import ListQuery, PageQuery
from pneumoscope.server.monitoring.watch import _find_state
from pneumoscope.server.replies import _keep_identifiers
from pneumoscope.server.storage import queries
from pneumoscope.server.storage.migrations.versions import r0012_scale
from pneumoscope.server.storage.queries import list_predictions
from pneumoscope.server.storage.schema import migrate
from pneumoscope.server.storage.store import (
    TABLES,
    AnsweredPrediction,
    AnsweredRequest,
    Review,
    Store,
    link_answer,
    now,
)
from pneumoscope.server.storage.studies import list_studies

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "operation.md"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the parts that are looked at as small as the databases of these tests."""
    monkeypatch.setattr(queries, "LOOKED_AT", 3)
    monkeypatch.setattr(queries, "_PART", 1)


def walk(store: Store, limit: int = 2, **query: object) -> list[str]:
    """The names on all pages."""
    names, cursor = [], ""
    while True:
        page = list_predictions(store, ListQuery.model_validate({"limit": limit, "cursor": cursor, **query}), ANN)
        assert len(page.entries) <= limit
        names += [each.record.name for each in page.entries]
        if page.next is None:
            return names
        cursor = page.next


def test_what_reviews_decide_is_found_whole_in_bounded_pages(url: str, small: None) -> None:
    with Store(url) as store:
        records = fill(store)
        order = [record.name for record in sorted(records.values(), key=lambda record: -record.number)]
        wanted = {"bob", "bob twice", "again", "unsure", "typed"}
        assert walk(store, second_reading=True) == [name for name in order if name in wanted]
        assert walk(store, disagreement=True) == [name for name in order if name in {"apart", "against"}]
        assert walk(store, disagreement=True, decision="unknown") == []
        assert walk(store, reviewed=False) == [name for name in order if name in {"nobody", "bob twice"}]
        assert sorted(walk(store, reviewed=False) + walk(store, reviewed=True)) == sorted(order)


def test_a_page_without_entries_says_that_others_follow(url: str, small: None) -> None:
    with Store(url) as store:
        first = make_record(name="first")
        store.add([first])
        store.add([make_record(sha256=f"{i:064}") for i in range(10)])
        store.add([Review(prediction_id=first.id, agrees=False)])
        page = list_predictions(store, ListQuery(disagreement=True))
        assert (page.entries, page.next is None) == ([], False)
        assert walk(store, disagreement=True) == ["first"]
        assert find(store, disagreement=True, patient="0" * 16) == set()


def test_what_is_older_than_the_moment_that_is_asked_for_is_not_looked_at(url: str, small: None) -> None:
    with Store(url) as store:
        long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        store.add([make_record(sha256=f"{i:064}", created_at=long_ago) for i in range(10)])
        assert list_predictions(store, ListQuery(since=now(), decision="PNEUMONIA")).next is None
        store.add([make_record(name="new", created_at=now())])
        query = ListQuery(since=now() - datetime.timedelta(hours=1), reviewed=False)
        page = list_predictions(store, query)
        assert ([each.record.name for each in page.entries], page.next) == (["new"], None)


def test_a_uid_that_is_too_long_for_dicom_is_not_stored(url: str) -> None:
    prediction = Prediction(path=None, sha256="d" * 64, study_uid="1." * 4000, sop_uid="1.2.3", accession_number="7")
    kept, warnings = _keep_identifiers(prediction)
    assert kept == {"accession_number": "7", "study_uid": None, "series_uid": None, "sop_uid": "1.2.3"}
    assert warnings == ["study_uid: more than 64 characters, which DICOM does not allow; not stored"]
    with Store(url) as store:
        store.add([make_record(**kept)])


def test_filters_name_the_same_predictions_with_and_without_parts(url: str) -> None:
    rng = random.Random(0)
    with Store(url) as store:
        records = [
            make_record(
                name=str(i), sha256=f"{i:064}", model=rng.choice("ab"), fingerprint=rng.choice("ac") * 64,
                decision=rng.choice(["NORMAL", "uncertain"]), patient=rng.choice(["", "p"]),
            )
            for i in range(30)
        ]  # fmt: skip
        store.add(records)
        order = sorted(records, key=lambda record: -record.number)
        for model in ("a", "b", "c" * 64, "d"):
            wanted = [each for each in order if model in (each.model, each.fingerprint)]
            assert walk(store, limit=4, model=model) == [each.name for each in wanted]
            both = [each.name for each in wanted if each.decision == "uncertain"]
            assert walk(store, limit=4, model=model, decision="uncertain") == both
            assert walk(store, limit=4, model=model, reviewed=False) == [each.name for each in wanted]
            assert set(walk(store, model=model, patient="p")) == {each.name for each in wanted if each.patient}


def test_studies_are_found_by_their_first_predictions(url: str, small: None) -> None:
    with Store(url) as store:
        for i, (study, patient) in enumerate(
            [("1", "a"), ("2", "b"), ("1", "a"), (None, "c"), (None, ""), (None, "c")]
        ):
            store.add([make_record(sha256=f"{i:064}", study_uid=study, patient=patient, date=f"2024-01-0{i + 1}")])
        found: list[Any] = []
        cursor = ""
        while True:
            page = list_studies(store, PageQuery(limit=1, cursor=cursor))
            found += page.entries
            if page.next is None:
                break
            cursor = page.next
        assert [(each.study_uid, each.patient, each.predictions) for each in found] == [
            (None, "c", 2), ("2", "b", 1), ("1", "a", 2),
        ]  # fmt: skip
        assert [each.date for each in found] == [None, "2024-01-02", "2024-01-03"]


def test_an_answer_goes_with_any_prediction_that_it_tells_of(url: str) -> None:
    gone, stays = make_record(), make_record()
    with Store(url) as store:
        store.add([gone, stays])
        for name, records in (("both", (gone, stays)), ("other", (stays,))):
            content = " ".join(f'"{record.id}"' for record in records)
            store.add([AnsweredRequest(key=name, request="", began_at=time.time(), content=content)])
            with store.begin() as session:
                link_answer(session, content, key=name)
        before = _find_state(store)
        store.delete([gone.id])
        assert _find_state(store) != before
        with store.read() as connection:
            assert connection.scalars(sql.select(AnsweredRequest.key)).all() == ["other"]
            assert connection.scalars(sql.select(AnsweredPrediction.request_key)).all() == ["other"]


def test_an_upgrade_links_answers_and_uses_indices_that_are_there(url: str) -> None:
    record = make_record()
    with connect(url) as connection:
        migrate(connection, TABLES, None, "0011")
    with connect(url) as connection:
        for name, columns in list(r0012_scale.INDICES.items())[::2]:
            connection.execute(sql.text(f"CREATE INDEX {name} ON {columns}"))
        content = f'{{"predictions": [{{"id": "{record.id}"}}]}}'
        values = "'k', 'r', 1, 1, 201, '', :content"
        columns = "key, request, began_at, beat_at, status, location, content"
        statement = f"INSERT INTO answered_requests ({columns}) VALUES ({values})"
        connection.execute(sql.text(statement), {"content": content})
    with Store(url, upgrade=True) as store:
        store.add([record])
        store.delete([record.id])
        with store.read() as connection:
            assert connection.scalars(sql.select(AnsweredRequest.key)).all() == []


def test_the_server_gives_up_before_the_driver_does_except_in_an_upgrade(postgresql: str) -> None:
    with Store(postgresql) as store, store.read() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "9s"


def test_the_guide_names_the_indices_that_can_be_made_beforehand() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    found = re.findall(r"CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+) ON ([^;]+);", text)
    assert dict(found) == r0012_scale.INDICES
