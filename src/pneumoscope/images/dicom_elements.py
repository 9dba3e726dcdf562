"""Parses the elements of DICOM files: meta information and data set, up to the pixels (PS3.10 7.1, PS3.5 7)."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import MutableSequence
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

from pneumoscope.images import limits
from pneumoscope.images.limits import CostError
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
PIXEL_DATA = (0x7FE00010, 0x7FE00009, 0x7FE00008)  # the last two: double and single floating point
_KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality"),
    *("PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "AcquisitionDate", "ContentDate"),
    "AccessionNumber",
    *("BodyPartExamined", "AnatomicRegionSequence", "PresentationIntentType"),
    *("SeriesDescription", "ProtocolName"),
    *("ViewPosition", "ViewCodeSequence", "Laterality", "ImageLaterality", "NumberOfFrames", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "ModalityLUTSequence"),
    *("WindowCenterWidthExplanation", "KVP", "PatientOrientation"),
    *("PixelSpacing", "ImagerPixelSpacing", "PixelSpacingCalibrationType", "PixelAspectRatio"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
)
NEEDS_EXTRA = "needs an extra: pip install 'pneumoscope[dicom]'"
MAX_READS = 300_000  # a few per element: pydicom takes far more memory for an empty item than the file does
_MAX_VALUE = 2**16  # bytes of a value: pydicom converts all of it, however many numbers or names it holds
_MAX_TABLE = 2**18  # of the data of a look-up table: 65,536 entries of 16 bits, and as much again
_CHARACTER_SET = (b"\x08\0\x05\0", b"\0\x08\0\x05")  # converted as it is read, so it is recognised before
_LONG_HEADER = (b"OB", b"OW", b"OF", b"OD", b"UN")  # types of pixel data with headers of 12 bytes


class Parsed(NamedTuple):
    """A data set up to its pixels."""

    elements: Dataset  # the wanted ones, none longer than the file
    media: str  # MediaStorageSOPClassUID
    syntax: str  # TransferSyntaxUID; empty where the file has no meta information
    little: bool  # byte order
    stream: BinaryIO  # positioned at the value of the pixel data
    head: bytes  # the header of the pixel data; empty where there is none
    length: int | None  # of the value of the pixel data as stated; None where it is encapsulated


def parse(stream: BinaryIO) -> Parsed:
    """Read the elements that `images.dicom` needs and skip the others; raises whatever pydicom raises."""
    from pydicom.filereader import read_dataset

    stream = cast(BinaryIO, _LimitedStream(stream))
    stream.seek(132 if stream.read(132)[128:] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=_past_meta)
    _bound(meta)
    syntax = read_text(meta, "TransferSyntaxUID")
    if syntax == DEFLATED:
        stream = cast(BinaryIO, _LimitedStream(_inflate(stream)))
    start = stream.read(2)
    stream.seek(-len(start), io.SEEK_CUR)
    little = syntax != BIG_ENDIAN and (syntax, start) != ("", b"\0\x08")
    order: Literal["little", "big"] = "little" if little else "big"
    implicit = syntax in ("", IMPLICIT)  # pydicom corrects this from the first element
    elements = read_dataset(stream, implicit, little, stop_when=_at_pixels, specific_tags=_wanted())
    _bound(elements)
    head = stream.read(8)
    if int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order) not in PIXEL_DATA:
        head = b""
    elif not elements.original_encoding[0]:
        head += stream.read(4) if head[4:6] in _LONG_HEADER else b""
    stated = head[6:] if len(head) == 8 and not elements.original_encoding[0] else head[-4:]
    length = None if stated == b"\xff\xff\xff\xff" else int.from_bytes(stated, order)
    return Parsed(elements, read_text(meta, "MediaStorageSOPClassUID"), syntax, little, stream, head, length)


def read_first(elements: Dataset, keyword: str) -> Any:
    """An element's first value; None if it is absent, empty or invalid."""
    try:
        value = elements.get(keyword)
        value = value[0] if isinstance(value, MutableSequence) else value
    except Exception:  # one unreadable element must not spoil the others
        return None
    return None if value == "" or isinstance(value, bytes) else value


def is_stated(elements: Dataset, keyword: str) -> bool:
    """Whether an element is there and not empty, even if its value is invalid."""
    value: Any = elements.get_item(keyword).value if keyword in elements else None
    text = value.decode("latin-1") if isinstance(value, bytes) else str("" if value is None else value)
    return bool(text.strip(" \0"))


def read_text(elements: Dataset, keyword: str) -> str:
    """An element's first value as one line of text; empty if there is none."""
    value = read_first(elements, keyword)
    return "" if value is None else to_line(str(value))


def read_number(elements: Dataset, keyword: str) -> float | None:
    """An element's first value as a number; None if it is not finite."""
    try:
        value = float(read_first(elements, keyword))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def read_texts(elements: Dataset, keyword: str, most: int = 16) -> list[str]:
    """All values of an element as lines of text, up to so many; those that are invalid are empty."""
    try:
        values = elements.get(keyword)
    except Exception:  # one unreadable element must not spoil the others
        return []
    several = list(values)[:most] if isinstance(values, MutableSequence) else [values]
    return [] if several == [None] else [to_line(str("" if value is None else value)) for value in several]


def read_numbers(elements: Dataset, keyword: str, most: int = 16) -> list[float]:
    """All values of an element as numbers, up to so many; nan for those that are not finite numbers."""
    found = []
    for text in read_texts(elements, keyword, most):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        found.append(value if math.isfinite(value) else math.nan)
    return found


def read_integer(elements: Dataset, keyword: str, default: int | None = None) -> int:
    """An element's first value as an integer.

    Raises:
        ValueError: it has none, and there is no default.
    """
    value = read_number(elements, keyword)
    if value is None and default is None:
        raise ValueError(f"no {keyword}")
    return int(default or 0) if value is None else int(value)


class _LimitedStream:
    """A stream that can be read `MAX_READS` times."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read
        self._left = MAX_READS
        self._character_set = False  # whether its value is next

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise CostError("too many elements or items")
        if self._character_set and size > _MAX_VALUE:
            raise CostError(f"a character set of {size:,} bytes")
        content = self._read(size)
        if size == 8:  # the head of an element
            self._character_set = content[:4] in _CHARACTER_SET
        return content


def _past_meta(tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG001 - pydicom's signature
    return tag >> 16 != 2


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG001
    return tag in PIXEL_DATA


@cache
def _wanted() -> list[BaseTag | int]:
    from pydicom.datadict import tag_for_keyword

    return [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]


@cache
def _largest() -> dict[int, int]:
    """The most bytes of each value that is used."""
    from pydicom.datadict import tag_for_keyword

    tables = ("LUTData", *(keyword for keyword in _KEYWORDS if keyword.endswith("TableData")))
    inner = ("LUTDescriptor", "LUTExplanation", "CodeMeaning")
    others = (*_KEYWORDS, *inner, "TransferSyntaxUID", "MediaStorageSOPClassUID")
    most = dict.fromkeys(others, _MAX_VALUE) | dict.fromkeys(tables, _MAX_TABLE)
    return {int(tag_for_keyword(keyword) or 0): size for keyword, size in most.items()}


def _bound(elements: Dataset, inside: bool = False) -> None:
    """Cut sequences down to their first item, and refuse long values: pydicom converts them whole, when first used.

    Args:
        elements: what was read.
        inside: whether they are an item of a sequence, of which no inner sequence is used.

    Raises:
        CostError: a value is long, or an item has very many elements.
    """
    from pydicom.datadict import dictionary_VR, keyword_for_tag
    from pydicom.dataelem import DataElement, RawDataElement

    for tag in [tag for tag in elements.keys() if tag in _largest()]:  # noqa: SIM118 - values() would convert
        found: Any = elements.get_item(tag)
        if dictionary_VR(tag) == "SQ" and inside:
            del elements[tag]
        elif not isinstance(found, RawDataElement):  # a sequence without a stated length is read already
            for item in elements[tag].value[:1] if elements[tag].VR == "SQ" else []:
                _bound(item, inside=True)
        elif dictionary_VR(tag) == "SQ" and found.VR in (None, "SQ", "UN") and found.value:
            first = _read_first_item(found, elements)
            elements[tag] = DataElement(tag, "SQ", [] if first is None else [first])
        elif found.value and len(found.value) > _largest()[tag]:
            raise CostError(f"{keyword_for_tag(tag)} has {len(found.value):,} bytes")


def _read_first_item(sequence: RawDataElement, elements: Dataset) -> Dataset | None:
    from pydicom.filereader import read_sequence_item

    stream = _LimitedStream(io.BytesIO(cast(bytes, sequence.value)))
    implicit, little = sequence.is_implicit_VR, sequence.is_little_endian
    try:
        item = read_sequence_item(cast(BinaryIO, stream), implicit, little, elements.original_character_set)
    except CostError:
        raise
    except Exception:  # one unreadable element must not spoil the others
        return None
    if item is not None:
        _bound(item, inside=True)
    return item


def _inflate(stream: BinaryIO) -> BinaryIO:
    """PS3.5 A.5; at most `MAX_BYTES`."""
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), limits.MAX_BYTES + 1)
    if len(inflated) > limits.MAX_BYTES:
        raise ValueError(f"inflates to more than {limits.MAX_BYTES:,} bytes")
    return io.BytesIO(inflated)
