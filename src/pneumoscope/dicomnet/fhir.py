"""A prediction as FHIR resources, for systems that read no DICOM: a report, its observations and what made them.

It follows HL7's "DICOM SR to FHIR Resource Mapping" (1.0.0), from the same numbers and codes as the structured report.
"""

from __future__ import annotations

import datetime
import html
import json
import re
import uuid
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.dicomnet import codes
from pneumoscope.dicomnet.algorithm import MANUFACTURER, RESEARCH_USE, Algorithm
from pneumoscope.dicomnet.codes import Code, code_label
from pneumoscope.dicomnet.identifiers import derive_uid
from pneumoscope.dicomnet.secondary_capture import format_probability
from pneumoscope.dicomnet.sources import Source
from pneumoscope.text import to_line

if TYPE_CHECKING:
    from pneumoscope.inference.prediction import Prediction

Release: TypeAlias = Literal["r4", "r5"]
Resource: TypeAlias = dict[str, Any]

_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
    codes.SCHEME: f"urn:oid:{codes.SCHEME_UID}",
}
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_UIDS = "urn:dicom:uid"
_UID_KINDS = "http://hl7.org/fhir/uv/dicom-sr/CodeSystem/dicom-identifier-type"
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")  # FHIR's type `id`, which UIDs have there
_MEASUREMENT_GROUP = ("125007", "DCM", "Measurement Group")
_SOURCE_OF_MEASUREMENT = ("121112", "DCM", "Source of Measurement")
_PARAMETERS = ("111002", "DCM", "Algorithm Parameters")
_ALGORITHM_VERSION = ("111003", "DCM", "Algorithm Version")


def make_transaction(prediction: Prediction, source: Source, algorithm: Algorithm, release: Release = "r5") -> Resource:
    """Make a transaction that stores the report of one image; if sent again, it replaces what it stored.

    It has a preliminary DiagnosticReport, an Observation for the positive class, or for each class if there are more
    than two, and the Device. An image out of distribution has observations without a value. The resources refer to
    patient, order and study by their identifiers in the header, and do not create them. R5 also has an
    ImagingSelection that names the image; in R4 a note names it.

    Args:
        prediction: of the image.
        source: its header.
        algorithm: what predicted it.
        release: of FHIR: `r4`, which is valid as R4B too, or `r5`.
    """
    labels = (algorithm.positive,) if algorithm.positive else algorithm.labels
    device = _make_device(algorithm, release)
    extra = [_make_selection(source)] if release == "r5" and _can_select(source) else []
    observations = [_make_observation(label, prediction, source, algorithm, [device, *extra]) for label in labels]
    report = _make_report(prediction, source, algorithm, release, observations)
    return {
        "resourceType": "Bundle",
        "type": "transaction",
        "timestamp": _now(),
        "entry": [_make_entry(each) for each in (report, *observations, *extra, device)],
    }


def encode_transaction(transaction: Resource) -> bytes:
    """JSON in UTF-8."""
    return (json.dumps(transaction, indent=2, ensure_ascii=False) + "\n").encode()


def identify_report(source: Source, algorithm: Algorithm, release: Release) -> str:
    """The UID of the report, the same for the same image, model and settings."""
    return derive_uid("fhir report", release, source.key, algorithm.key)


def _make_report(
    prediction: Prediction, source: Source, algorithm: Algorithm, release: Release, observations: list[Resource]
) -> Resource:
    conclusion = _conclude(prediction, algorithm)
    study: Resource = {"imagingStudy" if release == "r4" else "study": [_refer_to_study(source)]}
    note = {} if release == "r4" else {"note": [{"text": RESEARCH_USE}]}
    return {
        "resourceType": "DiagnosticReport",
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{html.escape(conclusion)}</p></div>',
        },
        "identifier": [_identify(identify_report(source, algorithm, release))],
        **_describe_context(source),
        "status": "preliminary",
        "category": [_concept(("RAD", f"{_TERMINOLOGY}/v2-0074", "Radiology"))],
        "code": _concept(codes.CHEST_RADIOGRAPH),
        "result": [_refer(each) for each in observations],
        **study,
        **note,
        "conclusion": conclusion,
    }


def _make_observation(
    label: str, prediction: Prediction, source: Source, algorithm: Algorithm, others: list[Resource]
) -> Resource:
    device, *selections = others
    if prediction.decision == OUT_OF_DISTRIBUTION:
        reason: Resource = _concept(
            ("unsupported", f"{_TERMINOLOGY}/data-absent-reason", "Unsupported"), codes.OUT_OF_DISTRIBUTION
        )
        value: Resource = {"dataAbsentReason": reason | {"text": "Out of distribution: unlike the training images"}}
    else:
        decided = codes.PRESENT if prediction.decision == label else codes.ABSENT
        value = {"valueCodeableConcept": _concept(codes.UNCERTAIN if prediction.decision == UNCERTAIN else decided)}
    notes = [RESEARCH_USE, algorithm.limits, *prediction.warnings]
    if not selections:
        notes.append(f"SOP Instance UID of the image: {source.sop_uid}")
    observation: Resource = {
        "resourceType": "Observation",
        "identifier": [
            _identify(derive_uid("observation", source.key, algorithm.key, label), "observation-uid"),
            _identify(derive_uid("tracking", source.key, algorithm.key, label), "tracking-uid"),  # as in the report
        ],
        **_describe_context(source),
        "status": "preliminary",
        "category": [
            _concept(("imaging", f"{_TERMINOLOGY}/observation-category", "Imaging")),
            _concept(_MEASUREMENT_GROUP),
        ],
        "code": _concept(code_label(label)),
        **value,
        "bodySite": _concept(codes.LUNG),
        "device": _refer(device),
        "derivedFrom": [_refer_to_study(source), *map(_refer, selections)],
        "note": [{"text": text} for text in map(to_line, notes) if text],
    }
    if components := _list_components(label, prediction, algorithm):
        observation["component"] = components
    return observation


def _list_components(label: str, prediction: Prediction, algorithm: Algorithm) -> list[Resource]:
    """The numbers of a class, without those that mean nothing."""
    known = prediction.decision != OUT_OF_DISTRIBUTION
    numbers: list[tuple[Code, float | None]] = [
        (codes.PROBABILITY, (prediction.probabilities or {}).get(label) if known else None),
        (codes.THRESHOLD, algorithm.threshold),
        (codes.OOD_SCORE, prediction.ood_score),
    ]
    unit = {"system": _SYSTEMS["UCUM"], "code": "1"}
    components: list[Resource] = [
        {"code": _concept(name), "valueQuantity": {"value": float(f"{number:.6g}"), **unit}}
        for name, number in numbers
        if number is not None
    ]
    for each in prediction.prediction_set if known else ():
        name = _concept(codes.IN_PREDICTION_SET)
        components.append({"code": name, "valueCodeableConcept": _concept(code_label(each))})
    return components


def _make_device(algorithm: Algorithm, release: Release) -> Resource:
    name, kind = to_line(algorithm.name) or "model", _concept(codes.ARTIFICIAL_INTELLIGENCE)
    parameters = [to_line(each) for each in algorithm.parameters]
    device: Resource = {
        "resourceType": "Device",
        "identifier": [_identify(algorithm.device_uid)],
        "status": "active",
        "manufacturer": MANUFACTURER,
        "modelNumber": name,
        "version": [
            {"type": _concept(_ALGORITHM_VERSION), "value": algorithm.version},
            {"type": {"text": "SHA-256 of the model's description"}, "value": algorithm.fingerprint},
        ],
        "note": [{"text": RESEARCH_USE}],
    }
    if release == "r4":
        device |= {"deviceName": [{"name": name, "type": "model-name"}], "type": kind}
        values: list[Resource] = [{"valueCode": [{"text": each}]} for each in parameters]
    else:
        device |= {"displayName": name, "type": [kind]}
        values = [{"valueString": each} for each in parameters]
    if values:
        device["property"] = [{"type": _concept(_PARAMETERS), **value} for value in values]
    return device


def _can_select(source: Source) -> bool:
    """Whether R5 can name the image: the UIDs of some files have characters that `id` does not allow."""
    header = source.header
    uids = (source.study_uid, header.SeriesInstanceUID, source.sop_uid)
    return all(_ID.fullmatch(str(each)) for each in uids)


def _make_selection(source: Source) -> Resource:
    """What names the image itself in R5."""
    sop_class = {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{source.sop_class_uid}"}
    return {
        "resourceType": "ImagingSelection",
        "identifier": [_identify(derive_uid("selection", source.sop_uid))],
        "status": "available",
        **({"subject": subject} if (subject := _refer_to_patient(source)) else {}),
        "code": _concept(_SOURCE_OF_MEASUREMENT),
        "studyUid": source.study_uid,
        "seriesUid": str(source.header.SeriesInstanceUID),
        "derivedFrom": [_refer_to_study(source)],
        "instance": [{"uid": source.sop_uid, "sopClass": sop_class}],
    }


def _conclude(prediction: Prediction, algorithm: Algorithm) -> str:
    if prediction.decision == OUT_OF_DISTRIBUTION:
        said = "Out of distribution: the image is unlike the training images. No probability is given."
    else:
        label = algorithm.positive or str(prediction.predicted_label)
        decision = str(prediction.decision)
        if decision == UNCERTAIN:
            decision = f"uncertain ({' or '.join(prediction.prediction_set) or 'typical of no class'})"
        probability = format_probability((prediction.probabilities or {})[label])
        threshold = "" if algorithm.threshold is None else f", threshold {algorithm.threshold:.3f}"
        said = f"Decision: {decision}. Probability of {label}: {probability}{threshold}."
    warnings = " ".join(f"Warning: {each}." for each in prediction.warnings)
    made_by = f"Made by {algorithm.name}, {MANUFACTURER} {algorithm.version}."
    return to_line(" ".join(filter(None, (RESEARCH_USE, said, warnings, made_by))))


def _describe_context(source: Source) -> Resource:
    """The patient, the order, and when the image was made, as far as the header says so."""
    header, context = source.header, Resource()
    if accession := to_line(str(header.get("AccessionNumber") or "")):
        kind = {"coding": [{"system": f"{_TERMINOLOGY}/v2-0203", "code": "ACSN", "display": "Accession ID"}]}
        context["basedOn"] = [{"type": "ServiceRequest", "identifier": {"type": kind, "value": accession}}]
    if subject := _refer_to_patient(source):
        context["subject"] = subject
    if effective := _find_time(source):
        context["effectiveDateTime"] = effective
    return context | {"issued": _now()}


def _find_time(source: Source) -> str | None:
    """The study's date; with its time only if the header has a time zone, because FHIR demands one with a time."""
    header = source.header
    date, time = str(header.get("StudyDate") or ""), str(header.get("StudyTime") or "").split(".")[0]
    zone = str(header.get("TimezoneOffsetFromUTC") or "")
    try:
        day = datetime.datetime.strptime(date, "%Y%m%d").date()
    except ValueError:
        return None
    try:
        return datetime.datetime.strptime(f"{date}{time}{zone}", "%Y%m%d%H%M%S%z").isoformat()
    except ValueError:
        return day.isoformat()


def _refer_to_patient(source: Source) -> Resource | None:
    number = to_line(str(source.header.get("PatientID") or ""))
    if not number:
        return None
    identifier: Resource = {"value": number}
    if issuer := to_line(str(source.header.get("IssuerOfPatientID") or "")):
        identifier["assigner"] = {"display": issuer}
    return {"type": "Patient", "identifier": identifier}


def _refer_to_study(source: Source) -> Resource:
    return {"type": "ImagingStudy", "identifier": _identify(source.study_uid, "study-instance-uid")}


def _identify(uid: str, kind: str | None = None) -> Resource:
    """An identifier that is a UID, as FHIR writes them."""
    named = {"type": {"coding": [{"system": _UID_KINDS, "code": kind}]}} if kind else {}
    return {**named, "system": _UIDS, "value": f"urn:oid:{uid}"}


def _find_url(resource: Resource) -> str:
    """The name of a resource within the transaction: the UUID in its derived UID."""
    number = int(str(resource["identifier"][0]["value"]).rsplit(".", 1)[1])
    return uuid.UUID(int=number).urn


def _refer(resource: Resource) -> Resource:
    return {"type": resource["resourceType"], "reference": _find_url(resource)}


def _make_entry(resource: Resource) -> Resource:
    identifier = resource["identifier"][0]
    search = f"{resource['resourceType']}?identifier={identifier['system']}|{identifier['value']}"
    return {"fullUrl": _find_url(resource), "resource": resource, "request": {"method": "PUT", "url": search}}


def _concept(*several: Code) -> Resource:
    """A CodeableConcept; the scheme of a code is one of DICOM's, or already a system."""
    return {
        "coding": [
            {"system": _SYSTEMS.get(scheme, scheme), "code": value, "display": meaning}
            for value, scheme, meaning in several
        ]
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
