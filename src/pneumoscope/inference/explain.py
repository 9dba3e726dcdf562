"""Which parts of an image speak for a class: maps in logits whose mean, with the bias, is the network's logit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.images.prepare import Box, InputSpec, Pixels, find_box, prepare
from pneumoscope.images.read import Reading, read_radiograph
from pneumoscope.inference.engines import Array
from pneumoscope.inference.features import Source
from pneumoscope.inference.predictor import Predictor

Indices: TypeAlias = NDArray[np.intp]
_STEPS = 16  # of the integral
_BLUR = 0.09  # standard deviation, as a share of the input's side: what is left shows no opacity
Method: TypeAlias = Literal["auto", "cam", "ig"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Where on an image the evidence for a class lies.

    Attributes:
        label: the class explained.
        method: how the map was made.
        logit: the class's logit; of two classes, the other one's is its negative.
        bias: what of it belongs to no place.
        cells: float32 (h, w), in logits: positive where the image speaks for the class. mean(cells) + bias = logit.
        box: left, top, right and bottom of what the network saw, in pixels of the image.
        shape: height and width of the image, as the file has it.
    """

    label: str
    method: str
    logit: float
    bias: float
    cells: Array
    box: Box
    shape: tuple[int, int]

    def map(self, shape: tuple[int, int] | None = None) -> Array:
        """The cells on the image, interpolated between their middles; nan where the network saw nothing.

        Args:
            shape: of the map; the image's own by default, another one gives the same map at another scale.

        Returns:
            float32 (H, W), in logits.
        """
        height, width = shape or self.shape
        left, top, right, bottom = self.box
        rows, fraction_y, unseen_y = _locate(height, self.shape[0], top, bottom, len(self.cells))
        columns, fraction_x, unseen_x = _locate(width, self.shape[1], left, right, self.cells.shape[1])
        lower, upper = (self.cells[index] for index in rows)
        tall = lower + (upper - lower) * fraction_y[:, None]
        before, after = (tall[:, index] for index in columns)
        found: Array = before + (after - before) * fraction_x
        found[unseen_y], found[:, unseen_x] = np.nan, np.nan
        return found

    @property
    def limit(self) -> float:
        """The strongest evidence either way, at least one logit: next to nothing is not drawn as if it were much."""
        return max(1.0, float(np.abs(self.cells).max()))


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(Evidence):
    """The same, with the image.

    Attributes:
        path: the file, or None where its content was given.
        pixels: float32 in [0, 1], the image as it was read: of a large JPEG at a reduced scale.
    """

    path: Path | None
    pixels: Pixels


def explain(
    predictor: Predictor, source: Source | str, label: str | None = None, method: Method = "auto"
) -> Explanation:
    """Say where on an image the evidence for a class lies.

    The network ends in a global average and one linear layer, so that its class-activation map (Zhou et al. 2016,
    "Learning Deep Features for Discriminative Localization", section 2) is an exact sum and needs no gradient. Where
    attention has mixed all places before, it still adds up, but a cell of it need not speak of its own place.

    Args:
        predictor: the classifier.
        source: a path, a file's content, or a sample.
        label: the class to explain; by default the positive one of two, the likeliest of more.
        method: `cam`: the class-activation map. `ig`: integrated gradients (Sundararajan et al. 2017, "Axiomatic
            Attribution for Deep Networks") from the blurred image to the image, summed by cells of 16 pixels of the
            input; the bias is then the blurred image's logit, with what the numerical integral leaves over. `auto`: `ig`
            where the network has attention, else `cam`.

    Raises:
        ImageError: the file cannot be read.
        UsageError: the classifier has no such class, or what runs it gives no gradients.
        MissingExtraError: captum, which integrates the gradients, is not installed.
    """
    spec = predictor.model.input
    sample = source if isinstance(source, Sample) else None
    content = source if not isinstance(source, Sample) else source.path
    image = read_radiograph(content, reading=sample.reading if sample else Reading(), min_side=spec.min_side)
    inputs = prepare(image.pixels, spec)[None]
    found = predictor.engine.run(inputs, maps=True)
    maps = cast("Array", found.maps)[0]
    shown = find_evidence(
        predictor, found.features[0], maps, locate_input(image.pixels.shape, image.size, spec), image.size, label
    )
    if method == "ig" or (method == "auto" and mixes_places(predictor)):
        row, sign, _ = _find_output(predictor.model.labels, shown.label, 0)
        weight = sign * predictor.weight[row].astype(np.float64)
        cells = _integrate_gradients(predictor, inputs, weight, max(maps.shape[1], spec.size // 16))
        shown = replace(shown, method="ig", cells=cells, bias=shown.logit - float(cells.mean(dtype=np.float64)))
    return Explanation(path=None if isinstance(content, bytes) else Path(content), pixels=image.pixels, **vars(shown))


def find_evidence(
    predictor: Predictor,
    features: Array,
    maps: Array,
    box: Box,
    shape: tuple[int, int],
    label: str | None = None,
) -> Evidence:
    """The class-activation map of an image that the network has seen already.

    Args:
        predictor: the classifier.
        features: float32 (D,), the image's.
        maps: float32 (D, h, w), its feature map.
        box: what the network saw of it, `locate_input`.
        shape: height and width of the image.
        label: the class, as in `explain`.

    Raises:
        UsageError: the classifier has no such class.
    """
    logits = predictor.weight.astype(np.float64) @ features + predictor.bias
    row, sign, name = _find_output(predictor.model.labels, label, int(logits.argmax()))
    return Evidence(
        label=name,
        method="cam",
        logit=sign * float(logits[row]),
        bias=sign * float(predictor.bias[row]),
        cells=np.tensordot(sign * predictor.weight[row].astype(np.float64), maps, 1).astype(np.float32),
        box=box,
        shape=shape,
    )


def check_label(labels: tuple[str, ...], label: str | None) -> None:
    """Refuse to explain a class that a classifier does not know.

    Raises:
        UsageError: it is none of the labels.
    """
    if label is not None and label not in labels:
        raise UsageError(f"--label {label}: no such class. This classifier knows {', '.join(labels)}.")


def mixes_places(predictor: Predictor) -> bool:
    """Whether the network has attention, so that a cell of its map need not speak of its own place."""
    backbone = getattr(predictor.engine, "backbone", None)
    if backbone is None:
        return predictor.model.attention
    from pneumoscope.models import classifier

    return classifier.mixes_places(backbone)


def _integrate_gradients(predictor: Predictor, inputs: Array, weight: Array, side: int) -> Array:
    """Integrated gradients of weight · features, from the blurred image to the image: float32 (side, side), in logits."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise MissingExtraError("Integrated gradients need captum: pip install captum. Or take --method cam.") from None
    import torch
    from scipy.ndimage import gaussian_filter

    backbone = getattr(predictor.engine, "backbone", None)
    if backbone is None:
        raise UsageError("Integrated gradients need PyTorch to run the network. Take --method cam.")
    device = next(backbone.parameters()).device
    head = torch.from_numpy(weight.astype(np.float32)).to(device)
    # Black as a base would leave what is black without a share, and hides opacities less well (docs/results.md).
    blurred = gaussian_filter(inputs, _BLUR * inputs.shape[-1], axes=(2, 3))
    image, base = (torch.from_numpy(each).to(device) for each in (inputs, blurred))
    method = IntegratedGradients(lambda batch: backbone(batch).mean((2, 3)) @ head)
    parts = method.attribute(image, base, n_steps=_STEPS, internal_batch_size=8)
    shares = parts[0].sum(0).double().cpu().numpy()
    place = np.arange(len(shares)) * side // len(shares)
    cells = np.zeros((side, side))
    np.add.at(cells, (place[:, None], place), shares)
    return np.asarray(cells * cells.size, np.float32)


def _find_output(labels: tuple[str, ...], label: str | None, likeliest: int) -> tuple[int, int, str]:
    """The head's output for a class, its sign there, and the class's name."""
    check_label(labels, label)
    if len(labels) == 2:
        index = labels.index(label) if label is not None else 1
        return 0, 2 * index - 1, labels[index]
    index = labels.index(label) if label is not None else likeliest
    return index, 1, labels[index]


def locate_input(read: tuple[int, ...], own: tuple[int, int], spec: InputSpec) -> Box:
    """The box that the network sees, in pixels of the image's own size, of which `read` may be a reduced scale."""
    height, width = read
    left, top, right, bottom = find_box((height, width), spec)
    across, down = own[1] / width, own[0] / height
    return left * across, top * down, right * across, bottom * down


def _locate(
    side: int, own: int, start: float, end: float, cells: int
) -> tuple[tuple[Indices, Indices], Array, NDArray[np.bool_]]:
    """For each pixel of a side: the cells around it, how far between them it lies, and whether it was not seen."""
    middles = (np.arange(side) + 0.5) * own / side
    place = np.clip((middles - start) / (end - start) * cells - 0.5, 0, cells - 1)
    before = np.floor(place).astype(np.intp)
    return (
        (before, np.minimum(before + 1, cells - 1)),
        (place - before).astype(np.float32),
        (middles < start) | (middles > end),
    )
