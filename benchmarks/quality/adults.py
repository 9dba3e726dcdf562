"""Adults and children: what a model makes of the images that train_joint.py keeps for testing, by view, source and age.

With --val it is measured on the validation images instead, by which the share of the average was chosen, and with --all
on all adults. The children's images (but the published ones) validated the first pretrained model. The labels of adults
are OPACITY, NORMAL and OTHER (not normal, no opacity). OPACITY is PNEUMONIA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from chest_data import CHILD_VAL, assign, read_adults, split_adults, split_children
from protocol import make_parser, print_table

from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.evaluation.intervals.all_metrics import find_auroc_interval
from pneumoscope.evaluation.intervals.delong import auroc_covariance
from pneumoscope.evaluation.intervals.proportions import rate_interval
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import load

HEAD = (
    *("group", "positive", "normal", "other", "AUROC, normal", "AUROC, all else", "sensitivity", "specificity"),
    *("set holds truth", "uncertain", "out of distribution"),
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="model folder, run or name; by default the pretrained model")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--val", action="store_true", help="measure on the validation images")
    others.add_argument("--all", action="store_true", help="measure on all adults, also those of training")
    options = parser.parse_args()
    adults = read_adults(options.data)
    divided = [*assign(adults, split_adults(options.data)), *split_children(options.data, CHILD_VAL)]
    split = "val" if options.val else "test"
    report(predict(options.model, adults if options.all else [each for each in divided if each.split == split]))


def predict(model: str | None, images: Sequence[Sample]) -> list[Prediction]:
    """Predict images, which keep their label and what is known about them."""
    return [
        dataclasses.replace(found, label=sample.metadata.get("reading", sample.label))
        for sample, found in zip(images, load(model).run(images), strict=True)
    ]


def report(predictions: Sequence[Prediction]) -> None:
    """Print a row for each group: how opacities rank, and what is decided."""
    print_table(
        HEAD,
        [[name, *describe(group)] for name, group in divide(predictions) if len({each.label for each in group}) > 1],
    )


def divide(predictions: Sequence[Prediction]) -> Iterator[tuple[str, list[Prediction]]]:
    """The groups that are reported apart."""
    age = [("under 40", 18, 40), ("40 to 59", 40, 60), ("60 and over", 60, 120)]
    rules: list[tuple[str, Callable[[Prediction], bool]]] = [
        ("children", lambda each: find_source(each) == "children"),
        ("children, published test", lambda each: find_source(each) == "published"),
        ("adults, rsna and nih", lambda each: find_source(each) in ("rsna", "nih")),
        *((f"adults, {name}", lambda each, name=name: find_source(each) == name) for name in ("rsna", "nih")),
        *((f"adults, {view}", lambda each, view=view: is_adult(each) and each.view == view) for view in ("PA", "AP")),
        *(
            (f"adults, {name}", lambda each, low=low, high=high: is_adult(each) and low <= (each.age or 0) < high)
            for name, low, high in age
        ),
        ("adults, with rsna-normal", lambda each: find_source(each) in ("rsna", "nih", "rsna-normal")),
    ]
    for name, rule in rules:
        yield name, [each for each in predictions if rule(each)]


def find_source(prediction: Prediction) -> str:
    """`children`, `published` (the small project's test images), or the adults' source, which is the image's folder."""
    path = Path(str(prediction.path))
    if path.parent.name in ("rsna", "nih", "rsna-normal"):
        return path.parent.name
    return "published" if "seed-400" in path.parts else "children"


def is_adult(prediction: Prediction) -> bool:
    """Whether it is one of the adults of which both classes are there."""
    return find_source(prediction) in ("rsna", "nih")


def describe(group: Sequence[Prediction]) -> list[str]:
    """Counts, AUROCs with intervals, and rates of decisions; OTHER counts as negative in none but the second AUROC."""
    positive = np.array([each.label in ("OPACITY", "PNEUMONIA") for each in group])
    other = np.array([each.label == "OTHER" for each in group])
    scores = np.array([each.raw_probability for each in group])
    clusters = cluster_by_patient([each.patient for each in group], len(group))
    strange = np.array([each.decision == "out_of_distribution" for each in group])
    called = np.array([each.predicted_label == "PNEUMONIA" for each in group])
    truth = np.where(positive, "PNEUMONIA", "NORMAL")
    held = np.array([label in each.prediction_set for label, each in zip(truth, group, strict=True)])
    unsure = np.array([each.decision == "uncertain" for each in group])

    def rate(hits: np.ndarray, among: np.ndarray) -> str:
        if not among.any():
            return "–"
        low, high = rate_interval(hits, among, clusters, 0.95)
        return f"{hits[among].mean():.3f} ({low:.3f} to {high:.3f})"

    answered, certain = ~strange & ~other, ~other
    return [
        *(str(int(each.sum())) for each in (positive, ~positive & ~other, other)),
        rank(positive[certain], scores[certain], clusters[certain]),
        rank(positive, scores, clusters) if other.any() else "–",
        rate(called, positive),
        rate(~called, ~positive & ~other),
        rate(held, answered),
        rate(unsure, answered),
        rate(strange, certain),
    ]


def rank(positive: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> str:
    """An AUROC with its interval by patient, as `evaluate` finds it."""
    clusters = np.unique(clusters, return_inverse=True)[1]
    auroc = float(auroc_covariance(positive, scores[None], clusters)[0][0])
    (low, high), _ = find_auroc_interval(positive.astype(int), scores, auroc, clusters)
    return f"{auroc:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
