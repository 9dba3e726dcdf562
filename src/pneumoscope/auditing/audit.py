"""A data set's faults, found before they become results: measure every image, run every check, write it down."""

from __future__ import annotations

import json
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
from pneumoscope.datasets.samples import count_samples, fingerprint_samples, read_samples
from pneumoscope.files import check_folder, claim_folder, write_text
from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import Reading
from pneumoscope.reports.audit_page import write_audit

if TYPE_CHECKING:
    from pneumoscope.inference.cache import FeatureCache

OUTPUTS = ("audit.json", "audit.html")
BACKBONE = "efficientnet_lite0"


def audit(
    data: str | Path,
    out: str | Path | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    device: str = "auto",
    cache: FeatureCache | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Audit:
    """Look for everything in labelled radiographs that would spoil a result; nothing is changed or removed.

    Args:
        data: a folder of classes, or a table.
        out: folder for `audit.json` and `audit.html`; None writes nothing.
        quick: leave out what needs a network: label errors, and duplicates and strangers by features.
        seed: fixes every random choice.
        patient_pattern: regular expression that finds the patient in a file name.
        reading: how to read images of which a table says nothing.
        device: `auto`, `cpu` or `cuda`.
        cache: keeps measurements and features between calls, and shares them with training.
        overwrite: whether an earlier audit in `out` may go.
        progress: called as the work goes on.

    Raises:
        DataError: the data cannot be used at all.
        UsageError: `out` exists.
    """
    samples = read_samples(Path(data), patient_pattern, reading)
    if out is not None:
        check_folder(Path(out), OUTPUTS, overwrite)
    engine, spec = None, InputSpec()
    if not quick:
        from pneumoscope.inference.engines import build_engine
        from pneumoscope.models.backbones import find_backbone, load_backbone

        backbone = find_backbone(BACKBONE)
        engine, spec = build_engine(load_backbone(backbone), backbone.input.size, device), backbone.input
    if out is not None:
        claim_folder(Path(out), OUTPUTS, overwrite)
    images = measure_images(samples, spec, engine, cache, progress)
    found = Audit(
        str(data),
        tuple(find_faults(images, seed=seed, progress=progress)),
        len(samples),
        count_samples(samples),
        len({sample.patient for sample in samples if sample.patient}),
        quick,
        seed,
        fingerprint_samples(samples, images.digests),
        patient_pattern,
        reading,
    )
    if out is not None:
        write_audit(Path(out) / "audit.html", found, {sample.path: sample for sample in samples})
        write_text(Path(out) / "audit.json", json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")
    return found


def find_faults(images: Images, *, seed: int = 0, progress: Progress = silent) -> list[Finding]:
    """Run every check on a measured data set; those that need features are left out where there are none.

    Args:
        images: the measured data set.
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
