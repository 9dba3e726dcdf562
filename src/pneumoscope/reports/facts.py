"""What a run shows for the items of a checklist: each fact says something in words, and where in the run it stands.

A fact that the run does not show is None, and its item stays open. Nothing is said that the run's files do not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.decisions.scope import describe
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.subgroups import MISSING
from pneumoscope.models.lineage import find_adaptations
from pneumoscope.reports import methods
from pneumoscope.reports.model_card import leave_names_out
from pneumoscope.reports.pages import format_estimate, format_percent
from pneumoscope.reports.study import SPLIT_NAMES, Study
from pneumoscope.text import counted

RATES = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "auroc")

_CHOOSE_GROUP = (
    "Age and view, where a DICOM header or a table gives them, choose the group of the image, and the model decides by "
    "the rules of this group"
)


# How sentences begin that tell the reader of a terminal what to do.
_ADVICE = re.compile(
    r"(Add|Calibrate|Check|Choose|Convert|Correct|Do not|Don’t|Draw|Export|Find|Give|Identify|If|Keep|Leave|Look|Make|"
    r"Rely|Re-split|Say|Set|Test it|Train|Use)\b"
)


@dataclass(frozen=True)
class Fact:
    """What a run shows, and its file and key, or the section of its report or of this page."""

    text: str
    place: str


def find_fact(name: str, study: Study) -> Fact | None:
    """What a run shows under a name that a checklist uses; None where it shows nothing."""
    say, place = FACTS[name]
    text = say if isinstance(say, str) else say(study)
    return Fact(text, place) if text else None


def _technique(study: Study) -> str:
    return f"A neural network ({study.model.backbone}) trained by the recipe {study.model.training['recipe']}."


def _abstract(study: Study) -> str:
    n, patients = study.metrics["n"], study.metrics["patients"]
    of = f" of {counted(patients, 'patient')}" if patients else ""
    measured = ", ".join(
        f"{NAMES[name]} {study.write_metric(name)}" for name in ("auroc", "sensitivity", "specificity")
    )
    return f"On {counted(n, 'test image')}{of}: {measured}."


def _goal(study: Study) -> str:
    positive = f" (positive: {study.model.positive})" if study.two else ""
    return (
        f"The run developed a classifier of chest radiographs into {', '.join(study.model.labels)}{positive}, and "
        f"evaluated it on the split {study.metrics['split']} of the same dataset."
    )


def _population(study: Study) -> str:
    intended = describe(study.decisions.scope)
    return f"The model states as its intended use: {intended}." if intended else ""


def _sources(study: Study) -> str:
    return " ".join(f"{each.title}; licence: {each.licence}; {each.homepage}." for each in study.sources)


def _included(study: Study) -> str:
    counts = study.model.data.get("counts", {})
    return " ".join(
        f"{SPLIT_NAMES[split].capitalize()}: {', '.join(f'{n:,} {name}' for name, n in counts[split].items())} images."
        for split in study.splits
    )


def _missing(study: Study) -> str:
    unknown = sum(sample.patient is None for sample in study.samples)
    known = {
        name: sum(sample.tags is not None and getattr(sample.tags, name) is not None for sample in study.samples)
        for name in ("age", "sex", "view")
    }
    absent = ", ".join(f"{name} {len(study.samples) - n:,}" for name, n in known.items())
    return (
        f"{methods.describe_unreadable(study)} Unknown, of {counted(len(study.samples), 'image')}: patient "
        f"{unknown:,}, {absent}. Nothing was imputed."
    )


def _quality(study: Study) -> str:
    checked = "The quick checks of `pneumoscope audit` ran before training." if study.settings["audit"] else ""
    copies = f" {counted(study.copies, 'image')} identical to another one stayed in the data." if study.copies else ""
    return f"{checked}{copies}".strip()


def _labels(study: Study) -> str:
    return f"The labels of the dataset were taken as they are: {', '.join(study.model.labels)}."


def _test_size(study: Study) -> str:
    counts = study.model.data.get("counts", {}).get("test", {})
    listed = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    return f"{counted(study.metrics['n'], 'test image')} ({listed}). AUROC: {study.write_metric('auroc')}."


def _output(study: Study) -> str:
    of = f"the probability of {study.model.positive}" if study.two else "a probability of each class"
    sets = ", a prediction set" if study.decisions.prediction_sets else ""
    detector = ", a score of how unlike the training images it is" if study.decisions.ood else ""
    return f"For each image: {of}, a predicted label{sets}{detector}, and a decision."


def _software(study: Study) -> str:
    parts = [f"pneumoscope {study.model.version} made the model."]
    parts += [f"{name} when the run began: {text}." for name, text in study.environment.items()]
    return " ".join(parts)


def _evidence_maps(study: Study) -> str:
    shown = "Evidence maps of the test images to review were drawn, but this run did not validate them."
    return shown if study.reported else ""


def _internal_test(study: Study) -> str:
    best = study.model.training["best"]
    measured = ", ".join(f"{NAMES[name]} {study.write_metric(name)}" for name in ("auroc", "accuracy"))
    return (
        f"Test split: {measured}. Validation split in the epoch that was kept: loss {best['val_loss']:.4f}, accuracy "
        f"{best['val_accuracy']:.3f} at a probability of 0.5, before calibration."
    )


def _subgroups(study: Study) -> str:
    written = []
    for part in study.subgroups:
        found = next((name for name in ("auroc", "sensitivity", "specificity") if name in part.metrics), None)
        metric = f", {NAMES[found]} {format_estimate(part.metrics[found])}" if found else ""
        written.append(f"{part.kind}: {part.name}: {counted(part.n, 'image')}{metric}")
    return f"{'; '.join(written)}." if written else ""


def _fairness(study: Study) -> str:
    kinds = {part.kind for part in study.subgroups if part.name != MISSING}
    people = [kind for kind in ("Sex", "Age") if kind in kinds]
    return f"Performance was measured by {' and '.join(map(str.lower, people))}." if people else ""


def _failures(study: Study) -> str:
    wrong = sum(not row["error"] and row["label"] != row["predicted_label"] for row in study.predictions)
    return f"{_crosstab(study)} {counted(wrong, 'wrong label')}, listed in errors.csv, the most confident first."


def _crosstab(study: Study) -> str:
    counts = study.metrics["confusion"]
    if study.two:
        return (
            f"At the threshold: {counts['tp']} true positive, {counts['fp']} false positive, {counts['tn']} true "
            f"negative, {counts['fn']} false negative."
        )
    rows = (
        f"{name}: {', '.join(f'{n} as {other}' for n, other in zip(row, study.model.labels, strict=True))}"
        for name, row in zip(study.model.labels, counts["matrix"], strict=True)
    )
    return f"Predicted labels by true class: {'; '.join(rows)}."


def _indeterminate(study: Study) -> str:
    counts = study.count_decisions()
    held = {name: sum(each[name] for each in counts.values()) for name in (UNCERTAIN, OUT_OF_DISTRIBUTION)}
    return (
        f"{counted(held[UNCERTAIN], 'test image')} called uncertain and {held[OUT_OF_DISTRIBUTION]:,} out of "
        "distribution got no label as a decision; the metrics cover them by their predicted label."
    )


def _prevalence(study: Study) -> str:
    listed = ", ".join(f"{format_percent(share)} {name}" for name, share in study.metrics["shares"].items())
    return f"Of the test images: {listed}."


def _model_files(study: Study) -> str:
    return f"The model is a folder of open formats (weights SHA-256 {study.model.weights_sha256})."


def _poor_input(study: Study) -> str:
    failed = sum(bool(row["error"]) for row in study.predictions)
    warned = sum(bool(row["warnings"]) for row in study.predictions)
    detector = " Images unlike the training images are called out of distribution." if study.decisions.ood else ""
    return (
        f"An image that cannot be used gets an error instead of a prediction ({failed} of the test images), and one "
        f"outside the intended use a warning ({warned} with any warning).{detector}"
    )


def _notes(study: Study) -> str:
    return " ".join(f"“{short}”" for note in study.notes if (short := leave_advice_out(leave_names_out(note))))


def leave_advice_out(note: str) -> str:
    """Leave the sentences of a note that say what is so, without those that tell its reader what to do."""
    kept = [each for each in re.split(r"(?<=[.!?])\s+", note) if "`" not in each and not _ADVICE.match(each)]
    return re.sub(r": do not [^.]*\.", ".", " ".join(kept))


def _findings(study: Study) -> str:
    if not study.findings:
        return ""
    learnt = any("predict" in each and "the class" in each for each in study.findings)
    meaning = " A network can learn such a difference instead of the disease." if learnt else ""
    listed = " ".join(f"“{each}.”" for each in study.findings)
    return f"The quick audit of the data before training found: {listed}{meaning}"


def _single_network(study: Study) -> str:
    return "" if find_adaptations(study.model.lineage) else "The model is one network; no ensemble was made."


def _no_update(study: Study) -> str:
    return "" if find_adaptations(study.model.lineage) else "This run did not update the model after its evaluation."


def _predictors(study: Study) -> str:
    if study.decisions.groups:
        return (
            f"The only input of the network is the image; sex and other columns have no effect. {_CHOOSE_GROUP}, which "
            "may change the probability and the decision."
        )
    return "The only predictor is the image; age, sex, view and other columns do not enter the network."


def _blind_index(study: Study) -> str:
    if study.decisions.groups:
        return (
            f"The network gets the image alone, and no label enters a prediction. {_CHOOSE_GROUP}; no other clinical "
            "information is used."
        )
    return "The network gets the image alone: no clinical information and no label enters a prediction."


def _quote(name: str) -> Callable[[Study], str]:
    """What the makers of the model stated."""
    return lambda study: f"“{stated}”" if (stated := getattr(study.model.about, name)) else ""


def _licence(study: Study) -> str:
    return f"Licence of the model: {study.model.about.terms}." if study.model.about.terms else ""


def _accuracy(study: Study) -> str:
    return "; ".join(f"{NAMES[name]} {study.write_metric(name)}" for name in RATES) + "."


# What each fact says, and where it stands.
FACTS: Mapping[str, tuple[str | Callable[[Study], str], str]] = MappingProxyType({
    "preprocessing": (methods.describe_preprocessing, "model/model.json: input"),
    "augmentation": (methods.describe_augmentation, "config.yaml: augmentation"),
    "optimisation": (methods.describe_optimisation, "config.yaml: optimisation; history.csv"),
    "stopping": (methods.describe_stopping, "history.csv; model/model.json: training.best"),
    "partitions": (methods.describe_splits, "samples.csv: split; intake.json: drawn"),
    "disjoint": (methods.describe_overlap, "samples.csv: patient, split"),
    "left_out": (methods.describe_left_out, "intake.json: left_out"),
    "imbalance": (methods.describe_balance, "config.yaml: optimisation.balance"),
    "initialization": (methods.describe_network, "model/model.json: backbone, training"),
    "architecture": (methods.describe_network, "model/model.json: architecture; model/network.onnx"),
    "calibration": (methods.describe_calibration, "model/model.json: decisions.calibration"),
    "threshold": (methods.describe_threshold, "model/model.json: decisions.threshold"),
    "decisions": (methods.describe_decisions, "model/model.json: decisions"),
    "metrics": (methods.describe_metrics, "metrics.json: metrics"),
    "uncertainty": (methods.describe_uncertainty, "metrics.json: methods, resamples, seed, subgroups"),
    "technique": (_technique, "model/model.json: backbone, training.recipe"),
    "abstract": (_abstract, "metrics.json: n, patients, metrics"),
    "goal": (_goal, "model/model.json: labels, positive; metrics.json: split"),
    "population": (_population, "model/model.json: decisions.scope"),
    "sources": (_sources, "model/model.json: data.sources"),
    "included": (_included, "samples.csv; model/model.json: data.counts"),
    "missing": (_missing, "predictions.csv: error; samples.csv; Table 1"),
    "quality": (_quality, "report.html: Audit of the data; config.yaml: data.audit"),
    "labels": (_labels, "samples.csv: label"),
    "test_size": (_test_size, "metrics.json: n, metrics.auroc"),
    "output": (_output, "model/model.json: labels, decisions"),
    "software": (_software, "environment.json; model/model.json: version"),
    "single_network": (_single_network, "model/"),
    "evidence_maps": (_evidence_maps, "report.html: Images to review"),
    "internal_test": (_internal_test, "metrics.json; history.csv"),
    "flow": (
        "The flow of images, with exclusions and index test results by reference standard, is drawn below.",
        "Flow diagram, on this page",
    ),
    "table_one": (
        "Table 1 shows patients, images, classes, age, sex and view by split, with missing values counted.",
        "Table 1, on this page",
    ),
    "accuracy": (_accuracy, "metrics.json: metrics"),
    "subgroups": (_subgroups, "metrics.json: subgroups"),
    "fairness": (_fairness, "metrics.json: subgroups"),
    "failures": (_failures, "metrics.json: confusion; errors.csv; report.html: Images to review"),
    "crosstab": (_crosstab, "metrics.json: confusion; predictions.csv; flow diagram"),
    "indeterminate": (_indeterminate, "predictions.csv: decision; report.html: Uncertainty"),
    "prevalence": (_prevalence, "metrics.json: shares"),
    "predictors": (_predictors, "model/model.json: input, decisions.groups"),
    "no_interpretation": (
        "The image enters the network without a reader's interpretation.",
        "model/model.json: input",
    ),
    "no_update": (_no_update, "model/model.json: lineage"),
    "compute": (
        "Predictions are computed by `pneumoscope predict IMAGE --model RUN`, or by model/network.onnx.",
        "model/",
    ),
    "blind_index": (_blind_index, "model/model.json: input, decisions.groups"),
    "repeat": (
        "`pneumoscope train --config config.yaml --out NEW_RUN` repeats the run on the same data.",
        "config.yaml",
    ),
    "model_files": (_model_files, "model/: model.json, weights.safetensors, network.onnx"),
    "poor_input": (_poor_input, "model/model.json: decisions.ood; predictions.csv: error, warnings"),
    "outputs": (
        "The run keeps each prediction on the test split with the checksum of its image, the report and a log.",
        "predictions.csv, report.html, log.txt",
    ),
    "notes": (_notes, "metrics.json: notes"),
    "findings": (_findings, "report.html: Audit of the data; resume.json: remarks.findings"),
    "consent": (_quote("consent"), "model/model.json: about.consent"),
    "funding": (_quote("funding"), "model/model.json: about.funding"),
    "data_source": (_quote("data_source"), "model/model.json: about.data_source"),
    "licence": (_licence, "model/model.json: about.licence"),
})  # fmt: skip
