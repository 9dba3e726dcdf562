"""Predictions of DICOM images as DICOM objects, for the archive that the images came from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from pneumoscope.config import Progress, checked, quote, silent
from pneumoscope.datasets.samples import Sample
from pneumoscope.dicomnet.algorithm import Algorithm, identify
from pneumoscope.dicomnet.objects import finish
from pneumoscope.dicomnet.secondary_capture import make_capture
from pneumoscope.dicomnet.sources import Source, read_source
from pneumoscope.dicomnet.structured_report import ReportClass, Unit, make_report
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.files import claim_folder, lock_folder, write_bytes
from pneumoscope.images.dicom import is_dicom
from pneumoscope.images.read import Reading
from pneumoscope.inference.evidence import mixes_places
from pneumoscope.inference.predictor import Predictor, load

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from pneumoscope.inference.prediction import Prediction

Kind: TypeAlias = Literal["sr", "sc"]
_NEEDS_MAPS: frozenset[str] = frozenset({"sc"})


@dataclass(frozen=True)
class ResultSettings:
    """Which results are made.

    Attributes:
        kinds: `sr`, a structured report; `sc`, a secondary capture.
        report_class: of structured reports; see `make_report`.
        unit: of probabilities in reports: `1`, or `%`.
    """

    kinds: tuple[Kind, ...] = ("sr", "sc")
    report_class: ReportClass = "comprehensive-3d"
    unit: Unit = "1"


@dataclass(frozen=True)
class Result:
    """One DICOM object to be sent.

    Attributes:
        kind: what it is; see `ResultSettings`.
        sop_class_uid: its SOP class.
        sop_uid: its SOPInstanceUID, the same for the same image, model and settings.
        content: the file (PS3.10).
    """

    kind: str
    sop_class_uid: str
    sop_uid: str
    content: bytes


@dataclass(frozen=True)
class Answer:
    """What is said of one file: a prediction, and its results; an error, and none."""

    path: Path
    prediction: Prediction
    results: tuple[Result, ...] = ()


class Answerer:
    """Turns DICOM files into results; made from a predictor and what identifies it.

    Args:
        predictor: what predicts.
        algorithm: what identifies it; see `identify`.
        settings: which results are made.

    Raises:
        UsageError: no kind of result, or one that does not exist.
    """

    def __init__(
        self, predictor: Predictor, algorithm: Algorithm, settings: ResultSettings = ResultSettings()
    ) -> None:
        if wrong := [kind for kind in settings.kinds if kind not in get_args(Kind)] or not settings.kinds:
            raise UsageError(f"found {quote(wrong)}. Choose from {', '.join(get_args(Kind))}.", "kinds")
        self.predictor = predictor
        self.algorithm = algorithm
        self.settings = settings
        drawn = bool(_NEEDS_MAPS & set(settings.kinds))
        self._maps = drawn and not mixes_places(predictor.model, predictor.engine)
        self._pixels = drawn

    def answer(self, paths: Iterable[Path], reading: Reading = Reading()) -> Iterator[Answer]:
        """Answer files in input order; one at fault gives an answer with its error and never stops the others.

        Args:
            paths: of DICOM files.
            reading: how to read them.
        """
        samples = (Sample(path, reading=reading) for path in paths)
        for prediction in self.predictor.run(samples, maps=self._maps, pixels=self._pixels):
            yield self._answer(prediction)

    def _answer(self, prediction: Prediction) -> Answer:
        path = prediction.path or Path("image")
        if prediction.error is not None:
            return Answer(path, prediction)
        try:
            content = path.read_bytes()
            if not is_dicom(content[:132]):
                raise DataError(f"{path}: not a DICOM file, so no result can refer to it. Use `pneumoscope predict`.")
            source = read_source(content, str(path))
            results = tuple(self._make(kind, prediction, source) for kind in self.settings.kinds)
        except (DataError, OSError) as problem:
            return Answer(path, replace(prediction, error=str(problem), pixels=None, evidence=None))
        if source.left_out:
            logging.getLogger("pneumoscope").info(
                "%s: not taken over, as the values are not valid: %s.", path, ", ".join(source.left_out)
            )
        return Answer(path, replace(prediction, pixels=None, evidence=None), results)

    def _make(self, kind: Kind, prediction: Prediction, source: Source) -> Result:
        made = _MAKERS[kind](prediction, source, self.algorithm, self.settings)
        return Result(kind, str(made.SOPClassUID), str(made.SOPInstanceUID), finish(made, self.algorithm))


def _make_report(
    prediction: Prediction, source: Source, algorithm: Algorithm, settings: ResultSettings
) -> Dataset:
    return make_report(prediction, source, algorithm, settings.report_class, settings.unit)


def _make_capture(
    prediction: Prediction, source: Source, algorithm: Algorithm, settings: ResultSettings  # noqa: ARG001
) -> Dataset:
    return make_capture(prediction, source, algorithm)


_MAKERS: dict[Kind, Callable[[Prediction, Source, Algorithm, ResultSettings], Dataset]] = {
    "sr": _make_report,
    "sc": _make_capture,
}
