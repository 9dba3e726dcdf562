"""The model card: a model's README.md, which says what users must know before they use the model.

After Mitchell et al., Model Cards for Model Reporting (FAT* 2019): their sections, filled in from the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.datasets.sources import Source, find_sources
from pneumoscope.decisions.calibration import NAMES as CALIBRATIONS
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions, read_decisions
from pneumoscope.decisions.groups import describe as describe_group
from pneumoscope.decisions.scope import describe
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.evaluation.subgroups import choose_metrics
from pneumoscope.files import write_text
from pneumoscope.models.lineage import find_adaptations, name_earlier_sources
from pneumoscope.models.model_folder import Model
from pneumoscope.reports.pages import format_estimate, format_level, format_percent, render

FILE = "README.md"
FEW = 200  # images of a class, below which the interval of a rate is more than about 0.1 wide
_WITHIN = {"brier": "Brier score", "ece": "calibration error"}  # a sentence
_ON_THE_HUB = {"accuracy": "accuracy", "f1": "f1", "auroc": "roc_auc"}  # as Hugging Face calls them


def write_model_card(
    folder: Path,
    model: Model,
    evaluation: Evaluation,
    *,
    notes: Sequence[str] = (),
    sources: Sequence[Source] = (),
    backbone_licence: str = "",
) -> Path:
    """Write the card of a model into its folder, and return the card's path.

    The evaluation is that of the test split; `sources` are the public datasets of the training images. Names of files
    and patients in `notes` are left out, since a card is passed on.
    """
    two = model.positive is not None
    decisions, counted = read_decisions(model), evaluation.decisions
    earlier = find_sources(name_earlier_sources(model.lineage))
    adaptations = find_adaptations(model.lineage)
    card = render(
        "model_card.md",
        front_matter=_write_front_matter(model, evaluation, sources),
        title=f"{' or '.join(model.labels)}: a classifier of chest radiographs",
        model=model,
        settings={"seed": "not stated", "train_backbone": False, **model.training.get("settings", {})},
        evaluation=evaluation,
        two=two,
        decisions=decisions,
        per_label=list(zip(model.labels, decisions.class_thresholds, strict=False)),
        intended=describe(decisions.scope),
        groups=[describe_group(group, adapted=bool(adaptations)) for group in decisions.groups],
        threshold_given=decisions.threshold is not None and not decisions.threshold.follows_prevalence,
        level=format_level(evaluation.confidence),
        metrics_of_subgroups=choose_metrics(evaluation),
        calibration=_describe_calibration(
            decisions,
            evaluation,
            "images that it was adapted to"
            if adaptations
            else "out-of-fold predictions"
            if "ensemble" in model.training
            else "validation images",
        ),
        labelled=counted.get("answered"),
        correct=counted.get("accuracy_of_answered"),
        coverage=counted.get("coverage", {}),
        ood=counted.get("counts", {}).get(OUT_OF_DISTRIBUTION),
        sources=sources,
        adaptations=adaptations,
        earlier=earlier,
        cited=[*sources, *(each for each in earlier if each not in sources)],
        backbone_licence=backbone_licence,
        caveats=_list_caveats(model, evaluation, notes),
        **(dict(evaluation.confusion) if two else dict.fromkeys(("tp", "fp", "tn", "fn"), 0)),
    )
    path = folder / FILE
    write_text(path, re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n")  # empty parts of the template leave lines
    return path


def _write_front_matter(model: Model, evaluation: Evaluation, sources: Sequence[Source]) -> str:
    """Write the metadata that Hugging Face's model cards begin with."""
    import yaml

    metrics = [
        {"type": name, "value": round(evaluation.metrics[ours].value, 4)}
        for ours, name in _ON_THE_HUB.items()
        if not math.isnan(evaluation.metrics[ours].value)
    ]
    titles = " and ".join(each.title for each in sources)
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": titles or "not stated", "type": "not-stated", "split": evaluation.split},
        "metrics": metrics,
    }
    values = {
        **({"license": model.about.hub_licence} if model.about.hub_licence else {}),
        "library_name": "pneumoscope",
        "pipeline_tag": "image-classification",
        "tags": ["chest-x-ray", "radiology", *sorted(label.lower() for label in model.labels), "not-for-clinical-use"],
        "metrics": list(_ON_THE_HUB.values()),
        "model-index": [{"name": f"pneumoscope {model.backbone}", "results": [result]}],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _describe_calibration(decisions: Decisions, evaluation: Evaluation, kind: str) -> str:
    fitted = decisions.calibration
    if fitted.method == "none":
        adjusted = ", adjusted to other shares of the classes" if fitted.offset else ""
        tried = " No method lowered the cross-validated log loss." if fitted.tried else ""
        return f"none. Probabilities are those of the trained network{adjusted}.{tried}"
    words = f"{CALIBRATIONS[fitted.method]}, fitted on {fitted.images} {kind}."
    changes = [
        f"the {_WITHIN[name]} from {format_estimate(before)} to {format_estimate(evaluation.metrics[name])}"
        for name, before in evaluation.uncalibrated.items()
    ]
    return f"{words} On the test images it changed {' and '.join(changes)}." if changes else words


def _list_caveats(model: Model, evaluation: Evaluation, notes: Sequence[str]) -> list[str]:
    caveats = [short for note in notes if (short := leave_names_out(note))]
    few = {
        name: images
        for name, share in evaluation.shares.items()
        if (images := round(share * evaluation.n)) < FEW and not math.isnan(share)
    }
    if few:
        counts = ", ".join(f"{images} {name}" for name, images in few.items())
        caveats.append(f"The test split is small ({counts} images): rely on the intervals, not on the values.")
    if model.positive is not None:
        caveats.append(
            f"{format_percent(evaluation.prevalence)} of the test images are {model.positive}. Where it is rarer, PPV "
            "is lower and NPV higher; `pneumoscope predict --prevalence` adjusts the probabilities."
        )
    return caveats


def leave_names_out(note: str) -> str:
    """Remove the lists of files and patients from a note: without the data they are useless, or even harmful."""
    if note.startswith("More findings, with pictures"):
        return ""
    plain = re.sub(r" \([^()]*\.\w{2,5}\b[^()]*\)", "", note)
    start, colon, _ = plain.partition(": ")
    if colon and start.count(" ") >= 3:
        quoted = len(re.findall(r"(?<!\w)'", start)) > len(re.findall(r"'(?!\w)", start))  # cut within quotes
        return start + "'." * quoted + "." * (not quoted)
    return plain
