"""A model in the formats of other runtimes, each held against the model on real images before it is kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from pneumoscope.datasets.samples import Sample, read_samples
from pneumoscope.errors import DataError, ImageError, MissingExtraError, UsageError
from pneumoscope.files import check_folder, claim_folder, write_text
from pneumoscope.inference.engines import Array, Kind
from pneumoscope.inference.features import read_input
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import load
from pneumoscope.inference.runtimes import import_onnxruntime, import_openvino
from pneumoscope.models.model_folder import (
    IR,
    ONNX_MODEL,
    PROGRAM,
    Model,
    find_model,
    load_model,
    load_weights,
    save_model,
)
from pneumoscope.models.pretrained import DESCRIPTION

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pneumoscope.models.classifier import Backbone

Format: TypeAlias = Literal["onnx", "openvino", "int8", "torch"]
REPORT = "export.json"
FILES = (REPORT, "weights.safetensors", "README.md", ONNX_MODEL, IR, "model.bin", PROGRAM, DESCRIPTION)
_FAR = 0.01  # in probability
_AUROC_LOSS, _CHANGED = 0.002, 0.005  # what eight bits may cost
_CALIBRATION = 200  # images whose activations give the ranges of eight bits
_STRIDE = 8  # of them whose activations are in memory at a time
_EXACT = (0.0, 0.25, 0.5, 0.75)  # share of the layers that stays in float32, the first ones
_PERCENTILE = 99.99  # of activations that eight bits span


@dataclass(frozen=True)
class Check:
    """How an export stands to its model, both run from their files on the same images.

    Attributes:
        images: how many could be read.
        difference: the largest of a probability.
        changed: how many decisions are others.
        auroc: of the model and of the export, where images of both classes are labelled.
    """

    images: int
    difference: float
    changed: int
    auroc: tuple[float, float] | None


@dataclass(frozen=True)
class Export:
    """What was written where.

    Attributes:
        folder: a model that every command takes.
        size: bytes of the network's files.
        check: how it stands to the model.
    """

    folder: Path
    size: int
    check: Check


def export(
    model: Path,
    to: Format,
    out: Path,
    data: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Export:
    """Write a model for another runtime, and see on real images that it decides as before.

    Args:
        model: a model, a run, or the name of a model that ships.
        to: `onnx` or `openvino`, for their runtimes; `int8`: ONNX with weights and activations of eight bits, whose
            ranges are taken from training images; `torch`: a program of `torch.export`.
        out: the folder to write: a model without PyTorch's weights.
        data: images to check on (the test split, where there is one) and to take ranges from (the training split); by
            default those of the run (`samples.csv`).
        overwrite: whether an earlier export in `out` may go.
        progress: called with what is being done, the number of images done, and of all.

    Raises:
        DataError: the export does not decide as the model does, or there is no image to see that on.
        MissingExtraError: what writes or runs it is not installed.
        UsageError: `out` exists, or no images are given.
    """
    description, home = load_model(model), find_model(model)
    if set(description.files) & {ONNX_MODEL, IR, PROGRAM}:
        raise UsageError(f"{model}: an export itself. Give the model that it was made from.")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError('Exporting needs PyTorch: pip install "pneumoscope[train]".')
    check_folder(out, FILES, overwrite)
    samples = _find_images(model, data)
    # Validation images lie on the very limits that were drawn through them, where a last bit decides.
    seen = [sample for sample in samples if sample.split == "test"] or samples
    from pneumoscope.models.classifier import mixes_places

    state = load_weights(model, description)
    backbone, head = _rebuild(description, state)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    before = _predict(model, "torch", seen, "Model", progress)
    # Elsewhere, so that an earlier export stays until there is a better one.
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place)

        def finish(title: str = "Export") -> Check:
            files = {name: hashlib.sha256((draft / name).read_bytes()).hexdigest() for name in _list_models(draft)}
            made = replace(description, files=files, attention=mixes_places(backbone))
            save_model(draft, made, kept)
            after = _predict(draft, "program" if to == "torch" else "auto", seen, title, progress)
            return compare(before, after, seen, description.labels)

        if to == "torch":
            _write_program(draft / PROGRAM, backbone, head, description.input.size)
        else:
            _write_onnx(draft / ONNX_MODEL, backbone, head, description)
        if to == "openvino":
            _write_ir(draft)
        if to == "int8":
            ranges = [sample for sample in samples if sample.split == "train"] or samples
            inputs = _read_inputs([ranges[i] for i in _spread(len(ranges), _CALIBRATION)], description)
            plain = (draft / ONNX_MODEL).read_bytes()
            for exact in _EXACT:  # early layers in float32, until few enough decisions change
                (draft / ONNX_MODEL).write_bytes(plain)
                _quantise(draft / ONNX_MODEL, inputs, exact)
                check = finish(f"{1 - exact:.0%} in eight bits")
                if _find_fault(check, to) is None:
                    break
        else:
            check = finish()
        if (fault := _find_fault(check, to)) is not None:
            raise DataError(f"--to {to}: {fault} Nothing was written.")
        size = sum((draft / name).stat().st_size for name in _list_models(draft))
        card = (home / "README.md").read_text(encoding="utf-8") if (home / "README.md").is_file() else ""
        write_text(draft / "README.md", f"{card}\n## Export\n\nFormat: {to}. {describe_check(check)}\n".lstrip())
        told = {"from": str(description.weights_sha256), "to": to, **asdict(check)}
        write_text(draft / REPORT, json.dumps(told, indent=2) + "\n")
        claim_folder(out, FILES, overwrite)
        # What an interruption leaves is known by the report, and is no model before its description is there.
        for name in sorted(each.name for each in draft.iterdir() if each.name in FILES[:-1]):
            shutil.move(draft / name, out / name)
        shutil.move(draft / FILES[-1], out / FILES[-1])
    return Export(out, size, check)


def compare(
    before: Sequence[Prediction], after: Sequence[Prediction], samples: Sequence[Sample], labels: Sequence[str]
) -> Check:
    """Say how far two classifiers are apart on the same images.

    Raises:
        DataError: none of the images could be read.
    """
    pairs = [
        (one, other, sample) for one, other, sample in zip(before, after, samples, strict=True) if one.error is None
    ]
    if not pairs:
        raise DataError(f"None of the {len(samples)} images can be read: nothing to check the export on.")
    first, second = (
        np.array([list((told.probabilities or {}).values()) for told in column], np.float64)
        for column in ([one for one, *_ in pairs], [other for _, other, _ in pairs])
    )
    truth = np.array([labels.index(s.label) if s.label in labels else -1 for *_, s in pairs])
    auroc = None
    if len(labels) == 2 and (truth >= 0).all() and 0 < truth.mean() < 1:
        from pneumoscope.evaluation.metrics import measure

        one, other = (float(measure(truth, shares[:, 1])["auroc"][0]) for shares in (first, second))
        auroc = (one, other)
    return Check(
        len(pairs),
        float(np.abs(first - second).max()),
        sum(one.decision != same.decision for one, same, _ in pairs),
        auroc,
    )


def describe_check(check: Check) -> str:
    """A check in a sentence."""
    changed = f"{check.changed} decision{' changes' if check.changed == 1 else 's change'}"
    auroc = "" if check.auroc is None else f", AUROC {check.auroc[0]:.4f} and {check.auroc[1]:.4f}"
    return (
        f"{check.images:,} images, run from both files: probabilities differ by at most {check.difference:.2g}, "
        f"{changed}{auroc}."
    )


def _predict(
    folder: Path, engine: Kind, samples: Sequence[Sample], name: str, progress: Callable[[str, int, int], None]
) -> list[Prediction]:
    return load(folder, "cpu", engine=engine).predict(samples, lambda _, done, total: progress(name, done, total))


def _find_fault(check: Check, to: Format) -> str | None:
    """What an export may not do that this one does."""
    if to != "int8":
        if check.difference <= _FAR and not check.changed:
            return None
        return (
            f"probabilities differ by up to {check.difference:.2g}, and {check.changed} of {check.images} decisions "
            f"change; {_FAR} and none are allowed."
        )
    loss = 0.0 if check.auroc is None else check.auroc[0] - check.auroc[1]
    if loss <= _AUROC_LOSS and check.changed <= _CHANGED * check.images:
        return None
    return (
        f"with three quarters of the layers left in float32, AUROC falls by {loss:.4f}, and {check.changed} of "
        f"{check.images} decisions change; {_AUROC_LOSS} and {_CHANGED:.1%} are allowed. Take onnx or openvino."
    )


def _list_models(folder: Path) -> list[str]:
    return [name for name in (ONNX_MODEL, IR, "model.bin", PROGRAM) if (folder / name).is_file()]


def _find_images(model: Path, data: Path | None) -> list[Sample]:
    table = data or next((p for p in (model / "samples.csv", model.parent / "samples.csv") if p.is_file()), None)
    if table is None:
        raise UsageError(
            f"{model}: an export is checked on images, and this model has none beside it. Give a folder or a table "
            "of images like those it was trained on: --data IMAGES."
        )
    return [sample for sample in read_samples(table) if sample.path.is_file()] or _refuse(table)


def _refuse(table: Path) -> list[Sample]:
    raise DataError(f"{table}: none of its images is there. Give others: --data IMAGES.")


def _rebuild(description: Model, state: Mapping[str, Tensor]) -> tuple[Backbone, nn.Linear]:
    from pneumoscope.models.backbones import rebuild_backbone
    from pneumoscope.models.classifier import build_head

    head = build_head(state["head.weight"].shape[1], len(description.labels))
    head.load_state_dict({k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")})
    return rebuild_backbone(description, state), head.eval()


def _write_onnx(path: Path, backbone: Backbone, head: nn.Linear, model: Model) -> None:
    """The whole classifier up to its logits, and in its metadata all that a program needs to prepare and to decide."""
    try:
        import onnx
    except ImportError:
        raise MissingExtraError('Exporting needs more: pip install "pneumoscope[train]".') from None
    from pneumoscope.models.onnx_graphs import trace_graph

    network = onnx.load_from_string(trace_graph(backbone, model.input.size, head))
    told = {
        "input": asdict(model.input),
        "labels": model.labels,
        "positive": model.positive,
        "decisions": model.decisions,
        "version": model.version,
    }
    onnx.helper.set_model_props(network, {f"pneumoscope.{name}": json.dumps(value) for name, value in told.items()})
    network.doc_string = "Chest radiograph classifier. For research; not a medical device."
    onnx.save(network, path)


def _write_ir(folder: Path) -> None:
    try:
        openvino = import_openvino()
    except ImportError:
        raise MissingExtraError('OpenVINO is not installed: pip install "pneumoscope[train]".') from None
    openvino.save_model(openvino.convert_model(folder / ONNX_MODEL), folder / IR, compress_to_fp16=False)
    (folder / ONNX_MODEL).unlink()


def _write_program(path: Path, backbone: Backbone, head: nn.Linear, size: int) -> None:
    import torch

    from pneumoscope.models.onnx_graphs import Description

    shape = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(
            Description(backbone, head).eval(), (torch.zeros(2, 3, size, size),), dynamic_shapes=(shape,)
        )
    torch.export.save(program, path)


def _read_inputs(samples: Sequence[Sample], model: Model) -> list[Array]:
    """Prepared images, without those that cannot be read."""
    inputs = []
    for sample in samples:
        with contextlib.suppress(ImageError):
            inputs.append(read_input(sample, model.input))
    if not inputs:
        raise DataError(f"None of {len(samples)} images can be read: nothing to take the ranges of eight bits from.")
    return inputs


def _quantise(path: Path, images: Sequence[Array], exact: float) -> None:
    """Replace an ONNX model by one whose convolutions have eight bits (QDQ, by channel), ranges from these images.

    Convolutions of single channels stay as they are, for they gain little and lose much (docs/log.md), as do the first
    one and a share of those that follow.
    """
    try:
        import onnx

        import_onnxruntime()
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference
    except ImportError:
        raise MissingExtraError('ONNX Runtime is not installed: pip install "pneumoscope[train]".') from None

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Images in strides: ONNX Runtime keeps what every layer makes of all images of a stride."""

        def __init__(self) -> None:
            self.set_range(0, len(images))

        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._images = iter(images[start_index:end_index])

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"input": image[None]}

    stride = next(each for each in range(_STRIDE, 0, -1) if len(images) % each == 0)  # it has to come out even
    prepared = path.with_name("prepared.onnx")
    shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    convolutions = [node for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    grouped = [node.name for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    early = [node.name for node in convolutions[: max(1, round(exact * len(convolutions)))]]
    with contextlib.redirect_stdout(io.StringIO()):  # its progress is printed
        quantization.quantize_static(
            str(prepared),
            str(path),
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": stride},
            nodes_to_exclude=[*grouped, *early],
        )
    prepared.unlink()


def _spread(count: int, most: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})
