"""Images worth looking at: the surest mistakes, the most doubtful, and those unlike any seen in training."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import ImageError, PneumoscopeError
from pneumoscope.evaluation.cases import Case, stack_probabilities
from pneumoscope.evaluation.curves import confidence_of
from pneumoscope.images.read import read_radiograph
from pneumoscope.inference.explain import explain
from pneumoscope.inference.overlays import render_thumbnail
from pneumoscope.inference.predictor import Predictor

LARGEST = 80_000  # bytes of a picture; with the number of images they bound the page
_SIDES = (320, 200, 100)  # pixels of an image's longer side; the first is enough for a closer look

Draw = Callable[[int], bytes | None]  # index of a case -> JPEG, or None where it cannot be drawn


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery, with its picture as a data URI, or nothing."""

    case: Case
    picture: str


@dataclass(frozen=True)
class Wall:
    """Images that are shown for one reason; `total` is how many there would be."""

    title: str
    meaning: str
    exhibits: tuple[Exhibit, ...]
    total: int


def choose_mistakes(cases: Sequence[Case], threshold: float) -> list[int]:
    """List wrong calls of images that were not refused as ood, the surest first."""
    sure = confidence_of(stack_probabilities(cases), threshold)
    wrong = [
        i
        for i, case in enumerate(cases)
        if case.predicted_label != case.label and case.decision != "out_of_distribution"
    ]
    return sorted(wrong, key=lambda i: -sure[i])


def choose_doubtful(cases: Sequence[Case], threshold: float) -> list[int]:
    """List images that were not refused as ood, the one nearest to the threshold first."""
    sure = confidence_of(stack_probabilities(cases), threshold)
    return sorted((i for i, case in enumerate(cases) if case.decision != "out_of_distribution"), key=lambda i: sure[i])


def choose_ood(cases: Sequence[Case]) -> list[int]:
    """List images that were refused as ood, the strangest first."""
    return sorted(
        (i for i, case in enumerate(cases) if case.decision == "out_of_distribution"),
        key=lambda i: -(cases[i].ood_score or 0),
    )


def hang(cases: Sequence[Case], threshold: float, draw: Draw | None = None, most: int = 6) -> list[Wall]:
    """Choose images and draw them; nothing hangs twice.

    Args:
        cases: all there are.
        threshold: the decision's.
        draw: draws the case of that index as JPEG.
        most: images for each reason.
    """
    mistakes = choose_mistakes(cases, threshold)
    doubtful = [i for i in choose_doubtful(cases, threshold) if i not in set(mistakes[:most])]
    ood = choose_ood(cases)
    nearest = (
        "Nearest to the threshold" if len(cases[0].probabilities) == 2 else "Lowest probabilities of what was called"
    )
    walls = (
        ("Surest mistakes", "Look: the label may be the error.", mistakes, len(mistakes)),
        ("Most doubtful", f"{nearest}, right or wrong.", doubtful[: max(1, len(cases) // 4)], 0),
        ("Unlike the training radiographs", "Refused as ood, the strangest first.", ood, len(ood)),
    )  # fmt: skip
    return [
        Wall(title, meaning, tuple(Exhibit(cases[i], _uri(draw, i)) for i in chosen[:most]), total)
        for title, meaning, chosen, total in walls
        if chosen
    ]


def draw_explained(predictor: Predictor, sample: Sample, label: str | None = None) -> bytes | None:
    """Draw an image beside itself under its map as JPEG; alone where it cannot be explained, None where not even read.

    Args:
        predictor: the classifier.
        sample: the image.
        label: the class that the map is of; by default the positive one of two, the likeliest of more.
    """
    try:
        explanation = explain(sample, predictor, label)
    except ImageError:
        return None
    except PneumoscopeError:  # such as an extra that is not installed
        return draw_image(sample)
    for side in _SIDES:
        content = render_thumbnail(explanation, side)
        if len(content) <= LARGEST:
            return content
    return draw_image(sample)


def draw_image(sample: Sample) -> bytes | None:
    """Draw an image as JPEG, or return None where it cannot be read."""
    from PIL import Image

    try:
        pixels = read_radiograph(sample.path, reading=sample.reading, min_side=_SIDES[0]).pixels
    except ImageError:
        return None
    image = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    for side in _SIDES:
        file = io.BytesIO()
        image.thumbnail((side, side))
        image.save(file, "JPEG", quality=80)
        if file.tell() <= LARGEST:
            return file.getvalue()
    return None


def _uri(draw: Draw | None, index: int) -> str:
    content = draw(index) if draw else None
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if content else ""
