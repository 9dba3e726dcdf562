"""The service's work: turns images into predictions, and stores predictions and reviews."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from pneumoscope import __version__
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.images.read import ImageBytes, Reading, is_image
from pneumoscope.inference.features import Extract
from pneumoscope.inference.overlays import render_heatmap
from pneumoscope.inference.prediction import Prediction
from pneumoscope.server.inference.batching import Answer, Batcher, InlineExecutor, Job
from pneumoscope.server.inference.decoding import Decoded, Decoders
from pneumoscope.server.messages.monitoring import MonitoringMessage, ReaderAgreementMessage
from pneumoscope.server.messages.node import NodeMessage
from pneumoscope.server.messages.predictions import Heatmap, PredictionMessage, PredictionQuery
from pneumoscope.server.models.second_model import SecondModel, copy_extract
from pneumoscope.server.models.self_check import check_model
from pneumoscope.server.models.served import ServedModel, open_model
from pneumoscope.server.monitoring.measurements import Measurements, ModelInfo
from pneumoscope.server.monitoring.watch import SUMMARISED, Watch
from pneumoscope.server.node_queue import read_node
from pneumoscope.server.periods import read_period
from pneumoscope.server.problems import RequestError, log_internal_error, logger, to_file_problem, to_internal_error
from pneumoscope.server.readings.agreement import measure_readers
from pneumoscope.server.readings.blinding import Blinding
from pneumoscope.server.replies import IDENTIFIERS, reuse, to_record
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.audit import SERVICE, Actor, AuditLog
from pneumoscope.server.storage.erasure import deleted_meanwhile
from pneumoscope.server.storage.image_reviews import add_image_reviews
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.records import find_start
from pneumoscope.server.storage.retention import Retention
from pneumoscope.server.storage.store import PredictionRecord, Store
from pneumoscope.server.stored import StoredPredictions
from pneumoscope.server.telemetry import Telemetry
from pneumoscope.server.tracing import open_tracing
from pneumoscope.server.uploads import UploadBudget
from pneumoscope.server.wording import explain_decision

Processed: TypeAlias = tuple[Answer, PredictionRecord | None]  # the record is still to be stored
Computed: TypeAlias = tuple[Answer, PredictionRecord | None, Extract | None]  # and the input for a second model
_PATIENCE = 5.0  # seconds in which the database has to answer
_UNREADABLE = (415, 422)  # statuses of files that cannot be read


class PredictionService:
    """A model and its database, with the batching and the limits in front of them.

    Raises:
        PneumoscopeError: the model or the database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.first = open_model(settings.model, settings)
        self.model, self.predictor = self.first.message, self.first.predictor
        self.name, self.fingerprint = self.first.name, self.first.fingerprint
        self.store = Store(settings.database, upgrade=settings.upgrade, patience=settings.limits.locked)
        self.telemetry, self.tracing = Telemetry(), open_tracing(settings.otel_endpoint)
        self.budget = UploadBudget(settings.limits)
        size, wait, capacity = self.predictor.engine.batch_size, settings.batch_wait / 1000, settings.limits.images
        self._decoders = Decoders(self.predictor.model.input, settings.limits, settings.decoders)
        self.batcher = Batcher(
            self._decode, self._compute, self._finish, size, wait, capacity, self.telemetry.count_batch
        )
        self.second: SecondModel | None = None
        if settings.shadow_model is not None:
            self.second = SecondModel(
                self.first,
                open_model(settings.shadow_model, settings),
                settings.canary,
                self.store,
                lambda: self.batcher.in_progress == 0,
                lambda result: self.telemetry.shadows.labels(result).inc(),
            )
        compare = None if self.second is None else self.second.compare
        self.watch = Watch(self.store, self.predictor.model, self.fingerprint, settings.monitoring_days, compare)
        measurements = Measurements(self.watch, self._list_models)
        self.telemetry.watch(
            lambda: self.batcher.in_progress, lambda: self.budget.buffered_bytes, capacity, measurements
        )
        self._collector = InlineExecutor()  # the images are decoded
        self._kept = KeptImages(settings.keep_images) if settings.keep_images is not None else None
        self.audit = AuditLog(self.store)
        self.stored = StoredPredictions(self.store, self._kept, self.models, self.choose, self.telemetry, self.audit)
        self.blinding = Blinding(settings.mode, self.stored)
        self._summary_thread = ThreadPoolExecutor(1, "summary")  # a long query delays nothing else
        self._readiness_thread = ThreadPoolExecutor(1, "readiness")  # the others may wait for a locked database
        self._check: asyncio.Future[str] | None = None
        self._mismatch = ""
        self._deleting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start, and run the network once, so that the first image is answered as fast as the others."""
        side = self.predictor.model.input.size
        blank = np.zeros((1, 3, side, side), np.float32)
        warm = asyncio.to_thread(lambda: self.predictor.engine.run(blank, maps=True))
        await asyncio.gather(warm, asyncio.to_thread(self._decoders.open))
        for model in self.models:
            self._mismatch += await asyncio.to_thread(check_model, self.store, model, self.settings.renew_self_check)
        self.batcher.open()
        self.audit.open()
        if self.second is not None:
            self.second.open()
        self.watch.open(self._summary_thread, self.check_ready)
        if (keep_for := self.settings.keep_for) is not None or self._kept is not None:
            retention = Retention(self.store, self._kept, read_period(keep_for, "keep_for") if keep_for else None)
            self._deleting = asyncio.create_task(retention.repeat(self._summary_thread))

    async def close(self) -> None:
        """End."""
        if self._deleting is not None:
            self._deleting.cancel()
        self._decoders.close()
        await self.batcher.close()
        self.watch.close()
        if self.second is not None:
            await asyncio.to_thread(self.second.close)
        for pool in (self._summary_thread, self._readiness_thread):
            pool.shutdown(cancel_futures=True)
        self.stored.close()
        self.audit.close()
        self.store.close()
        self.tracing.close()

    async def check_ready(self) -> None:
        """Check that images can be predicted and stored.

        Raises:
            RequestError: 503, they cannot; it says why.
        """
        if not self.batcher.alive:
            raise RequestError(503, "Images are no longer processed. Restart the service.")
        if self._mismatch:
            raise RequestError(503, f"The self-check failed: {self._mismatch}")
        if self._decoders.occupied:
            raise RequestError(503, "Images that take long are being decoded. Others take longer than usual.")
        if self._check is None or self._check.done():  # those who ask at once share an answer
            loop = asyncio.get_running_loop()
            self._check = loop.run_in_executor(self._readiness_thread, self.store.find_fault)
        done, _ = await asyncio.wait([self._check], timeout=_PATIENCE)
        fault = self._check.result() if done else f"it has not answered for {_PATIENCE:g} seconds"
        if fault:
            logger.error("%s: not ready: %s", self.store.location, fault)
            detail = f"The database cannot be used: {fault}."
            raise RequestError(503, detail, {"retry-after": "5"}, code="storage-unavailable")

    @property
    def models(self) -> list[ServedModel]:
        """The models that answer, or whose answers are kept; the first is that of all images but the canary's."""
        return [self.first] if self.second is None else [self.first, self.second.second]

    def choose(self, sha256: str) -> ServedModel:
        """The model that answers for a file."""
        return self.first if self.second is None else self.second.choose(sha256)

    def _list_models(self) -> list[ModelInfo]:
        found = zip(self.models, ("answers", "canary" if self.settings.canary else "shadow"), strict=False)
        return [ModelInfo(model.name, model.fingerprint, __version__, role) for model, role in found]

    async def predict(
        self,
        images: Sequence[ImageBytes],
        query: PredictionQuery,
        since: float | None = None,
        actor: Actor = SERVICE,
        mark: int | None = None,
    ) -> list[Answer]:
        """Predict files; an unreadable one is answered with its error.

        Args:
            images: the files.
            query: what is wanted.
            since: when an earlier request for the same began that was never answered, in seconds since 1970; what it
                has stored is used.
            actor: who sends them, for the audit log.
            mark: predictions of patients and studies that were erased since then are not stored; see `find_mark`.

        Raises:
            RequestError: 422, the model has no heatmaps, or pictures of too many images are requested; 429, too many
                images are in progress.
            DataError: the predictions cannot be stored.
        """
        if query.heatmap and not self.model.heatmaps:
            raise RequestError(
                422, "This model has no heatmaps: its network uses attention, so a heatmap would not explain it. Omit "
                "heatmap=true, or use pneumoscope explain.", code="no-heatmaps",
            )  # fmt: skip
        most, pictured = self.settings.limits.pictured_files, query.heatmap or query.picture
        if pictured and len(images) > most:
            detail = f"Pictures and heatmaps are limited to {most} images per request. Send fewer."
            raise RequestError(422, detail, code="too-many-pictures")
        known: list[PredictionMessage | None] = [None] * len(images)
        if query.reuse or since is not None:
            known = await self.stored.find_same(images, 0 if query.reuse else since or 0)
        unstored = query.model_copy(update={"store": False})
        jobs = [
            Job(image, unstored if same else query, None, actor, mark, self.tracing.current())
            for image, same in zip(images, known, strict=True)
            if same is None or pictured
        ]
        new = iter(await self.batcher.run(jobs) if jobs else ())
        answers: list[Answer] = []
        for image, same in zip(images, known, strict=True):
            if same is None:
                answers.append(next(new))
            else:
                answers.append(reuse(same, next(new) if pictured else None, image.name))
        if query.store:
            for answer, same in zip(answers, known, strict=True):
                if same is None:
                    self._count(answer)
        return answers

    def _count(self, answer: Answer) -> None:
        if not isinstance(answer, RequestError):
            self.telemetry.images.labels(answer.decision).inc()
            return
        self.telemetry.images.labels("error").inc()
        if answer.code and answer.status in _UNREADABLE and answer.code != "out-of-scope":
            self.watch.unreadable.count(answer.code)

    async def render_image(self, prediction_id: str) -> bytes:
        """The kept image of a prediction, as a PNG for a browser.

        Raises:
            RequestError: 404, there is none.
        """
        answer = await self._predict_again(prediction_id, PredictionQuery(picture=True, store=False))
        return base64.b64decode(answer.picture or "")

    async def find_evidence(self, prediction_id: str) -> Heatmap:
        """The evidence of a prediction, computed again from its kept image.

        Raises:
            RequestError: 404, there is no such prediction or its image was not kept; 409, there is no evidence, because
                of the model or the decision.
        """
        record = (await self.stored.find(prediction_id)).record
        reason = ""
        if record.fingerprint != self.choose(record.sha256).fingerprint:
            reason = "Another model than the one that is served made this prediction."
        elif not self.model.heatmaps:
            reason = "This model has no heatmaps: its network uses attention, so a heatmap would not explain it."
        elif record.decision == OUT_OF_DISTRIBUTION:
            reason = "The image is out of distribution, where a heatmap would mean nothing."
        if reason:
            raise RequestError(409, reason, code="no-evidence")
        answer = await self._predict_again(prediction_id, PredictionQuery(heatmap=True, store=False))
        if answer.heatmap is None:
            raise RequestError(409, "The model gives no evidence for this image.", code="no-evidence")
        return answer.heatmap

    async def _predict_again(self, prediction_id: str, query: PredictionQuery) -> PredictionMessage:
        record, content = await self.stored.read_image(prediction_id)
        image = ImageBytes(content, record.name or "image", Reading(record.invert, record.any_modality))
        (answer,) = await self.batcher.run([Job(image, query)])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def summarise(self, days: int) -> MonitoringMessage:
        """Summarise the predictions of today (UTC) and the days before it."""
        return await asyncio.get_running_loop().run_in_executor(self._summary_thread, self.watch.summarise, days)

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

    async def measure_readers(self, days: int) -> ReaderAgreementMessage:
        """Measure how far readers agree, on predictions of today (UTC) and the days before it."""
        loop, store = asyncio.get_running_loop(), self.store
        return await loop.run_in_executor(
            self._summary_thread, lambda: measure_readers(store.list_reviews(find_start(days), SUMMARISED), days)
        )

    async def _decode(self, image: ImageBytes, picture: bool) -> Decoded:
        with self.tracing.span("decode", bytes=len(image.content)):
            decoded = await self._decoders.decode(image, picture)
        if (error := decoded.extract.error) is not None:
            raise to_file_problem(error, is_image(image.content[:512]), decoded.extract.lacks_extra)
        return decoded

    def _compute(self, jobs: Sequence[Job]) -> list[Computed]:
        """Predict a batch; what another model needs is copied before its features take its place."""
        shared = [None if self.second is None else copy_extract(job) for job in jobs]
        with self.tracing.span("batch", [job.trace for job in jobs], images=len(jobs)):
            return [(*found, extract) for found, extract in zip(self._predict(jobs), shared, strict=True)]

    def _finish(self, done: Sequence[tuple[Job, Computed]]) -> list[Answer]:
        """Store predictions in one transaction, and give the answers; runs in a thread."""
        answers = [message for _, (message, _, _) in done]
        new = [(job, record) for job, (_, record, _) in done if record is not None and job.query.store]
        with self.tracing.span("store", [job.trace for job, _ in done], images=len(new)):
            refused = self.stored.add(new) if new else set()
        for place, (_, (_, record, extract)) in enumerate(done):
            if record is not None and record.id in refused:
                answers[place] = deleted_meanwhile()
            elif self.second is not None and record is not None and extract is not None:
                self.second.add(record.id, record.sha256, extract)
        add_image_reviews(self.store, [message for message in answers if not isinstance(message, RequestError)])
        return answers

    def _predict(self, jobs: Sequence[Job]) -> list[Processed]:
        """Predict a batch, each image by the model that is to answer for it."""
        if self.second is None:
            return self._predict_by(self.first, jobs)
        chosen = [self.choose(job.decoded.extract.sha256) if job.decoded else self.first for job in jobs]
        found: dict[int, Processed] = {}
        for model in self.models:
            places = [place for place, each in enumerate(chosen) if each is model]
            if places:
                found |= zip(places, self._predict_by(model, [jobs[place] for place in places]), strict=True)
        return [found[place] for place in range(len(jobs))]

    def _predict_by(self, model: ServedModel, jobs: Sequence[Job]) -> list[Processed]:
        """Predict a batch; after an error, each image alone, so that only the one at fault fails."""
        try:
            extracts = [job.decoded.extract for job in jobs if job.decoded is not None]
            predictions = model.predictor.run(
                extracts, maps=any(job.query.heatmap for job in jobs), pool=self._collector
            )
            return [self._answer(model, job, prediction) for job, prediction in zip(jobs, predictions, strict=True)]
        except Exception as problem:
            if len(jobs) == 1:
                log_internal_error(problem)
                return [(to_internal_error(problem), None)]
            log_internal_error(problem, "A batch failed and is predicted again, each image alone")
        # Not in the handler: the error keeps the batch's arrays in memory.
        return [answer for job in jobs for answer in self._predict_by(model, [job])]

    def _answer(self, model: ServedModel, job: Job, prediction: Prediction) -> Processed:
        image, query = job.image, job.query
        if prediction.error is not None:
            return to_file_problem(prediction.error, is_image(image.content[:512]), prediction.lacks_extra), None
        record = to_record(prediction, image, model, self.store, self.settings)
        message = PredictionMessage.model_validate(vars(record) | {"reviews": []})
        message.name = image.name  # also where it is not stored, like the next
        if query.store:
            message.href, message.image_kept = f"predictions/{message.id}", self._kept is not None
        else:
            message.id = message.created_at = None
        for name in IDENTIFIERS:
            setattr(message, name, getattr(prediction, name))
        message.explanation, message.uncertain_range = explain_decision(prediction, model.predictor)
        evidence = prediction.evidence
        if query.heatmap and evidence is not None and message.predicted_label is not None:
            png = base64.b64encode(render_heatmap(evidence, model.evidence_limit)).decode()
            height, width = evidence.cell
            message.heatmap = Heatmap(
                label=evidence.label, logit=evidence.logit, bias=evidence.bias, limit=model.evidence_limit,
                cell_height=height, cell_width=width, png=png,
            )  # fmt: skip
        if job.decoded is not None and job.decoded.picture is not None:
            message.picture = base64.b64encode(job.decoded.picture).decode()
        return message, record
