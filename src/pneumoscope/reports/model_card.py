"""What a reader has to know of a trained model, beside it: the model's README.md.

After Mitchell et al., Model Cards for Model Reporting (FAT* 2019): their sections, filled in from the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.datasets.kermany import Source
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decisions, read_decisions
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.results import Evaluation, Interval
from pneumoscope.files import write_text
from pneumoscope.models.model_folder import Model

FILE = "README.md"
FEW = 200  # images of a class, below which a rate's interval is more than about 0.1 wide
_WITHIN = {"brier": "Brier score", "ece": "calibration error"}  # a sentence
_OF_GROUPS = ("sensitivity", "specificity", "auroc")
_ON_THE_HUB = {"accuracy": "accuracy", "f1": "f1", "auroc": "roc_auc"}  # as Hugging Face calls them


@dataclass(frozen=True)
class DataStatement:
    """What is stated of the data; empty where nothing is.

    Attributes:
        title: the data set's name.
        licence: its licence.
        citation: what to cite.
        homepage: where it is to be had.
        population: whom it shows, where, and how.
        recognised: whether file names told, and nobody stated it.
    """

    title: str = ""
    licence: str = ""
    citation: str = ""
    homepage: str = ""
    population: str = ""
    recognised: bool = False

    @classmethod
    def of(cls, source: Source | None) -> DataStatement:
        """What is known of a public data set that was recognised."""
        if source is None:
            return cls()
        licence = f"{source.licence}, {source.licence_url}"
        return cls(source.title, licence, source.citation, source.homepage, source.population, recognised=True)


def write_model_card(
    folder: Path,
    model: Model,
    evaluation: Evaluation,
    *,
    notes: Sequence[str] = (),
    data: DataStatement = DataStatement(),
    backbone_licence: str = "",
    licence: str = "",
) -> Path:
    """Write the model card of a model.

    Args:
        folder: the model's.
        model: its description.
        evaluation: on its test split.
        notes: warnings of the run; names of files and patients in them are left out, since a card is passed on.
        data: what is stated of the training data.
        backbone_licence: of the pretrained weights.
        licence: of the model, if its owner states one: an identifier such as `apache-2.0`.

    Returns:
        The card's path.

    Raises:
        UsageError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 (Markdown has escapes of its own: `md`)
        loader=PackageLoader("pneumoscope.reports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"md": escape, "figure": _figure, "span": _span, "brief": _brief, "share": _share}
    two = model.positive is not None
    decided = read_decisions(model)
    decisions = evaluation.decisions
    card = environment.get_template("model_card.md").render(
        front_matter=_write_front_matter(model, evaluation, licence, data),
        title=escape(f"{' or '.join(model.labels)}: a classifier of chest radiographs"),
        model=model,
        settings={"seed": "not stated", "train_backbone": False, **model.training.get("settings", {})},
        evaluation=evaluation,
        classes=escape(", ".join(model.labels)),
        shares=escape(", ".join(f"{_share(share)} {name}" for name, share in evaluation.shares.items())),
        two=two,
        decided=decided,
        threshold=f"{decided.threshold.value:.3g}" if decided.threshold else "",
        fixed=decided.threshold is not None and not decided.threshold.follows_prevalence,
        level=f"{100 * evaluation.confidence:g} %",
        names=NAMES,
        shown=_OF_GROUPS,
        calibration=_describe_calibration(decided, evaluation),
        answered=decisions.get("answered"),
        certain=decisions.get("accuracy_of_answered"),
        coverage=decisions.get("coverage", {}),
        ood=decisions.get("counts", {}).get(OUT_OF_DISTRIBUTION),
        subgroups=evaluation.subgroups,
        data=data,
        backbone_licence=backbone_licence,
        licence=licence,
        caveats=_list_caveats(model, evaluation, notes),
        **(dict(evaluation.confusion) if two else dict.fromkeys(("tp", "fp", "tn", "fn"), 0)),
    )
    path = folder / FILE
    # a class's name may be no UTF-8, and empty parts of the template leave lines
    text = re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"
    write_text(path, text)
    return path


def escape(words: str) -> str:
    """Words as Markdown shows them: on one line, with nothing in them that would be markup."""
    plain = " ".join(words.split())
    marked = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", plain)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _write_front_matter(model: Model, evaluation: Evaluation, licence: str, data: DataStatement) -> str:
    """What Hugging Face's model cards begin with."""
    import yaml

    values: dict[str, Any] = {"license": licence} if licence else {}
    values |= {
        "library_name": "pneumoscope",
        "pipeline_tag": "image-classification",
        "tags": ["chest-x-ray", "radiology", *sorted(label.lower() for label in model.labels), "not-for-clinical-use"],
        "metrics": list(_ON_THE_HUB.values()),
        "model-index": [
            {
                "name": f"pneumoscope {model.backbone}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "name": data.title or "not stated",
                            "type": "not-stated",
                            "split": evaluation.split,
                        },
                        "metrics": [
                            {"type": name, "value": round(evaluation.metrics[ours].value, 4)}
                            for ours, name in _ON_THE_HUB.items()
                            if not math.isnan(evaluation.metrics[ours].value)
                        ],
                    }
                ],
            }
        ],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _describe_calibration(decided: Decisions, evaluation: Evaluation) -> str:
    fitted = decided.calibration
    if fitted.method == "none":
        moved = ", restated for other shares of the classes than it was trained for" if fitted.offset else ""
        return f"none: probabilities are those of the network as it was trained{moved}."
    said = f"{fitted.method}, fitted on {fitted.images} validation images."
    changes = [
        f"the {_WITHIN[name]} from {_brief(before)} to {_brief(evaluation.metrics[name])}"
        for name, before in evaluation.uncalibrated.items()
    ]
    return f"{said} On the test images it changed {' and '.join(changes)}." if changes else said


def _list_caveats(model: Model, evaluation: Evaluation, notes: Sequence[str]) -> list[str]:
    caveats = [short for note in notes if (short := _leave_names_out(note))]
    few = {
        name: images
        for name, share in evaluation.shares.items()
        if (images := round(share * evaluation.n)) < FEW and not math.isnan(share)
    }
    if few:
        counts = " and ".join(f"{images} images of {name}" for name, images in few.items())
        caveats.append(f"The test split is small ({counts}): read the intervals, not the values.")
    if model.positive is not None:
        caveats.append(
            f"{_share(evaluation.prevalence)} of the test images are {model.positive}. Where it is rarer, PPV is lower "
            "and NPV higher than here; --prevalence restates the probabilities."
        )
    return caveats


def _leave_names_out(note: str) -> str:
    """A note without lists of files and patients, which only those who have the data need."""
    if note.startswith("More, with pictures"):
        return ""
    plain = re.sub(r" \([^()]*\.\w{2,5}\b[^()]*\)", "", note)
    start, colon, _ = plain.partition(": ")
    return f"{start}." if colon and start.count(" ") >= 3 else plain


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.3g} %"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _span(interval: Interval) -> str:
    return "–" if math.isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"


def _brief(interval: Interval) -> str:
    return _figure(interval.value) + ("" if math.isnan(interval.low) else f" ({_span(interval)})")
