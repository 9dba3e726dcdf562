"""Images, predictions and what made them, for the tests of evidence maps and FHIR."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
from dicom_files import dicom

from pneumoscope.dicomnet.algorithm import Algorithm
from pneumoscope.dicomnet.evidence_maps import make_map, make_segmentation
from pneumoscope.dicomnet.objects import finish
from pneumoscope.dicomnet.sources import Source, read_source
from pneumoscope.inference.evidence import Evidence
from pneumoscope.inference.prediction import Prediction

HEADER: dict[str, Any] = {
    "PatientName": "Doe^Jane", "IssuerOfPatientID": "Hospital", "PatientBirthDate": "19700203", "PatientSex": "F",
    "PatientAge": "055Y", "AccessionNumber": "A17", "StudyID": "S1", "StudyDate": "20260102", "StudyTime": "101112.5",
    "TimezoneOffsetFromUTC": "+0100", "InstanceNumber": "3", "ReferringPhysicianName": "Who^Doctor",
    "PatientOrientation": ["L", "F"], "PixelSpacing": ["0.2", "0.1"], "ImagerPixelSpacing": ["0.2", "0.1"],
    "ViewPosition": "PA", "BodyPartExamined": "CHEST", "Manufacturer": "Maker", "FrameOfReferenceUID": "1.2.9",
    "SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1",
}  # fmt: skip
NEEDED = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
OPTIONAL = [*sorted(set(HEADER) - set(NEEDED)), "PatientID"]
BREAKABLE = [name for name in OPTIONAL if name not in ("PatientID", "IssuerOfPatientID")]  # those two are refused
ALGORITHM = Algorithm("model", "a" * 64, ("NORMAL", "PNEUMONIA"), "PNEUMONIA", ("threshold=0.5", "alpha=0.05"), 0.5)


def make_evidence(
    shape: tuple[int, int] = (64, 80), box: tuple[float, float, float, float] | None = None, side: int = 7
) -> Evidence:
    """A map of random cells; without a box, the network saw the whole image."""
    cells = np.random.default_rng(1).normal(1, 4, (side, side)).astype(np.float32)
    bias = 0.25
    return Evidence(
        label="PNEUMONIA", method="cam", logit=float(cells.mean(dtype=np.float64)) + bias, bias=bias, cells=cells,
        box=box or (0.0, 0.0, float(shape[1]), float(shape[0])), shape=shape,
    )  # fmt: skip


DECIDED = Prediction(
    predicted_label="PNEUMONIA", probability=0.8, probabilities={"NORMAL": 0.2, "PNEUMONIA": 0.8},
    prediction_set=("PNEUMONIA",), ood_score=0.4, decision="PNEUMONIA", evidence=make_evidence(),
)  # fmt: skip
UNCERTAIN = replace(DECIDED, decision="uncertain", prediction_set=("NORMAL", "PNEUMONIA"))
UNLIKE = replace(DECIDED, decision="out_of_distribution", probability=None, ood_score=1.7)


def make_image(shape: tuple[int, int] = (64, 80), frames: int = 1, **header: Any) -> bytes:
    """A CR image; a header of None leaves an attribute out."""
    known = {name: value for name, value in (HEADER | header).items() if value is not None}
    without: dict[str, Any] = {"PatientID": None} if header.get("PatientID", "") is None else {}
    content: bytes = dicom(np.zeros(shape, np.uint16), frames=frames, **(known | without))
    return content


def make_source(shape: tuple[int, int] = (64, 80), frames: int = 1, **header: Any) -> Source:
    return read_source(make_image(shape, frames, **header), "image")


def write_evidence() -> dict[str, bytes]:
    """A parametric map, and a segmentation, which is compressed with RLE."""
    written = {}
    for kind, make in (("map", make_map), ("seg", make_segmentation)):
        made = make(DECIDED, make_source(), ALGORITHM)
        assert made is not None
        written[kind] = finish(made, ALGORITHM)
    return written


def damage(content: bytes, missing: set[str], broken: dict[str, str]) -> bytes:
    """A file without some attributes, and with texts in others that DICOM may not allow."""
    data = pydicom.dcmread(io.BytesIO(content))
    with pydicom.config.disable_value_validation():
        for name in missing:
            data.pop(pydicom.tag.Tag(name), None)
        for name, text in broken.items():
            tag, kind = pydicom.tag.Tag(name), pydicom.datadict.dictionary_VR(name)
            raw = pydicom.dataelem.RawDataElement(tag, kind, len(text), text.encode("latin-1"), 0, False, True)
            data._dict[tag] = raw
        stream = io.BytesIO()
        data.save_as(stream)
    return stream.getvalue()
