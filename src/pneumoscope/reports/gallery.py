"""Images to review: the most confident errors, the least certain images, and those out of distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.errors import ImageError, PneumoscopeError
from pneumoscope.evaluation.curves import confidence_of
from pneumoscope.evaluation.evaluate import rank_errors
from pneumoscope.inference.explain import explain
from pneumoscope.inference.overlays import render_thumbnail
from pneumoscope.inference.prediction import Prediction, stack_probabilities
from pneumoscope.inference.predictor import Predictor
from pneumoscope.reports.pictures import draw_thumbnail, to_uri

LARGEST = 80_000  # bytes of a picture; with the number of images they bound the page
SHOWN = 6  # images in each group
_SIDES = (320, 200, 100)  # pixels of an image's longer side; the first is enough for a closer look

Draw = Callable[[int], str]  # index of an image -> its picture as a data URI, or nothing where it cannot be drawn


@dataclass(frozen=True)
class Group:
    """Images shown for one reason, with pictures as data URIs; `total` have it, or 0 where that has no meaning."""

    title: str
    meaning: str
    images: tuple[tuple[Prediction, str], ...]
    total: int


def choose_images(
    predictions: Sequence[Prediction], threshold: ArrayLike, draw: Draw | None = None, most: int = SHOWN
) -> list[Group]:
    """Choose at most `most` labelled images for each group and draw them; none appears twice."""
    probabilities = stack_probabilities(predictions)
    confidence = confidence_of(probabilities, threshold)
    inside = [i for i, each in enumerate(predictions) if each.decision != OUT_OF_DISTRIBUTION]
    outside = [i for i, each in enumerate(predictions) if each.decision == OUT_OF_DISTRIBUTION]
    errors = rank_errors(predictions, threshold)
    doubtful = sorted(set(inside) - set(errors[:most]), key=lambda i: (confidence[i], i))
    total = len(outside)
    outside = sorted(set(outside) - set(errors[:most]), key=lambda i: (-(predictions[i].ood_score or 0), i))
    doubt = "Closest to the threshold" if probabilities.ndim == 1 else "Lowest confidence in the predicted label"
    groups = (
        ("Most confident errors", "Check the label too: it may be wrong. All are in errors.csv.", errors, len(errors)),
        ("Least certain", f"{doubt}, right or wrong.", doubtful[: max(1, len(predictions) // 4)], 0),
        ("Out of distribution", "Unlike the training images; highest OOD score first.", outside, total),
    )  # fmt: skip
    return [
        Group(title, meaning, tuple((predictions[i], draw(i) if draw else "") for i in chosen[:most]), total)
        for title, meaning, chosen, total in groups
        if chosen
    ]


def draw_explained(predictor: Predictor, sample: Sample, label: str | None = None) -> str:
    """An image next to its evidence map for a class as a data URI; alone without a map, nothing if it is unreadable."""
    try:
        explained = explain(sample, predictor, label)
    except ImageError:
        return ""
    except PneumoscopeError:  # such as an extra that is not installed
        return draw_thumbnail(sample, _SIDES[0], LARGEST)
    for side in _SIDES:
        content = render_thumbnail(explained, side)
        if len(content) <= LARGEST:
            return to_uri(content, "jpeg")
    return draw_thumbnail(sample, _SIDES[0], LARGEST)
