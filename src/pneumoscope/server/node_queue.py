"""Reads the queues and results of DICOM nodes from the service's database. It never changes them.

The columns that are read are described here again, because `dicomnet.tables`, which makes the tables, imports this
package.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sql

from pneumoscope.server.messages.node import (
    DeliveryMessage,
    DestinationMessage,
    NodeCounts,
    NodeImageMessage,
    NodeMessage,
    ResultMessage,
)
from pneumoscope.server.problems import RequestError

SCHEMA = 1  # the revision of the tables, as a number
PROPERTIES = sql.table("node_properties", sql.column("key", sql.String), sql.column("value", sql.Text))
IMAGES = sql.table(
    "node_images",
    *(sql.column(name, sql.Integer) for name in ("id", "attempts")),
    *(sql.column(name, sql.String) for name in ("node", "study", "calling", "state")),
    *(sql.column(name, sql.Text) for name in ("reason", "decision", "predicted_label")),
    *(sql.column(name, sql.Double) for name in ("received_at", "answered_at", "probability")),
    sql.column("warnings", sql.JSON),
)
RESULTS = sql.table(
    "node_results",
    *(sql.column(name, sql.Integer) for name in ("id", "image_id")),
    *(sql.column(name, sql.String) for name in ("kind", "sop_uid")),
)
DELIVERIES = sql.table(
    "node_deliveries",
    *(sql.column(name, sql.Integer) for name in ("id", "result_id", "attempts")),
    *(sql.column(name, sql.String) for name in ("node", "destination", "state")),
    sql.column("due_at", sql.Double),
    sql.column("error", sql.Text),
)
# All queries see the same moment, so that an image whose state changes meanwhile is not missed or listed twice.
_SNAPSHOTS = {"sqlite": "BEGIN", "postgresql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"}
_STUDY = 12  # characters of a study's hash, as in the node's log
_DAY = 86_400


def read_node(connection: sql.Connection, limit: int, moment: float) -> NodeMessage:
    """Read what nodes have in a database, in a transaction that has just begun.

    Args:
        connection: to the database.
        limit: how many of the latest images are listed.
        moment: now, in seconds since 1970.

    Raises:
        RequestError: 409, the tables are those of another version.
    """
    connection.exec_driver_sql(_SNAPSHOTS[connection.dialect.name])
    if not _has_tables(connection):
        return NodeMessage(present=False)
    images = IMAGES.c
    received = (sql.func.min(images.received_at).label("first"), sql.func.max(images.received_at).label("last"))
    query = sql.select(images.node, images.state, sql.func.count().label("number"), *received)
    groups = connection.execute(query.group_by(images.node, images.state)).all()
    today = sql.and_(images.state == "answered", images.answered_at >= moment // _DAY * _DAY)
    waiting = [group.first for group in groups if group.state == "waiting"]
    return NodeMessage(
        present=True,
        counts=NodeCounts(
            **{name: _add_up(groups, name) for name in NodeCounts.model_fields if name != "answered_today"},
            answered_today=connection.scalar(sql.select(sql.func.count()).select_from(IMAGES).where(today)) or 0,
        ),
        oldest_waiting_seconds=max(0.0, moment - min(waiting)) if waiting else None,
        destinations=_read_destinations(connection, moment),
        images=_read_images(connection, _find_latest(connection, groups, limit)),
    )


def _has_tables(connection: sql.Connection) -> bool:
    if not sql.inspect(connection).has_table(PROPERTIES.name):
        return False
    found = connection.scalar(sql.select(PROPERTIES.c.value).where(PROPERTIES.c.key == "schema"))
    if found is None:  # a node is making them at this moment
        return False
    if found != str(SCHEMA):
        raise RequestError(
            409,
            f"The tables of the DICOM node in this database have schema {found}; this service needs {SCHEMA}. Run the "
            "node and the service with the same version of pneumoscope.",
            code="node-schema",
        )
    return True


def _add_up(groups: Iterable[Any], state: str) -> int:
    return sum(group.number for group in groups if group.state == state)


def _find_latest(connection: sql.Connection, groups: Sequence[Any], limit: int) -> list[Any]:
    """The latest images of all nodes and states, by the index for each; the newest come first."""
    latest: list[Any] = []
    for group in sorted(groups, key=lambda group: -group.last):
        if len(latest) == limit and latest[-1].received_at > group.last:
            break  # all others are older
        query = sql.select(IMAGES).where(IMAGES.c.node == group.node, IMAGES.c.state == group.state)
        query = query.order_by(IMAGES.c.received_at.desc(), IMAGES.c.id.desc()).limit(limit)
        latest = sorted([*latest, *connection.execute(query)], key=lambda image: (-image.received_at, -image.id))
        latest = latest[:limit]
    return latest


def _read_destinations(connection: sql.Connection, moment: float) -> list[DestinationMessage]:
    own = DELIVERIES.c
    columns = (own.node, own.destination, own.state, sql.func.count().label("number"))
    query = sql.select(*columns, sql.func.min(own.due_at).label("first"), sql.func.max(own.due_at).label("last"))
    groups: dict[str, list[Any]] = {}
    for group in connection.execute(query.group_by(own.node, own.destination, own.state).order_by(own.destination)):
        groups.setdefault(group.destination, []).append(group)
    found = []
    for name, some in groups.items():
        due = [group.first for group in some if group.state == "due"]
        failed = max((group for group in some if group.state == "failed"), key=lambda group: group.last, default=None)
        found.append(
            DestinationMessage(
                name=name,
                **{state: _add_up(some, state) for state in ("due", "sent", "delivered", "failed", "held")},
                oldest_due_seconds=max(0.0, moment - min(due)) if due else None,
                error=_find_error(connection, failed) if failed else None,
            )
        )
    return found


def _find_error(connection: sql.Connection, group: Any) -> str | None:
    own = DELIVERIES.c
    same = (own.node == group.node, own.destination == group.destination, own.state == group.state)
    return connection.scalar(sql.select(own.error).where(*same).order_by(own.due_at.desc()).limit(1)) or None


def _read_images(connection: sql.Connection, images: Sequence[Any]) -> list[NodeImageMessage]:
    """Messages of images, with their results."""
    its = RESULTS.c.image_id.in_([image.id for image in images])
    results: dict[int, list[ResultMessage]] = {}
    deliveries: dict[int, list[DeliveryMessage]] = {}
    query = sql.select(DELIVERIES).join(RESULTS, RESULTS.c.id == DELIVERIES.c.result_id).where(its)
    for row in connection.execute(query.order_by(DELIVERIES.c.id)):
        delivery = DeliveryMessage(
            destination=row.destination, state=row.state, attempts=row.attempts, error=row.error or None
        )
        deliveries.setdefault(row.result_id, []).append(delivery)
    for row in connection.execute(sql.select(RESULTS).where(its).order_by(RESULTS.c.id)):
        result = ResultMessage(kind=row.kind, sop_uid=row.sop_uid, deliveries=deliveries.get(row.id, []))
        results.setdefault(row.image_id, []).append(result)
    return [
        NodeImageMessage(
            id=image.id,
            node=image.node,
            received_at=datetime.datetime.fromtimestamp(image.received_at, datetime.UTC).replace(tzinfo=None),
            calling=image.calling,
            study=image.study[:_STUDY],
            state=image.state,
            reason=image.reason or None,
            attempts=image.attempts,
            decision=image.decision or None,
            predicted_label=image.predicted_label or None,
            probability=image.probability,
            warnings=image.warnings,
            results=results.get(image.id, []),
        )
        for image in images
    ]
