"""What the service has stored: predictions, their reviews, and the files that are kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy.exc import IntegrityError

from pneumoscope.images.read import ImageBytes
from pneumoscope.server.access.callers import Caller
from pneumoscope.server.inference.batching import Job
from pneumoscope.server.messages.predictions import (
    ListQuery,
    PageQuery,
    PredictionMessage,
    PredictionPage,
    ReviewMessage,
    ReviewPage,
    ReviewRequest,
    StudyMessage,
    StudyPage,
)
from pneumoscope.server.models.served import ServedModel
from pneumoscope.server.problems import RequestError
from pneumoscope.server.storage import queries
from pneumoscope.server.storage.audit import Action, AuditLog, Trail, log_change
from pneumoscope.server.storage.erasure import add_predictions
from pneumoscope.server.storage.idempotency import Answered, Key, add_review
from pneumoscope.server.storage.image_reviews import add_image_reviews
from pneumoscope.server.storage.kept_images import KeptImages
from pneumoscope.server.storage.queries import Reviewed
from pneumoscope.server.storage.reviews import find_label, find_reviewer
from pneumoscope.server.storage.store import PredictionRecord, Review, Store
from pneumoscope.server.storage.studies import Study, list_studies
from pneumoscope.server.telemetry import Telemetry
from pneumoscope.server.wording import explain_decision

T = TypeVar("T")
_COLUMNS = [name for name in PredictionMessage.model_fields if name in PredictionRecord.__table__.columns]


class StoredPredictions:
    """The database and the folder of kept images, for routes; it raises DataError where they cannot be used.

    Args:
        store: the database.
        kept: the kept images, where there are any.
        models: that are served.
        choose: the model that answers for a file, by its SHA-256.
        telemetry: counts reviews.
        audit: the log of what only reads.
    """

    def __init__(
        self,
        store: Store,
        kept: KeptImages | None,
        models: Sequence[ServedModel],
        choose: Callable[[str], ServedModel],
        telemetry: Telemetry,
        audit: AuditLog,
    ) -> None:
        self.store, self._choose = store, choose
        self._models = {model.fingerprint: model for model in models}
        self._labels = models[0].predictor.model.labels
        self._kept, self._telemetry, self._audit = kept, telemetry, audit
        self._threads = ThreadPoolExecutor(4, "database")

    def close(self) -> None:
        """End."""
        self._threads.shutdown(cancel_futures=True)

    async def call(self, job: Callable[..., T], *arguments: Any) -> T:
        """Do something with the database in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, job, *arguments)

    def add(self, new: Sequence[tuple[Job, PredictionRecord]]) -> set[str]:
        """Keep files, then store their predictions; where that fails, files that were not kept before go again.

        Returns:
            The ids of predictions that were not stored, because their patient or study was erased meanwhile.

        Raises:
            DataError: they cannot be kept or stored.
        """
        added: dict[str, Path] = {}  # by SHA-256
        try:
            for job, record in new:
                if self._kept is not None:
                    path = self._kept.keep(job.image.content, record.sha256, record.format)
                    added |= {record.sha256: path} if path else {}
            rows = [(record, log_change(self.store, job.actor, "predict", record)) for job, record in new]
            refused = add_predictions(self.store, rows, [job.mark for job, _ in new])
        except Exception:
            if self._kept is not None:
                self._kept.delete(added)  # without predictions, nobody would find them to erase them
            raise
        if self._kept is not None:
            stored = {record.sha256 for _, record in new if record.id not in refused}
            self._kept.confirm(path for sha256, path in added.items() if sha256 in stored)
            self._kept.delete(added.keys() - stored)
        return refused

    def to_message(self, found: Reviewed) -> PredictionMessage:
        """The message of a stored prediction; it looks for the file of its image, so call it in a thread."""
        record = found.record
        columns = {name: getattr(record, name) for name in _COLUMNS}
        model = self._models.get(record.fingerprint)
        explanation, uncertain = explain_decision(record, model.predictor) if model else (None, None)
        return PredictionMessage(
            **columns,
            explanation=explanation,
            uncertain_range=uncertain,
            href=f"predictions/{record.id}",
            image_kept=self._kept is not None and self._kept.has(record.sha256, record.format),
            reviews=[ReviewMessage.model_validate(review) for review in found.reviews],
            review_count=found.review_count,
        )

    async def list_predictions(self, query: ListQuery, caller: Caller) -> PredictionPage:
        """A page of predictions, with the latest of their reviews.

        Raises:
            RequestError: 422, the cursor is not valid.
        """
        page = await self.call(queries.list_predictions, self.store, query, caller)

        def describe() -> list[PredictionMessage]:  # looks for each image's file
            predictions = [self.to_message(each) for each in page.entries]
            add_image_reviews(self.store, predictions)
            return predictions

        return PredictionPage(predictions=await self.call(describe), next=page.next)

    async def find(self, prediction_id: str) -> Reviewed:
        """A prediction by its id.

        Raises:
            RequestError: 404, there is none.
        """
        found = await self.call(queries.find_prediction, self.store, prediction_id)
        if found is None:
            raise _unknown()
        return found

    async def find_same(self, images: Sequence[ImageBytes], since: float = 0) -> list[PredictionMessage | None]:
        """For each image, the latest prediction of the same file by the same model, read in the same way.

        Args:
            images: the files.
            since: when it was stored at the earliest, in seconds since 1970.
        """

        def find() -> list[PredictionMessage | None]:
            keys = [
                queries.Key(digest, self._choose(digest).fingerprint, each.reading)
                for each in images
                for digest in [hashlib.sha256(each.content).hexdigest()]
            ]
            found = queries.find_same(self.store, keys, since)
            messages = [self.to_message(found[key]) if key in found else None for key in keys]
            add_image_reviews(self.store, [message for message in messages if message is not None])
            return messages

        return await self.call(find)

    async def delete(self, prediction_id: str, trail: Trail) -> None:
        """Delete a prediction, its reviews, and its file unless another prediction has the same one.

        Raises:
            RequestError: 404, there is none.
        """

        def delete() -> None:
            self._audit.flush()  # waiting log entries find the patient by the prediction
            found = queries.delete_prediction(self.store, prediction_id, trail.actor)
            if found is None:
                raise _unknown()
            trail.written = True
            sha256, needed = found
            if self._kept is not None and not needed:
                self._kept.delete([sha256])

        await self.call(delete)

    async def read_image(self, prediction_id: str) -> tuple[PredictionRecord, bytes]:
        """The file of a prediction.

        Raises:
            RequestError: 404, there is no such prediction, or its file was not kept.
        """
        record = (await self.find(prediction_id)).record
        kept = self._kept
        content = await self.call(kept.read, record.sha256, record.format) if kept else None
        if content is None:
            reason = "The service keeps none; `pneumoscope serve --keep-images FOLDER` does."
            if kept is not None:
                reason = "It was predicted while the service kept none, or it has been deleted since."
            raise RequestError(404, f"The image of this prediction was not kept. {reason}", code="image-not-kept")
        return record, content

    async def review(
        self, prediction_id: str, request: ReviewRequest, caller: Caller, trail: Trail, key: Key | None = None
    ) -> Answered:
        """Store a review, once for each key; give the answer. The reviewer's name is the caller's, if they have one.

        Raises:
            RequestError: 403, the review names somebody else; 404, there is no such prediction; 422, see `find_label`,
                or the key was used otherwise.
        """
        reviewer = find_reviewer(request, caller)
        record = (await self.find(prediction_id)).record
        label = find_label(record, request, self._labels)
        own = {"label": label, "reviewer": reviewer, "verified": caller.named}
        review = Review(prediction_id=record.id, **{**request.model_dump(), **own})
        action: Action = "withdraw" if review.answer == "withdrawn" else "review"
        entry = log_change(self.store, trail.actor, action, record)
        if key is not None:
            answered = await self.call(add_review, self.store, key, review, entry)
        else:
            try:
                await self.call(self.store.add, [review, entry])
            except IntegrityError:  # it was deleted meanwhile
                raise _unknown() from None
            content = ReviewMessage.model_validate(review).model_dump_json()
            answered = Answered(201, f"reviews/{review.number}", content)
        if not answered.replayed:
            trail.written = True
            self._telemetry.reviews.labels(review.answer).inc()
        return answered

    async def list_reviews(self, prediction_id: str, query: PageQuery) -> ReviewPage:
        """A page of a prediction's reviews.

        Raises:
            RequestError: 404, there is no such prediction; 422, the cursor is not valid.
        """
        page = await self.call(queries.list_reviews, self.store, prediction_id, query)
        if page is None:
            raise _unknown()
        return ReviewPage(reviews=[ReviewMessage.model_validate(each) for each in page.entries], next=page.next)

    async def find_review(self, prediction_id: str, number: int) -> ReviewMessage:
        """A review of a prediction.

        Raises:
            RequestError: 404, there is none.
        """
        found = await self.call(queries.find_review, self.store, prediction_id, number)
        if found is None:
            raise RequestError(404, "The prediction has no review of this number.", code="review-not-found")
        return ReviewMessage.model_validate(found)

    async def list_studies(self, query: PageQuery) -> StudyPage:
        """A page of studies.

        Raises:
            RequestError: 422, the cursor is not valid.
        """
        page = await self.call(list_studies, self.store, query)
        studies = [StudyMessage.model_validate({**vars(each), "href": _link(each)}) for each in page.entries]
        return StudyPage(studies=studies, next=page.next)


def _link(study: Study) -> str:
    if study.study_uid:
        return f"predictions?study={quote(study.study_uid, safe='')}"
    return f"predictions?patient={study.patient}"


def _unknown() -> RequestError:
    return RequestError(404, "There is no prediction with this id.", code="prediction-not-found")
