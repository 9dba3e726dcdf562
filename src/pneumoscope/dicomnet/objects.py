"""What all results have in common: whom they are about, what made them, and how they become files."""

from __future__ import annotations

import datetime
import io
import re
from typing import TYPE_CHECKING, Any

from pneumoscope.dicomnet import codes
from pneumoscope.dicomnet.algorithm import MANUFACTURER, RESEARCH_USE, Algorithm
from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.dicomnet.sources import EQUIPMENT, PATIENT, STUDY, Source

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES = {"sr": 9001, "sc": 9002, "map": 9003, "seg": 9004}  # numbers of series, by kind


def identify_object(source: Source, algorithm: Algorithm, kind: str, *options: object) -> dict[str, Any]:
    """The identity of a result, as highdicom's classes take it: in the study of its image, in a series of its own."""
    return {
        "series_instance_uid": derive_uid(
            "series", source.study_uid, str(source.header.PatientID), kind, options, algorithm.key
        ),
        "series_number": SERIES[kind],
        "sop_instance_uid": derive_uid("instance", source.key, kind, options, algorithm.key),
        "instance_number": max(1, int(source.header.get("InstanceNumber") or 1)),
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name[:64],
        "software_versions": algorithm.version,
        "device_serial_number": algorithm.fingerprint[:16],
        "series_description": f"{algorithm.name[:40]}: research use",
    }


def tell_time(source: Source) -> datetime.datetime:
    """Now, in the time zone that the header states for its times (PS3.3 C.12.1.1.8), else in that of this machine."""
    now = datetime.datetime.now(datetime.UTC)
    offset = str(source.header.get("TimezoneOffsetFromUTC") or "")
    if not re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", offset):
        return now.astimezone()
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return now.astimezone(datetime.timezone(datetime.timedelta(minutes=minutes if offset[0] == "+" else -minutes)))


def describe_equipment(algorithm: Algorithm) -> Dataset:
    """The item of ContributingEquipmentSequence (PS3.3 C.12.1.1.5) that names the model and its device UID."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.to_concept(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = algorithm.name[:64]
    item.DeviceSerialNumber = algorithm.fingerprint[:16]
    item.SoftwareVersions = algorithm.version
    item.DeviceUID = algorithm.device_uid
    item.ContributionDateTime = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d%H%M%S+0000")
    item.ContributionDescription = RESEARCH_USE
    return item


def finish(result: Dataset, algorithm: Algorithm) -> bytes:
    """Name what made a result, and encode it as a file (PS3.10)."""
    result.ContributingEquipmentSequence = [
        *result.get("ContributingEquipmentSequence", []), describe_equipment(algorithm),
    ]  # fmt: skip
    stream = io.BytesIO()
    result.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def start_object(
    source: Source,
    algorithm: Algorithm,
    kind: str,
    sop_class: str,
    modality: str,
    *options: object,
    ascii_only: bool = True,
) -> Dataset:
    """Begin a result: patient, study, series, equipment and identity.

    Args:
        source: the header of the image.
        algorithm: what made the result.
        kind: of the result, a key of `SERIES`.
        sop_class: of the result.
        modality: of the result.
        options: settings that make another result, so that it has other UIDs.
        ascii_only: whether all text that will be added is ASCII.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    identity = identify_object(source, algorithm, kind, *options)
    result, now = Dataset(), tell_time(source)
    if source.character_set or not (ascii_only and algorithm.name.isascii()):
        result.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*PATIENT, *STUDY):
        if keyword in source.header:
            setattr(result, keyword, source.header[keyword].value)
    result.SOPClassUID, result.SOPInstanceUID = sop_class, identity["sop_instance_uid"]
    result.SeriesInstanceUID, result.SeriesNumber = identity["series_instance_uid"], identity["series_number"]
    result.InstanceNumber, result.Modality = identity["instance_number"], modality
    result.Manufacturer, result.ManufacturerModelName = MANUFACTURER, identity["manufacturer_model_name"]
    result.SoftwareVersions, result.DeviceSerialNumber = algorithm.version, identity["device_serial_number"]
    result.SeriesDescription = identity["series_description"]
    result.InstanceCreationDate = result.ContentDate = now.strftime("%Y%m%d")
    result.InstanceCreationTime = result.ContentTime = now.strftime("%H%M%S")
    if source.header.get("Manufacturer"):
        result.ContributingEquipmentSequence = [_describe_acquisition(source)]
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return result


def _describe_acquisition(source: Source) -> Dataset:
    """The item of ContributingEquipmentSequence that names what took the image."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.to_concept(codes.ACQUISITION_EQUIPMENT)]
    for keyword in EQUIPMENT:
        if keyword in source.header:
            setattr(item, keyword, source.header[keyword].value)
    return item


def refer_to(source: Source) -> Dataset:
    """An item that refers to the image which a result was made from (PS3.3 10.3, 10.17)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class_uid, source.sop_uid
    if source.frames:
        item.ReferencedFrameNumber = source.frames
    item.PurposeOfReferenceCodeSequence = [codes.to_concept(codes.SOURCE_IMAGE)]
    return item
