"""Which images a report shows, and how they are drawn."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import MissingExtraError
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import load
from pneumoscope.reports.gallery import LARGEST, choose_images, draw_explained

if TYPE_CHECKING:
    from pneumoscope.training.train import Run

CLASSES = ("NORMAL", "PNEUMONIA")


def predicted(name: str, label: int, p: float, threshold: float = 0.4, ood_score: float = 0.5) -> Prediction:
    by_threshold = CLASSES[int(p >= threshold)]
    return Prediction(
        path=Path(name),
        label=CLASSES[label],
        probabilities=dict(zip(CLASSES, (1 - p, p), strict=True)),
        predicted_label=by_threshold,
        decision="out_of_distribution" if ood_score > 1 else by_threshold,
        ood_score=ood_score,
    )


def test_the_most_confident_errors_come_first_and_no_image_appears_twice() -> None:
    predictions = [
        predicted("a", 0, 0.7), predicted("b", 1, 0.02), predicted("c", 1, 0.9), predicted("d", 0, 0.45),
        predicted("e", 1, 0.6), predicted("f", 0, 0.99, ood_score=1.5), predicted("g", 0, 0.39),
        predicted("h", 1, 0.8, ood_score=2.5),
    ]  # fmt: skip
    chosen = choose_images(predictions, 0.4, most=2)
    groups = {group.title: [str(image.path) for image, _ in group.images] for group in chosen}
    # confidence counts from the threshold: 0.59 / 0.6 for f, (0.4 - 0.02) / 0.4 for b, 0.3 / 0.6 for a, 0.083 for d
    assert groups["Most confident errors"] == ["f", "b"]
    assert groups["Least certain"] == ["g", "d"]
    assert groups["Out of distribution"] == ["h"]
    assert [group.total for group in choose_images(predictions, 0.4)] == [4, 0, 2]
    assert [group.title for group in choose_images([predicted("c", 1, 0.9)], 0.4)] == ["Least certain"]


def read_uri(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_pictures_are_image_and_map_of_bounded_size(run: Run, tmp_path: Path) -> None:
    predictor = load(run.model, "cpu")
    noise = tmp_path / "noise.png"  # nothing compresses worse
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700), dtype=np.uint8)).save(noise)
    content = read_uri(draw_explained(predictor, Sample(noise)))
    assert len(content) <= LARGEST
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.width) == ("JPEG", 2 * image.height)
        colour = np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).mean(0)
    assert colour[: image.width // 2].mean() < 3 < colour[image.width // 2 :].mean()
    assert draw_explained(predictor, Sample(tmp_path / "missing.png")) == ""

    def refuse(*_: object) -> None:
        raise MissingExtraError("not installed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.reports.gallery.explain", refuse)
        alone = read_uri(draw_explained(predictor, Sample(noise)))
    assert len(alone) <= LARGEST
    with Image.open(io.BytesIO(alone)) as image:
        assert (image.format, image.size) == ("WEBP", (320, 320))


def test_an_image_that_cannot_be_drawn_appears_without_a_picture() -> None:
    (group,) = choose_images([predicted("c", 1, 0.9)], 0.4, draw=lambda i: f"picture {i}")
    assert group.images[0][1] == "picture 0"
    (group,) = choose_images([predicted("c", 1, 0.9)], 0.4)
    assert group.images[0][1] == ""
