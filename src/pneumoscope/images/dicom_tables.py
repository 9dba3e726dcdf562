"""Reads how to display the levels of a DICOM image: rescaling, window, look-up tables and padding.

Sections are of the DICOM standard, PS3.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.images.dicom_elements import Parsed, is_stated, read_first, read_number, read_text
from pneumoscope.images.dicom_pixels import Layout, Stored
from pneumoscope.images.greyscale import LookUp, Transformations

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_transformations(parsed: Parsed, layout: Layout, stored: Stored) -> Transformations:
    """Read how to display the levels (C.11.1, C.11.2, C.7.5.1.1.2); of several windows or LUTs the first.

    What contradicts the levels is corrected, and added to the warnings of `stored`.
    """
    elements, little, warnings = parsed.elements, parsed.little, stored.warnings
    slope = _read_rescaling(elements, "RescaleSlope", warnings) or 1.0
    intercept = _read_rescaling(elements, "RescaleIntercept", warnings) or 0.0
    modality, voi = (read_first(elements, f"{kind}LUTSequence") for kind in ("Modality", "VOI"))
    hues = ("Red", "Green", "Blue") if layout.mode == "PALETTE COLOR" else ()
    ends = (float(stored.lowest), float(stored.lowest + 2**stored.bits - 1))
    modality_table = voi_table = None
    if modality is not None:
        modality_table = _place(_read_table(modality, "LUT", little), ends, "modality LUT", warnings)
        ends = (modality_table.entries.min(), modality_table.entries.max())
    else:
        ends = (ends[0] * slope + intercept, ends[1] * slope + intercept)
    if voi is not None:
        voi_table = _place(_read_table(voi, "LUT", little), (min(ends), max(ends)), "VOI LUT", warnings)
        voi_table = _find_depth([voi_table], "VOI LUT", warnings)[0]
    palette = [_read_table(elements, f"{hue}PaletteColorLookupTable", little) for hue in hues]
    return Transformations(
        modality=modality_table,
        slope=slope,
        intercept=intercept,
        voi=voi_table,
        window=None if voi is not None else _read_window(elements, warnings),
        function=read_text(elements, "VOILUTFunction").upper(),
        inverted=layout.mode == "MONOCHROME1",
        padding=_read_padding(elements, stored.lowest),
        palette=tuple(_find_depth(palette, "palette", warnings)),
    )


def _read_rescaling(elements: Dataset, keyword: str, warnings: list[str]) -> float | None:
    value = read_number(elements, keyword)
    erases = keyword == "RescaleSlope" and value == 0
    if erases or (value is None and is_stated(elements, keyword)):
        warnings.append(f"{keyword} is {'0' if erases else 'not a number'}; it was ignored")
    return value


def _read_window(elements: Dataset, warnings: list[str]) -> tuple[float, float] | None:
    centre, width = read_number(elements, "WindowCenter"), read_number(elements, "WindowWidth")
    if centre is None or width is None or width <= 0:
        if is_stated(elements, "WindowCenter") or is_stated(elements, "WindowWidth"):
            warnings.append("the window of the file has no centre or no positive width; it was ignored")
        return None
    function = read_text(elements, "VOILUTFunction").upper()
    if function not in ("", "LINEAR", "LINEAR_EXACT", "SIGMOID"):
        warnings.append(f"VOILUTFunction {function[:16]} is unknown; the window was read as LINEAR")
    return centre, width


def _read_padding(elements: Dataset, lowest: int) -> tuple[int, int] | None:
    ends = [read_number(elements, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    levels = [int(ends[0] if end is None else end) for end in ends]
    for index, level in enumerate(levels):  # exporters confuse signed and unsigned
        if lowest < 0 and level >= 2**15:
            levels[index] -= 2**16
        elif lowest == 0 and level < 0:
            levels[index] += 2**16
    return min(levels), max(levels)


def _read_table(elements: Dataset, name: str, little: bool) -> LookUp:
    """Read a look-up table (C.11.1.1, C.11.2.1.1, C.7.6.3.1.5); exporters do not always write it as specified."""
    order = "<" if little else ">"
    described, data = (elements.get(f"{name}{part}") for part in ("Descriptor", "Data"))
    if described is None or data is None:
        raise ValueError(f"no {name}Descriptor or no {name}Data")
    if isinstance(described, bytes):
        described = struct.unpack(f"{order}3H", described)
    count, start, bits = (int(value) for value in described)
    count = (count & 0xFFFF) or 65536
    if isinstance(data, bytes):  # one entry in a word, or two of 8 bits
        data = np.frombuffer(data, np.uint8 if count <= len(data) < min(count + 2, 2 * count) else f"{order}u2")
    held = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    entries = held[:count]
    if entries.size < count or held[count:].any():  # which are missing, or too many, is unknown; zeros may be padding
        raise ValueError(f"a look-up table of {held.size:,} entries; its descriptor says {count:,}")
    if not 1 <= bits <= 16:
        raise ValueError(f"a look-up table of {entries.size} entries with {bits} bits")
    return LookUp(start, entries.astype(np.float64), bits)


def _place(table: LookUp, ends: tuple[float, float], name: str, warnings: list[str]) -> LookUp:
    """Correct a first value that was written without its sign, or with one: it then lies beyond all values."""

    def reaches(first: int) -> bool:
        return first <= ends[1] and first + len(table.entries) > ends[0]

    first = table.first - 2**16 if table.first >= 2**15 else table.first + 2**16 if table.first < 0 else table.first
    if reaches(table.first) or not reaches(first):
        return table
    warnings.append(f"the first value of the {name} was read as {first}, not {table.first}")
    return replace(table, first=first)


def _find_depth(tables: Sequence[LookUp], name: str, warnings: list[str]) -> list[LookUp]:
    """Correct the depth of tables that belong together: deeper than stated, or of 8 or more bits and less deep."""
    if not tables:
        return []
    stated = max(table.bits for table in tables)
    used = max(int(table.entries.max()).bit_length() for table in tables)
    bits = used if used > stated else min(stated, max(8, used))
    if bits != stated:
        warnings.append(f"the {name} says {stated} bits, but its entries have {bits}")
    return [replace(table, bits=bits) for table in tables]
