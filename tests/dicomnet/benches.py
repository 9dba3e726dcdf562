"""The inside of a node, driven step by step."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from node_process import StandIn

from pneumoscope.dicomnet.addresses import Destination
from pneumoscope.dicomnet.answering import Answering, Answers
from pneumoscope.dicomnet.intake import Intake
from pneumoscope.dicomnet.node_settings import NodeSettings
from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.spool import Arrival, Spool, read_meta

TO = Destination(name="archive", host="127.0.0.1", port=104, title="ARCHIVE")


class Bench:
    """The inside of a node, driven step by step; `restart` is what follows a kill."""

    def __init__(self, folder: Path, answers: Answers | None = None, **settings: Any) -> None:
        self.folder = folder
        self.database = f"{folder}/node.sqlite"
        self.settings = NodeSettings(**{"destinations": (TO,), "spool": folder / "spool", "quiet": 0.0, **settings})
        self.answers = answers or StandIn()
        self.restart()

    def restart(self) -> None:
        self.stop()
        self.stack = ExitStack()
        self.spool = self.stack.enter_context(Spool(self.settings.spool, 0).open())
        self.queue = Queue(self.database, self.spool.node)
        self.stack.callback(self.queue.close)
        self.intake = Intake(self.spool, self.queue, self.settings.rules)
        self.reported: list[str] = []
        self.answering = Answering(self.settings, self.spool, self.queue, self.answers, self.reported.append)

    def stop(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def receive(self, path: Path, calling: str = "MODALITY") -> str:
        content = path.read_bytes()
        meta = read_meta(content)
        stated = meta.arrival
        arrival = Arrival(stated.sop_class, stated.sop_uid, stated.syntax, calling)
        stored = self.spool.store(arrival, content[meta.start :])
        self.intake.announce(stored.key)
        return stored.key

    def work(self) -> None:
        while self.intake.take() + self.answering.work():
            pass

    def rows(self, query: str) -> list[Any]:
        engine = sql.create_engine(f"sqlite:///{self.database}")
        with engine.connect() as connection:
            rows = list(connection.execute(sql.text(query)))
        engine.dispose()
        return rows
