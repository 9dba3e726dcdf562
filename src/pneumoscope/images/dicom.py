"""Reads pixels and tags of DICOM files. No file is trusted: sizes are bounded, and every failure is an ImageError."""

from __future__ import annotations

import datetime
import io
import logging
import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.errors import ImageError, MissingExtraError, PneumoscopeError
from pneumoscope.images import limits
from pneumoscope.images.ages import DAYS, OLDEST, parse_age
from pneumoscope.images.dicom_display import Display, read_display
from pneumoscope.images.dicom_elements import NEEDS_EXTRA, Parsed, parse, read_first, read_integer, read_text
from pneumoscope.images.dicom_pixels import read_layout, read_levels
from pneumoscope.images.dicom_tables import read_transformations
from pneumoscope.images.greyscale import compute_luminance, render_and_judge
from pneumoscope.images.limits import CostError
from pneumoscope.images.prepare import Pixels
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RADIOGRAPHY = ("CR", "DX", "DR", "RG")  # DR is older than DX; RG is a digitised radiograph
_SOP = "1.2.840.10008.5.1.4.1.1."
_RADIOGRAPHS = (_SOP + "1", _SOP + "1.1", _SOP + "1.1.1")
_FOR_PROCESSING = _RADIOGRAPHS[-1]
_CAPTURES = tuple(_SOP + kind for kind in ("7", "7.1", "7.2", "7.3", "7.4"))  # of any modality
_DIRECTORY = "1.2.840.10008.1.3.10"
_MODALITY_NAMES = {
    "CT": "a CT slice",
    "DOC": "an encapsulated document",
    "IO": "an intra-oral dental image",
    "KO": "a key object selection",
    "MG": "a mammogram",
    "MR": "an MR slice",
    "NM": "a nuclear medicine image",
    "PR": "a presentation state",
    "PT": "a PET slice",
    "PX": "a panoramic dental image",
    "RF": "a fluoroscopy image",
    "RTDOSE": "a radiotherapy dose",
    "RTPLAN": "a radiotherapy plan",
    "RTSTRUCT": "a radiotherapy structure set",
    "SC": "a secondary capture",
    "SEG": "a segmentation",
    "SR": "a structured report",
    "US": "an ultrasound image",
    "XA": "an angiogram",
}
LATERAL_VIEWS = ("LL", "RL", "LATERAL", "LAT", "LLD", "RLD", "LLO", "RLO")
OBLIQUE_VIEWS = ("OBLIQUE", "LAO", "RAO", "LPO", "RPO")
_SPELLED_LATERAL = ("LATERAL", "LAT", "SEITLICH", "PERFIL", "PROFIL")
_LATERAL_WORDS = (*LATERAL_VIEWS, *_SPELLED_LATERAL, "PROFILE")
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName")  # where no tag has it
_NOT_LATERAL = re.compile(r"\bBI[- ]?LATERAL\b|\bLAT(ERAL)?[ _-]*MARKER\b")  # both sides; a mark on the image
_FRONTAL_WORDS = (
    {"PA": "PA", "POSTEROANTERIOR": "PA", "POSTERIORANTERIOR": "PA"}
    | {"AP": "AP", "ANTEROPOSTERIOR": "AP", "ANTERIORPOSTERIOR": "AP"}
)  # fmt: skip
_DATES = ("StudyDate", "AcquisitionDate", "ContentDate")  # the first valid one counts
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)|(\d{4})\.(\d\d)\.(\d\d)", re.ASCII)  # stops: ACR-NEMA
_HARMLESS_WORDS = re.compile(
    r"\b(CHEST|THORAX|ERECT|UPRIGHT|STANDING|SITTING|SUPINE|PORTABLE|MOBILE|PROJECTION|VIEW)\b"
)
CHEST = "CHEST"
_OF_THE_CHEST = (
    "CHEST",
    "THORAX",
    "TORAX",
    "LUNG",
    "TORACE",
    "POUMON",
    "PULMON",
    "BRUSTKORB",
    "胸",
)  # exporters' words
_VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
_PYDICOM_WARNINGS = ("ignore", None, UserWarning, re.compile(r"pydicom\."), 0)
_reading: ContextVar[bool] = ContextVar("reading", default=False)


@dataclass(frozen=True, slots=True)
class Tags:
    """What a DICOM file says about its image; None where it says nothing."""

    patient: str | None = None  # PatientID
    study: str | None = None  # StudyInstanceUID
    instance: str | None = None  # SOPInstanceUID
    modality: str | None = None  # Modality, such as CR or DX
    view: str | None = None  # ViewPosition, else ViewCodeSequence: PA, AP, LL, LATERAL and so on
    laterality: str | None = None  # ImageLaterality, else Laterality
    age: float | None = None  # PatientAge, else from PatientBirthDate and the date of the study, in years
    sex: str | None = None  # PatientSex: M, F or O
    frames: int = 1  # NumberOfFrames
    series: str | None = None  # SeriesInstanceUID
    body_part: str | None = None  # BodyPartExamined, else AnatomicRegionSequence: CHEST, or as the file says
    for_processing: bool = False  # PresentationIntentType or SOP class: raw data of a detector, not meant to be seen
    accession: str | None = None  # AccessionNumber, by which the hospital knows the request for the study
    date: str | None = None  # StudyDate, else AcquisitionDate, else ContentDate: YYYY-MM-DD


@dataclass(frozen=True, slots=True)
class DicomImage:
    """A DICOM image, rendered for display."""

    pixels: Pixels  # float32 (H, W) in [0, 1], air dark, bone bright
    tags: Tags  # patient, study and view
    mode: str  # PhotometricInterpretation
    bits: int  # depth of its levels: BitsStored, unless the stream contradicts it
    compression: str  # `uncompressed`, `deflated`, `RLE`, `JPEG`, `JPEG lossless`, `JPEG-LS`, `JPEG 2000` or `HTJ2K`
    display: Display  # how to show it at any window
    warnings: tuple[str, ...] = ()  # where header and pixels disagree, and what was made of it


def is_dicom(head: bytes) -> bool:
    """Recognise DICOM by a file's first 132 bytes: its preamble (PS3.10 7.1), or else its first element."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 12 or head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    order = ">" if head[0] == 0 else "<"
    element, length = struct.unpack(order + "2xHI", head[:8])
    if element > 0x20:  # all files begin with a group length, version, character set, image type or SOP class
        return False
    return head[4:6] in _VRS or (order == "<" and length <= 256 and length % 2 == 0)


def can_read_dicom() -> bool:
    """Whether the package that reads DICOM is installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return False
    return True


def read_tags(source: Path | bytes, name: str | None = None) -> Tags:
    """Read the tags of a DICOM file, without its pixels.

    Raises:
        ImageError: not a DICOM file, or damaged.
        MissingExtraError: pydicom is not installed.
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    with _translated_errors(name):
        if isinstance(source, bytes):
            _require_dicom(source[:132], name)
            return _tags(parse(io.BytesIO(source)).elements)
        if not source.is_file() or source.stat().st_size > limits.MAX_BYTES:
            raise ImageError(f"{name}: not a file, or larger than {limits.MAX_BYTES:,} bytes.")
        with source.open("rb") as file:
            _require_dicom(file.read(132), name)
            file.seek(0)
            return _tags(parse(file).elements)


def read_dicom(content: bytes, name: str, any_modality: bool = False) -> DicomImage:
    """Read a projection radiograph, rendered for display; see `images.greyscale.render`.

    PhotometricInterpretation alone decides what is white: PresentationLUTShape repeats it (PS3.3 C.8.11.3.1.2) or is
    wrong. Of several frames only the first is read; `Tags.frames` is their number.

    Args:
        content: the content of the file.
        name: of the file, for error messages.
        any_modality: also read images that are not radiographs, such as a CT slice.

    Raises:
        ImageError: not a projection radiograph, damaged, or larger than `MAX_PIXELS`.
        MissingExtraError: pydicom, or imagecodecs for compressed pixels, is not installed.
    """
    with _translated_errors(name):
        _require_dicom(content[:132], name)
        parsed = parse(io.BytesIO(content))
        tags = _tags(parsed.elements)
        if not parsed.head:
            raise ImageError(f"{name}: {_describe_kind(parsed, tags)} without pixels.")
        if not (any_modality or _is_radiograph(parsed, tags)):
            raise ImageError(
                f"{name}: {_describe_kind(parsed, tags)}, not a projection radiograph. "
                "Pass `any_modality=True` to read it anyway."
            )
        layout = read_layout(parsed, name)
        stored = read_levels(parsed, layout, name)
        if stored.levels.ndim == 3:
            pixels = compute_luminance(stored.levels, stored.bits)
            display = read_display(parsed)
        else:
            image = read_transformations(parsed, layout, stored)
            pixels, usable = render_and_judge(stored.levels, stored.lowest, stored.bits, image, stored.warnings)
            display = read_display(parsed, stored, image, usable)
    found = tuple(stored.warnings)
    return DicomImage(pixels, tags, layout.mode, stored.bits, layout.compression, display, found)


class _LogFilter(logging.Filter):
    """Drops what pydicom logs while it reads for this module; serious problems become an ImageError."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _reading.get()


_LOG_FILTER = _LogFilter()


@contextmanager
def _translated_errors(name: str) -> Iterator[None]:
    """Turn every exception of reading into an ImageError that names the file, and silence pydicom."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise MissingExtraError(f"{name}: reading DICOM {NEEDS_EXTRA}.") from None
    logging.getLogger("pydicom").addFilter(_LOG_FILTER)  # adding it again has no effect
    if _PYDICOM_WARNINGS not in warnings.filters[:2]:  # never removed, as in `images.read`
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
    token = _reading.set(True)
    try:
        yield
    except PneumoscopeError:
        raise
    except CostError as problem:
        raise ImageError(
            f"{name}: {problem}. Reading it could take too much time or memory. Export it again."
        ) from None
    except MemoryError:
        raise ImageError(f"{name}: does not fit in memory. Export it at a smaller size.") from None
    except Exception as problem:  # a damaged file makes pydicom and the decoders raise nearly anything
        reason = to_line(str(problem).strip().partition("\n")[0])[:200] or type(problem).__name__
        raise ImageError(f"{name}: damaged or truncated DICOM ({reason}). Copy it again from its source.") from None
    finally:
        _reading.reset(token)


def _require_dicom(head: bytes, name: str) -> None:
    if not is_dicom(head):
        raise ImageError(f"{name}: not a DICOM file.")


def _tags(elements: Dataset) -> Tags:
    view = read_text(elements, "ViewPosition").upper()
    if not view and (code := read_first(elements, "ViewCodeSequence")) is not None:
        view = read_text(code, "CodeMeaning").upper()
    view = _name_view(view) or _find_described_view(elements)
    sex = read_text(elements, "PatientSex").upper()
    return Tags(
        patient=read_text(elements, "PatientID") or None,
        study=read_text(elements, "StudyInstanceUID") or None,
        series=read_text(elements, "SeriesInstanceUID") or None,
        instance=read_text(elements, "SOPInstanceUID") or None,
        modality=read_text(elements, "Modality").upper() or None,
        view=view or None,
        laterality=read_text(elements, "ImageLaterality") or read_text(elements, "Laterality") or None,
        age=_read_age(elements),
        sex=sex if sex in ("M", "F", "O") else None,
        frames=max(1, read_integer(elements, "NumberOfFrames", 1)),
        body_part=_read_body_part(elements),
        for_processing=read_text(elements, "PresentationIntentType").upper() == "FOR PROCESSING"
        or read_text(elements, "SOPClassUID") == _FOR_PROCESSING,
        accession=read_text(elements, "AccessionNumber") or None,
        date=next((day.isoformat() for each in _DATES if (day := _read_date(elements, each)) is not None), None),
    )


def _name_view(text: str) -> str:
    """A view as a code where its words leave no doubt: `PA CHEST` is PA, and `CHEST LAT` is LATERAL."""
    if text in LATERAL_VIEWS:
        return text
    words = re.findall(r"[A-Z]+", text.replace(".", ""))
    if any(word in _LATERAL_WORDS for word in words):
        return "LL" if "LEFT" in words else "RL" if "RIGHT" in words else "LATERAL"
    if oblique := [view for view in OBLIQUE_VIEWS if view in words]:
        return oblique[0]
    plain = "".join(re.findall(r"[A-Z]+", _HARMLESS_WORDS.sub("", text.replace(".", ""))))
    return _FRONTAL_WORDS.get(plain, text)


def _find_described_view(elements: Dataset) -> str:
    """The view that a description spells out, if it names one alone: `PA and lateral` describes two images."""
    for keyword in _DESCRIPTIONS:
        text = _NOT_LATERAL.sub(" ", read_text(elements, keyword).upper().replace(".", ""))
        words = re.findall(r"[A-Z]+", text)
        frontal = {_FRONTAL_WORDS[word] for word in words if word in _FRONTAL_WORDS}
        lateral = {"LATERAL" for word in words if word in _SPELLED_LATERAL}
        if len(found := [*frontal, *lateral]) == 1:
            return found[0]
    return ""


def _read_age(elements: Dataset) -> float | None:
    age = parse_age(read_text(elements, "PatientAge"))
    if age:
        return age
    birth = _read_date(elements, "PatientBirthDate")
    taken = _read_date(elements, "StudyDate") or _read_date(elements, "AcquisitionDate")
    if birth is None or taken is None or taken < birth:
        return age  # 000Y: less than a year, and the dates do not say how much less
    years = taken.year - birth.year - ((taken.month, taken.day) < (birth.month, birth.day))
    if years > OLDEST:  # 1900 stands for an unknown year in files without names
        return age
    return float(years) if years else (taken - birth).days / DAYS


def _read_date(elements: Dataset, keyword: str) -> datetime.date | None:
    match = _DATE.fullmatch(read_text(elements, keyword))
    if match is None:
        return None
    try:
        return datetime.date(*map(int, filter(None, match.groups())))
    except ValueError:  # such as 20240230 or 00000000
        return None


def _read_body_part(elements: Dataset) -> str | None:
    part = read_text(elements, "BodyPartExamined").upper()
    if not part and (code := read_first(elements, "AnatomicRegionSequence")) is not None:
        part = read_text(code, "CodeMeaning").upper()
    plain = "".join(each for each in unicodedata.normalize("NFKD", part) if not unicodedata.combining(each))
    return CHEST if any(word in plain for word in _OF_THE_CHEST) else part or None


def _sop_class(parsed: Parsed) -> str:
    return read_text(parsed.elements, "SOPClassUID") or parsed.media


def _is_radiograph(parsed: Parsed, tags: Tags) -> bool:
    """Decide by SOP class and Modality. BodyPartExamined is wrong too often to be used."""
    sop = _sop_class(parsed)
    if tags.modality is None:
        return sop in _RADIOGRAPHS
    return tags.modality in RADIOGRAPHY and (not sop or sop in _RADIOGRAPHS + _CAPTURES)


def _describe_kind(parsed: Parsed, tags: Tags) -> str:
    """Say what a file is, for messages."""
    from pydicom.uid import UID

    sop = _sop_class(parsed)
    if sop == _DIRECTORY:
        return "a DICOMDIR, the index of a medium"
    if tags.modality and tags.modality not in RADIOGRAPHY:
        return _MODALITY_NAMES.get(tags.modality, f"an image of modality {tags.modality[:16]}")
    if sop and sop not in _RADIOGRAPHS + _CAPTURES:
        return f"an object of class {UID(sop).name[:64].removesuffix(' Storage')}"
    return "a radiograph" if tags.modality or sop in _RADIOGRAPHS else "an image of unknown modality"
