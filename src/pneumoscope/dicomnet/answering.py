"""Answers studies: images that are due are predicted together, and their results written to the spool."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pneumoscope.dicomnet.queue import Queue
from pneumoscope.dicomnet.rows import Made, Outcome, Waiting
from pneumoscope.dicomnet.spool import Spool
from pneumoscope.errors import PneumoscopeError

if TYPE_CHECKING:
    from pneumoscope.dicomnet.node_settings import NodeSettings
    from pneumoscope.dicomnet.results import Answer, Result

_ENDS = 3  # of the process while it answers one image alone; after so many the image is set aside
logger = logging.getLogger("pneumoscope.node")


class _SpoolError(OSError):
    """A result cannot be written."""


class Answers(Protocol):
    """What makes results of images, such as `results.Answerer`."""

    def answer(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """Answer files in input order; a bad file gets an error, and never stops the others."""


class Answering:
    """Answers what is due.

    Args:
        settings: of the node.
        spool: where images are, and results go.
        queue: what is due.
        answers: what makes results.
        report: called with the state of each image that is done: its decision, or `set_aside`.
    """

    def __init__(
        self, settings: NodeSettings, spool: Spool, queue: Queue, answers: Answers, report: Callable[[str], None]
    ) -> None:
        self._settings, self._spool, self._queue = settings, spool, queue
        self._answers, self._report = answers, report
        self._destinations = [each.name for each in settings.destinations]
        self._interrupted: list[Waiting] = []  # begun, and stopped for a reason that no image caused
        self._survived: set[int] = set()  # images whose answering has ended in this process, with success or not

    def work(self) -> int:
        """Answer studies that are due, up to some number of images, and return how many images those were.

        Raises:
            DataError: the database cannot be used.
            OSError: the spool cannot be written. No image is at fault; the next call goes on.
        """
        if self._interrupted:
            self._queue.take_back(self._interrupted)
            self._interrupted = []
        now = time.time()
        settings = self._settings
        images = self._queue.list_waiting(now - settings.quiet, now - settings.longest_wait, settings.batch)
        if not images:
            return 0
        # Images that were being answered when the process ended are answered alone: one may have been the cause.
        suspects = [each for each in images if each.attempts and each.id not in self._survived]
        ordinary = [each for each in images if each not in suspects]
        if ordinary:
            self._save(self._answer(ordinary))
        for each in suspects:  # saved one by one, so that images that did no harm are not answered alone again
            self._save([self._give_up(each)] if each.alone >= _ENDS else self._answer([each]))
        return len(images)

    def _answer(self, images: Sequence[Waiting]) -> list[Outcome]:
        self._queue.begin(images)
        self._survived |= {each.id for each in images}
        try:
            paths = [self._spool.path_of(each.key) for each in images]
            return [
                self._keep(image, answer) for image, answer in zip(images, self._answers.answer(paths), strict=True)
            ]
        except (PneumoscopeError, _SpoolError):  # of the model, the installation or the disk, not of an image
            self._interrupted = [*images]
            raise
        except Exception as problem:
            if len(images) == 1:
                logger.error("study %s: answering fails: %s", images[0].study[:12], type(problem).__name__)
                if images[0].alone + 1 >= _ENDS:
                    return [_set_aside(images[0], f"answering it fails: {type(problem).__name__}")]
                return []  # again in the next round
            return [outcome for each in images for outcome in self._answer([each])]

    def _keep(self, image: Waiting, answer: Answer) -> Outcome:
        """Put an answer's results on disk."""
        prediction = answer.prediction
        if prediction.error is not None:
            return Outcome(image, "set_aside", _without_path(prediction.error, answer.path))
        if answer.left_out:
            names = " ".join(each for each in answer.left_out if each.isidentifier())
            logger.warning("study %s: image %s: its results are without values that are not valid: %s",
                           image.study[:12], image.key[:20], names)  # fmt: skip
        made = tuple(self._store(each) for each in answer.results)
        about = {
            "sha256": prediction.sha256,
            "decision": prediction.decision or "",
            "predicted_label": prediction.predicted_label or "",
            "probability": prediction.probability,
            "warnings": list(prediction.warnings),
        }
        return Outcome(image, "answered", results=made, about=about)

    def _store(self, result: Result) -> Made:
        try:
            file = self._spool.store_result(result.sop_uid, result.content, self._settings.dry_run)
            return Made(result.kind, result.sop_class_uid, result.sop_uid, file, self._spool.is_held(file))
        except OSError as problem:
            raise _SpoolError(problem.errno, problem.strerror) from problem

    def _give_up(self, image: Waiting) -> Outcome:
        return _set_aside(image, f"the node has ended {image.alone} times while answering it")

    def _save(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        try:
            known = self._queue.finish(outcomes, self._destinations, self._settings.dry_run)
        except PneumoscopeError:
            self._interrupted = [each.image for each in outcomes if each.image.id in self._survived]
            raise
        self._survived -= {each.image.id for each in outcomes}
        if known:
            logger.warning("%d results had been made before and are not sent again", len(known))
        if held := sum(made.held for each in outcomes for made in each.results if not self._settings.dry_run):
            logger.warning("%d results had been made by a dry run and are not sent", held)
        studies: dict[str, list[Outcome]] = {}
        for each in outcomes:
            if each.state == "answered":
                studies.setdefault(each.image.study, []).append(each)
            else:
                self._spool.set_aside(each.image.key, each.reason)
                logger.warning("image %s set aside: %s; why is in set-aside/%s.json",
                               each.image.key[:20], each.cause, each.image.key)  # fmt: skip
            self._report(str((each.about or {}).get("decision") or each.state))
        for study, some in studies.items():
            results = sum(len(each.results) for each in some)
            what = "would be sent to" if self._settings.dry_run else "for"
            names = ", ".join(some[0].image.to or self._destinations) or "nobody"
            logger.info("study %s answered: %d images, %d results %s %s", study[:12], len(some), results, what, names)


def _set_aside(image: Waiting, reason: str) -> Outcome:
    """Set an image aside for a reason that quotes no header."""
    return Outcome(image, "set_aside", reason, cause=reason)


def _without_path(error: str, path: Path) -> str:
    """A reason without the path, which is given elsewhere."""
    return error.removeprefix(f"{path}: ")
