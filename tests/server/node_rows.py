"""Rows of a DICOM node for tests, written by the node's own queue."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.rows import Made, Outcome, Waiting

NODE = "0123456789abcdef"
ERROR = "status 0xA700: out of resources"


@contextmanager
def open_queue(database: str, node: str = NODE) -> Iterator[Queue]:
    queue = Queue(database, node)
    try:
        yield queue
    finally:
        queue.close()


def make_row(number: int, **values: Any) -> dict[str, Any]:
    """An image, as the node's intake writes it."""
    usual = {"key": f"{number:061x}", "study": f"{number:012x}".ljust(40, "f"), "calling": "XRAY1"}
    return {**usual, "received_at": time.time() - 100 + number, **values}


def list_all(queue: Queue) -> list[Waiting]:
    """All images that wait."""
    ever = time.time() + 1000
    return queue.list_waiting(ever, ever, 1000)


def answer(image: Waiting, *kinds: str, **about: Any) -> Outcome:
    made = tuple(
        Made(kind, "1.2.840.10008.5.1.4.1.1.88.11", f"2.25.{image.id}.{i}", "f") for i, kind in enumerate(kinds)
    )
    return Outcome(image, "answered", results=made, about={"decision": "NORMAL", "predicted_label": "NORMAL", **about})


def fill_queue(database: str) -> None:
    """Nine images: three answered, three that wait, one skipped, one set aside, one lost; two destinations."""
    with open_queue(database) as queue:
        queue.add_images([make_row(number) for number in range(7)])
        queue.add_images([make_row(7, state="skipped", reason="not answered: rule 2")])
        queue.add_images([make_row(8, calling="STOW")])
        images = {int(image.key, 16): image for image in list_all(queue)}
        about = {
            "decision": "PNEUMONIA",
            "predicted_label": "PNEUMONIA",
            "probability": 0.9,
            "warnings": ["a lateral view"],
        }
        outside = {"decision": "out_of_distribution", "predicted_label": "PNEUMONIA", "probability": 0.7}
        outcomes = [answer(images[0], "sr", "sc", **about), answer(images[1], "sr", **outside), answer(images[2], "sr")]
        queue.finish(
            [*outcomes, Outcome(images[3], "set_aside", "its pixels cannot be read")], ["archive", "research"], False
        )
        queue.mark_images([images[4].key], "lost", "its file is not in the spool any more")
        queue.begin([images[5]])
        first, second, third, _ = queue.list_parcels("archive", "due", 10)
        queue.mark_parcels([first], "delivered")
        queue.mark_parcels([second], "failed", attempts=12, error=ERROR)
        queue.mark_parcels([third], "sent")
        again = queue.list_parcels("research", "due", 10)[0]
        queue.mark_parcels([again], "due", attempts=2, error=ERROR)
