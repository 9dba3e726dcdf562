"""The header of an image as results copy it: only valid values, and everything that must be there."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.errors import DataError
from pneumoscope.images.ages import parse_age
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from pneumoscope.inference.prediction import Prediction

PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "PatientIdentityRemoved", "DeidentificationMethod",
)  # fmt: skip
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "TimezoneOffsetFromUTC",
)  # fmt: skip
_IMAGE = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "InstanceNumber",
    "BodyPartExamined", "ViewPosition", "ImageLaterality", "Laterality", "PatientOrientation", "PixelSpacing",
    "ImagerPixelSpacing", "NumberOfFrames", "Rows", "Columns", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip
EQUIPMENT = (
    "Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip
# of type 2: there must be at least an empty value
_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_EXACT = (*_NEEDED, "PatientID", "IssuerOfPatientID")  # an archive files results by these
_UID = re.compile(r"[\x21-\x5b\x5d-\x7e]{1,64}")
_MULTI_FRAME = tuple(f"1.2.840.10008.5.1.4.1.1.7.{kind}" for kind in range(1, 5))  # secondary captures
_SEXES = ("M", "F", "O")
_LONGEST = 1024  # characters of a value


@dataclass(frozen=True)
class Source:
    """An image that results are about.

    Attributes:
        header: pydicom's Dataset of the attributes that results copy; all text is decoded.
        left_out: keywords whose values are not valid, and which results therefore lack.
        key: of all that results depend on: header and prediction. Other pixels, another patient or another way of
            reading make other results, with other UIDs; other bytes of the same image do not.
    """

    header: Dataset
    left_out: tuple[str, ...] = ()
    key: str = ""

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID, of the results too."""
        return str(self.header.StudyInstanceUID)

    @property
    def sop_uid(self) -> str:
        """SOPInstanceUID."""
        return str(self.header.SOPInstanceUID)

    @property
    def sop_class_uid(self) -> str:
        """SOPClassUID."""
        return str(self.header.SOPClassUID)

    @property
    def frames(self) -> list[int] | None:
        """The frame that was read, if the SOP class has frames (PS3.3 10.3): the first; else None."""
        return [1] if self.sop_class_uid in _MULTI_FRAME else None

    @property
    def character_set(self) -> str | None:
        """UTF-8 where the header has non-ASCII characters, else None: the default of DICOM."""
        return None if all(str(element.value).isascii() for element in self.header) else "ISO_IR 192"


def read_source(content: bytes, name: str, prediction: Prediction | None = None) -> Source:
    """Read the header of a DICOM image that was predicted, and can therefore be read.

    Values that are not valid are left out; ages without a unit are years, as in `images.ages`.

    Args:
        content: of the file; the pixels may be missing.
        name: of the file, for messages.
        prediction: of the image; the key depends on it.

    Raises:
        DataError: it has no study, series or instance, or an identifier that cannot be copied exactly, so that a result
            could end up with another patient.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted: Any = [*PATIENT, *STUDY, *_IMAGE, *EQUIPMENT, "SpecificCharacterSet"]
        try:
            found = dcmread(io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=wanted)
        except Exception as problem:
            raise DataError(f"{name}: its DICOM header cannot be read ({to_line(str(problem))[:200]}).") from None
        header, left_out = Dataset(), list[str]()
        for keyword in (*PATIENT, *STUDY, *_IMAGE, *EQUIPMENT):
            if keyword not in found:
                continue
            value = _read(found, keyword)
            if value is None and keyword in _EXACT:
                raise DataError(
                    f"{name}: its {keyword} is not valid DICOM, so a result could be filed under another patient or "
                    "study. Correct it in the archive."
                )
            if value is None:
                left_out.append(keyword)
            elif value != "":
                setattr(header, keyword, value)
    if missing := [keyword for keyword in _NEEDED if keyword not in header]:
        raise DataError(
            f"{name}: has no {' and no '.join(missing)}, so no result can refer to it. Send the image to the archive "
            "first, and take it from there."
        )
    for keyword in _EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    return Source(header, tuple(left_out), _make_key(header, prediction))


def _make_key(header: Dataset, prediction: Prediction | None) -> str:
    values = [[element.keyword, str(element.value)] for element in header]
    if prediction is None:
        return derive_uid("image", values)
    # Rounded, because another processor gives slightly different numbers for the same image.
    logits = [round(each, 2) + 0.0 for each in prediction.logits]
    return derive_uid("image", values, logits, prediction.decision, prediction.warnings)


def _read(found: Dataset, keyword: str) -> Any:
    """A value that DICOM allows; "" where it is empty, None where it is not valid."""
    from pydicom import config
    from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
    from pydicom.multival import MultiValue
    from pydicom.valuerep import validate_value

    tag = tag_for_keyword(keyword) or 0
    kind = dictionary_VR(tag)
    try:
        value = found[keyword].value
        if value is None or value == "" or len(str(value)) > _LONGEST:
            return "" if not value else None
        values = list(value) if isinstance(value, list | MultiValue) else [value]
        if (count := dictionary_VM(tag)).isdigit() and len(values) < int(count):
            return None
        if keyword in _EXACT and len(values) > 1:
            return None
        values = values[: int(count)] if count.isdigit() else values
        if kind == "US":
            values = [int(each) for each in values]
        elif kind == "IS":
            values = [str(int(each)) for each in values]
        elif kind == "DS":
            values = [f"{float(each):.10g}" for each in values]
        else:
            values = [str(each).strip(" \0") for each in values]
        if keyword == "PatientAge":
            values = [_format_age(values[0])]
        if keyword == "PatientSex" and (values := [values[0].upper()])[0] not in _SEXES:
            return None
        if kind == "UI":  # it is not changed, even if it has leading zeros
            return values[0] if _UID.fullmatch(values[0]) else None
        for each in values:
            validate_value(kind, each, config.RAISE)
    except Exception:  # a damaged value can raise any kind of error
        return None
    return values[0] if len(values) == 1 else values


def _format_age(text: str) -> str:
    """An age as DICOM writes it (PS3.5 6.2, AS).

    Raises:
        ValueError: it is not an age.
    """
    if len(text) == 4 and text[:3].isdigit() and text[3] in "DWMY":
        return text
    years = parse_age(text)
    if years is None:
        raise ValueError(text)
    return f"{int(years):03d}Y" if years >= 2 else f"{int(years * 12):03d}M"
