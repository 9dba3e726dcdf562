"""The pointing game of the quality benchmarks: boxes, maps and points are held against each other in the same place."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pointing_game import (
    Marked,
    average_others,
    choose,
    divide,
    find_maps,
    find_peak,
    main,
    read_marked,
    resize,
    score_baselines,
    score_maps,
)

from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.engines import Activations
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.training.train import Run

COLUMNS = ("path", "label", "patient", "age", "sex", "view", "source", "sharp", "boxes", "nih")


class Brightness:
    """An engine that sees nothing but brightness: its map are averages of cells of 16 pixels."""

    fingerprint, batch_size, width = "brightness", 4, 1

    def run(self, inputs: np.ndarray, maps: bool = False) -> Activations:
        count, _, side, _ = inputs.shape
        cells = inputs[:, :1].reshape(count, 1, side // 16, 16, side // 16, 16).mean((3, 5))
        features = cells.mean((2, 3))
        return Activations(features, features, cells if maps else None)


def look_at_brightness(run: Run, spec: InputSpec) -> Predictor:
    known = load(run.model, "cpu", ood=False)
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    return Predictor(replace(known.model, input=spec), one, zero, Brightness(), known.decider)


def draw(path: Path, shape: tuple[int, int], box: tuple[float, float, float, float]) -> Path:
    """A black image with a bright box."""
    pixels = np.zeros(shape, np.uint8)
    left, top, width, height = box
    rows = slice(round(top * shape[0]), round((top + height) * shape[0]))
    pixels[rows, round(left * shape[1]) : round((left + width) * shape[1])] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(400, 400), (300, 420), (420, 300)])
@pytest.mark.parametrize("box", [(0.3, 0.25, 0.15, 0.2), (0.55, 0.6, 0.2, 0.15)])
def test_a_map_that_sees_the_box_hits_it_whatever_the_fit_and_the_shape(
    fit: Any, shape: tuple[int, int], box: tuple[float, float, float, float], run: Run, tmp_path: Path
) -> None:
    path = draw(tmp_path / "image.png", shape, box)
    spec = InputSpec(224, fit, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = Marked(path, path, "1", "PA", (box,))
    maps = find_maps(look_at_brightness(run, spec), [image])
    ((hit, near, share),) = score_maps(maps, [image])
    assert (hit, near) == (1, 1)
    assert share > 0.55  # cells at its edge reach beyond it
    left, top, width, height = box
    mirrored = (1 - left - width, 1 - top - height, width, height)
    ((hit, near, share),) = score_maps(maps, [replace(image, boxes=(mirrored,))])
    assert (hit, near) == (0, 0)
    assert share < 0.05


def test_the_strongest_cell_of_a_padded_border_is_no_peak(run: Run, tmp_path: Path) -> None:
    path = draw(tmp_path / "image.png", (200, 400), (0.25, 0.4, 0.2, 0.2))
    spec = InputSpec(224, "pad", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    (found,) = look_at_brightness(run, spec).run([path], maps=True)
    assert found.evidence is not None
    cells = found.evidence.cells.copy()
    cells[0, 0] = 9
    across, down = find_peak(replace(found.evidence, cells=cells))
    assert 0.25 < across < 0.45
    assert 0.4 < down < 0.6


def test_baselines_come_from_other_patients_and_their_share_is_the_area() -> None:
    here, there = (0.1, 0.1, 0.25, 0.25), (0.6, 0.6, 0.25, 0.25)
    images = [
        Marked(Path(f"{n}"), Path(f"{n}"), patient, "PA", (box,))
        for n, (patient, box) in enumerate([("a", here), ("a", here), ("a", here), ("b", there), ("c", there)])
    ]
    scores = score_baselines(images, images)
    assert scores["mean boxes"][:, 0].tolist() == [0, 0, 0, 0, 0]  # b is held against a's three and c's one
    assert scores["chance"][:, 2] == pytest.approx(1 / 16, abs=1e-3)
    assert scores["mean boxes"][3, 2] == pytest.approx(1 / 4, abs=1e-3)
    grown = (0.25 + 2 * 15 / 1024) ** 2
    assert scores["chance"][:, 1] == pytest.approx(grown, abs=2e-3)


def test_the_mean_map_of_others_knows_nothing_of_the_patient(run: Run, tmp_path: Path) -> None:
    boxes = [(0.1, 0.1, 0.3, 0.3), (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.3, 0.3)]
    paths = [draw(tmp_path / f"{n}.png", (224, 224), box) for n, box in enumerate(boxes)]
    images = [Marked(path, path, name, "PA", (box,)) for path, name, box in zip(paths, "aab", boxes, strict=True)]
    maps = find_maps(look_at_brightness(run, InputSpec(224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))), images)
    assert score_maps(maps, images)[:, 0].tolist() == [1, 1, 1]
    others = average_others(maps, images)
    assert score_maps(others, images)[:, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(others[0].cells, maps[2].cells)


def test_a_larger_input_gives_a_finer_map_of_the_same_weights(run: Run, images: Path) -> None:
    predictor = load(run.model, "cpu", engine="torch", ood=False)
    path = next((images / "test").rglob("*.png"))
    first, second = (next(iter(each.run([path], maps=True))) for each in (predictor, resize(predictor, 192)))
    assert first.evidence is not None
    assert second.evidence is not None
    assert (first.evidence.cells.shape, second.evidence.cells.shape) == ((4, 4), (6, 6))
    again = next(iter(resize(resize(predictor, 192), 128).run([path], maps=True)))
    assert again.logits == pytest.approx(first.logits, abs=1e-4)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A folder of data like that of the adults: nine images with boxes, and some that must be left out."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        box = [*rng.uniform(0.1, 0.4, 2).round(3).tolist(), *rng.uniform(0.1, 0.5, 2).round(3).tolist()]
        names = [f"{side}/rsna/{number}.png" for side in (224, 512)]
        for name, side in zip(names, (224, 512), strict=True):
            draw(tmp_path / "adults" / name, (side, side), (box[0], box[1], box[2], box[3]))
        row = dict.fromkeys(COLUMNS, "")
        row |= {"path": names[0], "sharp": names[1], "patient": str(number // 2), "view": ("PA", "AP")[number % 2]}
        row |= {"source": "rsna" if number < 11 else "nih", "boxes": json.dumps([box] if number != 9 else [])}
        row |= {"label": "NORMAL" if number == 10 else "OPACITY"}
        rows.append(row | ({"boxes": ""} if number == 9 else {}))
    with (tmp_path / "adults" / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def test_images_with_boxes_are_read_and_restricted_to_patients(marked: Path, tmp_path: Path) -> None:
    images = read_marked(marked)
    assert len(images) == 9
    listed = tmp_path / "patients.txt"
    listed.write_text(f"1\n\nsomewhere/{images[8].small.name}\n")
    assert [image.patient for image in choose(images, listed)] == ["1", "1", "4"]
    listed.write_text("nobody\n")
    with pytest.raises(SystemExit, match=r"patients.txt: none of its 1 lines"):
        choose(images, listed)
    groups = dict(divide(images))
    assert groups["PA"].sum() + groups["AP"].sum() == 9
    assert [kept.sum() for kept in list(groups.values())[3:]] == [3, 3, 3]


def test_the_tables_have_a_row_for_each_group_and_map(
    marked: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pointing_game.py", "--data", str(marked), "--model", str(run.model), "--sizes", "128,256"]
    monkeypatch.setattr("sys.argv", command)
    main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 * 2 + 6 * 7 + 6 * 4
    assert sum("| map, 256 |" in line for line in lines) == 6
    assert sum("| map, 256, minus mean map of others, 256 |" in line for line in lines) == 6
