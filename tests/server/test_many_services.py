"""Several services on one PostgreSQL lose nothing and store nothing twice, also when one of them is killed."""

from __future__ import annotations

import csv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from services import draw, run_process

from pneumoscope.server.storage.store import AuditEntry, Store

if TYPE_CHECKING:
    from pathlib import Path

    from commands import Command
    from pneumoscope.training.train import Run

IMAGES = 24  # by each of the clients


def list_all(client: httpx.Client, path: str, name: str) -> list[dict[str, Any]]:
    """All pages of a list."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = client.get(path, params={"limit": 7, "cursor": cursor}).json()
        found += page[name]
        if not page["next"]:
            return found
        cursor = page["next"]


@pytest.fixture
def shared(postgresql: str) -> str:
    name = "several"
    engine = sql.create_engine(postgresql.replace("postgresql:", "postgresql+pg8000:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sql.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{postgresql.rpartition('/')[0]}/{name}"


def test_three_services_on_one_database_lose_nothing_when_one_is_killed(
    run: Run, shared: str, command: Command, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    with ExitStack() as stack:
        services = [
            stack.enter_context(run_process(run.model, shared, "--keep-images", str(kept), "--decoders", "2"))
            for _ in range(3)
        ]

        def work(number: int) -> tuple[list[str], list[tuple[str, int]]]:
            """Upload and review; give what was acknowledged."""
            made: list[str] = []
            reviewed: list[tuple[str, int]] = []
            with services[number % 3].client() as client:
                for i in range(IMAGES):
                    try:
                        file = {"files": (f"{number}-{i}.png", draw(1000 * number + i, 64))}
                        answer = client.post("/v1/predictions", files=file)
                        assert answer.status_code == 201, answer.text
                        (one,) = answer.json()["predictions"]
                        made.append(one["id"])
                        body = {"answer": "disagree", "label": "NORMAL", "reviewer": f"reader {number}"}
                        if one["decision"] == "NORMAL":
                            body["label"] = "PNEUMONIA"
                        answer = client.post(f"/v1/predictions/{one['id']}/reviews", json=body)
                        assert answer.status_code == 201, answer.text
                        reviewed.append((one["id"], answer.json()["number"]))
                    except httpx.TransportError:
                        assert number % 3 == 2, "a service that was not killed has failed"
                        break
                    if number == 2 and i == IMAGES // 3:
                        services[2].process.end()
            return made, reviewed

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(work, range(6)))
        made = [each for some, _ in results for each in some]
        reviewed = [each for _, some in results for each in some]
        assert all(len(results[number][0]) == IMAGES for number in (0, 1, 3, 4))
        assert len(results[2][0]) < IMAGES
        lists = []
        for process in services[:2]:
            with process.client() as client:
                lists.append([each["id"] for each in list_all(client, "/v1/predictions", "predictions")])
                entries = list_all(client, "/v1/audit?action=predict", "entries")
        assert lists[0] == lists[1]
        assert max(Counter(lists[0]).values()) == 1
        assert set(made) <= set(lists[0])
        assert len(lists[0]) - len(made) <= 2  # stored, but the answer was lost with the service
        assert {entry["prediction_id"] for entry in entries if entry["action"] == "predict"} == set(lists[0])
    with Store(shared) as store:
        stored = Counter((record.id, review.number) for record, review in store.list_reviews())
        assert max(stored.values()) == 1
        assert set(reviewed) <= set(stored)
        with store.read() as connection:
            query = sql.select(AuditEntry.prediction_id).where(AuditEntry.action == "review", AuditEntry.status == 201)
            logged = Counter(connection.scalars(query))
        assert logged == Counter(identifier for identifier, _ in stored)
    out = tmp_path / "reviews.csv"
    done = command("reviews", "export", "--out", out, "--images", kept, "--database", shared)
    assert done.code == 0, done.err
    with out.open(encoding="utf-8", newline="") as lines:
        assert len(list(csv.DictReader(lines))) == len(stored)
