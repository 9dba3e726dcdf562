"""Which images a report shows, and how they are drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import MissingExtraError
from pneumoscope.evaluation.cases import Case
from pneumoscope.inference.predictor import load
from pneumoscope.reports.gallery import LARGEST, draw_explained, draw_image, hang

if TYPE_CHECKING:
    from pathlib import Path

    from pneumoscope.training.train import Run

CLASSES = ("NORMAL", "PNEUMONIA")


def case(name: str, label: int, p: float, threshold: float = 0.4, ood_score: float = 0.5) -> Case:
    call = CLASSES[int(p >= threshold)]
    return Case(
        name, CLASSES[label], (1 - p, p), call, "out_of_distribution" if ood_score > 1 else call, ood_score=ood_score
    )  # fmt: skip


def test_the_surest_mistakes_come_first_and_nothing_hangs_twice() -> None:
    cases = [
        case("a", 0, 0.7), case("b", 1, 0.02), case("c", 1, 0.9), case("d", 0, 0.45), case("e", 1, 0.6),
        case("f", 0, 0.99, ood_score=1.5), case("g", 0, 0.39), case("h", 1, 0.8, ood_score=2.5),
    ]  # fmt: skip
    walls = {wall.title: [exhibit.case.path for exhibit in wall.exhibits] for wall in hang(cases, 0.4, most=2)}
    # sureness counts from the threshold: (0.7 - 0.4) / 0.6 for a, (0.4 - 0.02) / 0.4 for b, 0.083 for d
    assert walls["Surest mistakes"] == ["b", "a"]
    assert walls["Most doubtful"] == ["g", "d"]
    assert walls["Unlike the training radiographs"] == ["h", "f"]
    assert [wall.total for wall in hang(cases, 0.4)] == [3, 0, 2]
    assert [wall.title for wall in hang([case("c", 1, 0.9)], 0.4)] == ["Most doubtful"]


def test_pictures_are_image_and_map_of_bounded_size(run: Run, tmp_path: Path) -> None:
    predictor = load(run.model, "cpu")
    noise = tmp_path / "noise.png"  # nothing compresses worse
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700), dtype=np.uint8)).save(noise)
    content = draw_explained(predictor, Sample(noise))
    assert content
    assert len(content) <= LARGEST
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.width) == ("JPEG", 2 * image.height)
        colour = np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).mean(0)
    assert colour[: image.width // 2].mean() < 3 < colour[image.width // 2 :].mean()
    assert draw_explained(predictor, Sample(tmp_path / "missing.png")) is None

    def refuse(*_: object) -> None:
        raise MissingExtraError("not installed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.reports.gallery.explain", refuse)
        alone = draw_explained(predictor, Sample(noise))
    assert alone
    with Image.open(io.BytesIO(alone)) as image:
        assert (image.format, image.size) == ("JPEG", (320, 320))
    assert draw_image(Sample(tmp_path / "missing.png")) is None


def test_what_cannot_be_drawn_hangs_without_a_picture() -> None:
    (wall,) = hang([case("c", 1, 0.9)], 0.4, draw=lambda _: b"content")
    assert wall.exhibits[0].picture == "data:image/jpeg;base64,Y29udGVudA=="
    (wall,) = hang([case("c", 1, 0.9)], 0.4, draw=lambda _: None)
    assert wall.exhibits[0].picture == ""
