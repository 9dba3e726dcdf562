"""The audit: measure every image of a dataset, run every check, and list the findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.auditing.balance import find_imbalance
from pneumoscope.auditing.duplicates import find_duplicates, find_shared, group_similar
from pneumoscope.auditing.findings import SEVERITIES, Audit, Finding
from pneumoscope.auditing.intake import Images, measure_images
from pneumoscope.auditing.labels import find_label_errors
from pneumoscope.auditing.quality import find_quality_faults
from pneumoscope.auditing.shortcuts import find_shortcuts
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import Sample, count_samples, fingerprint_samples, read_samples
from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import Reading

if TYPE_CHECKING:
    from pneumoscope.inference.cache import FeatureCache

BACKBONE = "efficientnet_lite0"


def audit_data(
    data: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    device: str = "auto",
    cache: FeatureCache | None = None,
    progress: Progress = silent,
) -> tuple[Audit, Sequence[Sample]]:
    """Measure a dataset and run all checks; `reports.audit_page.audit` also writes the result.

    Args:
        data: a folder of classes, or a table.
        quick: skip what needs a network: label errors, outliers, surroundings and cropped copies.
        seed: fixes every random choice.
        patient_pattern: regular expression that finds the patient in a file name.
        reading: how to read images, unless a table says otherwise.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps measurements and features.
        progress: called as the work goes on.

    Returns:
        The audit, and its samples.

    Raises:
        DataError: the data cannot be used at all.
    """
    samples = read_samples(Path(data), patient_pattern, reading)
    engine, spec = None, InputSpec()
    if not quick:
        from pneumoscope.inference.engines import build_engine
        from pneumoscope.models.backbones import find_backbone, load_backbone

        backbone = find_backbone(BACKBONE)
        engine, spec = build_engine(load_backbone(backbone), backbone.input.size, device), backbone.input
    images = measure_images(samples, spec, engine, cache, progress)
    audit = Audit(
        data=str(data),
        findings=tuple(find_faults(images, seed=seed, progress=progress)),
        images=len(samples),
        counts=count_samples(samples),
        patients=len({sample.patient for sample in samples if sample.patient}),
        quick=quick,
        seed=seed,
        fingerprint=fingerprint_samples(samples, images.digests),
        patient_pattern=patient_pattern,
        reading=reading,
    )
    return audit, samples


def find_faults(images: Images, *, seed: int = 0, progress: Progress = silent) -> list[Finding]:
    """Run every check on a measured dataset; without features, those that need them are skipped.

    Args:
        images: the measured dataset.
        seed: fixes every random choice.
        progress: called as the work goes on.

    Returns:
        The findings, the worst first.
    """
    quick = images.features is None
    readable = [sample for sample, error in zip(images.samples, images.errors, strict=True) if error is None]
    groups = group_similar(images, crops=not quick, progress=progress)
    checks: Sequence[Callable[[], list[Finding]]] = (
        lambda: find_shared(images.samples),
        lambda: find_duplicates(images, groups),
        lambda: find_quality_faults(images),
        lambda: find_imbalance(readable) if readable else [],
        lambda: find_shortcuts(images, seed=seed, quick=quick, groups=groups),
        lambda: [] if quick else find_label_errors(images, seed=seed, groups=groups),
    )
    findings: list[Finding] = []
    for done, check in enumerate(checks, start=1):
        findings += check()
        progress("Checking", done, len(checks))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
