"""The reading room's work: uploads become answers that are remembered, and reviewers' verdicts are kept."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pneumoscope import __version__
from pneumoscope.datasets.samples import find_patient
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.errors import DataError, ImageError, MissingExtraError, UsageError
from pneumoscope.files import write_bytes
from pneumoscope.images.read import Reading, is_image
from pneumoscope.inference.explain import mixes_places
from pneumoscope.inference.overlays import list_colours
from pneumoscope.inference.predictor import load
from pneumoscope.models.model_folder import find_model
from pneumoscope.models.pretrained import DESCRIPTION, find_pretrained
from pneumoscope.server.batching import Batcher, Order, Result
from pneumoscope.server.messages import (
    Heatmap,
    KeptVerdict,
    ModelMessage,
    PredictionMessage,
    Predictions,
    ReadMessage,
    Reads,
    VerdictMessage,
    Wanted,
)
from pneumoscope.server.monitoring import summarise
from pneumoscope.server.problems import RequestError
from pneumoscope.server.store import Memory, Read, Verdict, new_id, now
from pneumoscope.server.telemetry import Measures
from pneumoscope.server.uploads import Desk, Upload
from pneumoscope.server.wording import explain_decision

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings

T = TypeVar("T")
USE = "Research and teaching. Not a medical device: not for diagnosis or treatment."
_SUFFIXES = {
    "JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "GIF": ".gif", "JPEG2000": ".jp2",
    "DICOM": ".dcm",
}  # fmt: skip
_MOST_READS = 50_000  # that a summary looks at


class Room:
    """A model, its memory, and what stands before it.

    Args:
        settings: how it is to be run.

    Raises:
        PneumoscopeError: the model or the database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        folder = find_model(settings.model or find_pretrained())
        self.settings = settings
        self.predictor = load(folder, settings.device)
        self.name = folder.parent.name if folder.name == "model" else folder.name
        self.fingerprint = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
        self.memory = Memory(settings.database)
        self.measures = Measures()
        self.desk = Desk(settings.limits)
        self.batcher = Batcher(
            self.predictor, settings.wait, settings.limits.images, self._keep, self.measures.count_batch
        )
        self.measures.watch(lambda: self.batcher.under_way, lambda: self.desk.held)
        self.explains = not mixes_places(self.predictor)
        self.model = self._describe()
        self._remembering = ThreadPoolExecutor(4, "remember")
        self._summarising = ThreadPoolExecutor(1, "summarise")  # a long look at the database holds up nothing else
        if (images := settings.keep_images) is not None:
            try:
                images.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as problem:
                raise UsageError(f"--keep-images {images}: cannot be made: {problem.strerror}.") from None

    async def open(self) -> None:
        """Begin."""
        await self.batcher.open()

    async def close(self) -> None:
        """End."""
        await self.batcher.close()
        for pool in (self._remembering, self._summarising):
            pool.shutdown(cancel_futures=True)
        self.memory.close()

    async def require_ready(self) -> None:
        """See whether images can be read.

        Raises:
            RequestError: 503, they can't.
            DataError: the database does not answer.
        """
        if not self.batcher.alive:
            raise RequestError(503, "No images are computed any more. Start the service again.")
        await self._remember(self.memory.ping)

    async def _remember(self, job: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._remembering, job, *arguments)

    def _describe(self) -> ModelMessage:
        model = self.predictor.model
        return ModelMessage(
            name=self.name,
            fingerprint=self.fingerprint,
            labels=list(model.labels),
            positive=model.positive,
            threshold=None if model.positive is None else self.predictor.threshold,
            threshold_rule=self.predictor.decisions.threshold.rule if self.predictor.decisions.threshold else "",
            alpha=self.predictor.alpha,
            false_alarms=self.predictor.false_alarms,
            backbone=model.backbone,
            input_size=model.input.size,
            training_images=sum(model.data["counts"].get("train", {}).values()),
            version=__version__,
            heatmaps=self.explains,
            colours=list_colours(),
            intended_use=USE,
        )

    async def read(self, uploads: Sequence[Upload], wanted: Wanted) -> Predictions:
        """Read files; one that cannot be read says why, unless none can.

        Raises:
            RequestError: 415 or 422, no file can be read; 429, there is no room for them; 422, maps do not explain this
                model.
            DataError: the database does not take them.
        """
        heatmap, view = wanted.heatmap, wanted.view
        if heatmap and not self.explains:
            raise RequestError(
                422, "This model's network has attention: its maps do not explain. Ask without heatmap=true, and see "
                "pneumoscope explain."
            )  # fmt: skip
        if (heatmap or view) and len(uploads) > (most := self.settings.limits.pictured_files):
            raise RequestError(422, f"Pictures are drawn of {most} images a request at most. Send fewer at a time.")
        reading = Reading(wanted.invert, wanted.any_modality)
        orders = [Order(one.content, one.name, reading, heatmap, view) for one in uploads]
        found = await self.batcher.read(orders)
        answers, errors = [], []
        for order, one in zip(orders, found, strict=True):
            if isinstance(one, ImageError | MissingExtraError):
                errors.append(str(one).replace("`any_modality=True`", "any_modality=true"))
                answers.append(_to_error(order.name, errors[-1]))
                self.measures.count_image("error")
            elif isinstance(one, BaseException):
                raise one
            else:
                answers.append(self._to_message(one))
                self.measures.count_image(str(one.prediction.decision))
        if len(errors) == len(orders):
            unknown = all(not is_image(order.content[:512]) for order in orders)
            status = 415 if unknown or any(isinstance(one, MissingExtraError) for one in found) else 422
            raise RequestError(
                status, errors[0] if len(errors) == 1 else f"No file can be read: {'; '.join(errors[:5])}"
            )
        return Predictions(model=self.name, fingerprint=self.fingerprint, predictions=answers)

    async def judge(self, number: str, message: VerdictMessage) -> KeptVerdict:
        """Keep a reviewer's verdict.

        Raises:
            RequestError: 404, there is no such read; 422, the verdict contradicts itself, or names no class though it
                has to.
            DataError: the database does not take it.
        """
        read = await self._remember(self.memory.find_read, number)
        if read is None:
            raise RequestError(404, "No image was read under this id here.")
        label = _settle(read, message, self.predictor.model.labels)
        verdict = Verdict(read.id, now(), message.reviewer, message.verdict == "agree", label, message.note)
        await self._remember(self.memory.add_verdict, verdict)
        self.measures.count_verdict(message.verdict)
        return _to_kept(verdict)

    async def list_reads(self, limit: int) -> Reads:
        """The latest reads with their verdicts."""
        reads = await self._remember(self.memory.list_reads, limit)
        verdicts = await self._remember(self.memory.list_verdicts, [read.id for read in reads])
        return Reads(
            reads=[
                ReadMessage(
                    **{
                        name: getattr(read, name)
                        for name in ReadMessage.model_fields
                        if name not in ("at", "predicted_label", "prediction_set", "verdicts")
                    },
                    at=_to_text(read.at),
                    predicted_label=None if read.decision == OUT_OF_DISTRIBUTION else read.predicted_label,
                    prediction_set=[] if read.decision == OUT_OF_DISTRIBUTION else list(read.prediction_set),
                    verdicts=[_to_kept(verdict) for verdict in verdicts.get(read.id, ())],
                )
                for read in reads
            ]
        )

    async def summarise(self, days: int) -> dict[str, Any]:
        """Figures of the reads of today (UTC) and the days before it."""
        since = datetime.datetime.combine(now().date(), datetime.time()) - datetime.timedelta(days=days - 1)
        return await asyncio.get_running_loop().run_in_executor(self._summarising, self._summarise, days, since)

    def _summarise(self, days: int, since: datetime.datetime) -> dict[str, Any]:
        volume = self.memory.count_days(since)
        reads = self.memory.list_reads(_MOST_READS, since)
        verdicts = self.memory.list_verdicts([read.id for read in reads])
        return {
            "days": days,
            "reads": sum(volume.values()),
            "looked_at": len(reads),
            "volume": volume,
            **summarise(reads, verdicts, self.predictor.model, self.fingerprint),
        }

    def _keep(self, results: Sequence[Result]) -> list[str]:
        """Remember a batch; runs in the computing thread."""
        reads = [self._to_read(result) for result in results]
        if (folder := self.settings.keep_images) is not None:
            try:
                for read, result in zip(reads, results, strict=True):
                    if not (path := folder / read.kept).exists():
                        write_bytes(path, result.order.content)
                        path.chmod(0o600)
            except (OSError, UsageError) as problem:
                raise DataError(f"--keep-images: {problem}") from None
        self.memory.add_reads(reads)
        return [read.id for read in reads]

    def _to_read(self, result: Result) -> Read:
        prediction = result.prediction
        return Read(
            id=new_id(),
            at=now(),
            digest=prediction.sha256,
            name=result.order.name if self.settings.keep_names else "",
            patient=self.memory.name_patient(result.patient or _name_patient(result)),
            model=self.name,
            fingerprint=self.fingerprint,
            decision=str(prediction.decision),
            predicted_label=str(prediction.predicted_label),
            prediction_set=prediction.prediction_set,
            probability=prediction.probability,
            score=prediction.raw_probability or 0.0,
            ood_score=prediction.ood_score,
            invert=result.order.reading.invert,
            any_modality=result.order.reading.any_modality,
            kept="" if self.settings.keep_images is None else prediction.sha256 + _SUFFIXES[result.format],
        )

    def _to_message(self, result: Result) -> PredictionMessage:
        prediction, evidence = result.prediction, result.evidence
        ood = prediction.decision == OUT_OF_DISTRIBUTION
        words = explain_decision(prediction, self.predictor)
        if result.frames > 1:
            words += f" The file has {result.frames} frames; the first was read."
        heatmap = None
        if evidence is not None and result.heatmap is not None:
            heatmap = Heatmap(
                label=evidence.label,
                logit=evidence.logit,
                bias=evidence.bias,
                limit=evidence.limit,
                png=base64.b64encode(result.heatmap).decode(),
            )
        return PredictionMessage(
            id=result.number,
            name=result.order.name,
            digest=prediction.sha256,
            decision=prediction.decision,
            predicted_label=None if ood else prediction.predicted_label,
            probability=prediction.probability,
            probabilities={} if ood else prediction.probabilities or {},
            prediction_set=[] if ood else list(prediction.prediction_set),
            ood_score=prediction.ood_score,
            words=words,
            width=result.shape[1],
            height=result.shape[0],
            format=result.format,
            error=None,
            heatmap=heatmap,
            view=None if result.view is None else base64.b64encode(result.view).decode(),
        )


def _name_patient(result: Result) -> str | None:
    """The patient that a file's name tells; names of DICOM files are numbers that every study begins anew."""
    return None if result.format == "DICOM" else find_patient(Path(result.order.name).stem)


def _settle(read: Read, message: VerdictMessage, labels: Sequence[str]) -> str | None:
    """The class that a verdict names, said or implied; the read may be another model's."""
    decided = read.decision not in (UNCERTAIN, OUT_OF_DISTRIBUTION)
    if message.label is not None and message.label not in (*labels, read.decision if decided else None):
        raise RequestError(422, f"label {message.label!r}: no such class. This model knows {', '.join(labels)}.")
    if message.verdict == "agree":
        if decided and message.label not in (None, read.decision):
            raise RequestError(422, f"The image was called {read.decision}; who sees {message.label} disagrees.")
        return read.decision if decided else message.label
    if decided and message.label == read.decision:
        raise RequestError(422, f"The image was called {read.decision}; who sees that agrees.")
    if message.label is None and len(labels) == 2 and read.decision in labels:
        return next(label for label in labels if label != read.decision)
    if message.label is None:
        raise RequestError(422, f"Which class is it? Give label: {', '.join(labels)}.")
    return message.label


def _to_error(name: str, error: str) -> PredictionMessage:
    nothing = dict.fromkeys(
        (
            "id",
            "digest",
            "decision",
            "predicted_label",
            "probability",
            "ood_score",
            "words",
            "width",
            "height",
            "format",
        )
    )
    return PredictionMessage(name=name, probabilities={}, prediction_set=[], error=error, **nothing)


def _to_kept(verdict: Verdict) -> KeptVerdict:
    return KeptVerdict(
        read=verdict.read,
        at=_to_text(verdict.at),
        verdict="agree" if verdict.agrees else "disagree",
        label=verdict.label,
        note=verdict.note,
        reviewer=verdict.reviewer,
    )


def _to_text(moment: datetime.datetime) -> str:
    return f"{moment.isoformat(timespec='milliseconds')}Z"
