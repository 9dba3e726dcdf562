"""Where the evidence lies, as DICOM images: a parametric map in logits (PS3.3 A.75), and a segmentation (A.51)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.dicomnet import codes
from pneumoscope.dicomnet.algorithm import MANUFACTURER, RESEARCH_USE, Algorithm
from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.dicomnet.objects import identify_object, refer_to, start_object
from pneumoscope.dicomnet.sources import Source
from pneumoscope.text import printable_line, to_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from pneumoscope.inference.evidence import Evidence
    from pneumoscope.inference.prediction import Prediction

NOT_SEEN = -9999.0  # logits of a parametric map's pixels that the network did not see: FloatPixelPaddingValue
_LONGEST = 1024  # pixels of a parametric map's longer side
_STEPS = 255  # MaximumFractionalValue
_COLOUR = (87.0, 0.0, 83.0)  # CIELab: yellow, as in the heatmaps
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
_DIRECTIONS = {  # PS3.3 C.7.6.1.1.1
    "L": (1.0, 0.0, 0.0), "R": (-1.0, 0.0, 0.0), "P": (0.0, 1.0, 0.0), "A": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0), "F": (0.0, 0.0, -1.0),
}  # fmt: skip
_STAND_IN = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography Image Storage


def make_map(prediction: Prediction, source: Source, algorithm: Algorithm) -> Dataset | None:
    """Make a parametric map of the evidence in logits; None where there is none, or where it means nothing.

    The mean of the pixels that the network saw, plus the bias, is the logit; both are in the description. A map has
    the image's field of view, and at most 1024 pixels a side. It is for programs, which can enlarge 7 x 7 cells
    themselves; with 3000 pixels a side of 4 bytes each, a map would be larger than the image. Viewers need an overlay
    with as many pixels as the image: `make_segmentation`. Pixels that the network did not see are
    `FloatPixelPaddingValue`.

    The standard requires a frame of reference, but projections have none. So the map has its own: the plane of the
    image, with its spacing, or 1 mm for each pixel of the image if the header has none.

    Args:
        prediction: of the image, with its evidence.
        source: its header.
        algorithm: what predicted it.
    """
    evidence = _find_evidence(prediction)
    if evidence is None:
        return None
    scale = min(1.0, _LONGEST / max(evidence.shape))
    shape = (max(1, round(evidence.shape[0] * scale)), max(1, round(evidence.shape[1] * scale)))
    values = measure_evidence(evidence, shape)
    result = start_object(source, algorithm, "map", _PARAMETRIC_MAP, "OT")
    result.ImageType = ["DERIVED", "PRIMARY", "STATIC", "QUANTITY"]
    result.ContentLabel, result.ContentDescription = "EVIDENCE", _describe_shortly(evidence)
    result.ContentCreatorName, result.ContentQualification = None, "RESEARCH"
    result.DerivationDescription = _describe(evidence, algorithm)
    result.AcquisitionContextSequence = []
    result.PresentationLUTShape = "IDENTITY"
    result.BurnedInAnnotation = result.RecognizableVisualFeatures = "NO"
    result.SamplesPerPixel, result.PhotometricInterpretation = 1, "MONOCHROME2"
    result.BitsAllocated, result.NumberOfFrames = 32, 1
    result.Rows, result.Columns = shape
    result.FloatPixelData = np.nan_to_num(values, nan=NOT_SEEN).astype("<f4").tobytes()
    if np.isnan(values).any():
        result.FloatPixelPaddingValue = result.FloatPixelPaddingRangeLimit = NOT_SEEN
    _add_groups(result, evidence, source, values)
    _complete(result, source, evidence, same_pixels=shape == evidence.shape)
    return result


def make_segmentation(prediction: Prediction, source: Source, algorithm: Algorithm) -> Dataset | None:
    """Make a fractional segmentation of the evidence for the class; None where there is none or it means nothing.

    It has the image's own pixels. 0 is no evidence or evidence against, 255 is `Evidence.limit` logits. The fraction
    is an occupancy, not the probability that the finding is at a place.

    Args:
        prediction: of the image, with its evidence.
        source: its header.
        algorithm: what predicted it.
    """
    from highdicom import AlgorithmIdentificationSequence, seg
    from highdicom.color import CIELabColor
    from pydicom.uid import RLELossless

    evidence = _find_evidence(prediction)
    if evidence is None:
        return None
    label = to_line(f"Evidence for {evidence.label}")[:64]
    made_by = AlgorithmIdentificationSequence(
        name=to_line(algorithm.name)[:64], family=codes.to_concept(codes.ARTIFICIAL_INTELLIGENCE),
        version=algorithm.version[:64], source=MANUFACTURER,
        parameters=dict(each.split("=", 1) for each in algorithm.parameters),
    )  # fmt: skip
    segment = seg.SegmentDescription(
        segment_number=1, segment_label=label, algorithm_type="AUTOMATIC", algorithm_identification=made_by,
        segmented_property_category=codes.to_concept(codes.SPATIAL_CONCEPT),
        segmented_property_type=codes.to_concept(codes.VISUAL_EXPLANATIONS[evidence.method]),
        tracking_uid=derive_uid("evidence", source.key, algorithm.key, evidence.label), tracking_id=label,
        display_color=CIELabColor(*_COLOUR),
    )  # fmt: skip
    segment.SegmentDescription = _describe(evidence, algorithm)
    shares = np.clip(np.nan_to_num(measure_evidence(evidence, evidence.shape)) / evidence.limit, 0, 1)
    result = seg.Segmentation(
        [_stand_in(source, evidence)], shares, segmentation_type="FRACTIONAL",
        segment_descriptions=[segment], fractional_type="OCCUPANCY", max_fractional_value=_STEPS,
        transfer_syntax_uid=RLELossless, omit_empty_frames=False,
        content_label="EVIDENCE", content_description=_describe_shortly(evidence),
        specific_character_set=source.character_set, **identify_object(source, algorithm, "seg"),
    )  # fmt: skip
    _complete(result, source, evidence, same_pixels=True)
    return result


def measure_evidence(evidence: Evidence, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The map at that shape, nan where the network saw nothing, and with the mean of its cells.

    If pixels do not divide cells evenly, their mean differs a little; all pixels are shifted by the difference.
    """
    values = evidence.map(shape)
    seen = ~np.isnan(values)
    if seen.any():
        values += np.float32(evidence.cells.mean(dtype=np.float64) - values[seen].mean(dtype=np.float64))
    return values


def _find_evidence(prediction: Prediction) -> Evidence | None:
    return None if prediction.decision == OUT_OF_DISTRIBUTION else prediction.evidence


def _add_groups(result: Dataset, evidence: Evidence, source: Source, values: NDArray[np.float32]) -> None:
    """Functional groups, dimension and references of a parametric map (PS3.3 A.75.5, C.7.6.17).

    highdicom 0.28 makes none for an image without a frame of reference: its frame has no index in the dimension.
    """
    from highdicom import (
        PixelMeasuresSequence,
        PlaneOrientationSequence,
        PlanePositionSequence,
        VOILUTTransformation,
        pm,
    )
    from pydicom.dataset import Dataset

    shared, frame, content, dimension = Dataset(), Dataset(), Dataset(), Dataset()
    limit = float(np.nanmax(np.abs(values), initial=evidence.limit))
    shared.RealWorldValueMappingSequence = [
        pm.RealWorldValueMapping(
            lut_label="LOGITS", lut_explanation="Evidence in logits", unit=codes.to_concept(codes.NO_UNITS),
            value_range=(-limit, limit), slope=1.0, intercept=0.0,
            quantity_definition=codes.to_concept(codes.VISUAL_EXPLANATIONS[evidence.method]),
        )
    ]  # fmt: skip
    shared.FrameVOILUTSequence = [VOILUTTransformation(0.0, 2 * evidence.limit)]
    identity = Dataset()
    identity.RescaleIntercept, identity.RescaleSlope, identity.RescaleType = "0", "1", "US"
    shared.PixelValueTransformationSequence = [identity]
    kind = Dataset()
    kind.FrameType = list(result.ImageType)
    shared.ParametricMapFrameTypeSequence = [kind]
    spacing = _measure_spacing(source, evidence, values.shape)
    shared.PixelMeasuresSequence = PixelMeasuresSequence(spacing, slice_thickness=None)
    shared.PlaneOrientationSequence = PlaneOrientationSequence("PATIENT", _find_directions(source))
    frame.PlanePositionSequence = PlanePositionSequence("PATIENT", [0.0, 0.0, 0.0])
    result.FrameOfReferenceUID = derive_uid("plane", source.sop_uid)
    result.PositionReferenceIndicator = None
    derivation = Dataset()
    derivation.DerivationCodeSequence = [codes.to_concept(codes.VISUAL_EXPLANATIONS[evidence.method])]
    derivation.SourceImageSequence = [refer_to(source)]
    content.FrameLabel, content.DimensionIndexValues = "EVIDENCE", [1]
    frame.FrameContentSequence, frame.DerivationImageSequence = [content], [derivation]
    dimension.DimensionIndexPointer, dimension.FunctionalGroupPointer = 0x00200032, 0x00209113  # plane position
    result.DimensionIndexSequence = [dimension]
    result.SharedFunctionalGroupsSequence, result.PerFrameFunctionalGroupsSequence = [shared], [frame]
    reference, series = refer_to(source), Dataset()
    result.SourceImageSequence = [reference]
    series.SeriesInstanceUID = source.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = [refer_to(source)]
    del series.ReferencedInstanceSequence[0].PurposeOfReferenceCodeSequence
    result.ReferencedSeriesSequence = [series]


def _measure_spacing(source: Source, evidence: Evidence, shape: tuple[int, ...]) -> list[float]:
    """Millimetres between rows and between columns of a map of that shape; 1 mm a pixel of the image if unknown."""
    spacing = source.header.get("PixelSpacing") or source.header.get("ImagerPixelSpacing")
    if spacing is None or isinstance(spacing, str | float) or len(spacing) != 2 or not min(map(float, spacing)) > 0:
        spacing = (1.0, 1.0)
    return [float(each) * own / new for each, own, new in zip(spacing, evidence.shape, shape, strict=True)]


def _find_directions(source: Source) -> tuple[float, ...]:
    """Directions of rows and columns in the patient: as PatientOrientation says, else as radiographs are shown.

    Radiographs are shown with the patient's left, or back, on the right and the feet below.
    """
    orientation = source.header.get("PatientOrientation")
    if orientation is not None and not isinstance(orientation, str) and len(orientation) == 2:
        row, column = (_DIRECTIONS.get(str(each)[:1]) for each in orientation)
        if row and column and not any(a and b for a, b in zip(row, column, strict=True)):
            return row + column
    lateral = str(source.header.get("ViewPosition", "")).upper() in ("LL", "RL", "LAT", "LATERAL")
    return _DIRECTIONS["P" if lateral else "L"] + _DIRECTIONS["F"]


def _stand_in(source: Source, evidence: Evidence) -> Dataset:
    """The header as highdicom takes it: of a single image without a place in a frame of reference.

    It refuses classes that it does not know or that need such a frame; `_complete` restores the class. If there is a
    spacing but no slice thickness, its own reader refuses what it writes; the image has the spacing.
    """
    header = copy.deepcopy(source.header)
    header.SOPClassUID = _STAND_IN
    header.Rows, header.Columns = evidence.shape
    for keyword in ("FrameOfReferenceUID", "NumberOfFrames", "PixelSpacing"):
        header.pop(keyword, None)
    return header


def _complete(result: Dataset, source: Source, evidence: Evidence, same_pixels: bool) -> None:
    """Add what both kinds need after highdicom: references, a UID that does not change, and lossy compression."""
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    name = UID(source.sop_class_uid).name
    several = int(source.header.get("NumberOfFrames") or 1) > 1 and ("Multi-frame" in name or "Enhanced" in name)
    derived = result.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    derived.SpatialLocationsPreserved = "YES" if same_pixels else "NO"
    if several:
        derived.ReferencedFrameNumber = 1  # the only one that is read
    series = result.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    for item in (derived, series, result.SourceImageSequence[0]):
        item.ReferencedSOPClassUID = source.sop_class_uid
    dimensions = Dataset()
    dimensions.DimensionOrganizationUID = derive_uid("dimensions")
    result.DimensionOrganizationSequence = [dimensions]
    for item in result.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimensions.DimensionOrganizationUID
    result.PatientOrientation = source.header.get("PatientOrientation")
    for keyword in ("BodyPartExamined", "Laterality"):
        if keyword in source.header:
            setattr(result, keyword, source.header[keyword].value)
    if result.Modality == "OT" and not {"BodyPartExamined", "Laterality"} & set(source.header.dir()):
        result.Laterality = None  # of type 2C: an unknown part may be one of a pair
    result.LossyImageCompression = source.header.get("LossyImageCompression") or "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if result.LossyImageCompression == "01" and keyword in source.header:  # once lossy, always lossy (C.7.6.1.1.5)
            setattr(result, keyword, source.header[keyword].value)
    if not evidence.label.isascii():
        result.SpecificCharacterSet = "ISO_IR 192"
    result.ImageComments = RESEARCH_USE


def _describe_shortly(evidence: Evidence) -> str:
    """A label of at most 64 characters, the numbers first."""
    return to_line(f"logit {evidence.logit:+.3f}, bias {evidence.bias:+.3f} for {evidence.label}")[:64]


def _describe(evidence: Evidence, algorithm: Algorithm) -> str:
    method = {"cam": "class activation map", "ig": "integrated gradients"}.get(evidence.method, evidence.method)
    text = (
        f"Evidence for {evidence.label} ({method}) by {algorithm.name}, in logits: positive supports the class, "
        "negative speaks against it. Mean of the map + bias = logit: "
        f"bias {evidence.bias:+.6g}, logit {evidence.logit:+.6g}. "
        f"Strongest evidence {evidence.limit:.6g}. Not an outline of a finding. {RESEARCH_USE}"
    )
    return printable_line(text)[:1024]
