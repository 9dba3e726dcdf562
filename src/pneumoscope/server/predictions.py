"""The service's work: turns images into predictions, and stores predictions and reviews."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from pneumoscope import __version__
from pneumoscope.datasets.patients import find_patient
from pneumoscope.decisions.scope import describe
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.images.read import SUFFIXES, ImageBytes, is_image
from pneumoscope.inference.evidence import mixes_places
from pneumoscope.inference.overlays import list_colours, render_heatmap
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.model_folder import find_model
from pneumoscope.models.pretrained import DESCRIPTION
from pneumoscope.models.references import locate_model
from pneumoscope.server.batching import Answer, Batcher, Job
from pneumoscope.server.image_reviews import add_image_reviews
from pneumoscope.server.messages import (
    Heatmap,
    ModelMessage,
    NodeMessage,
    PredictionMessage,
    PredictionQuery,
    PredictionsMessage,
    ReviewMessage,
    ReviewRequest,
)
from pneumoscope.server.monitoring import summarise
from pneumoscope.server.node_queue import read_node
from pneumoscope.server.pictures import render_picture
from pneumoscope.server.problems import RequestError, log_internal_error, to_internal_error
from pneumoscope.server.reviews import find_label
from pneumoscope.server.settings import Settings
from pneumoscope.server.store import PredictionRecord, Review, Store, now
from pneumoscope.server.telemetry import Telemetry
from pneumoscope.server.uploads import UploadBudget
from pneumoscope.server.wording import explain_decision

T = TypeVar("T")
Processed: TypeAlias = tuple[Answer, PredictionRecord | None]  # the record is still to be stored
INTENDED_USE = "For research and teaching. Not a medical device: not for diagnosis or treatment."
_SUMMARISED = 50_000  # predictions, at most
_FACTS = ("age", "sex", "view", "laterality", "date")  # of an image
_IDENTIFIERS = ("accession_number", "study_uid", "series_uid", "sop_uid")


class PredictionService:
    """A model and its database, with the batching and the limits in front of them.

    Raises:
        PneumoscopeError: the model or the database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        folder = find_model(locate_model(settings.model))
        self.settings = settings
        self.predictor = load(folder, settings.device, refuse_out_of_scope=settings.refuse_out_of_scope)
        self.name = folder.parent.name if folder.name == "model" else folder.name
        self.fingerprint = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
        self.store = Store(settings.database, upgrade=settings.upgrade)
        self.telemetry = Telemetry()
        self.budget = UploadBudget(settings.limits)
        size, wait, capacity = self.predictor.engine.batch_size, settings.batch_wait / 1000, settings.limits.images
        self.batcher = Batcher(self._process, size, wait, capacity, self.telemetry.count_batch)
        self.telemetry.watch(lambda: self.batcher.in_progress, lambda: self.budget.buffered_bytes)
        self.model = self._describe_model()
        # They read for all batches: an image needs up to 900 MB while it is read.
        self._readers = ThreadPoolExecutor(min(4, max(2, (os.cpu_count() or 2) // 2)), "read")
        self._database_threads = ThreadPoolExecutor(4, "database")
        self._summary_thread = ThreadPoolExecutor(1, "summary")  # a long query delays nothing else
        if (images := settings.keep_images) is not None:
            try:
                images.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as problem:
                raise UsageError(f"{images} cannot be created: {problem.strerror}.", parameter="keep_images") from None

    async def open(self) -> None:
        """Start, and run the network once, so that the first image is answered as fast as the others."""
        side = self.predictor.model.input.size
        blank = np.zeros((1, 3, side, side), np.float32)
        await asyncio.to_thread(lambda: self.predictor.engine.run(blank, maps=True))
        self.batcher.open()

    async def close(self) -> None:
        """End."""
        await self.batcher.close()
        for pool in (self._readers, self._database_threads, self._summary_thread):
            pool.shutdown(cancel_futures=True)
        self.store.close()

    async def check_ready(self) -> None:
        """Check that images can be predicted.

        Raises:
            RequestError: 503, they cannot.
            DataError: the database does not answer.
        """
        if not self.batcher.alive:
            raise RequestError(503, "Images are no longer processed. Restart the service.")
        await self._query(self.store.ping)

    async def _query(self, job: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._database_threads, job, *arguments)

    def _describe_model(self) -> ModelMessage:
        model, threshold = self.predictor.model, self.predictor.decisions.threshold
        return ModelMessage(
            name=self.name,
            fingerprint=self.fingerprint,
            labels=list(model.labels),
            positive=model.positive,
            threshold=self.predictor.threshold if threshold else None,
            threshold_rule=threshold.rule if threshold else "",
            thresholds=dict(zip(model.labels, self.predictor.decisions.class_thresholds, strict=False)),
            alpha=self.predictor.alpha,
            false_alarms=self.predictor.false_alarms,
            backbone=model.backbone,
            input_size=model.input.size,
            training_images=sum(model.data.get("counts", {}).get("train", {}).values()),
            version=__version__,
            heatmaps=not mixes_places(self.predictor.model, self.predictor.engine),
            colours=list_colours(),
            intended_use=_describe_use(self.predictor),
            intended_population=describe(self.predictor.decisions.scope),
        )

    async def predict(self, images: Sequence[ImageBytes], query: PredictionQuery) -> PredictionsMessage:
        """Predict files; an unreadable one is answered with its error, unless none can be read.

        Raises:
            RequestError: 415, 422 or 500, no file can be predicted; 422, the model has no heatmaps, or pictures of too
                many images are requested; 429, too many images are in progress.
            DataError: the predictions cannot be stored.
        """
        if query.heatmap and not self.model.heatmaps:
            raise RequestError(
                422, "This model has no heatmaps: its network uses attention, so a heatmap would not explain it. Omit "
                "heatmap=true, or use pneumoscope explain."
            )  # fmt: skip
        most = self.settings.limits.pictured_files
        if (query.heatmap or query.picture) and len(images) > most:
            raise RequestError(422, f"Pictures and heatmaps are limited to {most} images per request. Send fewer.")
        answers = await self.batcher.run([Job(image, query) for image in images])
        failures = [answer for answer in answers if isinstance(answer, RequestError)]
        for answer in answers if query.store else ():
            self.telemetry.images.labels("error" if isinstance(answer, RequestError) else answer.decision).inc()
        if len(failures) == len(images):
            if len(failures) == 1:
                raise failures[0]
            details = "; ".join(failure.detail for failure in failures[:5])
            status = max(failure.status for failure in failures)
            what = "predicted" if status == 500 else "read"
            raise RequestError(status, f"None of the files can be {what}: {details}")
        predictions = [
            PredictionMessage(name=image.name, error=answer.detail) if isinstance(answer, RequestError) else answer
            for image, answer in zip(images, answers, strict=True)
        ]
        return PredictionsMessage(predictions=predictions)

    async def list_predictions(self, limit: int) -> PredictionsMessage:
        """The latest predictions with their reviews."""
        records = await self._query(self.store.list_predictions, limit)
        predictions = [PredictionMessage.model_validate(record) for record in records]
        await self._query(add_image_reviews, self.store, predictions)
        return PredictionsMessage(predictions=predictions)

    async def review(self, prediction_id: str, request: ReviewRequest) -> ReviewMessage:
        """Store a review.

        Raises:
            RequestError: 404, there is no such prediction; 422, see `find_label`.
            DataError: it cannot be stored.
        """
        record = await self._query(self.store.find_prediction, prediction_id)
        if record is None:
            raise RequestError(404, "There is no prediction with this id.")
        label = find_label(record, request, self.model.labels)
        review = Review(prediction_id=record.id, **{**request.model_dump(), "label": label})
        await self._query(self.store.add, [review])
        self.telemetry.reviews.labels(str(review.agrees).lower()).inc()
        return ReviewMessage.model_validate(review)

    async def summarise(self, days: int) -> dict[str, Any]:
        """Summarise the predictions of today (UTC) and the days before it."""
        return await asyncio.get_running_loop().run_in_executor(self._summary_thread, self._summarise, days)

    async def read_node(self, limit: int) -> NodeMessage:
        """What DICOM nodes have in the same database, with their latest images.

        Raises:
            RequestError: 409, their tables are those of another version.
            DataError: the database does not answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._summary_thread, self._read_node, limit)

    def _read_node(self, limit: int) -> NodeMessage:
        with self.store.read() as connection:
            return read_node(connection, limit, time.time())

    def _summarise(self, days: int) -> dict[str, Any]:
        since = datetime.datetime.combine(now().date(), datetime.time()) - datetime.timedelta(days=days - 1)
        per_day = self.store.count_by_day(since)
        outcomes, reviews = self.store.list_outcomes(_SUMMARISED, since), self.store.list_reviews(since)
        return {
            "days": days,
            "predictions": sum(per_day.values()),
            "summarised": len(outcomes),
            "per_day": per_day,
            **summarise(outcomes, reviews, self.predictor.model, self.fingerprint),
        }

    def _process(self, jobs: Sequence[Job]) -> list[Answer]:
        """Predict a batch and store it; runs in a thread."""
        answers = self._predict(jobs)
        if self.settings.keep_images is not None:
            for job, (_, record) in zip(jobs, answers, strict=True):
                if record is not None:
                    _keep_file(self.settings.keep_images, job.image.content, record)
        self.store.add([record for _, record in answers if record is not None])
        add_image_reviews(self.store, [answer for answer, _ in answers if not isinstance(answer, RequestError)])
        return [message for message, _ in answers]

    def _predict(self, jobs: Sequence[Job]) -> list[Processed]:
        """Predict a batch; after an error, each image alone, so that only the one at fault fails."""
        try:
            predictions = self.predictor.run(
                [job.image for job in jobs],
                maps=any(job.query.heatmap for job in jobs),
                pixels=any(job.query.picture for job in jobs),
                pool=self._readers,
            )
            return [self._answer(job, prediction) for job, prediction in zip(jobs, predictions, strict=True)]
        except Exception as problem:
            if len(jobs) == 1:
                log_internal_error(problem)
                if isinstance(problem, MissingExtraError):
                    return [(_lacks_package(problem), None)]
                return [(to_internal_error(problem), None)]
            log_internal_error(problem, "A batch failed and is predicted again, each image alone")
        # Not in the handler: the error keeps the batch's arrays in memory.
        return [answer for job in jobs for answer in self._predict([job])]

    def _answer(self, job: Job, prediction: Prediction) -> Processed:
        image, query = job.image, job.query
        if prediction.error is not None:
            if prediction.lacks_extra:
                return _lacks_package(prediction.error), None
            status = 422 if is_image(image.content[:512]) else 415
            return RequestError(
                status,
                prediction.error.replace("`any_modality=True`", "any_modality=true").replace(
                    "`refuse_out_of_scope=True`", "the service's setting (`pneumoscope serve --refuse-out-of-scope`)"
                ),
            ), None
        record = self._to_record(image, prediction)
        message = PredictionMessage.model_validate(record)
        message.name = image.name  # also where it is not stored, like the next
        for name in _IDENTIFIERS:
            setattr(message, name, getattr(prediction, name))
        message.explanation = explain_decision(prediction, self.predictor)
        evidence, pixels = prediction.evidence, prediction.pixels
        if query.heatmap and evidence is not None and message.predicted_label is not None:
            png = base64.b64encode(render_heatmap(evidence)).decode()
            message.heatmap = Heatmap(
                label=evidence.label, logit=evidence.logit, bias=evidence.bias, limit=evidence.limit, png=png
            )
        if query.picture and pixels is not None:
            message.picture = base64.b64encode(render_picture(pixels)).decode()
        if not query.store:
            message.id = message.created_at = None
            return message, None
        return message, record

    def _to_record(self, image: ImageBytes, prediction: Prediction) -> PredictionRecord:
        patient = prediction.patient
        if patient is None and prediction.format != "DICOM":  # whose files have numbers that every study begins anew
            patient = find_patient(image.name)
        height, width = prediction.size or (0, 0)  # known, as nothing comes from a cache
        return PredictionRecord(
            sha256=prediction.sha256,
            name=image.name if self.settings.keep_names else "",
            patient=self.store.pseudonymise(patient),
            model=self.name,
            fingerprint=self.fingerprint,
            decision=str(prediction.decision),
            predicted_label=str(prediction.predicted_label),
            probability=prediction.probability,
            probabilities=prediction.probabilities or {},
            prediction_set=list(prediction.prediction_set),
            ood_score=prediction.ood_score,
            warnings=list(prediction.warnings),
            width=width,
            height=height,
            format=prediction.format or "",
            invert=image.reading.invert,
            any_modality=image.reading.any_modality,
            group=prediction.group,
            **{name: getattr(prediction, name) for name in _FACTS},
            **{name: getattr(prediction, name) for name in _IDENTIFIERS if self.settings.keep_uids},
        )


def _describe_use(predictor: Predictor) -> str:
    intended = describe(predictor.decisions.scope)
    return f"{INTENDED_USE} Meant for {intended}." if intended else INTENDED_USE


def _lacks_package(problem: object) -> RequestError:
    return RequestError(415, f"The service lacks a package to read this file: {problem}")


def _keep_file(folder: Path, content: bytes, record: PredictionRecord) -> None:
    path = folder / f"{record.sha256}{SUFFIXES.get(record.format, ('.dcm',))[0]}"
    try:
        if not path.exists():
            write_bytes(path, content)
            path.chmod(0o600)
    except (OSError, UsageError) as problem:
        raise DataError(str(problem), parameter="keep_images") from None
