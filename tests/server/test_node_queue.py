"""What the service says of a DICOM node in its database."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sql
from node_rows import ERROR, NODE, fill_queue, list_all, make_row, open_queue
from services import run_thread

from pneumoscope.dicomnet import tables
from pneumoscope.server import node_queue
from pneumoscope.server.node_queue import read_node
from pneumoscope.server.storage.schema import find_head
from pneumoscope.server.storage.store import Store

if TYPE_CHECKING:
    from pneumoscope.server.messages.node import NodeMessage
    from pneumoscope.server.settings import Settings

TABLES = (node_queue.PROPERTIES, node_queue.IMAGES, node_queue.RESULTS, node_queue.DELIVERIES)


def read(url: str, limit: int = 50, moment: float | None = None) -> NodeMessage:
    with Store(url) as store, store.read() as connection:
        return read_node(connection, limit, moment or time.time())


def list_tables(url: str) -> list[str]:
    engine = sql.create_engine(url.replace("postgresql:", "postgresql+pg8000:") if "://" in url else f"sqlite:///{url}")
    names = sql.inspect(engine).get_table_names()
    engine.dispose()
    return names


def test_the_tables_are_those_that_the_node_makes() -> None:
    made = tables.NodeProperty.metadata.tables
    assert int(find_head(tables.TABLES)) == node_queue.SCHEMA
    for table in TABLES:
        for column in table.columns:
            assert type(column.type) is type(made[table.name].columns[column.name].type), f"{table.name}.{column.name}"


def test_images_and_deliveries_are_counted_by_state(url: str) -> None:
    fill_queue(url)
    found = read(url)
    assert found.present
    assert found.counts is not None
    counts = {"waiting": 3, "answered": 3, "skipped": 1, "set_aside": 1, "lost": 1, "answered_today": 3}
    assert found.counts.model_dump() == counts
    destinations = [each.model_dump(exclude={"oldest_due_seconds"}) for each in found.destinations]
    assert destinations == [
        {"name": "archive", "due": 1, "sent": 1, "delivered": 1, "failed": 1, "held": 0, "error": ERROR},
        {"name": "research", "due": 4, "sent": 0, "delivered": 0, "failed": 0, "held": 0, "error": None},
    ]


def test_waiting_is_told_from_the_first_image_and_result_that_waits(url: str) -> None:
    fill_queue(url)
    with open_queue(url) as queue:
        first = min(queue.list_parcels("research", "due", 10), key=lambda parcel: parcel.id)
        queue.mark_parcels([first], "due", due_at=5000.0)
        queue.add_images([make_row(20, received_at=4000.0)])
    found = read(url, moment=10_000.0)
    assert found.oldest_waiting_seconds == 6000
    assert found.destinations[1].oldest_due_seconds == 5000
    assert found.destinations[0].oldest_due_seconds == 0  # due later than this moment


def test_only_what_was_answered_today_counts_as_such(url: str) -> None:
    fill_queue(url)
    tomorrow = read(url, moment=time.time() + 86_400)
    assert tomorrow.counts is not None
    assert (tomorrow.counts.answered, tomorrow.counts.answered_today) == (3, 0)


def test_images_come_with_their_answers_and_results(url: str) -> None:
    fill_queue(url)
    images = {image.study: image for image in read(url).images}
    first = images[f"{0:012x}"]
    assert (first.node, first.calling, first.state, first.reason) == (NODE, "XRAY1", "answered", None)
    assert (first.decision, first.predicted_label, first.probability) == ("PNEUMONIA", "PNEUMONIA", 0.9)
    assert first.warnings == ["a lateral view"]
    assert [result.kind for result in first.results] == ["sr", "sc"]
    states = [[(each.destination, each.state) for each in result.deliveries] for result in first.results]
    assert states == [[("archive", "delivered"), ("research", "due")], [("archive", "failed"), ("research", "due")]]
    assert first.results[1].deliveries[0].error == ERROR
    assert first.results[0].deliveries[1].attempts == 2
    assert len({result.sop_uid for image in images.values() for result in image.results}) == 4
    assert images[f"{3:012x}"].reason == "its pixels cannot be read"
    assert images[f"{5:012x}"].attempts == 1
    assert images[f"{7:012x}"].reason == "not answered: rule 2"


def test_an_image_out_of_distribution_has_neither_label_nor_probability(url: str) -> None:
    fill_queue(url)
    image = next(image for image in read(url).images if image.decision == "out_of_distribution")
    assert (image.predicted_label, image.probability) == (None, None)


@pytest.mark.parametrize("limit", [1, 4, 9, 50])
def test_the_latest_images_of_all_nodes_come_first(url: str, limit: int) -> None:
    numbers, begin = [7, 3, 11, 0, 5, 2, 9, 1, 10, 4, 8, 6], time.time() - 100
    for node in range(3):
        with open_queue(url, f"node{node}") as queue:
            queue.add_images(
                [
                    make_row(i, state=("waiting", "skipped")[i % 2], received_at=begin + i)
                    for i in numbers
                    if i % 3 == node
                ]
            )
    found = [int(image.study, 16) for image in read(url, limit).images]
    assert found == sorted(numbers, reverse=True)[:limit]


def test_an_image_that_changes_its_state_meanwhile_is_listed_once(url: str) -> None:
    """All queries of one answer see one moment."""
    fill_queue(url)
    changed: list[str] = []

    def change(*arguments: Any) -> None:
        if "GROUP BY node_images" in arguments[2] and not changed:
            changed.append("")
            with open_queue(url) as queue:
                queue.mark_images([image.key for image in list_all(queue)], "lost", "gone")

    sql.event.listen(sql.Engine, "after_cursor_execute", change)
    try:
        found = read(url)
    finally:
        sql.event.remove(sql.Engine, "after_cursor_execute", change)
    assert changed
    assert len({image.id for image in found.images}) == len(found.images) == 9
    assert found.counts is not None
    assert found.counts.waiting == sum(image.state == "waiting" for image in found.images) == 3


def test_a_database_without_a_node_says_so_and_gets_no_tables(url: str, settings: Settings) -> None:
    with run_thread(replace(settings, database=url)) as address, httpx.Client(base_url=address, timeout=60) as client:
        answer = client.get("/v1/node")
        assert (answer.status_code, answer.json()) == (200, {"present": False})
        assert [name for name in list_tables(url) if name.startswith("node")] == []
        fill_queue(url)  # a node may start later than the service
        found = client.get("/v1/node", params={"limit": 2}).json()
        assert (found["present"], len(found["images"])) == (True, 2)
        unlike = next(
            each for each in client.get("/v1/node").json()["images"] if each["decision"] == "out_of_distribution"
        )
        assert unlike["probability"] is None  # null, not left out
        assert [client.get("/v1/node", params={"limit": each}).status_code for each in (0, 501)] == [422, 422]


def test_tables_of_another_version_are_refused_with_what_to_do(url: str, settings: Settings) -> None:
    fill_queue(url)
    with Store(url) as store, store.read() as connection:
        connection.execute(sql.text("UPDATE node_properties SET value = '2' WHERE key = 'schema'"))
    with run_thread(replace(settings, database=url)) as address:
        answer = httpx.get(f"{address}/v1/node", timeout=60)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert (
        "schema 2; this service needs 1. Run the node and the service with the same version" in answer.json()["detail"]
    )


def test_it_is_told_only_to_callers_with_the_token(settings: Settings) -> None:
    with run_thread(replace(settings, token="4f9a1c7be2d0835664b1")) as address:
        assert httpx.get(f"{address}/v1/node", timeout=60).status_code == 401
        headers = {"authorization": "Bearer 4f9a1c7be2d0835664b1"}
        assert httpx.get(f"{address}/v1/node", headers=headers, timeout=60).json() == {"present": False}
