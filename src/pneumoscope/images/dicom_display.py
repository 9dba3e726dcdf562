"""What a viewer needs to show a DICOM image at any window, in its true proportions, with lengths in millimetres.

Sections are of the DICOM standard, PS3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pneumoscope.images.dicom_elements import Parsed, read_first, read_number, read_numbers, read_text, read_texts
from pneumoscope.images.dicom_pixels import Stored
from pneumoscope.images.greyscale import Levels, Transformations

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DIRECTIONS = "APRLHF"  # of PatientOrientation (C.7.6.1.1.1)


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a file (C.11.2.1.2), in the units that the modality LUT gives."""

    centre: float
    width: float
    name: str = ""  # WindowCenterWidthExplanation


@dataclass(frozen=True, slots=True)
class Spacing:
    """How far pixels are apart, in mm."""

    rows: float  # from a row to the next
    columns: float
    # where it holds (10.7.1.3): at the detector, the image is larger than the patient by an unknown factor
    plane: Literal["patient", "detector", "unknown"]


@dataclass(frozen=True, slots=True, eq=False)
class Grey:
    """Stored levels, and how the file says to display them."""

    stored: Stored
    transformations: Transformations
    usable: bool  # whether the VOI shows the image; else it is displayed in its full range

    @property
    def levels(self) -> Levels:
        """Unsigned (H, W)."""
        return self.stored.levels


@dataclass(frozen=True, slots=True, eq=False)
class Display:
    """How to show an image; None, or empty, where the file says nothing."""

    grey: Grey | None = None  # None for an image in colour, which has no window
    windows: tuple[Window, ...] = ()  # all of the file
    voi_name: str = ""  # LUTExplanation of the VOI LUT
    spacing: Spacing | None = None
    aspect: float = 1.0  # height of a pixel divided by its width
    kvp: float | None = None  # peak voltage of the tube, in kV
    orientation: tuple[str, str] | None = None  # where rows and columns point to, such as L and F


def read_display(
    parsed: Parsed, stored: Stored | None = None, transformations: Transformations | None = None, usable: bool = True
) -> Display:
    """Read how to show an image; one in colour has neither levels nor transformations."""
    elements = parsed.elements
    grey = None
    if stored is not None and transformations is not None and not transformations.palette:
        grey = Grey(stored, transformations, usable)
    voi = read_first(elements, "VOILUTSequence")
    kvp = read_number(elements, "KVP")
    spacing = _read_spacing(elements)
    return Display(
        grey=grey,
        windows=tuple(_read_windows(elements)) if grey else (),
        voi_name=read_text(voi, "LUTExplanation")[:64] if voi is not None else "",
        spacing=spacing,
        aspect=spacing.rows / spacing.columns if spacing else _read_aspect(elements),
        kvp=kvp if kvp is not None and 0 < kvp < 1000 else None,
        orientation=_read_orientation(elements),
    )


def _read_windows(elements: Dataset) -> list[Window]:
    centres, widths = read_numbers(elements, "WindowCenter"), read_numbers(elements, "WindowWidth")
    names = read_texts(elements, "WindowCenterWidthExplanation")
    names += [""] * (len(centres) - len(names))
    pairs = zip(centres, widths, names, strict=False)  # a centre without a width is no window
    return [Window(centre, width, name[:64]) for centre, width, name in pairs if not math.isnan(centre) and width > 0]


def _read_spacing(elements: Dataset) -> Spacing | None:
    """PixelSpacing, calibrated if it differs from that at the detector or says how; else that at the detector."""
    own, imager = (_read_pair(elements, name) for name in ("PixelSpacing", "ImagerPixelSpacing"))
    if own and (read_text(elements, "PixelSpacingCalibrationType") or (imager and own != imager)):
        return Spacing(*own, plane="patient")
    if imager:
        return Spacing(*imager, plane="detector")
    return Spacing(*own, plane="unknown") if own else None


def _read_pair(elements: Dataset, keyword: str) -> tuple[float, float] | None:
    found = read_numbers(elements, keyword, 2)
    if len(found) != 2 or not all(1e-4 < each < 100 for each in found) or not _is_plausible(found[0] / found[1]):
        return None
    return found[0], found[1]


def _read_aspect(elements: Dataset) -> float:
    found = read_numbers(elements, "PixelAspectRatio", 2)  # vertical and horizontal size (C.7.6.3.1.7)
    if len(found) != 2 or not all(each > 0 for each in found):
        return 1.0
    return found[0] / found[1] if _is_plausible(found[0] / found[1]) else 1.0


def _is_plausible(ratio: float) -> bool:
    return 0.1 <= ratio <= 10


def _read_orientation(elements: Dataset) -> tuple[str, str] | None:
    found = [text.upper() for text in read_texts(elements, "PatientOrientation", 2)]
    if len(found) != 2 or not all(text and len(text) <= 3 and set(text) <= set(_DIRECTIONS) for text in found):
        return None
    return found[0], found[1]
