"""Predictions of DICOM images as DICOM objects, for the archive that the images came from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pneumoscope.config import Progress, checked, quote
from pneumoscope.datasets.reading import find_images
from pneumoscope.datasets.samples import Sample
from pneumoscope.dicomnet.algorithm import Algorithm, identify
from pneumoscope.dicomnet.evidence_maps import make_map, make_segmentation
from pneumoscope.dicomnet.fhir import Release, encode_transaction, identify_report, make_transaction
from pneumoscope.dicomnet.objects import finish
from pneumoscope.dicomnet.secondary_capture import make_capture
from pneumoscope.dicomnet.sources import Source, read_source
from pneumoscope.dicomnet.structured_report import ReportClass, Unit, make_report
from pneumoscope.errors import DataError, MissingExtraError, UsageError
from pneumoscope.files import claim_folder, lock_folder, path_in_file, write_bytes, write_rows
from pneumoscope.images.dicom import is_dicom
from pneumoscope.images.read import Reading
from pneumoscope.inference.evidence import mixes_places
from pneumoscope.inference.prediction import Prediction, log_warnings
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.notebook import notebook_progress
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Kind: TypeAlias = Literal["sr", "sc", "map", "seg", "fhir-r4", "fhir-r5"]
_WARNINGS = ("ignore", None, UserWarning, re.compile(r"highdicom\."), 0)
_NEEDS_MAPS: frozenset[str] = frozenset({"sc", "map", "seg"})
_RELEASES: dict[str, Release] = {"fhir-r4": "r4", "fhir-r5": "r5"}


@dataclass(frozen=True)
class ResultSettings:
    """Which results are made.

    Attributes:
        kinds: `sr`, a structured report; `sc`, a secondary capture; `map`, a parametric map of the evidence in logits;
            `seg`, a segmentation of the evidence for the class; `fhir-r4` and `fhir-r5`, FHIR resources in JSON. An
            image out of distribution has no `map` and no `seg`, as its evidence means nothing.
        report_class: of structured reports; see `make_report`.
        unit: of probabilities in reports: `1`, or `%`.
    """

    kinds: tuple[Kind, ...] = ("sr", "sc")
    report_class: ReportClass = "comprehensive-3d"
    unit: Unit = "1"


@dataclass(frozen=True)
class Result:
    """One DICOM object, or one transaction of FHIR resources, to be sent.

    Attributes:
        kind: what it is; see `ResultSettings`.
        sop_class_uid: its SOP class; empty for FHIR.
        sop_uid: its SOPInstanceUID, the same for the same image, model and settings; for FHIR, the report's UID.
        content: the file (PS3.10), or JSON.
        series_uid: its SeriesInstanceUID; empty for FHIR.
    """

    kind: str
    sop_class_uid: str
    sop_uid: str
    content: bytes
    series_uid: str = ""

    @property
    def suffix(self) -> str:
        """Of its file."""
        return ".json" if self.kind.startswith("fhir") else ".dcm"


@dataclass(frozen=True)
class Answer:
    """The answer to one file.

    Attributes:
        path: the file.
        prediction: its prediction, which has an error where there are no results.
        results: in the order of `ResultSettings.kinds`.
        left_out: keywords of its header whose values are not valid, and which the results therefore lack.
    """

    path: Path
    prediction: Prediction
    results: tuple[Result, ...] = ()
    left_out: tuple[str, ...] = ()


class Answerer:
    """Turns DICOM files into results; made from a predictor and what identifies it.

    Args:
        predictor: what predicts.
        algorithm: what identifies it; see `identify`.
        settings: which results are made.

    Raises:
        UsageError: no kind of result, or one that does not exist.
    """

    def __init__(self, predictor: Predictor, algorithm: Algorithm, settings: ResultSettings = ResultSettings()) -> None:
        if wrong := [kind for kind in settings.kinds if kind not in get_args(Kind)] or not settings.kinds:
            raise UsageError(f"found {quote(wrong)}. Choose from {', '.join(get_args(Kind))}.", "kinds")
        self.predictor = predictor
        self.algorithm = algorithm
        self.settings = settings
        drawn = bool(_NEEDS_MAPS & set(settings.kinds))
        asked = bool({"map", "seg"} & set(settings.kinds))  # then worth the integral that networks with attention need
        self._maps = asked or (drawn and not mixes_places(predictor.model, predictor.engine))
        self._pixels = "sc" in settings.kinds

    def answer(self, images: Iterable[Path | Sample]) -> Iterator[Answer]:
        """Answer DICOM files in input order; a bad file gets an answer with its error, and never stops the others."""
        _silence()
        for prediction in self.predictor.run(images, maps=self._maps, pixels=self._pixels):
            yield self._answer(prediction)

    def _answer(self, prediction: Prediction) -> Answer:
        path = prediction.path or Path("image")
        if prediction.error is not None:
            return Answer(path, prediction)
        try:
            content = path.read_bytes()
            if not is_dicom(content[:132]):
                raise DataError(f"{path}: not a DICOM file, so no result can refer to it. Use `pneumoscope predict`.")
            source = read_source(content, str(path), prediction)
            made = (self._make(kind, prediction, source) for kind in self.settings.kinds)
            results = tuple(each for each in made if each is not None)
        except (DataError, OSError) as problem:
            return Answer(path, replace(prediction, error=str(problem), pixels=None, evidence=None))
        except Exception as problem:  # an unexpected header must not stop the other images
            reason = to_line(f"{type(problem).__name__}: {problem}")[:200]
            error = f"{path}: its results cannot be made ({reason}). Please report it."
            return Answer(path, replace(prediction, error=error, pixels=None, evidence=None))
        return Answer(path, replace(prediction, pixels=None, evidence=None), results, source.left_out)

    def _make(self, kind: Kind, prediction: Prediction, source: Source) -> Result | None:
        if release := _RELEASES.get(kind):
            content = encode_transaction(make_transaction(prediction, source, self.algorithm, release))
            return Result(kind, "", identify_report(source, self.algorithm, release), content)
        made = _MAKERS[kind](prediction, source, self.algorithm, self.settings)
        if made is None:
            return None
        return Result(
            kind,
            str(made.SOPClassUID),
            str(made.SOPInstanceUID),
            finish(made, self.algorithm),
            str(made.SeriesInstanceUID),
        )


def _silence() -> None:
    """Hide highdicom's warnings about names of patients; filters are not set twice."""
    if _WARNINGS not in warnings.filters[:2]:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"highdicom\.")


def _make_report(prediction: Prediction, source: Source, algorithm: Algorithm, settings: ResultSettings) -> Dataset:
    return make_report(prediction, source, algorithm, settings.report_class, settings.unit)


def _make_capture(
    prediction: Prediction,
    source: Source,
    algorithm: Algorithm,
    settings: ResultSettings,  # noqa: ARG001
) -> Dataset:
    return make_capture(prediction, source, algorithm)


_MAKERS: dict[Kind, Callable[[Prediction, Source, Algorithm, ResultSettings], Dataset | None]] = {
    "sr": _make_report,
    "sc": _make_capture,
    "map": lambda prediction, source, algorithm, _: make_map(prediction, source, algorithm),
    "seg": lambda prediction, source, algorithm, _: make_segmentation(prediction, source, algorithm),
}


_TABLE, _OBJECTS = "results.csv", "objects"


@checked
def write_dicom_results(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    model: str | Path | None = None,
    *,
    kinds: tuple[Kind, ...] = ("sr", "sc"),
    report_class: ReportClass = "comprehensive-3d",
    unit: Unit = "1",
    options: Mapping[str, Any] | None = None,
    invert: bool = False,
    any_modality: bool = False,
    excel: bool = False,
    overwrite: bool = False,
    progress: Progress | None = notebook_progress,
) -> list[Answer]:
    """Predict DICOM images, and write the results as DICOM objects for the archive.

    Args:
        paths: DICOM files, or folders or tables of them.
        out: folder for `results.csv`, with a row for each object or error, and `objects/` with the files.
        model: as for `load`.
        kinds: see `ResultSettings`.
        report_class: see `make_report`.
        unit: see `make_report`.
        options: other arguments of `load`, such as `{"threshold": 0.3}`.
        invert: whether air is bright in the files.
        any_modality: also read DICOM files that are not radiographs.
        excel: begin `results.csv` with a byte order mark.
        overwrite: replace an earlier output.
        progress: called with the number of files done.

    Returns:
        One answer per image, without the content of its objects.

    Raises:
        DataError: there are no images.
        MissingExtraError: a package is not installed.
        UsageError: an option is not valid, or the folder holds something already.
    """
    _require_packages()
    given = [paths] if isinstance(paths, str | Path) else paths
    samples = find_images([Path(each) for each in given], Reading(invert, any_modality))
    predictor = load(model, **(options or {}))
    answerer = Answerer(predictor, identify(predictor, model), ResultSettings(kinds, report_class, unit))
    folder, answers, rows = Path(out), list[Answer](), list[dict[str, Any]]()
    with lock_folder(folder):
        claim_folder(folder, (_TABLE, _OBJECTS), overwrite)
        write_rows(folder / _TABLE, [], columns=_COLUMNS)  # marks the folder as ours if we are interrupted
        (folder / _OBJECTS).mkdir()
        try:
            for number, answer in enumerate(answerer.answer(samples), start=1):
                rows += _write_answer(answer, folder, f"{number:0{len(str(len(samples)))}}")
                answers.append(replace(answer, results=tuple(replace(each, content=b"") for each in answer.results)))
                if progress is not None:
                    progress("Answering", number, len(samples))
        finally:
            write_rows(folder / _TABLE, rows, excel, _COLUMNS)
    log_warnings(answer.prediction.warnings for answer in answers)
    return answers


_COLUMNS = (
    "path",
    "decision",
    "probability",
    "kind",
    "sop_class_uid",
    "sop_uid",
    "file",
    "left_out",
    "warnings",
    "error",
)


def _write_answer(answer: Answer, folder: Path, number: str) -> list[dict[str, Any]]:
    """Write the objects of one image; return the rows of the table."""
    prediction = answer.prediction
    row = dict.fromkeys(_COLUMNS) | {
        "path": path_in_file(answer.path, folder),
        "decision": None if prediction.error else prediction.decision,
        "probability": None if prediction.error else prediction.probability,
        "left_out": " ".join(answer.left_out),
        "warnings": "; ".join(prediction.warnings),
        "error": prediction.error,
    }
    rows = []
    for result in answer.results:
        stem = re.sub(r"[^\w.-]+", "_", answer.path.stem)[:60]
        name = f"{_OBJECTS}/{number}-{stem}-{result.kind}{result.suffix}"
        write_bytes(folder / name, result.content)
        own = {"kind": result.kind, "sop_class_uid": result.sop_class_uid, "sop_uid": result.sop_uid, "file": name}
        rows.append(row | own)
    return rows or [row]


def _require_packages() -> None:
    try:
        import highdicom  # noqa: F401 - used by the modules that make the objects
    except ImportError:
        raise MissingExtraError('Results in DICOM need an extra: pip install "pneumoscope[dicom]".') from None
