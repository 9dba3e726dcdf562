"""Explanations: exact sums for every kind of network, the image's own coordinates, pictures that say what they show."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from dicom_files import dicom
from dicom_files import image as draw_levels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.decisions.decisions import Decider, Decisions
from pneumoscope.decisions.threshold import Threshold
from pneumoscope.errors import ImageError, MissingExtraError, UsageError
from pneumoscope.images.prepare import InputSpec, find_box, prepare
from pneumoscope.images.read import Reading, read_pixels
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.evidence import Evidence
from pneumoscope.inference.explain import explain
from pneumoscope.inference.overlays import blend, render_thumbnail, write_explanations, write_overlay
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.backbones import BackboneSpec, build_backbone
from pneumoscope.models.model_folder import Model, load_model
from pneumoscope.training.train import Run


def random_predictor(run: Run, architecture: str, labels: tuple[str, ...] = ("NORMAL", "PNEUMONIA")) -> Predictor:
    """A network of 64 pixels with random weights under a head of random ones."""
    known: dict[str, dict[str, Any]] = {
        "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
        "convnext_tiny": {"head_norm_first": True, "depths": (1, 1, 1, 1)},
    }
    arguments = known.get(architecture, {})
    spec = InputSpec(64)
    torch.manual_seed(1)
    backbone = build_backbone(BackboneSpec(architecture, architecture, "", "", spec, arguments))
    torch.manual_seed(1)
    for value in backbone.parameters():
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value) if value.ndim == 4 else torch.nn.init.trunc_normal_(value, std=0.05)
    positive = labels[1] if len(labels) == 2 else None
    model: Model = replace(load_model(run.folder), input=spec, labels=labels, positive=positive)
    rng = np.random.default_rng(2)
    outputs = 1 if len(labels) == 2 else len(labels)
    weight = rng.normal(0, 0.3, (outputs, backbone.width)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    decisions = Decisions(Calibration(), Threshold() if outputs == 1 else None)
    return Predictor(model, weight, bias, TorchEngine(backbone, 64, "cpu"), Decider(labels, decisions))


def stand_in(shape: tuple[int, int], box: tuple[float, float, float, float], cells: object) -> Evidence:
    return Evidence(
        label="PNEUMONIA", method="cam", logit=2.0, bias=0.5, cells=np.array(cells, np.float32), box=box, shape=shape
    )


def predicted(evidence: Evidence, **known: Any) -> Prediction:
    pixels = np.full(evidence.shape, 0.5, np.float32)
    return Prediction(**{"path": Path("image.png"), **known}, evidence=evidence, pixels=pixels)


def find(*arguments: Any, **options: Any) -> Evidence:
    evidence = explain(*arguments, **options).evidence
    assert evidence is not None
    return evidence


@pytest.fixture
def image(images: Path) -> Path:
    return next((images / "test" / "PNEUMONIA").iterdir())


# Sums


@pytest.mark.parametrize(
    "architecture", ["resnet18", "densenet121", "convnext_tiny", "vit_tiny_patch16_224", "tf_efficientnet_lite0"]
)
def test_the_mean_of_the_map_and_the_bias_are_the_logit(architecture: str, run: Run, image: Path) -> None:
    predictor = random_predictor(run, architecture)
    found = find(image, predictor, method="cam")
    (prediction,) = predictor.predict(image)
    assert found.cells.mean() + found.bias == pytest.approx(found.logit, abs=1e-5)
    assert found.logit == pytest.approx(prediction.logits[0], abs=1e-5)
    assert found.bias == predictor.bias[0]
    assert found.cells.std() > 1e-4
    against = find(image, predictor, "NORMAL", method="cam")
    np.testing.assert_array_equal(against.cells, -found.cells)
    assert (against.logit, against.bias, against.label) == (-found.logit, -found.bias, "NORMAL")


def test_each_of_more_classes_has_its_own_map(run: Run, image: Path) -> None:
    labels = ("BACTERIA", "NORMAL", "VIRUS")
    predictor = random_predictor(run, "resnet18", labels)
    (prediction,) = predictor.predict(image)
    for label, logit in zip(labels, prediction.logits, strict=True):
        found = find(image, predictor, label)
        assert found.logit == pytest.approx(logit, abs=1e-5)
        assert found.cells.mean() + found.bias == pytest.approx(logit, abs=1e-5)
    assert find(image, predictor).label == labels[int(np.argmax(prediction.logits))]
    with pytest.raises(UsageError, match=r"label: .*no class 'TUMOUR'.*BACTERIA, NORMAL, VIRUS"):
        find(image, predictor, "TUMOUR")


def test_integrated_gradients_add_up_from_the_blurred_images_logit(run: Run, image: Path) -> None:
    pytest.importorskip("captum")
    predictor = random_predictor(run, "vit_tiny_patch16_224")
    found = find(image, predictor, method="ig")
    assert found.cells.mean() + found.bias == pytest.approx(found.logit, abs=1e-5)
    blurred = gaussian_filter(prepare(read_pixels(image), predictor.model.input), 0.09 * 64, axes=(1, 2))
    logit = predictor.engine.run(blurred[None]).features[0] @ predictor.weight[0] + predictor.bias[0]
    apart = abs(found.logit - float(logit))
    assert apart > 0.01
    assert found.bias == pytest.approx(float(logit), abs=0.1 * apart)
    assert found.cells.shape == (4, 4)


def test_auto_takes_gradients_where_attention_mixes_places(
    run: Run, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = random_predictor(run, "vit_tiny_patch16_224")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert find(image, load(run.folder)).method == "cam"
    with pytest.raises(MissingExtraError, match=r"pip install captum.*`method='cam'`"):
        find(image, transformer)


def test_other_weights_give_another_map(run: Run, image: Path) -> None:
    predictor = load(run.folder)
    before = find(image, predictor).cells
    after = find(image, random_predictor(run, "tf_efficientnet_lite0")).cells
    other_head = np.random.default_rng(0).normal(size=predictor.weight.shape).astype(np.float32)
    head = find(
        image, Predictor(predictor.model, other_head, predictor.bias, predictor.engine, predictor.decider)
    ).cells
    assert abs(np.corrcoef(before.ravel(), head.ravel())[0, 1]) < 0.8
    assert before.shape != after.shape or abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.8


# Places


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(30, 300),
    width=st.integers(30, 300),
    fit=st.sampled_from(["crop", "pad", "squash"]),
    cell=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
def test_a_cell_lies_on_the_image_where_the_network_saw_it(
    height: int, width: int, fit: Literal["crop", "pad", "squash"], cell: tuple[int, int]
) -> None:
    left, top, right, bottom = box = find_box((height, width), InputSpec(224, fit=fit))
    cells = np.zeros((7, 7), np.float32)
    cells[cell] = 1
    map_ = stand_in((height, width), box, cells).map()
    assert map_.shape == (height, width)
    seen = ~np.isnan(map_)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    np.testing.assert_array_equal(seen.any(1), (rows >= top) & (rows <= bottom))
    np.testing.assert_array_equal(seen.any(0), (columns >= left) & (columns <= right))
    y, x = top + (cell[0] + 0.5) * (bottom - top) / 7, left + (cell[1] + 0.5) * (right - left) / 7
    if 0 <= y < height and 0 <= x < width:
        peak = np.unravel_index(int(np.nanargmax(map_)), map_.shape)
        assert abs(peak[0] + 0.5 - y) <= (bottom - top) / 14 + 1
        assert abs(peak[1] + 0.5 - x) <= (right - left) / 14 + 1
    assert fit != "crop" or np.nanmean(map_) == pytest.approx(1 / 49, abs=0.008)


def test_the_map_at_the_images_size_keeps_the_cells_mean() -> None:
    cells = np.random.default_rng(0).normal(size=(7, 7))
    found = stand_in((224, 224), (0, 0, 224, 224), cells)
    assert found.map().mean() == pytest.approx(cells.mean(), abs=1e-6)
    assert found.map((112, 112)).mean() == pytest.approx(cells.mean(), abs=1e-6)


def test_a_large_jpeg_that_is_read_at_a_reduced_scale_keeps_its_own_coordinates(run: Run, tmp_path: Path) -> None:
    predictor = random_predictor(run, "resnet18")
    Image.radial_gradient("L").resize((1600, 1200)).save(tmp_path / "large.jpg", quality=95)
    prediction = explain(tmp_path / "large.jpg", predictor)
    found = prediction.evidence
    assert found is not None
    assert prediction.pixels is not None
    assert prediction.pixels.shape == (600, 800)
    assert found.shape == (1200, 1600)
    assert found.box == pytest.approx(find_box((1200, 1600), predictor.model.input))


def test_an_image_is_read_as_its_sample_says_and_from_bytes(run: Run, image: Path) -> None:
    predictor = load(run.folder)
    inverted = Sample(image, reading=Reading(invert=True))
    assert find(inverted, predictor).logit == pytest.approx(predictor.predict(inverted)[0].logits[0], abs=1e-4)
    assert find(inverted, predictor).logit != find(image, predictor).logit
    assert explain(image.read_bytes(), predictor).path is None


# Pictures


def test_an_overlay_shows_the_image_and_beside_it_the_evidence(tmp_path: Path) -> None:
    found = stand_in((300, 400), (50, 0, 350, 300), [[9, 0, 0], [0, 0, 0], [0, 0, -9]])
    write_overlay(predicted(found), tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as opened:
        assert opened.format == "PNG"
        picture = np.asarray(opened.convert("RGB"), np.int16)
    assert 1900 < picture.shape[1] < 2100
    colour = picture[..., 0] - picture[..., 2]
    half = picture.shape[1] // 2 - 60
    assert np.abs(colour[:, :half]).max() == 0  # the image alone is grey
    beside = colour[:, half:-160]
    warm, cold = (np.argwhere(beside == value)[0] for value in (beside.max(), beside.min()))
    assert beside.max() > 50
    assert beside.min() < -20
    assert warm[0] < cold[0]  # the evidence for the class lies up and left, that against it down and right
    assert warm[1] < cold[1]
    assert np.ptp(colour[:, -160:]) > 100  # the scale has both colours


def test_nothing_is_drawn_where_nothing_speaks_or_nothing_was_seen() -> None:
    image = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    for map_ in (np.zeros((4, 5), np.float32), np.full((4, 5), np.nan, np.float32)):
        np.testing.assert_allclose(blend(image, map_, 1.0), np.repeat(image[..., None], 3, 2), atol=1e-6)
    strong = blend(image, np.full((4, 5), 2, np.float32), 1.0).mean(2)
    assert (np.diff(strong.ravel()) > 0).all()  # the image stays readable under the strongest evidence


def test_the_colours_are_perceptually_uniform() -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    line = np.linspace(-1, 1, 41, dtype=np.float32)[None]
    lab = rgb2lab(blend(np.full_like(line, 0.5), line, 1.0))
    steps = deltaE_ciede2000(lab[:, 1:], lab[:, :-1])  # type: ignore[no-untyped-call]
    assert steps.max() < 2.5 * steps.min()


@pytest.mark.parametrize("shape", [(400, 300), (30, 2000), (2000, 30)])
def test_images_of_any_shape_are_drawn(shape: tuple[int, int], tmp_path: Path) -> None:
    found = stand_in(shape, (0, 0, shape[1], shape[0]), np.ones((7, 7)))
    named = replace(found, label="a class of a very long name indeed, which nobody would type")
    odd = replace(named, label="A$_$B 肺炎\x1b")  # would be a formula, has no glyphs, and cannot be printed
    for evidence in (named, odd):
        known = {"path": Path("$x_{$.png"), "probability": 0.5, "decision": evidence.label}
        write_overlay(predicted(evidence, **known), tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as picture:
        assert max(picture.size) < 2100
    with Image.open(io.BytesIO(render_thumbnail(predicted(found), 160))) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size[0] / 2, picture.size[1]) == 160


# Commands' jobs


def test_a_folder_of_explanations_has_a_row_and_a_picture_an_image(run: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    same = tmp_path / "a" / image.name
    same.write_bytes(image.read_bytes())
    (tmp_path / "$odd, name.png").write_bytes(image.read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [image, tmp_path / "bad.png", same, tmp_path / "$odd, name.png"]
    predictor, out, done = load(run.folder), tmp_path / "out", list[tuple[str, int, int]]()
    samples = [Sample(path) for path in paths]
    (error,) = write_explanations(predictor, samples, out, progress=lambda *step: done.append(step))
    assert "bad.png" in error
    assert done == [("Explaining", number, 4) for number in (1, 2, 3, 4)]
    with (out / "explanations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]) for row in rows] == paths
    assert "bad.png" in rows[1]["error"]
    assert rows[1]["overlay"] == rows[1]["logit"] == rows[1]["decision"] == ""
    assert rows[0]["decision"] == predictor.predict(image)[0].decision
    pictures = [row["overlay"] for row in rows if row["overlay"]]
    assert len(set(pictures)) == 3
    assert sorted(path.name for path in (out / "overlays").iterdir()) == sorted(Path(name).name for name in pictures)
    found = find(image, predictor)
    assert float(rows[0]["minimum"]) == pytest.approx(float(found.cells.min()))
    assert float(rows[0]["maximum"]) == pytest.approx(float(found.cells.max()))
    with pytest.raises(UsageError, match="already exists"):
        write_explanations(predictor, [Sample(image)], out)
    write_explanations(predictor, [Sample(image)], out, overwrite=True)
    assert len(list((out / "overlays").iterdir())) == 1


def test_warnings_of_explained_images_are_counted(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(dicom(draw_levels(), ViewPosition="LL", frames=3))
    write_explanations(load(run.folder), [Sample(tmp_path / name) for name in ("a.dcm", "b.dcm")], tmp_path / "out")
    assert [line for line in caplog.messages if "frames" in line] == [
        "2 images have the warning 'the file has 3 frames (the first was read)'."
    ]
    assert "2 images have the warning 'outside the intended use: view LL (meant for frontal views)'." in caplog.messages


def test_an_interrupted_folder_of_explanations_lists_its_pictures(run: Run, image: Path, tmp_path: Path) -> None:
    def interrupt(task: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_explanations(load(run.folder), [Sample(image)] * 3, tmp_path / "out", progress=interrupt)
    with (tmp_path / "out" / "explanations.csv").open(newline="") as file:
        assert [row["overlay"] for row in csv.DictReader(file)] == [
            f"overlays/{path.name}" for path in sorted((tmp_path / "out" / "overlays").iterdir())
        ]


def test_a_file_that_cannot_be_read_is_an_image_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png"):
        find(tmp_path / "missing.png", load(run.folder))
