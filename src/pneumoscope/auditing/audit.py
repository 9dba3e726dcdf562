"""Measure every image of a dataset, run every check of the audit, and list the findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from pneumoscope.auditing.balance import find_imbalance
from pneumoscope.auditing.duplicates import (
    find_crowded,
    find_duplicates,
    find_shared,
    find_unsearched,
    group_similar,
)
from pneumoscope.auditing.findings import Finding, sort_findings
from pneumoscope.auditing.intake import Images, measure_images
from pneumoscope.auditing.labels import find_label_errors
from pneumoscope.auditing.quality import find_quality_faults
from pneumoscope.auditing.shortcuts import find_shortcuts
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import Sample
from pneumoscope.images.prepare import InputSpec

if TYPE_CHECKING:
    from pneumoscope.inference.cache import FeatureCache

BACKBONE = "efficientnet_lite0"


def measure_samples(
    samples: Sequence[Sample],
    *,
    quick: bool = False,
    device: str = "auto",
    cache: FeatureCache | None = None,
    progress: Progress = silent,
) -> Images:
    """Measure every image, and unless `quick` also compute its features."""
    if quick:
        return measure_images(samples, InputSpec(), None, cache, progress)
    from pneumoscope.inference.engines import build_engine
    from pneumoscope.models.backbones import find_backbone, load_backbone

    backbone = find_backbone(BACKBONE)
    engine = build_engine(load_backbone(backbone), backbone.input.size, device)
    return measure_images(samples, backbone.input, engine, cache, progress)


def find_faults(
    images: Images, *, seed: int = 0, drawn: Collection[str] = (), progress: Progress = silent
) -> list[Finding]:
    """Run every check on a measured dataset, the worst findings first; without features, some checks are skipped.

    Splits that were `drawn` here have the class shares that they were meant to have.
    """
    quick = images.features is None
    readable = [sample for sample, error in zip(images.samples, images.errors, strict=True) if error is None]
    crowded: list[int] = []
    groups = group_similar(images, crops=not quick, progress=progress, crowded=crowded)
    checks: Sequence[Callable[[], list[Finding]]] = (
        lambda: find_shared(images.samples),
        lambda: find_duplicates(images, groups),
        lambda: find_crowded(images.samples, crowded),
        lambda: [] if quick else find_unsearched(images.digests),
        lambda: find_quality_faults(images),
        lambda: find_imbalance(readable, drawn) if readable else [],
        lambda: find_shortcuts(images, seed=seed, quick=quick, groups=groups),
        lambda: [] if quick else find_label_errors(images, seed=seed, groups=groups),
    )
    findings: list[Finding] = []
    for done, check in enumerate(checks, start=1):
        findings += check()
        progress("Checking", done, len(checks))
    return list(sort_findings(findings))
