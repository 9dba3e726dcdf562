"""A prediction as a structured report: TID 1500 with a measurement group, TID 1501 (PS3.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.dicomnet import codes
from pneumoscope.dicomnet.algorithm import MANUFACTURER, RESEARCH_USE, Algorithm
from pneumoscope.dicomnet.codes import Code, code_label, to_concept
from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.dicomnet.objects import start_object
from pneumoscope.dicomnet.sources import Source
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from highdicom.sr import ContentSequence, Measurement, MeasurementsAndQualitativeEvaluations, QualitativeEvaluation
    from pydicom.dataset import Dataset

    from pneumoscope.inference.prediction import Prediction

ReportClass: TypeAlias = Literal["comprehensive-3d", "comprehensive"]
Unit: TypeAlias = Literal["1", "%"]
_CLASSES: dict[ReportClass, str] = {
    "comprehensive-3d": "1.2.840.10008.5.1.4.1.1.88.34",
    "comprehensive": "1.2.840.10008.5.1.4.1.1.88.33",
}


def make_report(
    prediction: Prediction,
    source: Source,
    algorithm: Algorithm,
    report_class: ReportClass = "comprehensive-3d",
    unit: Unit = "1",
) -> Dataset:
    """Make a structured report of one image.

    It has a measurement group for the positive class, or for each class of more than two: probability (none for an
    image out of distribution), whether the finding is present, absent or uncertain, the classes of the prediction set,
    threshold and OOD score.

    Args:
        prediction: of the image.
        source: its header.
        algorithm: what predicted it.
        report_class: `comprehensive-3d`, as IHE AI Results asks, or `comprehensive`, which more viewers show.
        unit: of the probability: `1`, or `%`.
    """
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=algorithm.device_uid, name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=algorithm.name,
        serial_number=algorithm.fingerprint[:16],
    )  # fmt: skip
    from pydicom.sr.codedict import codes as standard

    observer = sr.ObserverContext(standard.DCM.Device, device)
    labels = [algorithm.positive] if algorithm.positive else algorithm.labels
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=to_concept(codes.CHEST_RADIOGRAPH),
        imaging_measurements=[_make_group(label, prediction, source, algorithm, unit) for label in labels],
        title=standard.DCM.ImagingMeasurementReport,
    )
    _insert_library(content, source)
    ascii_only = all(map(str.isascii, (*algorithm.labels, *prediction.warnings)))
    # highdicom's class for documents would copy and search the whole content, which takes longer than all else.
    result = start_object(
        source, algorithm, "sr", _CLASSES[report_class], "SR", report_class, unit, ascii_only=ascii_only
    )
    result.CodingSchemeIdentificationSequence = [codes.declare_scheme()]
    result.CompletionFlag, result.PreliminaryFlag, result.VerificationFlag = "COMPLETE", "PRELIMINARY", "UNVERIFIED"
    result.CurrentRequestedProcedureEvidenceSequence = [_list_evidence(source)]
    result.PerformedProcedureCodeSequence = []  # must be there, empty or not (C.17.2), as the next one (C.17.1)
    result.ReferencedPerformedProcedureStepSequence = []
    for element in content[0]:
        result.add(element)
    return result


def _list_evidence(source: Source) -> Dataset:
    """The study with the image, as evidence that the report refers to (PS3.3 C.17.2.3)."""
    from pydicom.dataset import Dataset

    image, series, study = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.sop_class_uid, source.sop_uid
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.header.SeriesInstanceUID, [image]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.study_uid, [series]
    return study


def _make_group(
    label: str, prediction: Prediction, source: Source, algorithm: Algorithm, unit: Unit
) -> MeasurementsAndQualitativeEvaluations:
    from highdicom import sr

    finding = code_label(label)
    name = f"{algorithm.name}: {label}"
    tracking = sr.TrackingIdentifier(
        uid=derive_uid("tracking", source.key, algorithm.key, label), identifier=to_line(name)[:64]
    )
    family = to_concept(codes.ARTIFICIAL_INTELLIGENCE)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        finding_type=to_concept(finding),
        algorithm_id=sr.AlgorithmIdentification(
            algorithm.name, algorithm.version, algorithm.parameters, family, MANUFACTURER
        ),
        finding_sites=[sr.FindingSite(to_concept(codes.LUNG))],
        measurements=_measure(label, prediction, source, algorithm, unit),
        qualitative_evaluations=_evaluate(label, finding, prediction),
        source_images=[sr.SourceImageForMeasurementGroup(source.sop_class_uid, source.sop_uid, source.frames)],
    )
    for text in (RESEARCH_USE, algorithm.limits, *prediction.warnings):
        group[0].ContentSequence.append(
            sr.TextContentItem(to_concept(codes.COMMENT), text, sr.RelationshipTypeValues.CONTAINS)
        )
    return group


def _measure(label: str, prediction: Prediction, source: Source, algorithm: Algorithm, unit: Unit) -> list[Measurement]:
    """The numbers of a class, without those that mean nothing."""
    units, factor = (codes.NO_UNITS, 1.0) if unit == "1" else (codes.PERCENT, 100.0)
    numbers: list[tuple[Code, float, Code]] = []
    if prediction.decision != OUT_OF_DISTRIBUTION:
        numbers.append((codes.PROBABILITY, (prediction.probabilities or {})[label] * factor, units))
    if algorithm.threshold is not None:
        numbers.append((codes.THRESHOLD, algorithm.threshold * factor, units))
    if prediction.ood_score is not None:
        numbers.append((codes.OOD_SCORE, prediction.ood_score, codes.NO_UNITS))
    return [_make_measurement(name, float(f"{value:.6g}"), each, source) for name, value, each in numbers]


def _make_measurement(name: Code, value: float, unit: Code, source: Source) -> Measurement:
    """A number with the whole image as its region: OHIF fails on numbers that refer to no place."""
    from highdicom import sr

    height, width = int(source.header.get("Rows") or 1), int(source.header.get("Columns") or 1)
    outline = np.array([[0, 0], [width, 0], [width, height], [0, height], [0, 0]], float)
    region = sr.CoordinatesForMeasurement(
        "POLYLINE", outline, sr.SourceImageForRegion(source.sop_class_uid, source.sop_uid, source.frames)
    )
    return sr.Measurement(to_concept(name), value, to_concept(unit), referenced_coordinates=[region])


def _evaluate(label: str, finding: Code, prediction: Prediction) -> list[QualitativeEvaluation]:
    from highdicom import sr

    special = {OUT_OF_DISTRIBUTION: codes.OUT_OF_DISTRIBUTION, UNCERTAIN: codes.UNCERTAIN}
    decided = codes.PRESENT if prediction.decision == label else codes.ABSENT
    values = [(finding, special.get(str(prediction.decision), decided))]
    if prediction.decision != OUT_OF_DISTRIBUTION:
        values += [(codes.IN_PREDICTION_SET, code_label(each)) for each in prediction.prediction_set]
    return [sr.QualitativeEvaluation(to_concept(name), to_concept(value)) for name, value in values]


def _insert_library(content: ContentSequence, source: Source) -> None:
    """Add the image library (TID 1600, 1601, 1603) before the measurements, with what the header says of the image.

    highdicom's own needs orientation and spacing, which many images lack.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes as standard

    kind = sr.RelationshipTypeValues
    image = sr.ImageContentItem(
        to_concept(codes.SOURCE),
        source.sop_class_uid,
        source.sop_uid,
        source.frames,
        relationship_type=kind.CONTAINS,
    )
    image.ContentSequence = sr.ContentSequence(_describe_image(source))
    group = sr.ContainerContentItem(standard.DCM.ImageLibraryGroup, relationship_type=kind.CONTAINS)
    group.ContentSequence = sr.ContentSequence([image])
    library = sr.ContainerContentItem(standard.DCM.ImageLibrary, template_id="1600", relationship_type=kind.CONTAINS)
    library.ContentSequence = sr.ContentSequence([group])
    items = content[0].ContentSequence
    measurements = next(i for i, each in enumerate(items) if each.name == standard.DCM.ImagingMeasurements)
    items.insert(measurements, library)


def _describe_image(source: Source) -> list[Any]:
    from highdicom import sr
    from pydicom.sr.codedict import codes as standard

    header, acquired = source.header, sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    items: list[Any] = []
    if modality := codes.MODALITIES.get(str(header.get("Modality"))):
        items.append(sr.CodeContentItem(standard.DCM.Modality, to_concept(modality), acquired))
    if "FrameOfReferenceUID" in header:
        items.append(sr.UIDRefContentItem(standard.DCM.FrameOfReferenceUID, header.FrameOfReferenceUID, acquired))
    pixels = ("{pixels}", "UCUM", "Pixels")
    numbers = [(standard.DCM.PixelDataRows, header.get("Rows"), pixels)]
    numbers.append((standard.DCM.PixelDataColumns, header.get("Columns"), pixels))
    spacing = header.get("ImagerPixelSpacing")
    if spacing is not None and len(spacing) == 2:
        millimetre = ("mm", "UCUM", "millimeter")
        numbers.append((standard.DCM.HorizontalPixelSpacing, float(spacing[1]), millimetre))
        numbers.append((standard.DCM.VerticalPixelSpacing, float(spacing[0]), millimetre))
    orientation = header.get("PatientOrientation")
    if orientation is not None and not isinstance(orientation, str) and len(orientation) == 2:
        items.append(sr.TextContentItem(standard.DCM.PatientOrientationRow, orientation[0], acquired))
        items.append(sr.TextContentItem(standard.DCM.PatientOrientationColumn, orientation[1], acquired))
    items += [
        sr.NumContentItem(name, value, to_concept(unit), relationship_type=acquired)
        for name, value, unit in numbers
        if value
    ]
    return items
