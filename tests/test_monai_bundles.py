"""A MONAI bundle runs with MONAI alone and gives the probabilities of the model that it was made from."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom
from dicom_files import image as levels
from PIL import Image

from pneumoscope import monai_bundles
from pneumoscope.decisions.calibration import Calibration, apply
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.decisions.rules import describe_rules
from pneumoscope.errors import DataError, MissingExtraError, ModelError
from pneumoscope.exporting import export
from pneumoscope.images.prepare import InputSpec, prepare
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.predictor import load
from pneumoscope.training.train import Run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None or importlib.util.find_spec("fire") is None, reason="MONAI is missing"
)
warnings_of_monai = pytest.mark.filterwarnings("ignore")  # about what MONAI imports, and TorchScript


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(tmp_path_factory.mktemp("bundles") / "bundle", run.folder, "monai").folder


@warnings_of_monai
def test_a_bundle_runs_without_pneumoscope_and_gives_the_same_probabilities(
    bundle: Path, run: Run, images: Path, tmp_path: Path
) -> None:
    script = (
        "import runpy, sys, warnings; warnings.simplefilter('ignore'); sys.modules['pneumoscope'] = None; "
        "sys.argv[0] = 'monai.bundle'; runpy.run_module('monai.bundle', run_name='__main__')"
    )
    command = [
        sys.executable, "-c", script, "run", "--config_file", "configs/inference.json", "--meta_file",
        "configs/metadata.json", "--dataset_dir", str(images / "test"), "--output_dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = {row[0]: [float(cell) for cell in row[1:]] for row in csv.reader(file)}
    predictions = load(run.model, engine="torch", ood=False).predict(sorted((images / "test").rglob("*.png")))
    assert len(rows) == len(predictions) == 12
    for each in predictions:
        assert rows[str(each.path)] == pytest.approx(list((each.probabilities or {}).values()), abs=1e-5)


@warnings_of_monai
def test_a_bundle_says_what_it_is_and_how_it_was_checked(bundle: Path, run: Run) -> None:
    assert {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} == {
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "export.json",
        "models/model.ts",
    }  # fmt: skip
    readme = (bundle / "docs" / "README.md").read_text()
    assert re.search(r"Checked on 12 images: probabilities differ by at most \S+; 0 decisions changed\.", readme)
    assert (run.model / "README.md").read_text().splitlines()[-1] in readme
    assert "library_name:" not in readme  # metadata are for the beginning of a file
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    # The fields that MONAI's schema (meta_schema_20240725.json) requires, and their types.
    texts = {
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "description",
        "authors",
        "copyright",
    }
    assert all(isinstance(metadata[name], str) for name in texts)
    assert isinstance(metadata["required_packages_version"], dict)
    image, prediction = (
        metadata["network_data_format"][kind][name] for kind, name in (("inputs", "image"), ("outputs", "pred"))
    )
    for tensor in (image, prediction):
        assert {type(tensor[name]) for name in ("type", "format", "dtype")} == {str}
        assert isinstance(tensor["num_channels"], int)
        assert isinstance(tensor["spatial_shape"], list)
        assert len(tensor["value_range"]) == 2
    assert image["spatial_shape"] == [128, 128]
    assert prediction["channel_def"] == {"0": "NORMAL", "1": "PNEUMONIA"}
    with pytest.raises(ModelError, match="no model here"):
        load(bundle)
    import torch

    assert torch.is_grad_enabled()  # as before the export


@warnings_of_monai
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_images_are_prepared_as_the_model_prepares_them(fit: Any, interpolation: Any, tmp_path: Path) -> None:
    from monai.bundle.config_parser import ConfigParser

    spec = InputSpec(64, fit, interpolation)
    parser = ConfigParser(monai_bundles._configure(spec))
    transform = parser.get_parsed_content("preprocessing")
    for name, picture in draw().items():
        picture.save(tmp_path / name, exif=rotated() if name.endswith("jpg") else b"")
        expected = prepare(read_pixels(tmp_path / name), spec)
        found = transform({"image": str(tmp_path / name)})["image"].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-5, name


def draw() -> dict[str, Image.Image]:
    """Images of several shapes and types."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 131), np.uint8)
    deep = (noise.astype(np.uint16) * 257 - 5).clip(0).astype(np.uint16)
    return {
        "grey.png": Image.fromarray(noise),
        "deep.png": Image.fromarray(deep.T),
        "small.png": Image.fromarray(noise[:20]),
        "square.png": Image.fromarray(noise[:64, :64]),
        "colour.bmp": Image.fromarray(np.stack([noise] * 3, 2)),
        "turned.jpg": Image.fromarray(noise),
    }


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@warnings_of_monai
@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("platt", 1.5, -0.7, (0.1, -0.2), class_fractions=(0.5, 0.5)),
        Calibration("isotonic", knots=((-2.0, 0.1), (0.5, 0.3), (1.0, 0.9)), class_fractions=(0.5, 0.5)),
        Calibration("temperature", 0.8, offset=(0.1, 0.0, -0.3), class_fractions=(0.4, 0.3, 0.3)),
    ],
)
def test_calibration_is_part_of_the_network(calibration: Calibration, run: Run, tmp_path: Path) -> None:
    import torch

    from pneumoscope.models.backbones import rebuild_backbone
    from pneumoscope.models.model_folder import load_model, load_weights
    from pneumoscope.models.scripted import write_script

    model = load_model(run.model)
    classes = len(calibration.class_fractions)
    decisions = replace(read_decisions(model), calibration=calibration, prediction_sets=None)
    rules = describe_rules(decisions, [f"class {i}" for i in range(classes)])
    backbone = rebuild_backbone(model, load_weights(run.model, model)).eval()
    head = torch.nn.Linear(load_weights(run.model, model)["head.weight"].shape[1], 1 if classes == 2 else classes)
    write_script(backbone, head, 128, rules, tmp_path / "model.ts")
    inputs = torch.rand(3, 3, 128, 128)
    with torch.no_grad():
        found = torch.jit.load(tmp_path / "model.ts")(inputs)  # type: ignore[no-untyped-call]
        logits = head(backbone.describe(inputs)[0].mean((2, 3)))
    assert found.numpy() == pytest.approx(np.exp(apply(logits.numpy(), calibration)), abs=1e-5)


@warnings_of_monai
def test_images_that_monai_does_not_read_are_no_check(run: Run, tmp_path: Path) -> None:
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.dcm").write_bytes(dicom(levels()))
    with pytest.raises(DataError, match=r"MONAI can read none of the images: it reads \.png, \.jpg, \.jpeg, \.bmp"):
        export(tmp_path / "out", run.folder, "monai", tmp_path / "data")
    assert not (tmp_path / "out").exists()


def test_without_monai_nothing_is_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "monai" else found(name, *more)
    )
    with pytest.raises(MissingExtraError, match=r'MONAI is not installed: pip install "pneumoscope\[train,monai\]"'):
        export(tmp_path / "out", run.folder, "monai")
    assert not (tmp_path / "out").exists()
