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
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import urllib3

from pneumoscope.errors import ServiceError, UsageError
from pneumoscope.server.messages.monitoring import MonitoringMessage
from pneumoscope.server.messages.predictions import (
    JobMessage,
    ModelMessage,
    PageMessage,
    PredictionMessage,
    PredictionPage,
    PredictionsMessage,
    ReviewMessage,
    ReviewPage,
    StudyMessage,
    StudyPage,
)

Page = TypeVar("Page", bound=PageMessage)
_FILES = 16  # of a request; the service takes 64
_BYTES = 128 * 1024**2  # of a request; the service takes 256 MiB
_BUSY = (429, 503)
_LONGEST_PAUSE = 60.0  # seconds


_OF_ONE_FILE = (
    "not-an-image", "package-missing", "image-damaged", "image-unsupported", "image-too-large", "image-costly",
    "not-a-radiograph", "out-of-scope",
)  # fmt: skip


class Client:
    """A service. Only one thread at a time may call it.

    Each upload and review has an idempotency key: if an answer is lost, or the service is busy, the request is sent
    again, and nothing is stored twice.

    Args:
        url: the address of the reading room.
        token: the token for the service; None if it needs none.
        timeout: seconds without an answer after which a request has failed.
        retries: how often a request is sent again.

    Raises:
        UsageError: the address is not one of HTTP.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000/", token: str | None = None, *, timeout: float = 120.0, retries: int = 5
    ) -> None:
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UsageError(f"found {url!r}; an address such as http://127.0.0.1:8000/ is needed.", parameter="url")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise UsageError(f"found {retries!r}; a whole number of at least 0 is needed.", parameter="retries")
        self.url = url if url.endswith("/") else f"{url}/"
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._timeout, self._retries = timeout, retries
        self._pool = urllib3.PoolManager()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

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
            time.sleep(_read_pause(answer, 1.0))

    def list_predictions(self, **query: Any) -> Iterator[PredictionMessage]:
        """The stored predictions, the newest first.

        Args:
            **query: `patient`, `study`, `decision`, `model`, `reviewed`, `since` (in a time zone), `limit` of a page.
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
        self, prediction_id: str, *, agrees: bool, label: str | None = None, comment: str = "", reviewer: str = ""
    ) -> ReviewMessage:
        """Agree or disagree with a prediction."""
        body = json.dumps({"agrees": agrees, "label": label, "comment": comment, "reviewer": reviewer}).encode()
        headers = {"content-type": "application/json", **_make_key()}
        answer = self._request("POST", f"predictions/{_quote(prediction_id)}/reviews", headers=headers, body=body)
        return ReviewMessage.model_validate_json(answer.data)

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

    def get_monitoring(self, days: int = 30) -> MonitoringMessage:
        """Volume, decisions, drift and agreement of the last days."""
        return MonitoringMessage.model_validate_json(self._get("monitoring", {"days": days}).data)

    def _upload(
        self, files: Sequence[tuple[str, bytes]], query: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        body, media_type = urllib3.encode_multipart_formdata([("files", each) for each in files])
        own = {"content-type": media_type, **_make_key(), **(headers or {})}
        return self._request("POST", "predictions", query=query, headers=own, body=body)

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> urllib3.BaseHTTPResponse:
        return self._request("GET", path, query=query)

    def _walk(self, path: str, kind: type[Page], query: Mapping[str, Any]) -> Iterator[Page]:
        cursor = ""
        while True:
            page = kind.model_validate_json(self._get(path, {**query, **({"cursor": cursor} if cursor else {})}).data)
            yield page
            if page.next is None:
                return
            cursor = page.next

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, and repeat it if that is safe."""
        url = urljoin(self.url, f"v1/{path}") + _write_query(query or {})
        left = self._retries
        while True:
            pause = min(2.0 ** (self._retries - left) / 4, _LONGEST_PAUSE)
            try:
                answer = self._pool.request(
                    method, url, headers={**self._headers, **(headers or {})}, body=body, timeout=self._timeout,
                    retries=False, redirect=False,
                )  # fmt: skip
            except urllib3.exceptions.HTTPError as problem:
                if not left or method == "DELETE":
                    raise ServiceError(f"{self.url} does not answer: {type(problem).__name__}.") from None
                left -= 1
                time.sleep(pause)
                continue
            if answer.status < 300:
                return answer
            refused = _read_problem(answer)
            if not left or not (answer.status in _BUSY or refused.code == "key-in-use"):
                raise refused
            left -= 1
            time.sleep(_read_pause(answer, pause))


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


def _read_problem(answer: urllib3.BaseHTTPResponse) -> ServiceError:
    try:
        problem = json.loads(answer.data)
        return ServiceError(str(problem["detail"]), answer.status, problem)
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"The service answered {answer.status}, not as version 1 of the API does.", answer.status)


def _read_pause(answer: urllib3.BaseHTTPResponse, otherwise: float) -> float:
    given = answer.headers.get("retry-after", "")
    return min(float(given), _LONGEST_PAUSE) if given.isdecimal() else otherwise


def _write_query(query: Mapping[str, Any]) -> str:

    plain = {
        name: str(value).lower()
        if isinstance(value, bool)
        else value.isoformat()
        if hasattr(value, "isoformat")
        else value
        for name, value in query.items()
        if value is not None
    }
    return f"?{urlencode(plain)}" if plain else ""


def _make_key() -> dict[str, str]:
    return {"idempotency-key": uuid.uuid4().hex}


def _quote(identifier: JobMessage | str) -> str:
    return quote(identifier.id if isinstance(identifier, JobMessage) else identifier, safe="")
