"""What becomes of the predictions of one request: rows of the database, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pneumoscope.datasets.patients import find_patient
from pneumoscope.images.read import ImageBytes
from pneumoscope.inference.prediction import Prediction
from pneumoscope.server.inference.batching import Answer
from pneumoscope.server.messages.predictions import PredictionMessage, PredictionsMessage
from pneumoscope.server.models.served import ServedModel
from pneumoscope.server.problems import RequestError
from pneumoscope.server.settings import Settings
from pneumoscope.server.storage.store import PredictionRecord, Store

_FACTS = ("age", "sex", "view", "laterality", "date")  # of an image
_LONGEST_UID = 64  # characters
IDENTIFIERS = ("accession_number", "study_uid", "series_uid", "sop_uid")


def reuse(same: PredictionMessage, new: Answer | None, name: str) -> Answer:
    """The stored prediction of a file, with the pictures of a new one, under the name that the file has now."""
    if isinstance(new, RequestError):
        return new
    pictures = {"heatmap": new.heatmap, "picture": new.picture} if new else {}
    return same.model_copy(update={**pictures, "name": name, "reused": True})


def gather(images: Sequence[ImageBytes], answers: Sequence[Answer]) -> PredictionsMessage:
    """The answer to a request.

    Raises:
        RequestError: 415, 422 or 500, no file can be predicted.
    """
    failures = [answer for answer in answers if isinstance(answer, RequestError)]
    if len(failures) == len(images):
        if len(failures) == 1:
            raise failures[0]
        worst = max(failures, key=lambda failure: failure.status)
        files = [
            {"name": image.name, "code": failure.code, "detail": failure.detail}
            for image, failure in zip(images, failures, strict=True)
        ]
        what = "predicted" if worst.status == 500 else "read"
        details = "; ".join(failure.detail for failure in failures[:5])
        code = "internal-error" if worst.status == 500 else "files-unreadable"
        raise RequestError(worst.status, f"None of the files can be {what}: {details}", code=code, files=files)
    predictions = [
        PredictionMessage(name=image.name, error=answer.detail, code=answer.code)
        if isinstance(answer, RequestError)
        else answer
        for image, answer in zip(images, answers, strict=True)
    ]
    return PredictionsMessage(predictions=predictions)


def strip(message: PredictionsMessage, settings: Settings) -> PredictionsMessage:
    """The same predictions for storing: without pictures, and without what the settings exclude."""
    unkept: dict[str, None] = {} if settings.keep_uids else dict.fromkeys(IDENTIFIERS)
    predictions = []
    for each in message.predictions:
        plain = each.model_copy(update={"heatmap": None, "picture": None, **unkept})
        if not settings.keep_names:
            error = plain.error and plain.error.replace(plain.name, "image")
            plain = plain.model_copy(update={"name": "", "error": error})
        predictions.append(plain)
    return PredictionsMessage(predictions=predictions)


def add_names(message: PredictionsMessage, images: Sequence[ImageBytes]) -> PredictionsMessage:
    """Stored predictions under the names that their files have in this request."""
    named = [
        one.model_copy(update={"name": image.name}) for one, image in zip(message.predictions, images, strict=True)
    ]
    return PredictionsMessage(predictions=named)


def add_pictures(message: PredictionsMessage, answers: Sequence[Answer]) -> PredictionsMessage:
    """Earlier predictions with the pictures of new ones of the same files."""
    predictions = [
        one
        if isinstance(new, RequestError)
        else one.model_copy(update={"heatmap": new.heatmap, "picture": new.picture})
        for one, new in zip(message.predictions, answers, strict=True)
    ]
    return PredictionsMessage(predictions=predictions)


def to_record(
    prediction: Prediction, image: ImageBytes, model: ServedModel, store: Store, settings: Settings
) -> PredictionRecord:
    """The database row of a prediction, without what the settings exclude."""
    patient = prediction.patient
    if patient is None and prediction.format != "DICOM":  # in DICOM, numbers in file names begin again in each study
        patient = find_patient(image.name)
    identifiers, faults = _keep_identifiers(prediction) if settings.keep_uids else ({}, [])
    height, width = prediction.size or (0, 0)  # known, as nothing comes from a cache
    return PredictionRecord(
        sha256=prediction.sha256,
        name=image.name if settings.keep_names else "",
        patient=store.pseudonymise(patient),
        model=model.name,
        fingerprint=model.fingerprint,
        decision=str(prediction.decision),
        predicted_label=str(prediction.predicted_label),
        probability=prediction.probability,
        probabilities=prediction.probabilities or {},
        prediction_set=list(prediction.prediction_set),
        ood_score=prediction.ood_score,
        warnings=[*prediction.warnings, *faults],
        width=width,
        height=height,
        format=prediction.format or "",
        invert=image.reading.invert,
        any_modality=image.reading.any_modality,
        group=prediction.group,
        **{name: getattr(prediction, name) for name in _FACTS},
        **identifiers,
    )


def _keep_identifiers(prediction: Prediction) -> tuple[dict[str, Any], list[str]]:
    """Accession number and UIDs to store, and warnings of UIDs longer than DICOM allows (PS3.5, 6.2)."""
    found = {name: getattr(prediction, name) for name in IDENTIFIERS}
    long = [name for name, value in found.items() if name.endswith("_uid") and len(value or "") > _LONGEST_UID]
    warnings = [f"{name}: more than {_LONGEST_UID} characters, which DICOM does not allow; not stored" for name in long]
    return found | dict.fromkeys(long), warnings
