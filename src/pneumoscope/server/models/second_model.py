"""A second model beside the first: its answers are kept but not shown, or it answers for a share of the images."""

from __future__ import annotations

import copy
import datetime
import queue
import threading
from collections.abc import Callable

from sqlalchemy.exc import IntegrityError

from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.inference.features import Extract
from pneumoscope.server.inference.batching import Job
from pneumoscope.server.messages.monitoring import ModelComparison
from pneumoscope.server.models.comparison import compare_models
from pneumoscope.server.models.served import ServedModel
from pneumoscope.server.problems import log_internal_error, logger
from pneumoscope.server.storage.records import ShadowPrediction
from pneumoscope.server.storage.store import Store, now

_WAITING = 64  # images; each is held as the network's input, 0.6 MB at 224 x 224
_PAUSE = 0.02  # seconds between checks whether images of callers are in progress


class SecondModel:
    """Both models: chooses the one that answers, and lets the other one predict when nobody waits.

    Args:
        first: answers for all other images.
        second: answers for the share.
        canary: the share of the images that the second one answers for, from 0 to 1.
        store: keeps the predictions of the model that does not answer.
        idle: whether no image of a caller is in progress.
        count: called with `kept`, `dropped` or `failed` for each image.

    Raises:
        UsageError: the models' answers cannot be compared.
    """

    def __init__(
        self,
        first: ServedModel,
        second: ServedModel,
        canary: float,
        store: Store,
        idle: Callable[[], bool],
        count: Callable[[str], None],
    ) -> None:
        check_comparable(first, second)
        self.first, self.second, self.canary = first, second, canary
        self._store, self._idle, self._count = store, idle, count
        self._queue: queue.Queue[tuple[str, str, Extract]] = queue.Queue(_WAITING)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="second-model", daemon=True)

    def open(self) -> None:
        """Start."""
        self._thread.start()

    def close(self) -> None:
        """End; images that still wait are not predicted."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        if left := self._queue.qsize():
            logger.warning("The service ends: %d images have no prediction of the second model.", left)

    def choose(self, sha256: str) -> ServedModel:
        """The model that answers for a file: always the same one."""
        return self.second if int(sha256[:8], 16) < self.canary * 2**32 else self.first

    def compare(self, since: datetime.datetime) -> ModelComparison:
        """Compare both models on the images since a moment (UTC).

        Raises:
            DataError: the database does not answer.
        """
        return compare_models(self._store, self.first, self.second, self.canary, since)

    def add(self, prediction_id: str, sha256: str, extract: Extract) -> None:
        """Let the other model predict an image that was answered; if too many wait, it is dropped and counted."""
        try:
            self._queue.put_nowait((prediction_id, sha256, extract))
        except queue.Full:
            self._count("dropped")

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                prediction_id, sha256, extract = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            while not self._idle() and not self._ending.wait(_PAUSE):
                pass
            other = self.first if self.choose(sha256) is self.second else self.second
            try:
                self._count(self._predict(prediction_id, other, extract))
            except PneumoscopeError as problem:
                logger.error("A prediction of the second model could not be kept: %s", problem)
                self._count("failed")
            except Exception as problem:
                log_internal_error(problem, "The second model failed")
                self._count("failed")

    def _predict(self, prediction_id: str, model: ServedModel, extract: Extract) -> str:
        (prediction,) = model.predictor.run([extract])  # alone: whoever comes now waits for one image at most
        if prediction.error is not None:
            return "failed"
        record = ShadowPrediction(
            prediction_id=prediction_id,
            fingerprint=model.fingerprint,
            model=model.name,
            decision=str(prediction.decision),
            predicted_label=str(prediction.predicted_label),
            probabilities=prediction.probabilities or {},
            ood_score=prediction.ood_score,
            created_at=now(),
        )
        try:
            self._store.add([record])
        except IntegrityError:  # the prediction was deleted meanwhile
            return "dropped"
        return "kept"


def copy_extract(job: Job) -> Extract | None:
    """A copy of a stored image that has only what another model needs, and shares the input."""
    if job.decoded is None or not job.query.store:
        return None
    copied = copy.copy(job.decoded.extract)
    copied.pixels = copied.display = None
    return copied


def check_comparable(first: ServedModel, second: ServedModel) -> None:
    """Check that two models can stand side by side.

    Raises:
        UsageError: they are the same, or prepare images differently, or have other classes.
    """
    one, two = first.predictor.model, second.predictor.model
    if first.fingerprint == second.fingerprint:
        raise UsageError("This is the model that is served. Name another one.", "shadow_model")
    if (one.labels, one.positive) != (two.labels, two.positive):
        raise UsageError(
            f"Its classes are {', '.join(two.labels)}, those of the model that is served {', '.join(one.labels)}: "
            "their answers cannot be compared.",
            "shadow_model",
        )
    if one.input != two.input:
        raise UsageError(
            "It prepares images differently from the model that is served, but each image is prepared only once. "
            "Serve it separately, or compare both with `pneumoscope compare`.",
            "shadow_model",
        )
