"""Finds images in the spool that the queue does not know: the disk says what was received, not the database."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from pneumoscope.dicomnet.queue import NOT_ANSWERED, Queue
from pneumoscope.dicomnet.rows import Known
from pneumoscope.dicomnet.rules import Rule, apply_rules
from pneumoscope.dicomnet.spool import Spool, digest, read_arrival
from pneumoscope.errors import ImageError
from pneumoscope.images.dicom import Tags, read_tags

_CAUSES = (
    "the SOP Instance UID of its data set is missing, or is not the one that was announced",
    "it has no Study Instance UID",
)
_TRIES = 2  # of answering alone that still count if an image arrives again: then one more end is enough
_TOGETHER = 256  # images that get their rows in one transaction
logger = logging.getLogger("pneumoscope.node")


class Intake:
    """Gives images their rows.

    Args:
        spool: where the images are.
        queue: where the rows go.
        rules: which images are answered.
    """

    def __init__(self, spool: Spool, queue: Queue, rules: Sequence[Rule]) -> None:
        self._spool, self._queue, self._rules = spool, queue, rules
        self._new: deque[str] = deque()
        self.wake = threading.Event()

    def announce(self, key: str) -> None:
        """Note that an image is on disk; called in the threads of associations."""
        self._new.append(key)
        self.wake.set()

    def take(self) -> int:
        """Give rows to images that have been announced, and return how many those were."""
        keys: list[str] = []
        while self._new and len(keys) < _TOGETHER:
            keys.append(self._new.popleft())
        try:
            self._add(list(dict.fromkeys(keys)))
        except BaseException:
            self._new.extendleft(reversed(keys))
            raise
        return len(keys)

    def scan(self) -> int:
        """Look at the whole spool, as at the start: give rows to images without one, and finish what was interrupted.

        Returns:
            How many images had no row, or have come again without being judged anew.
        """
        keys = list(self._spool.list_keys())
        known = self._queue.find_known(keys)
        new = [key for key in keys if key not in known or self._has_come_again(key, known[key])]
        for key in known.keys() - set(new):
            self._finish(key, known[key])
        for start in range(0, len(new), _TOGETHER):
            self._add(new[start : start + _TOGETHER])
        present = set(keys)
        if lost := [key for key in self._queue.list_keys("waiting") if key not in present and not self._exists(key)]:
            self._queue.mark_images(lost, "lost", "its file is not in the spool any more")
            logger.error("%d images are lost: their files are not in the spool any more", len(lost))
        return len(new)

    def _finish(self, key: str, known: Known) -> None:
        """Do with a file what its row says, if that was interrupted or an answered image has arrived again."""
        if known.state == "set_aside":
            self._spool.set_aside(key, known.reason)
        elif not known.kept:
            self._spool.remove(key)

    def _has_come_again(self, key: str, known: Known) -> bool:
        """Whether an image that was not answered has arrived since; rules or the installation may have changed."""
        path = self._spool.path_of(key)
        return known.state in NOT_ANSWERED and path.exists() and path.stat().st_mtime > known.received_at

    def _exists(self, key: str) -> bool:
        return self._spool.path_of(key).exists()

    def _add(self, keys: Sequence[str]) -> None:
        known = self._queue.find_known(keys)
        again = {key for key, each in known.items() if self._has_come_again(key, each)}
        for key in known.keys() - again:
            self._finish(key, known[key])
        rows, uids = list[dict[str, Any]](), dict[str, str]()
        for key in keys:
            if (key not in known or key in again) and self._exists(key):
                row, uids[key] = self._read(key)
                rows.append(row)
        own = self._queue.find_own([uid for uid in uids.values() if uid])
        for row in rows:
            if uids[row["key"]] in own:
                row |= {"state": "skipped", "reason": "not answered: a result of this node"}
        self._queue.add_images([row for row in rows if row["key"] not in again])
        self._queue.renew_images([row for row in rows if row["key"] in again], _TRIES)
        for row in rows:
            if row["key"] in again:
                logger.info("image %s has come again, and is judged anew: it was %s", row["key"][:20],
                            known[row["key"]].state.replace("_", " "))  # fmt: skip
                if row["state"] != "set_aside":
                    self._spool.take_back(row["key"])
            if row["state"] == "set_aside":
                self._spool.set_aside(row["key"], row["reason"])
                cause = (
                    row["reason"] if row["reason"] in _CAUSES else "its header cannot be read"
                )  # which may be quoted
                logger.warning("image %s set aside: %s; why is in set-aside/%s.json",
                               row["key"][:20], cause, row["key"])  # fmt: skip
            elif row["state"] == "skipped":
                logger.info("study %s: image %s %s", row["study"][:12], row["key"][:20], row["reason"])

    def _read(self, key: str) -> tuple[dict[str, Any], str]:
        """The row of an image by its header, and its SOP Instance UID."""
        path = self._spool.path_of(key)
        row: dict[str, Any] = {
            "key": key, "study": "", "calling": "", "received_at": path.stat().st_mtime, "state": "waiting",
            "reason": "", "to": [],
        }  # fmt: skip
        try:
            tags = read_tags(path, "image")
            arrival = read_arrival(path)
        except (ImageError, ValueError) as problem:
            return row | {"state": "set_aside", "reason": str(problem)}, ""
        row["calling"] = arrival.calling
        if tags.instance != arrival.sop_uid:
            return row | {"state": "set_aside", "reason": _CAUSES[0]}, ""
        if tags.study is None:
            return row | {"state": "set_aside", "reason": _CAUSES[1]}, arrival.sop_uid
        row["study"] = digest(tags.study)[:40]
        return row | self._judge(tags, arrival.calling), arrival.sop_uid

    def _judge(self, tags: Tags, calling: str) -> dict[str, Any]:
        ruling = apply_rules(self._rules, tags, calling)
        if ruling.reason is not None:
            return {"state": "skipped", "reason": ruling.reason}
        return {"to": list(ruling.to)}
