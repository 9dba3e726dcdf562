"""Convert a model for other runtimes, and check each conversion on real images before it is kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from pneumoscope import monai_bundles
from pneumoscope.config import Progress, checked
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import read_decisions
from pneumoscope.decisions.rules import describe_rules
from pneumoscope.errors import DataError, ImageError, MissingExtraError, UsageError
from pneumoscope.evaluation.conversion_check import Check, compare, describe_check
from pneumoscope.files import check_folder, claim_folder, lock_folder, write_text
from pneumoscope.images.read import Reading
from pneumoscope.inference.engines import Array, Kind
from pneumoscope.inference.features import read_inputs
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import load
from pneumoscope.inference.quantisation import quantise
from pneumoscope.inference.runtimes import import_openvino, import_openvino_converters
from pneumoscope.models.model_folder import (
    IR,
    IR_WEIGHTS,
    ONNX_MODEL,
    PROGRAM,
    Model,
    find_model,
    load_model,
    load_weights,
    save_model,
)  # fmt: skip
from pneumoscope.models.pretrained import DESCRIPTION
from pneumoscope.models.references import locate_model
from pneumoscope.notebook import notebook_progress, to_frame, to_html

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pneumoscope.models.classifier import Backbone

Format: TypeAlias = Literal["onnx", "openvino", "int8", "torch", "monai"]
REPORT = "export.json"
NETWORKS = (ONNX_MODEL, IR, IR_WEIGHTS, PROGRAM)
FILES = (REPORT, "weights.safetensors", "README.md", *NETWORKS, *monai_bundles.FOLDERS, DESCRIPTION)

# What a conversion may change: a probability, and with 8 bits AUROC and the share of decisions.
MAX_DIFFERENCE = 0.01
MAX_AUROC_LOSS, MAX_CHANGED = 0.002, 0.005

# Quantisation to 8 bits: images for the ranges of activations, and the shares of the first layers that stay in float32,
# tried in turn.
RANGE_IMAGES = 200
FLOAT_SHARES = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Export:
    """An exported model: its folder (a model folder or a MONAI bundle), the bytes of its network, and the check."""

    folder: Path
    size: int
    check: Check

    def __repr__(self) -> str:
        return f"Export({self.folder}; {self.size / 1e6:.1f} MB, probabilities within {self.check.difference:.2g})"

    def _repr_html_(self) -> str:
        return to_html(repr(self), self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row: folder, size in bytes, and the check; undefined values are None."""
        return [{"folder": str(self.folder), "size": self.size, **asdict(self.check)}]

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row; it needs pandas."""
        return to_frame(self.to_rows())


@dataclass(frozen=True)
class _Original:
    """The model to convert, with its predictions of the images of the check."""

    model: Model
    backbone: Backbone
    head: nn.Linear
    other_weights: dict[str, Tensor]
    samples: list[Sample]
    predictions: list[Prediction]


@checked
def export(
    out: str | Path,
    model: str | Path | None = None,
    to: Format = "onnx",
    data: str | Path | None = None,
    *,
    reading: Reading = Reading(),
    naming: Naming = Naming(),
    overwrite: bool = False,
    progress: Progress = notebook_progress,
) -> Export:
    """Convert a model for another runtime, and check on images that it decides as before.

    Args:
        out: the folder to write. It has no PyTorch weights.
        model: path, address or name of a model, as for `load`; None: the pretrained default.
        to: `onnx` or `openvino`, for these runtimes; `int8`: ONNX with weights and activations of 8 bits, whose
            ranges come from training images; `torch`: a program of `torch.export`; `monai`: a MONAI bundle, which
            gives probabilities without the OOD detector and the prediction sets.
        data: images for the check (the test split if there is one) and for the ranges (the training split if there is
            one); by default those of the run.
        reading: how to read the images of `data`, unless a table says otherwise.
        naming: what columns and classes of `data` are called.
        overwrite: whether to replace an earlier export in `out`.
        progress: called after each image; by default a bar in a notebook.

    Raises:
        DataError: the export decides differently, or no image can be read.
        MissingExtraError: a package that writes or runs the format is not installed.
        UsageError: `out` exists, the model is an export itself, there are no images to check it on, or `reading` or
            `naming` has no effect, as the run's own images are used.
    """
    folder, out = locate_model(model), Path(out)
    description = load_model(folder)
    if set(description.files) & set(NETWORKS):
        raise UsageError(f"{folder} is already an export. Use the model that it was made from.", "model")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError('Exporting needs PyTorch: pip install "pneumoscope[train]".')
    monai_bundles.check_monai(to)
    check_folder(out, FILES, overwrite)
    samples = _find_images(folder, None if data is None else Path(data), reading, naming)
    original = _load(folder, description, samples, progress)
    # The draft is elsewhere, so that an earlier export stays until there is a better one.
    with lock_folder(out), tempfile.TemporaryDirectory() as name:
        draft = Path(name)
        check = _convert(draft, folder, to, original, samples, progress)
        if (fault := _find_fault(check, to)) is not None:
            raise DataError(f"{fault} Nothing was written.", "to")
        size = sum((draft / file).stat().st_size for file in _list_networks(draft))
        _write_card(draft, folder, description, to, describe_check(check))
        report = {"from": str(description.weights_sha256), "to": to, **asdict(check)}
        write_text(draft / REPORT, json.dumps(report, indent=2) + "\n")
        claim_folder(out, FILES, overwrite)
        # The report marks the folder as an export, even if interrupted; the description makes it a model, at the end.
        for file in FILES:
            if (draft / file).exists():
                shutil.move(draft / file, out / file)
    return Export(out, size, check)


def _write_card(draft: Path, folder: Path, model: Model, to: Format, checked: str) -> None:
    """Write the model's card with a section about the export; in a MONAI bundle, as part of `docs/README.md`."""
    own = find_model(folder) / "README.md"
    card = own.read_text("utf-8") if own.is_file() else ""
    if to == "monai":
        monai_bundles.write_documents(draft, model, card, checked)
    else:
        section = f"\n## Export\n\nFormat: {to}. {checked}{_describe_groups(model)}\n"
        write_text(draft / "README.md", f"{card}{section}".lstrip())


def _describe_groups(model: Model) -> str:
    """Say that the network alone knows nothing of groups; empty where the model has none."""
    if not (groups := read_decisions(model).groups):
        return ""
    names = ", ".join(group.name for group in groups)
    return (
        f" The network's file gives logits and OOD scores of all images alike. The groups of the model ({names}) are "
        "applied by pneumoscope. Other programs find them under `decisions` in `model.json`, and under "
        "`pneumoscope.rules` in the metadata of `model.onnx`."
    )


def _load(folder: Path, model: Model, samples: Sequence[Sample], progress: Progress) -> _Original:
    from pneumoscope.models.backbones import rebuild_backbone
    from pneumoscope.models.classifier import build_head

    weights = load_weights(folder, model)
    head = build_head(weights["head.weight"].shape[1], len(model.labels))
    head.load_state_dict({k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")})
    # Not validation images: thresholds are drawn through them, so that the last bit may change their decisions.
    images = [sample for sample in samples if sample.split == "test"] or list(samples)
    return _Original(
        model,
        rebuild_backbone(model, weights),
        head.eval(),
        {name: tensor for name, tensor in weights.items() if not name.startswith("backbone.")},
        images,
        _predict(folder, "torch", images, "Model", progress),
    )


def _convert(
    draft: Path, folder: Path, to: Format, original: _Original, samples: Sequence[Sample], progress: Progress
) -> Check:
    """Write the converted network into an empty folder, and compare it with the model."""
    if to == "int8":
        return _convert_to_int8(draft, original, samples, progress)
    if to == "monai":
        readable, difference, changed = monai_bundles.convert(
            draft, folder, original.model, original.backbone, original.head, original.samples
        )
        _warn_left_out(len(original.samples) - readable, "MONAI cannot read")
        return Check(readable, difference, changed, None)
    {"onnx": _write_onnx, "openvino": _write_ir, "torch": _write_program}[to](draft, original)
    return _check(draft, original, "Export", progress)


def _convert_to_int8(draft: Path, original: _Original, samples: Sequence[Sample], progress: Progress) -> Check:
    """Quantise as many layers as the decisions tolerate; the last attempt stays even if it changes too many of them."""
    training = [sample for sample in samples if sample.split == "train"] or samples
    inputs = _read_inputs(_spread(training, RANGE_IMAGES), original.model)
    _write_onnx(draft, original)
    network = (draft / ONNX_MODEL).read_bytes()
    for share in FLOAT_SHARES:
        (draft / ONNX_MODEL).write_bytes(network)
        quantise(draft / ONNX_MODEL, inputs, share)
        check = _check(draft, original, f"{1 - share:.0%} in 8 bits", progress)
        if _find_fault(check, "int8") is None:
            break
    return check


def _check(draft: Path, original: _Original, title: str, progress: Progress) -> Check:
    """Complete the model folder around a converted network, run it from there, and compare it with the original."""
    from pneumoscope.models.classifier import mixes_places

    files = {name: hashlib.sha256((draft / name).read_bytes()).hexdigest() for name in _list_networks(draft)}
    description = replace(original.model, files=files, attention=mixes_places(original.backbone))
    save_model(draft, description, original.other_weights)
    engine: Kind = "program" if PROGRAM in files else "auto"
    predictions = _predict(draft, engine, original.samples, title, progress)
    return compare(original.predictions, predictions, original.samples, description.labels)


def _predict(folder: Path, engine: Kind, samples: Sequence[Sample], title: str, progress: Progress) -> list[Prediction]:
    return load(folder, "cpu", engine=engine).predict(samples, lambda _, done, total: progress(title, done, total))


def _find_fault(check: Check, to: Format) -> str | None:
    """What is wrong with a conversion, if anything."""
    changed = f"{check.changed} of {check.images} decisions change"
    if to != "int8":
        if check.difference <= MAX_DIFFERENCE and not check.changed:
            return None
        difference = f"probabilities differ by up to {check.difference:.2g}"
        return f"{difference}, {changed}; the limits are {MAX_DIFFERENCE} and 0."
    loss = 0.0 if check.auroc is None else check.auroc[0] - check.auroc[1]
    if loss <= MAX_AUROC_LOSS and check.changed <= MAX_CHANGED * check.images:
        return None
    return (
        f"even with {FLOAT_SHARES[-1]:.0%} of the layers in float32, AUROC falls by {loss:.4f} and {changed}; "
        f"the limits are {MAX_AUROC_LOSS} and {MAX_CHANGED:.1%}. Use `to='onnx'` or `to='openvino'`."
    )


def _list_networks(folder: Path) -> list[str]:
    return [name for name in (*NETWORKS, monai_bundles.NETWORK) if (folder / name).is_file()]


def _find_images(model: Path, data: Path | None, reading: Reading, naming: Naming) -> list[Sample]:
    given = [name for name, value in {**asdict(reading), **naming.to_options()}.items() if value]
    if data is None and given:
        raise UsageError("no effect on the run's own images. Pass `data` too, or leave it out.", given[0])
    table = data or next((p for p in (model / "samples.csv", model.parent / "samples.csv") if p.is_file()), None)
    advice = "Pass a folder or a table of images like those it was trained on as `data`."
    if table is None:
        raise UsageError(f"{model}: there are no images to check the export on. {advice}")
    listed = read_samples(table, None, reading, naming)
    samples = [sample for sample in listed if sample.path.is_file()]
    if not samples:
        raise DataError(f"{table}: none of its images exists. {advice}")
    _warn_left_out(len(listed) - len(samples), "do not exist")
    return samples


def _warn_left_out(count: int, why: str) -> None:
    if count:
        logging.getLogger("pneumoscope").warning("Images that %s and are left out: %d.", why, count)


def _write_onnx(folder: Path, original: _Original, scores: bool = True) -> None:
    """Write the network up to its logits and OOD scores; its metadata say how to prepare images and how to decide."""
    try:
        import onnx
    except ImportError:
        raise MissingExtraError('Exporting needs onnx: pip install "pneumoscope[train]".') from None
    from pneumoscope.models.onnx_graphs import add_distance, trace_graph

    model = original.model
    network = onnx.load_from_string(trace_graph(original.backbone, model.input.size, original.head))
    if (limits := read_decisions(model).ood) is not None and scores:
        stored = {name.removeprefix("ood."): tensor.numpy() for name, tensor in original.other_weights.items()}
        add_distance(network, stored, limits.limit)
    metadata: dict[str, Any] = {
        "input": asdict(model.input),
        "rules": describe_rules(read_decisions(model), model.labels),
    }
    metadata |= {name: getattr(model, name) for name in ("labels", "positive", "decisions", "version")}
    properties = {f"pneumoscope.{name}": json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(network, properties)
    network.doc_string = "Chest radiograph classifier. For research; not a medical device."
    onnx.save(network, folder / ONNX_MODEL)


def _write_ir(folder: Path, original: _Original) -> None:
    """Write OpenVINO's intermediate representation."""
    _write_onnx(folder, original, scores=False)
    try:
        openvino, converters = import_openvino(), import_openvino_converters()
    except ImportError:
        raise MissingExtraError('OpenVINO is not installed: pip install "pneumoscope[train]".') from None
    # Unlike reading it, converting the graph folds its batch norms.
    openvino.save_model(converters.convert_model(folder / ONNX_MODEL), folder / IR, compress_to_fp16=False)
    (folder / ONNX_MODEL).unlink()


def _write_program(folder: Path, original: _Original) -> None:
    import torch

    from pneumoscope.models.onnx_graphs import Description

    size = original.model.input.size
    network = Description(original.backbone, original.head).eval()
    shape = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(network, (torch.zeros(2, 3, size, size),), dynamic_shapes=(shape,))
    torch.export.save(program, folder / PROGRAM)


def _read_inputs(samples: Sequence[Sample], model: Model) -> list[Array]:
    """Read and prepare images, leaving out those that cannot be read."""
    inputs = []
    for sample in samples:
        with contextlib.suppress(ImageError):
            inputs.append(read_inputs(sample, model.input)[0])
    if not inputs:
        raise DataError(f"None of {len(samples)} images can be read, so there are no ranges for int8.")
    _warn_left_out(len(samples) - len(inputs), "cannot be read")
    return inputs


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    places = {round(i) for i in np.linspace(0, len(samples) - 1, min(len(samples), most))}
    return [samples[i] for i in sorted(places)]
