"""Turns chest radiographs into a classifier, and measures how good it is.

The public names are loaded when they are first used, so that importing the package costs nothing:

    run = pneumoscope.train("images", "runs/first")
    for prediction in pneumoscope.load("runs/first").predict(["scan.png"]):
        print(prediction.probability, prediction.decision)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.5.0"

if TYPE_CHECKING:
    from pneumoscope.auditing.findings import Audit, Finding
    from pneumoscope.client import Client
    from pneumoscope.datasets.columns import Naming
    from pneumoscope.datasets.phantom_sets import write_phantoms
    from pneumoscope.datasets.phantoms import draw_phantom
    from pneumoscope.datasets.reading import read_samples
    from pneumoscope.datasets.samples import Sample
    from pneumoscope.datasets.splits import split_samples
    from pneumoscope.dicomnet.results import write_dicom_results
    from pneumoscope.errors import (
        DataError,
        DownloadError,
        ImageError,
        MissingExtraError,
        ModelError,
        PneumoscopeError,
        ServiceError,
        UsageError,
    )  # fmt: skip
    from pneumoscope.evaluation.compare import Comparison
    from pneumoscope.evaluation.expected import estimate_metrics
    from pneumoscope.evaluation.grading import Grading
    from pneumoscope.evaluation.results import Evaluation, Interval
    from pneumoscope.evaluation.summary import Summary
    from pneumoscope.exporting import Export, export
    from pneumoscope.images.prepare import InputSpec, prepare
    from pneumoscope.images.read import Reading, read_pixels
    from pneumoscope.inference.evidence import Evidence
    from pneumoscope.inference.explain import explain
    from pneumoscope.inference.prediction import Prediction
    from pneumoscope.inference.predictor import Predictor, load
    from pneumoscope.models.sharing import SharedModel, pull, push
    from pneumoscope.reports.audit_page import audit
    from pneumoscope.reports.checklist import Checklist, write_checklist
    from pneumoscope.reports.comparison import compare
    from pneumoscope.reports.evaluation_report import evaluate
    from pneumoscope.reports.grading import grade
    from pneumoscope.reports.predictions_report import evaluate_predictions
    from pneumoscope.reports.print_figures import plot
    from pneumoscope.reports.summary import summarize
    from pneumoscope.training.adapt import Adaptation, adapt
    from pneumoscope.training.cross_validation import CrossValidation, cross_validate
    from pneumoscope.training.run import Callback, Run
    from pneumoscope.training.train import train
    from pneumoscope.training.tuning import Tuning, tune

__all__ = [
    "Adaptation", "Audit", "Callback", "Checklist", "Client", "Comparison", "CrossValidation", "DataError",
    "DownloadError", "Evaluation", "Evidence", "Export", "Finding", "Grading", "ImageError", "InputSpec", "Interval",
    "MissingExtraError", "ModelError", "Naming", "PneumoscopeError", "Prediction", "Predictor", "Reading", "Run",
    "Sample", "ServiceError", "SharedModel", "Summary", "Tuning", "UsageError", "__version__", "adapt", "audit",
    "compare", "cross_validate", "draw_phantom", "estimate_metrics", "evaluate", "evaluate_predictions", "explain",
    "export", "grade", "load", "plot", "prepare", "pull", "push", "read_pixels", "read_samples", "split_samples",
    "summarize", "train", "tune", "write_checklist", "write_dicom_results", "write_phantoms",
]  # fmt: skip


def __getattr__(name: str) -> object:
    homes = {
        "auditing.findings": ("Audit", "Finding"),
        "client": ("Client",),
        "datasets.columns": ("Naming",),
        "datasets.phantom_sets": ("write_phantoms",),
        "datasets.phantoms": ("draw_phantom",),
        "datasets.samples": ("Sample",),
        "datasets.reading": ("read_samples",),
        "datasets.splits": ("split_samples",),
        "dicomnet.results": ("write_dicom_results",),
        "evaluation.compare": ("Comparison",),
        "evaluation.expected": ("estimate_metrics",),
        "evaluation.grading": ("Grading",),
        "evaluation.results": ("Evaluation", "Interval"),
        "evaluation.summary": ("Summary",),
        "exporting": ("Export", "export"),
        "images.prepare": ("InputSpec", "prepare"),
        "images.read": ("Reading", "read_pixels"),
        "inference.evidence": ("Evidence",),
        "inference.explain": ("explain",),
        "inference.prediction": ("Prediction",),
        "inference.predictor": ("Predictor", "load"),
        "models.sharing": ("SharedModel", "pull", "push"),
        "reports.audit_page": ("audit",),
        "reports.checklist": ("Checklist", "write_checklist"),
        "reports.comparison": ("compare",),
        "reports.evaluation_report": ("evaluate",),
        "reports.grading": ("grade",),
        "reports.predictions_report": ("evaluate_predictions",),
        "reports.summary": ("summarize",),
        "reports.print_figures": ("plot",),
        "training.adapt": ("Adaptation", "adapt"),
        "training.cross_validation": ("CrossValidation", "cross_validate"),
        "training.run": ("Callback", "Run"),
        "training.train": ("train",),
        "training.tuning": ("Tuning", "tune"),
        "errors": tuple(each for each in __all__ if each.endswith("Error")),
    }
    for module, names in homes.items():
        if name in names:
            return getattr(importlib.import_module(f"pneumoscope.{module}"), name)
    raise AttributeError(f"module 'pneumoscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
