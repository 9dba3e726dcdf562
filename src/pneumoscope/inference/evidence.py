"""Where on an image the evidence for a class lies: maps in logits, whose mean plus the bias is the network's logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import MissingExtraError, UsageError
from pneumoscope.images.prepare import InputSpec, find_box
from pneumoscope.images.resize import Box

if TYPE_CHECKING:
    from pneumoscope.inference.engines import Engine
    from pneumoscope.inference.features import Extract
    from pneumoscope.models.model_folder import Model

Array: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.intp]
Method: TypeAlias = Literal["auto", "cam", "ig"]
_STEPS = 16  # of the integral
_BLUR = 0.09  # standard deviation, as a fraction of the input's side: what is left shows no opacity


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Where on an image the evidence for a class lies.

    Attributes:
        label: the class explained.
        method: how the map was made.
        logit: the class's logit; if there are two classes, that of the other one is its negative.
        bias: the part of the logit that is not tied to a place in the image.
        cells: float32 (h, w), in logits: positive where the image supports the class. mean(cells) + bias = logit.
        box: left, top, right and bottom of what the network saw, in pixels of the image.
        shape: height and width of the image as stored in the file.
    """

    label: str
    method: str
    logit: float
    bias: float
    cells: Array
    box: Box
    shape: tuple[int, int]

    def __repr__(self) -> str:
        return f"Evidence({self.label}: {self.method}, logit {self.logit:+.2f})"

    def map(self, shape: tuple[int, int] | None = None) -> Array:
        """The cells on the image, interpolated between their centres; nan where the network saw nothing.

        Args:
            shape: height and width of the map; by default those of the image.

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
        values: Array = before + (after - before) * fraction_x
        values[unseen_y], values[:, unseen_x] = np.nan, np.nan
        return values

    @property
    def cell(self) -> tuple[float, float]:
        """Height and width of a cell, in pixels of the image."""
        left, top, right, bottom = self.box
        return (bottom - top) / len(self.cells), (right - left) / self.cells.shape[1]

    @property
    def limit(self) -> float:
        """The strongest evidence for or against; at least one logit, so weak evidence does not look strong."""
        return max(1.0, float(np.abs(self.cells).max()))


def find_evidence(
    extract: Extract,
    model: Model,
    weight: NDArray[np.floating[Any]],
    bias: NDArray[np.floating[Any]],
    engine: Engine,
    label: str | None = None,
    method: Method = "auto",
) -> Evidence:
    """Find the evidence in an image that the network has seen; see `explain`.

    The head's weight is (1, D) or (C, D), its bias (1,) or (C,).
    """
    features, feature_map, inputs = extract.features, extract.map, extract.inputs
    if features is None or feature_map is None or inputs is None or extract.size is None or extract.read_size is None:
        raise ValueError("an extract without its map")
    logits = weight.astype(np.float64) @ features[0] + bias
    row, sign, name = _find_output(model.labels, label, int(logits.argmax()))
    head = sign * weight[row].astype(np.float64)
    logit, constant = sign * float(logits[row]), sign * float(bias[row])
    if method == "ig" or (method == "auto" and mixes_places(model, engine)):
        method = "ig"
        cells = _integrate_gradients(engine, inputs[None], head, max(feature_map.shape[1], model.input.size // 16))
        constant = logit - float(cells.mean(dtype=np.float64))
    else:
        method = "cam"
        cells = np.tensordot(head, feature_map, 1).astype(np.float32)
    box = locate_input(extract.read_size, extract.size, model.input)
    return Evidence(label=name, method=method, logit=logit, bias=constant, cells=cells, box=box, shape=extract.size)


def check_label(labels: tuple[str, ...], label: str | None) -> None:
    """Refuse to explain a class that a classifier does not know.

    Raises:
        UsageError: it is none of the labels.
    """
    if label is not None and label not in labels:
        raise UsageError(f"This classifier has no class {label!r}. Its classes: {', '.join(labels)}.", "label")


def mixes_places(model: Model, engine: Engine) -> bool:
    """Whether the network has attention, so that a cell of its map may not represent its own place."""
    backbone = getattr(engine, "backbone", None)
    if backbone is None:
        return model.attention
    from pneumoscope.models import classifier

    return classifier.mixes_places(backbone)


def _integrate_gradients(engine: Engine, inputs: Array, weight: NDArray[np.float64], side: int) -> Array:
    """Integrated gradients of weight · features, from the blurred image to the image: (side, side), in logits."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise MissingExtraError(
            "Integrated gradients need captum: pip install captum. Or pass `method='cam'`."
        ) from None
    import torch
    from scipy.ndimage import gaussian_filter

    backbone = getattr(engine, "backbone", None)
    if backbone is None:
        raise UsageError("Integrated gradients need PyTorch to run the network. Use cam.", "method")
    device = next(backbone.parameters()).device
    head = torch.from_numpy(weight.astype(np.float32)).to(device)
    # A black base would leave black pixels without a share, and hides opacities less well (docs/results.md).
    blurred = gaussian_filter(inputs, _BLUR * inputs.shape[-1], axes=(2, 3))
    image, base = (torch.from_numpy(each).to(device) for each in (inputs, blurred))
    gradients = IntegratedGradients(lambda batch: backbone(batch).mean((2, 3)) @ head)
    parts = gradients.attribute(image, base, n_steps=_STEPS, internal_batch_size=8)
    shares = parts[0].sum(0).double().cpu().numpy()
    place = np.arange(len(shares)) * side // len(shares)
    cells = np.zeros((side, side))
    np.add.at(cells, (place[:, None], place), shares)
    return np.asarray(cells * cells.size, np.float32)


def _find_output(labels: tuple[str, ...], label: str | None, likeliest: int) -> tuple[int, int, str]:
    """The head's output for a class, its sign there, and the class's name."""
    if len(labels) == 2:
        index = labels.index(label) if label is not None else 1
        return 0, 2 * index - 1, labels[index]
    index = labels.index(label) if label is not None else likeliest
    return index, 1, labels[index]


def locate_input(read_size: tuple[int, int], size: tuple[int, int], spec: InputSpec) -> Box:
    """The box that the network sees, in pixels of the image's own size, which may have been read at a reduced scale."""
    height, width = read_size
    left, top, right, bottom = find_box((height, width), spec)
    across, down = size[1] / width, size[0] / height
    return left * across, top * down, right * across, bottom * down


def _locate(
    side: int, original: int, start: float, end: float, cells: int
) -> tuple[tuple[Indices, Indices], Array, NDArray[np.bool_]]:
    """For each pixel of a side: the cells around it, how far between them it lies, and whether it was not seen."""
    centres = (np.arange(side) + 0.5) * original / side
    place = np.clip((centres - start) / (end - start) * cells - 0.5, 0, cells - 1)
    before = np.floor(place).astype(np.intp)
    return (
        (before, np.minimum(before + 1, cells - 1)),
        (place - before).astype(np.float32),
        (centres < start) | (centres > end),
    )
