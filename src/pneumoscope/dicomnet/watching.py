"""Takes DICOM files from a folder that others write into. The folder is only read."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pneumoscope.dicomnet.receiver import NO_RESOURCES, SUCCESS, Watcher, store
from pneumoscope.dicomnet.spool import Arrival, Spool, digest, read_meta
from pneumoscope.files import read_regular
from pneumoscope.images.dicom import is_dicom

WATCHED = "WATCH"  # stands for the AE title of the sender in rules
_POLL = 1.0  # seconds between looks; a file that has not changed from one to the next is complete
logger = logging.getLogger("pneumoscope.node")


class WatchedFolder:
    """Copies each new image of a folder and its subfolders into the spool; other files are counted in the log.

    Files that were copied before are recognised by their content, also after a restart.

    Args:
        folder: to watch.
        spool: where images go.
        watcher: what is called for each of them.
        classes: SOP classes that are taken.
        largest: bytes of a file that is read.
    """

    def __init__(self, folder: Path, spool: Spool, watcher: Watcher, classes: frozenset[str], largest: int) -> None:
        self._folder, self._spool, self._watcher = folder, spool, watcher
        self._classes, self._largest = classes, largest
        self._seen: dict[str, tuple[int, int]] = {}  # size and time of change at the last look
        self._done: dict[str, tuple[int, int]] = {}  # the same of files that need no further look

    def run(self, ended: threading.Event) -> None:
        """Watch until the event is set."""
        while not ended.is_set():
            try:
                self.look()
            except OSError as problem:
                logger.error("the watched folder cannot be read: %s", problem.strerror or type(problem).__name__)
                ended.wait(10 * _POLL)
            ended.wait(_POLL)

    def look(self) -> int:
        """Take all files that have not changed since the last look, and return how many those were.

        Raises:
            OSError: the folder cannot be read, or the spool cannot be written.
        """
        seen, taken, ignored = dict[str, tuple[int, int]](), 0, 0
        for path, state in self._list():
            seen[path] = state
            if self._done.get(path) == state or self._seen.get(path) != state:
                continue
            outcome = self._take(Path(path))
            if outcome is None:  # too little space: again later
                continue
            taken, ignored = taken + outcome, ignored + (not outcome)
            self._done[path] = state
        self._seen = seen
        self._done = {path: state for path, state in self._done.items() if path in seen}
        if ignored:
            logger.warning("%d files of the watched folder are ignored: no images that this node takes", ignored)
        return taken

    def _list(self) -> Iterator[tuple[str, tuple[int, int]]]:
        pending = [str(self._folder)]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in sorted(entries, key=lambda each: each.name):
                    if entry.name.startswith("."):  # many programs write into hidden files, and rename them at the end
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file():
                        found = entry.stat()
                        yield entry.path, (found.st_size, found.st_mtime_ns)

    def _take(self, path: Path) -> bool | None:
        """Copy a file into the spool; return whether it belongs there, or None if there is too little space."""
        try:
            content = read_regular(path, self._largest)
        except OSError as problem:
            logger.warning("file %s cannot be read: %s", digest(path.name)[:12], problem.strerror)
            self._watcher.refused("unreadable")
            return False
        if not is_dicom(content[:132]):
            return False
        try:
            meta = read_meta(content)
        except ValueError:
            self._watcher.refused("unreadable")
            return False
        if meta.arrival.sop_class not in self._classes:
            self._watcher.refused("class")
            return False
        arrival = Arrival(meta.arrival.sop_class, meta.arrival.sop_uid, meta.arrival.syntax, WATCHED)
        status = store(self._spool, arrival, content[meta.start :], self._watcher)
        return None if status == NO_RESOURCES else status == SUCCESS
