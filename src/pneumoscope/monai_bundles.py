"""MONAI bundles: models that run in MONAI without this package, and read and prepare images as it does.

The layout and its metadata follow MONAI's specification (https://docs.monai.io/en/stable/mb_specification.html).
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope import __version__
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions import scope
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.decisions.rules import describe_rules
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.evaluation.conversion_check import ROUNDING
from pneumoscope.files import write_text
from pneumoscope.images.prepare import InputSpec
from pneumoscope.inference.predictor import load
from pneumoscope.models.model_folder import Model
from pneumoscope.models.sharing import divide_card

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.models.classifier import Backbone

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")  # what MONAI's PILReader reads
NETWORK = "models/model.ts"
FOLDERS = ("configs", "models", "docs", "LICENSE")  # of a MONAI bundle
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"

_LICENCE = """\
The network in models/ has the licence that docs/README.md states under "Model details". The other files were
written by pneumoscope and have the Apache License, version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).
"""


def check_monai(to: str) -> None:
    """Check that MONAI is installed if the format is `monai`: it runs each MONAI bundle before it is kept.

    Raises:
        MissingExtraError: it is not installed.
    """
    if to == "monai" and importlib.util.find_spec("monai") is None:
        raise MissingExtraError('MONAI is not installed: pip install "pneumoscope[train,monai]".')


def convert(
    draft: Path, folder: Path, model: Model, backbone: Backbone, head: nn.Linear, samples: Sequence[Sample]
) -> tuple[int, float, int]:
    """Write a MONAI bundle without its documents, run it with MONAI, and compare it with the model.

    Args:
        draft: an empty folder for it.
        folder: that of the model.
        model: its description.
        backbone: its network.
        head: its last layer.
        samples: images for the comparison. MONAI knows neither headers nor tables, and has no OOD detector.

    Returns:
        The number of images that MONAI can read, the largest difference of a probability, and the number of images
        whose predicted label differs, not counting those whose probabilities differ by rounding alone.

    Raises:
        DataError: MONAI can read none of the images, or fails.
    """
    paths = [sample.path for sample in samples if sample.path.suffix.lower() in SUFFIXES]
    found = load(folder, "cpu", engine="torch", ood=False).predict(paths) if paths else []
    before = [each for each in found if each.probabilities is not None]
    if not before:
        raise DataError(f"MONAI can read none of the images: it reads {', '.join(SUFFIXES)}.", "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about packages that MONAI could use, and about TorchScript
        _write(draft, model, backbone, head)
        after = _run(draft, [Path(str(each.path)) for each in before])
    first = np.array([list((each.probabilities or {}).values()) for each in before], np.float64)
    distances = np.abs(first - after).max(axis=1)
    differ = np.array([each.predicted_label for each in before]) != np.array(_label(after, model))
    return len(before), float(distances.max()), int((differ & (distances > ROUNDING)).sum())


def _write(folder: Path, model: Model, backbone: Backbone, head: nn.Linear) -> None:
    """Write the network and both configurations."""
    from pneumoscope.models.scripted import write_script

    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    rules = describe_rules(read_decisions(model), model.labels)
    write_script(backbone, head, model.input.size, rules, folder / NETWORK)
    for name, content in (("inference", _configure(model.input)), ("metadata", _describe(model, rules))):
        write_text(folder / "configs" / f"{name}.json", json.dumps(content, indent=4, ensure_ascii=False) + "\n")


def _run(folder: Path, paths: Sequence[Path]) -> NDArray[np.float64]:
    """Run it with MONAI on images, as `python -m monai.bundle run` does; gives probabilities (N, C).

    Raises:
        DataError: it fails.
    """
    import torch
    from monai.bundle.workflows import ConfigWorkflow

    logging.getLogger("monai").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place, torch.no_grad():  # which it would leave switched off
        workflow = ConfigWorkflow(
            str(folder / "configs" / "inference.json"), str(folder / "configs" / "metadata.json"), logging_file=False,
            bundle_root=str(folder), output_dir=place, device="$torch.device('cpu')",
            paths=[str(path.absolute()) for path in paths],
        )  # fmt: skip
        try:
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as problem:  # MONAI wraps whatever a transform or the network raises
            cause: BaseException = problem
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise DataError(f"the MONAI bundle cannot be run: {cause}") from None
        with (Path(place) / "predictions.csv").open(encoding="utf-8", newline="") as file:
            rows = [[float(cell) for cell in row[-_count(folder) :]] for row in csv.reader(file)]
    if len(rows) != len(paths):
        raise DataError(f"MONAI predicted only {len(rows)} of {len(paths)} images.")
    return np.array(rows, np.float64)


def _label(probabilities: NDArray[np.float64], model: Model) -> list[str]:
    """The predicted label of each row of probabilities (N, C), as its README says."""
    decisions = read_decisions(model)
    if decisions.threshold is not None:
        return [model.labels[int(row[1] >= decisions.threshold.value)] for row in probabilities]
    limits = np.array(decisions.class_thresholds or [0.5] * len(model.labels))
    return [model.labels[int(i)] for i in (probabilities / limits).argmax(axis=1)]


def write_documents(folder: Path, model: Model, card: str, checked: str) -> None:
    """Write `docs/README.md`, with the model's card and the outcome of the check, and the package's licence."""
    from pneumoscope.reports.pages import render

    text = render(
        "monai_bundle.md", model=model, decisions=read_decisions(model), suffixes=SUFFIXES, checked=checked,
        card=divide_card(card)[1],
    )  # fmt: skip
    write_text(folder / "docs" / "README.md", text.rstrip() + "\n")
    write_text(folder / "LICENSE", f"{_LICENCE}\n{_read_licence()}")


def _read_licence() -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.distribution("pneumoscope").read_text("licenses/LICENSE") or ""
    return ""


def _count(folder: Path) -> int:
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return int(metadata["network_data_format"]["outputs"]["pred"]["num_channels"])


def _list_steps(spec: InputSpec) -> dict[str, str]:
    """The expressions that do with Pillow what `images.prepare.fit` does."""
    size, filter_ = spec.size, f"Image.Resampling.{spec.interpolation.upper()}"
    resize = f"Image.fromarray(x).resize(%s, {filter_}%s)"
    fits = {
        "squash": f"$lambda x: numpy.asarray({resize % (f'({size}, {size})', '')})",
        "crop": (
            f"$lambda x: x if x.shape == ({size}, {size}) else numpy.asarray("
            f"{resize % (f'({size}, {size})', ', @box(*x.shape)')})"
        ),
        "pad": (
            f"$lambda x: (lambda y: numpy.pad(y, [(({size} - n) // 2, {size} - n - ({size} - n) // 2) "
            f"for n in y.shape]))(numpy.asarray({resize % ('@sides(*x.shape)', '')}).clip(0, 1))"
        ),
    }
    helpers: dict[str, dict[str, str]] = {
        "squash": {},
        "crop": {
            "edges": (
                f"$lambda side, whole: (round((whole - {size}) / 2) * side / whole, "
                f"(round((whole - {size}) / 2) + {size}) * side / whole)"
            ),
            "box": (
                f"$lambda h, w: (lambda x, y: (x[0], y[0], x[1], y[1]))(@edges(w, {size} * w // min(h, w)), "
                f"@edges(h, {size} * h // min(h, w)))"
            ),
        },
        "pad": {"sides": f"$lambda h, w: tuple(max(1, round({size} * side / max(h, w))) for side in (w, h))"},
    }
    return {**helpers[spec.fit], "fit": fits[spec.fit]}


def _configure(spec: InputSpec) -> dict[str, Any]:
    """The inference configuration."""
    return {
        "imports": [
            *(f"$import {name}" for name in ("glob", "os", "numpy", "torch")),
            *(f"$from PIL import {name}" for name in ("Image", "ImageOps")),
        ],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "images",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "paths": (
            "$sorted(path for path in glob.glob(os.path.join(@dataset_dir, '**', '*'), recursive=True) "
            f"if path.lower().endswith({SUFFIXES}))"
        ),
        "dataset_data": "$[{'image': path, 'path': path} for path in @paths]",
        "levels": (
            "$lambda image: numpy.asarray(image, numpy.float32) / numpy.float32(65535) "
            "if image.mode.startswith('I;16') else "
            "numpy.asarray(image.convert('L'), numpy.float32) / numpy.float32(255)"
        ),
        **_list_steps(spec),
        "converter": "$lambda image: Image.fromarray(@fit(@levels(ImageOps.exif_transpose(image))).clip(0, 1))",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "converter": "@converter",
                    "reverse_indexing": False, "ensure_channel_first": True,
                },
                {"_target_": "RepeatChanneld", "keys": "image", "repeats": 3},
                {
                    "_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": list(spec.mean),
                    "divisor": list(spec.std), "channel_wise": True,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@dataset_data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 8, "num_workers": 0},
        "network_def": f"$torch.jit.load(os.path.join(@bundle_root, {NETWORK!r}), map_location=@device).eval()",
        "inferer": {"_target_": "SimpleInferer"},
        "saver": {"_target_": "CSVSaver", "output_dir": "@output_dir", "filename": "predictions.csv"},
        "initialize": ["$torch.set_grad_enabled(False)"],
        "run": [
            "$[@saver.save_batch(@inferer(batch['image'].as_tensor().to(@device), @network_def), "
            "{'filename_or_obj': batch['path']}) for batch in @dataloader]",
            "$@saver.finalize()",
        ],
    }  # fmt: skip


def _describe(model: Model, rules: dict[str, Any]) -> dict[str, Any]:
    """The metadata, valid against MONAI's schema."""
    import monai
    import PIL
    import torch

    classes = {str(i): name for i, name in enumerate(model.labels)}
    size, test = model.input.size, model.training.get("test") or {}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by pneumoscope {__version__} from a model of version {model.version}"},
        "monai_version": monai.__version__.partition("+")[0],
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"pillow": PIL.__version__},
        "name": " or ".join(model.labels),
        "task": "Classification of chest radiographs",
        "description": f"{model.backbone} for the classes {', '.join(model.labels)}, with calibrated probabilities.",
        "authors": model.about.author or "not stated",
        "copyright": f"licence: {model.about.terms}" if model.about.terms else "not stated",
        "data_type": ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES),
        "image_classes": "one projection radiograph of the chest, air dark and bone bright",
        "pred_classes": f"the probability of each class: {', '.join(model.labels)}",
        "eval_metrics": {name: each["value"] for name, each in (test.get("metrics") or {}).items()},
        "intended_use": (
            "For research and teaching. Not a medical device: not for diagnosis or treatment. "
            f"{scope.describe(read_decisions(model).scope)}"
        ).strip(),
        "references": [],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "modality": "CR", "num_channels": 3,
                    "spatial_shape": [size, size], "dtype": "float32", "value_range": _find_range(model.input),
                    "is_patch_data": False, "channel_def": dict.fromkeys("012", "the radiograph, normalised"),
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities", "format": "classes", "num_channels": len(classes), "spatial_shape": [],
                    "dtype": "float32", "value_range": [0, 1], "is_patch_data": False, "channel_def": classes,
                }
            },
        },
        "pneumoscope": {"weights_sha256": model.weights_sha256, "input": asdict(model.input), "rules": rules},
    }  # fmt: skip


def _find_range(spec: InputSpec) -> list[float]:
    ends = [(level - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True) for level in (0.0, 1.0)]
    return [round(min(ends), 4), round(max(ends), 4)]
