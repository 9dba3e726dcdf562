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
from pneumoscope.deploy.server.batching import Batcher, Order, Result
from pneumoscope.deploy.server.measures import Measures
from pneumoscope.deploy.server.memory import Memory, Read, Verdict, new_id, now
from pneumoscope.deploy.server.messages import (
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
from pneumoscope.deploy.server.monitoring import summarise
from pneumoscope.deploy.server.problems import RequestError
from pneumoscope.deploy.server.uploads import Desk, Upload
from pneumoscope.deploy.server.wording import explain_decision
from pneumoscope.errors import DataError, ImageError, MissingExtraError, UsageError
from pneumoscope.images.reading import Reading, is_image
from pneumoscope.inference.decisions import FOREIGN, NEITHER, UNCERTAIN
from pneumoscope.inference.explaining import mixes_places
from pneumoscope.inference.overlays import list_colours
from pneumoscope.inference.predictor import load
from pneumoscope.models.bundle import find_bundle
from pneumoscope.models.shipped import DESCRIPTION, find_shipped
from pneumoscope.outputs import write_bytes

if TYPE_CHECKING:
    from pneumoscope.deploy.server.settings import Settings

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
        folder = find_bundle(settings.model or find_shipped())
        self.settings = settings
        self.predictor = load(folder, settings.device)
        self.name = folder.parent.name if folder.name == "bundle" else folder.name
        self.fingerprint = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
        self.memory = Memory(settings.database)
        self.measures = Measures()
        self.desk = Desk(settings.limits)
        self.batcher = Batcher(
            self.predictor, settings.wait, settings.limits.films, self._keep, self.measures.count_batch
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
        """See whether films can be read.

        Raises:
            RequestError: 503, they can't.
            DataError: the database does not answer.
        """
        if not self.batcher.alive:
            raise RequestError(503, "No films are computed any more. Start the service again.")
        await self._remember(self.memory.ping)

    async def _remember(self, job: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._remembering, job, *arguments)

    def _describe(self) -> ModelMessage:
        bundle = self.predictor.bundle
        return ModelMessage(
            name=self.name,
            fingerprint=self.fingerprint,
            labels=list(bundle.labels),
            positive=bundle.positive,
            threshold=None if bundle.positive is None else self.predictor.threshold,
            threshold_rule=bundle.threshold_rule,
            error_rate=self.predictor.error_rate,
            false_alarms=self.predictor.false_alarms,
            backbone=bundle.backbone,
            input_size=bundle.input.size,
            training_films=sum(bundle.data["counts"].get("train", {}).values()),
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
            raise RequestError(422, f"Pictures are drawn of {most} films a request at most. Send fewer at a time.")
        reading = Reading(wanted.invert, wanted.allow_modality)
        orders = [Order(one.content, one.name, reading, heatmap, view) for one in uploads]
        found = await self.batcher.read(orders)
        answers, errors = [], []
        for order, one in zip(orders, found, strict=True):
            if isinstance(one, ImageError | MissingExtraError):
                errors.append(str(one).replace("--allow-modality", "allow_modality=true"))
                answers.append(_to_error(order.name, errors[-1]))
                self.measures.count_film("error")
            elif isinstance(one, BaseException):
                raise one
            else:
                answers.append(self._to_message(one))
                self.measures.count_film(str(one.prediction.decision))
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
            raise RequestError(404, "No film was read under this id here.")
        label = _settle(read, message, self.predictor.bundle.labels)
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
                        if name not in ("at", "call", "label_set", "verdicts")
                    },
                    at=_to_text(read.at),
                    call=None if read.decision == FOREIGN else read.call,
                    label_set=[] if read.decision == FOREIGN else list(read.label_set),
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
            **summarise(reads, verdicts, self.predictor.bundle, self.fingerprint),
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
            digest=prediction.digest,
            name=result.order.name if self.settings.keep_names else "",
            patient=self.memory.name_patient(result.patient or _name_patient(result)),
            model=self.name,
            fingerprint=self.fingerprint,
            decision=str(prediction.decision),
            call=str(prediction.call),
            label_set=prediction.label_set,
            probability=prediction.probability,
            score=prediction.unguarded or 0.0,
            novelty=prediction.novelty,
            invert=result.order.reading.invert,
            any_modality=result.order.reading.any_modality,
            kept="" if self.settings.keep_images is None else prediction.digest + _SUFFIXES[result.format],
        )

    def _to_message(self, result: Result) -> PredictionMessage:
        prediction, evidence = result.prediction, result.evidence
        foreign = prediction.decision == FOREIGN
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
            digest=prediction.digest,
            decision=prediction.decision,
            call=None if foreign else prediction.call,
            probability=prediction.probability,
            probabilities={} if foreign else prediction.probabilities or {},
            label_set=[] if foreign else list(prediction.label_set),
            novelty=prediction.novelty,
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
    decided = read.decision not in (UNCERTAIN, NEITHER, FOREIGN)
    if message.label is not None and message.label not in (*labels, read.decision if decided else None):
        raise RequestError(422, f"label {message.label!r}: no such class. This model knows {', '.join(labels)}.")
    if message.verdict == "agree":
        if decided and message.label not in (None, read.decision):
            raise RequestError(422, f"The film was called {read.decision}; who sees {message.label} disagrees.")
        return read.decision if decided else message.label
    if decided and message.label == read.decision:
        raise RequestError(422, f"The film was called {read.decision}; who sees that agrees.")
    if message.label is None and len(labels) == 2 and read.decision in labels:
        return next(label for label in labels if label != read.decision)
    if message.label is None:
        raise RequestError(422, f"Which class is it? Give label: {', '.join(labels)}.")
    return message.label


def _to_error(name: str, error: str) -> PredictionMessage:
    nothing = dict.fromkeys(
        ("id", "digest", "decision", "call", "probability", "novelty", "words", "width", "height", "format")
    )
    return PredictionMessage(name=name, probabilities={}, label_set=[], error=error, **nothing)


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
