"""DICOM images for tests, written by pydicom, compressed by imagecodecs and pydicom."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import UID, ComputedRadiographyImageStorage

Levels = NDArray[Any]
JPEG = "1.2.840.10008.1.2.4."
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG, DEFLATED, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
LOSSLESS = {
    IMPLICIT: "uncompressed",
    EXPLICIT: "uncompressed",
    BIG: "uncompressed",
    DEFLATED: "deflated",
    RLE: "RLE",
    JPEG + "57": "JPEG lossless",
    JPEG + "70": "JPEG lossless",
    JPEG + "80": "JPEG-LS",
    JPEG + "90": "JPEG 2000",
    JPEG + "201": "HTJ2K",
}
LOSSY = {JPEG + "50": "JPEG", JPEG + "51": "JPEG", JPEG + "81": "JPEG-LS", JPEG + "91": "JPEG 2000"}


def image(rows: int = 24, columns: int = 32, bits: int = 12) -> Levels:
    """Smooth levels over the whole range, with a little noise."""
    y, x = np.mgrid[:rows, :columns]
    shape = 0.5 + 0.5 * np.sin(x / columns * 5) * np.cos(y / rows * 4)
    noise = np.random.default_rng(0).normal(0, 0.01, shape.shape)
    return np.asarray(np.rint(np.clip(shape + noise, 0, 1) * (2**bits - 1)), np.uint8 if bits <= 8 else np.uint16)


def dicom(
    levels: Levels,
    bits: int = 12,
    syntax: str = EXPLICIT,
    *,
    frames: int = 1,
    meta: bool = True,
    allocated: int | None = None,
    **elements: Any,
) -> bytes:
    """A file of levels (H, W) or (H, W, 3), as unsigned integers; signed ones in two's complement.

    Args:
        levels: what each pixel cell holds.
        bits: BitsStored.
        syntax: TransferSyntaxUID.
        frames: how often the image is there; from the second time on it's black.
        meta: whether there is a preamble and file meta information.
        allocated: BitsAllocated.
        elements: further elements by keyword; one that is None is left out.
    """
    allocated = allocated or (8 if bits <= 8 else 16)
    levels = levels.astype(f"u{allocated // 8}")
    data = Dataset()
    data.SOPClassUID = ComputedRadiographyImageStorage
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2", "1.2.1"
    data.Modality, data.PatientID = "CR", "p1"
    data.Rows, data.Columns = levels.shape[:2]
    data.SamplesPerPixel = 1 if levels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if levels.ndim == 2 else "RGB"
    if levels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = allocated, bits, bits - 1, 0
    if frames > 1:
        data.NumberOfFrames = frames
    stack = [levels, *[np.zeros_like(levels)] * (frames - 1)]
    if UID(syntax).is_encapsulated:
        data.PixelData = encapsulate([compressed(frame, bits, syntax) for frame in stack])
    else:
        data.PixelData = np.stack(stack).astype(f"{'>' if syntax == BIG else '<'}u{allocated // 8}").tobytes()
        data.PixelData += b"\0" * (len(data.PixelData) % 2)
    data["PixelData"].VR = "OB" if UID(syntax).is_encapsulated or allocated == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return written(data, syntax, meta)


def written(data: Dataset, syntax: str = EXPLICIT, meta: bool = True) -> bytes:
    """The bytes of a data set as a file."""
    content = io.BytesIO()
    if meta:
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = UID(syntax)
        data.file_meta.MediaStorageSOPClassUID = UID(data.get("SOPClassUID") or ComputedRadiographyImageStorage)
        data.file_meta.MediaStorageSOPInstanceUID = UID(data.get("SOPInstanceUID") or "1.2.3")
        dcmwrite(content, data, enforce_file_format=True)
    else:
        dcmwrite(content, data, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG)
    return content.getvalue()


def compressed(levels: Levels, bits: int, syntax: str) -> bytes:
    """One frame in a transfer syntax."""
    deep = None if bits <= 8 else bits
    kind = syntax.removeprefix(JPEG)
    if syntax == RLE:
        properties = {
            "rows": levels.shape[0],
            "columns": levels.shape[1],
            "samples_per_pixel": 1 if levels.ndim == 2 else 3,
            "number_of_frames": 1,
            "bits_allocated": levels.itemsize * 8,
            "bits_stored": bits,
            "pixel_representation": 0,
            "photometric_interpretation": "MONOCHROME2" if levels.ndim == 2 else "RGB",
            "planar_configuration": 0,
        }
        return bytes(RLELosslessEncoder.encode(levels.tobytes(), encoding_plugin="pydicom", **properties))
    if kind in ("57", "70"):
        predictor = 1 if kind == "70" else 4
        return bytes(imagecodecs.jpeg8_encode(levels, lossless=True, predictor=predictor, bitspersample=deep))
    if kind in ("80", "81"):
        return bytes(imagecodecs.jpegls_encode(levels, level=None if kind == "80" else 3))
    if kind in ("90", "91"):
        exact = kind == "90"
        stream = imagecodecs.jpeg2k_encode(
            levels, level=0 if exact else 60, reversible=exact, codecformat="j2k", bitspersample=deep
        )
        return bytes(stream)
    if kind == "201":
        return bytes(imagecodecs.htj2k_encode(levels))
    return bytes(imagecodecs.jpeg8_encode(levels, level=95, bitspersample=deep))


def look_up(entries: Any, first: int, bits: int, *, words: bool = True, order: str = "<") -> Dataset:
    """An item of a Modality or VOI LUT sequence; `words`: 16 bits for each entry, else 8."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, f"{order}u2" if words else "u1").tobytes())
    return item
