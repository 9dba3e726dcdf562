"""Calls the service of the reading room from Python; it needs no extra.

    from pneumoscope.client import Client

    with Client("https://xray.example.org/", token) as client:
        for prediction in client.predict(["a.dcm", "b.png"]):
            print(prediction.name, prediction.decision)

Answers are the messages of the API, which its page `/docs` describes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3

from pneumoscope.client.connection import Connection, read_pause
from pneumoscope.errors import ServiceError, UsageError
from pneumoscope.server.messages.monitoring import MonitoringMessage, ReaderAgreementMessage
from pneumoscope.server.messages.predictions import (
    JobMessage,
    ModelMessage,
    PredictionMessage,
    PredictionPage,
    PredictionsMessage,
    ReviewAnswer,
    ReviewMessage,
    ReviewPage,
    StudyMessage,
    StudyPage,
)
from pneumoscope.server.messages.readings import CommittedMessage, PerformanceMessage, ReadingMessage, ReadingPage

_FILES = 16  # of a request; the service takes 64
_BYTES = 128 * 1024**2  # of a request; the service takes 256 MiB
_OF_ONE_FILE = (
    "not-an-image", "package-missing", "image-damaged", "image-unsupported", "image-too-large", "image-costly",
    "not-a-radiograph", "out-of-scope",
)  # fmt: skip


class Client(Connection):
    """A service. Only one thread at a time may call it.

    Each upload and review has an idempotency key: if an answer is lost, or the service is busy, the request is sent
    again, and nothing is stored twice.

    Args:
        url: the address of the reading room.
        token: the token for the service; None if it needs none.
        timeout: seconds without an answer after which a request has failed.
        retries: how often a request is sent again.

    Raises:
        UsageError: not an HTTP address.
    """

    def predict(
        self, images: str | Path | bytes | Sequence[str | Path | bytes], *, store: bool = True, reuse: bool = False,
        invert: bool = False, any_modality: bool = False, heatmap: bool = False, picture: bool = False,
    ) -> list[PredictionMessage]:  # fmt: skip
        """Predict files or their contents, in several requests if they are many.

        Args:
            images: paths or contents.
            store: whether the service stores the predictions.
            reuse: whether a stored prediction of the same file by the same model may be returned.
            invert: whether the images are inverted (air is white).
            any_modality: whether to read DICOM files that are not projection radiographs, too.
            heatmap: whether to add the evidence.
            picture: whether to add the image for a browser.

        Returns:
            A prediction for each image, in their order. One that cannot be read has an `error` and its `code`.

        Raises:
            ServiceError: the service cannot be reached, or refuses the request.
            UsageError: a file cannot be read.
        """
        options = {"store": store, "reuse": reuse, "invert": invert, "any_modality": any_modality}
        most = 8 if heatmap or picture else _FILES
        found: list[PredictionMessage] = []
        for part in _divide(_list_images(images), most):
            query = {**options, "heatmap": heatmap, "picture": picture}
            try:
                answer = self._upload(part, query)
                found += PredictionsMessage.model_validate_json(answer.data).predictions
            except ServiceError as problem:
                failed = _find_failures(problem, [name for name, _ in part])
                if failed is None:
                    raise
                found += failed
        return found

    def submit(
        self, images: str | Path | bytes | Sequence[str | Path | bytes], *, callback: str = "", store: bool = True,
        reuse: bool = False, invert: bool = False, any_modality: bool = False,
    ) -> JobMessage:  # fmt: skip
        """Send up to 64 files that the service predicts while you do something else.

        Args:
            images: paths or contents.
            callback: an address that the service calls when it has finished; its settings must allow the host.
            store: as in `predict`, like the following.
            reuse: see there.
            invert: see there.
            any_modality: see there.

        Raises:
            ServiceError: the service cannot be reached, or refuses the request.
            UsageError: a file cannot be read.
        """
        query: dict[str, bool | str] = {
            "store": store, "reuse": reuse, "invert": invert, "any_modality": any_modality,
        }  # fmt: skip
        if callback:
            query["callback"] = callback
        answer = self._upload(_list_images(images), query, {"prefer": "respond-async"})
        return JobMessage.model_validate_json(answer.data)

    def get_job(self, job: JobMessage | str) -> JobMessage:
        """The state of a job."""
        return JobMessage.model_validate_json(self._get(f"jobs/{_quote(job)}").data)

    def wait(self, job: JobMessage | str, timeout: float = 3600.0) -> list[PredictionMessage]:
        """Wait for a job, and give its predictions.

        Raises:
            ServiceError: it has failed, is lost, or is not finished after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            answer = self._get(f"jobs/{_quote(job)}")
            found = JobMessage.model_validate_json(answer.data)
            if found.problem is not None:
                raise ServiceError(found.problem.detail, found.problem.status, found.problem.model_dump())
            if found.predictions is not None:
                return found.predictions
            if time.monotonic() > end:
                raise ServiceError(f"The job is not finished after {timeout:g} s.")
            time.sleep(read_pause(answer, 1.0))

    def list_predictions(self, **query: Any) -> Iterator[PredictionMessage]:
        """The stored predictions, the newest first.

        Args:
            **query: `patient`, `study`, `decision`, `model`, `reviewed`, `since` (in a time zone), `limit` of a page;
                `disagreement=True` for disputed ones, and `second_reading=True`, with `reader` where the token has no
                name, for those that await a second reading.
        """
        for page in self._walk("predictions", PredictionPage, query):
            yield from page.predictions

    def get_prediction(self, prediction_id: str) -> PredictionMessage:
        """A stored prediction."""
        return PredictionMessage.model_validate_json(self._get(f"predictions/{_quote(prediction_id)}").data)

    def delete_prediction(self, prediction_id: str) -> None:
        """Delete a prediction, its reviews and its image; this needs the role admin."""
        self._request("DELETE", f"predictions/{_quote(prediction_id)}")

    def get_image(self, prediction_id: str, *, original: bool = False) -> bytes:
        """The kept image of a prediction: a PNG, or the file itself."""
        return self._get(f"predictions/{_quote(prediction_id)}/image", {"original": original}).data

    def get_evidence(self, prediction_id: str) -> bytes:
        """The evidence of a prediction: a PNG of colours to lay over the image."""
        return self._get(f"predictions/{_quote(prediction_id)}/evidence.png").data

    def review(
        self, prediction_id: str, *, agrees: bool | None = None, answer: ReviewAnswer | None = None,
        label: str | None = None, comment: str = "", reviewer: str = "",
    ) -> ReviewMessage:  # fmt: skip
        """Agree or disagree with a prediction, or give another answer: `cannot_tell`, `comment` or `withdrawn`."""
        given = {"agrees": agrees, "answer": answer, "label": label, "comment": comment, "reviewer": reviewer}
        path = f"predictions/{_quote(prediction_id)}/reviews"
        return ReviewMessage.model_validate_json(self._send(path, given, _make_key()).data)

    def commit_reading(
        self, prediction_id: str, label: str | None, *, confidence: int | None = None, with_ai: bool = False,
        comment: str = "", reader: str = "", seconds: float | None = None,
    ) -> CommittedMessage:  # fmt: skip
        """Commit what a reader sees in an image. It cannot be changed afterwards; the answer shows what the model says.

        Args:
            prediction_id: the prediction of the image.
            label: the class that the reader sees; None: they cannot tell.
            confidence: how sure they are, from 0 (a guess) to 100 (certain).
            with_ai: whether they know the model's answer; a reading without it must come first.
            comment: a comment of the reader.
            reader: their name, where the token has none.
            seconds: how long the reading took.
        """
        given = {
            "label": label, "confidence": confidence, "with_ai": with_ai, "comment": comment, "reader": reader,
            "seconds": seconds,
        }  # fmt: skip
        path = f"predictions/{_quote(prediction_id)}/readings"
        return CommittedMessage.model_validate_json(self._send(path, given).data)

    def list_readings(self, **query: Any) -> Iterator[ReadingMessage]:
        """Readings without and with the model's answer, the newest first.

        Args:
            **query: `prediction`, `sha256`, `reader`, `limit` of a page.
        """
        for page in self._walk("readings", ReadingPage, query):
            yield from page.readings

    def get_reading_performance(self) -> PerformanceMessage:
        """How good readers are without and with the model's answer, and the model; truth comes from teaching cases."""
        return PerformanceMessage.model_validate_json(self._get("reading-performance").data)

    def get_agreement(self, days: int = 30) -> ReaderAgreementMessage:
        """How far readers agree with each other: Cohen's and Fleiss' kappa, and Krippendorff's alpha."""
        return ReaderAgreementMessage.model_validate_json(self._get("agreement", {"days": days}).data)

    def list_reviews(self, prediction_id: str) -> Iterator[ReviewMessage]:
        """All reviews of a prediction, the newest first."""
        for page in self._walk(f"predictions/{_quote(prediction_id)}/reviews", ReviewPage, {}):
            yield from page.reviews

    def list_studies(self) -> Iterator[StudyMessage]:
        """The studies of stored predictions, the latest first."""
        for page in self._walk("studies", StudyPage, {}):
            yield from page.studies

    def list_models(self) -> list[ModelMessage]:
        """The models that are served."""
        return [ModelMessage.model_validate(each) for each in json.loads(self._get("models").data)]

    def get_model(self, name: str) -> ModelMessage:
        """A model that is served, by its name or fingerprint."""
        return ModelMessage.model_validate_json(self._get(f"models/{_quote(name)}").data)

    def get_monitoring(self, days: int = 30) -> MonitoringMessage:
        """Volume, decisions, drift and agreement of the last days."""
        return MonitoringMessage.model_validate_json(self._get("monitoring", {"days": days}).data)

    def _send(
        self, path: str, given: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        own = {"content-type": "application/json", **(headers or {})}
        return self._request("POST", path, headers=own, body=json.dumps(given).encode())

    def _upload(
        self, files: Sequence[tuple[str, bytes]], query: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        body, media_type = urllib3.encode_multipart_formdata([("files", each) for each in files])
        own = {"content-type": media_type, **_make_key(), **(headers or {})}
        return self._request("POST", "predictions", query=query, headers=own, body=body)


def verify_callback(body: bytes, signature: str, secret: str, tolerance: float = 300.0) -> JobMessage:
    """Check that a call comes from the service, and give its job, without the predictions.

    Args:
        body: the body of the request, unchanged.
        signature: the header `Pneumoscope-Signature`.
        secret: that of the service's settings.
        tolerance: how many seconds old the call may be.

    Raises:
        ServiceError: the signature is not valid, or too old.
    """
    parts = dict(part.partition("=")[::2] for part in signature.split(","))
    moment = parts.get("t", "")
    known = hmac.new(secret.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(known.encode(), parts.get("v1", "").encode()):
        raise ServiceError(
            "The signature is not valid: the call is not from the service, or the secret is another one."
        )
    if not moment.isdecimal() or abs(time.time() - int(moment)) > tolerance:
        raise ServiceError(f"The call is older than {tolerance:g} s: it may have been recorded and sent again.")
    return JobMessage.model_validate_json(body)


def _list_images(images: str | Path | bytes | Sequence[str | Path | bytes]) -> list[tuple[str, bytes]]:
    several = [images] if isinstance(images, str | Path | bytes) else list(images)
    found = []
    for each in several:
        if isinstance(each, bytes):
            found.append(("image", each))
            continue
        if not isinstance(each, str | Path):
            raise UsageError(f"found {type(each).__name__}; paths or bytes are needed.", parameter="images")
        try:
            found.append((Path(each).name, Path(each).read_bytes()))
        except OSError as problem:
            raise UsageError(f"{each}: cannot be read: {problem.strerror}.", parameter="images") from None
    return found


def _divide(files: Sequence[tuple[str, bytes]], most: int) -> Iterator[list[tuple[str, bytes]]]:
    part: list[tuple[str, bytes]] = []
    for each in files:
        if part and (len(part) == most or sum(len(content) for _, content in part) + len(each[1]) > _BYTES):
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def _find_failures(problem: ServiceError, names: Sequence[str]) -> list[PredictionMessage] | None:
    """The predictions if none of the files can be read; None for any other problem."""
    files = problem.problem.get("files")
    if isinstance(files, list) and len(files) == len(names):
        return [PredictionMessage(name=each["name"], error=each["detail"], code=each["code"]) for each in files]
    if len(names) == 1 and problem.code in _OF_ONE_FILE:
        return [PredictionMessage(name=names[0], error=str(problem), code=problem.code)]
    return None


def _make_key() -> dict[str, str]:
    return {"idempotency-key": uuid.uuid4().hex}


def _quote(identifier: JobMessage | str) -> str:
    return quote(identifier.id if isinstance(identifier, JobMessage) else identifier, safe="")
