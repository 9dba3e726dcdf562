"""Simulated radiographs as DICOM files, as a CR system would write them."""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.errors import MissingExtraError

if TYPE_CHECKING:
    from pneumoscope.images.prepare import Pixels

_COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
_BITS = 12
_MILLIMETRES = 350.0  # of an image's height


def to_dicom(pixels: Pixels, patient: str, number: int, seed: int) -> bytes:
    """Write a simulated radiograph as a CR image of 12 bits; the same arguments give the same bytes.

    All images of a patient belong to one study. Age and sex follow from the patient's seed.

    Args:
        pixels: float32 (H, W) in [0, 1].
        patient: PatientID.
        number: of the image within its study, from 1.
        seed: of the patient.

    Raises:
        MissingExtraError: pydicom is not installed.
    """
    try:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian
    except ImportError:
        raise MissingExtraError('Writing DICOM needs an extra: pip install "pneumoscope[dicom]".') from None
    data, study = Dataset(), f"{patient} {seed}"
    data.SOPClassUID, data.SOPInstanceUID = _COMPUTED_RADIOGRAPHY, _derive_uid(study, "image", number)
    data.StudyInstanceUID, data.SeriesInstanceUID = _derive_uid(study), _derive_uid(study, "series")
    data.PatientID, data.PatientName, data.PatientBirthDate = patient, f"Phantom^{patient}", ""
    data.PatientSex, data.PatientAge = "MF"[seed % 2], f"{20 + seed // 2 % 70:03}Y"
    data.StudyDate, data.StudyTime, data.StudyID = "20260101", "120000", patient[-16:]
    data.AccessionNumber, data.ReferringPhysicianName = _hash(study)[:8].upper(), ""
    data.Modality, data.BodyPartExamined, data.ViewPosition = "CR", "CHEST", "PA"
    data.Manufacturer, data.SeriesNumber, data.InstanceNumber = "pneumoscope phantoms", 1, number
    data.SeriesDescription, data.PatientOrientation = "Simulated chest radiograph", ["L", "F"]
    data.Rows, data.Columns = pixels.shape
    data.ImagerPixelSpacing = [f"{_MILLIMETRES / pixels.shape[0]:.6g}"] * 2
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, _BITS, _BITS - 1, 0
    data.WindowCenter, data.WindowWidth = 2 ** (_BITS - 1), 2**_BITS
    data.PixelData = np.rint(pixels * (2**_BITS - 1)).astype("<u2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _derive_uid(*parts: object) -> str:
    """A UID that follows from what it names (PS3.5 B.2)."""
    return f"2.25.{uuid.UUID(_hash(' '.join(map(str, parts)))[:32], version=5).int}"
