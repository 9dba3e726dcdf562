"""Coded concepts of the results: those of the standard (PS3.16), and ours under a private scheme.

A code is (value, scheme designator, meaning). A value may have 16 characters, a meaning 64.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import CodedConcept

Code: TypeAlias = tuple[str, str, str]

SCHEME = "99PNEUMOSCOPE"
SCHEME_UID = derive_uid("coding scheme")
# Findings and their values
PNEUMONIA = ("233604007", "SCT", "Pneumonia")
PRESENT, ABSENT = ("52101004", "SCT", "Present"), ("272519000", "SCT", "Absent")  # CID 240
UNCERTAIN = ("373068000", "SCT", "Undetermined")  # CID 240, too
OUT_OF_DISTRIBUTION = ("OOD", SCHEME, "Out of distribution")
PROBABILITY = ("122157", "DCM", "Probability")
THRESHOLD = ("122411", "DCM", "Threshold Value")
OOD_SCORE = ("OODSCORE", SCHEME, "Out-of-distribution score")
IN_PREDICTION_SET = ("PREDICTIONSET", SCHEME, "Possible class (prediction set)")
LUNG = ("39607008", "SCT", "Lung")
NO_UNITS, PERCENT = ("1", "UCUM", "no units"), ("%", "UCUM", "Percent")
# What was done, and by what
CHEST_RADIOGRAPH = ("30745-4", "LN", "XR Chest Views")
ARTIFICIAL_INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")  # CID 7162
ACQUISITION_EQUIPMENT = ("109101", "DCM", "Acquisition Equipment")  # CID 7005
PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")  # CID 7005
COMMENT = ("121106", "DCM", "Comment")
SOURCE = ("260753009", "SCT", "Source")
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")  # CID 7202
VISUAL_EXPLANATIONS = {  # CID 217, by method
    "cam": ("130402", "DCM", "Class activation"),
    "ig": ("130404", "DCM", "Saliency"),
}
SPATIAL_CONCEPT = ("309825002", "SCT", "Spatial and Relational Concept")  # CID 7150
MODALITIES = {  # CID 29
    "CR": ("CR", "DCM", "Computed Radiography"),
    "DX": ("DX", "DCM", "Digital Radiography"),
    "DR": ("DX", "DCM", "Digital Radiography"),
    "RG": ("RG", "DCM", "Radiographic imaging"),
}
_FINDINGS = {"pneumonia": PNEUMONIA}


def code_label(label: str) -> Code:
    """The code of a class: of the standard for pneumonia, else a private one made from its name."""
    if known := _FINDINGS.get(label.casefold()):
        return known
    value = label if label.isascii() and len(label) <= 16 else hashlib.sha256(label.encode()).hexdigest()[:16]
    return value, SCHEME, to_line(label)[:64]


def to_concept(code: Code) -> CodedConcept:
    """A code as highdicom takes it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)


def declare_scheme() -> CodingSchemeIdentificationItem:
    """The item that declares our private scheme (PS3.3 C.12.1.1.1)."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        SCHEME, name="pneumoscope", uid=SCHEME_UID, responsible_organization="pneumoscope"
    )
