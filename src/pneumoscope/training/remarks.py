"""Remarks: what the report and the model card say about a run's data and decisions besides its metrics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pneumoscope.auditing.audit import find_faults
from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import Images
from pneumoscope.datasets.samples import describe_counts, number_patients
from pneumoscope.datasets.sources import describe_overlap, find_source_name, list_sources, recognise_sources
from pneumoscope.datasets.splits import REDRAW, find_shared_patients
from pneumoscope.errors import DataError
from pneumoscope.models.lineage import name_earlier_sources
from pneumoscope.reports.pages import format_command
from pneumoscope.training.data import Extracted, Setup
from pneumoscope.training.settings import DataSettings


@dataclass(frozen=True)
class Remarks:
    """What the report and the model card say about a run besides its metrics."""

    notes: tuple[str, ...] = ()  # sentences about the data and the decisions
    findings: tuple[Finding, ...] = ()  # of the audit


def log_data(setup: Setup) -> None:
    """Log the counts of images, and the classes."""
    positive = setup.settings.data.positive
    _logger().info("Data: %s", describe_counts(setup.samples))
    _logger().info("Classes: %s%s.", ", ".join(setup.classes), f"; positive: {positive}" if positive else "")
    learned = [sample for sample in setup.samples if sample.split != "test"]
    named = sum(find_source_name(sample) is not None for sample in learned)
    if 0 < named < len(learned):
        _logger().info(
            "The column `source` names a public dataset for %d of %d images only, so the model card cites none. "
            "Known: %s.",
            named,
            len(learned),
            ", ".join(source.name for source in list_sources()),
        )


def check_data(setup: Setup, extracted: Extracted) -> Remarks:
    """Log and give the notes on the data, and the findings of the audit's quick checks.

    Raises:
        DataError: the check found an error and `strict` is set.
    """
    notes = _find_notes(setup) + extracted.notes
    findings = _audit(extracted.images, setup) if setup.settings.data.audit else ()
    for note in notes:
        _logger().warning("%s", note)
    return Remarks(notes, findings)


def _find_notes(setup: Setup) -> tuple[str, ...]:
    """Find what is unknown or unusual about the data."""
    samples, notes = setup.samples, []
    if unknown := sum(sample.patient is None for sample in samples):
        notes.append(
            f"The patient of {unknown} images is not known; each counts as its own patient. Identify "
            "patients in a table or with `patient_pattern`."
        )
    elif all(str(sample.patient).startswith("phantom") for sample in samples):
        notes.append("These radiographs are simulated: the metrics show that the software works, not how it performs.")
    learned = name_earlier_sources(setup.initial.lineage) if setup.initial is not None else ()
    if overlap := describe_overlap(recognise_sources(samples), learned):
        notes.append(overlap)
    if shared := find_shared_patients(samples):
        some, more = "", " (samples.csv and log.txt say which)"
        if setup.settings.run.patient_ids:
            some = ", ".join(f"{patient} ({' and '.join(splits)})" for patient, splits in list(shared.items())[:10])
            some, more = f": {some}", " and more, which log.txt lists" if len(shared) > 10 else ""
        are = "patients are" if len(shared) > 1 else "patient is"
        notes.append(
            f"{len(shared)} {are} in more than one of the given splits{some}{more}. Re-split with "
            f"{REDRAW}, or ignore this if it is intended."
        )
        _logger().debug("Patients in more than one split: %s", shared)
    return tuple(notes)


def _audit(images: Images, setup: Setup) -> tuple[Finding, ...]:
    """Log and give the errors and warnings of the quick checks, from what was measured while images were read.

    Raises:
        DataError: there are errors and `strict` is set.
    """
    settings = setup.settings
    command = format_audit(settings.data)
    if not settings.run.patient_ids:
        images = replace(images, samples=number_patients(images.samples))
    serious = [
        each for each in find_faults(images, seed=settings.run.seed, drawn=setup.drawn) if each.severity != "note"
    ]
    findings = [each for each in serious if each.check not in ("reading", "leaks")]  # the notes say so already
    if serious:
        findings.append(Finding("audit", "note", "More findings, with pictures", command))
    log_findings(findings, settings.data.path)
    errors = [finding.title for finding in serious if finding.severity == "error"]
    if settings.data.strict and errors:
        raise DataError(
            f"{settings.data.path}: {'; '.join(errors)}. See `{command}`, correct the data and start again with "
            "`overwrite=True`, or leave out `strict`."
        )
    return tuple(findings)


def log_findings(findings: Sequence[Finding], data: str) -> None:
    """Log what an audit of these data found, with the first files, and where there is more."""
    for finding in findings:
        if finding.check == "audit":
            _logger().warning("For more findings, with pictures, run: %s", finding.advice)
            continue
        some = ", ".join(finding.name_files(data)) + ("…" if len(finding.files) > 3 else "")
        text = f"{finding.severity.capitalize()}: {finding.title}. {finding.advice}"
        _logger().warning("%s", f"{text} Examples: {some}" if some else text)


def format_audit(data: DataSettings) -> str:
    """The command that audits these data as this run reads them."""
    return format_command(
        "audit", data.path, patient_pattern=data.patient_pattern, **data.to_options(), invert=data.invert,
        any_modality=data.any_modality,
    )  # fmt: skip


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
