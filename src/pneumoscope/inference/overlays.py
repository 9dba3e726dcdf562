"""Maps laid over images, as pictures, and whole folders of them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.errors import ImageError
from pneumoscope.files import claim_folder, format_rows, write_bytes, write_text
from pneumoscope.inference.explain import Evidence, Explanation, Method, check_label, explain
from pneumoscope.inference.predictor import Prediction, Predictor
from pneumoscope.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

_TABLE, _PICTURES = "explanations.csv", "overlays"
_COLUMNS = ("path", "decision", "label", "method", "logit", "bias", "minimum", "maximum", "overlay", "error")
_LONGEST = 900  # pixels of an image's longer side in an overlay
_OPACITY = 0.6  # of the strongest evidence; letters on the image stay readable through it


def write_overlay(explanation: Explanation, path: Path, prediction: Prediction | None = None) -> None:
    """Write a PNG: the image, beside it the image under its map, with a scale in logits and a title.

    Yellow speaks for the class and blue against it; the stronger, the less of the image shows through. What the network
    did not see is hatched.

    Args:
        explanation: what to draw.
        path: the file.
        prediction: adds the probability and the decision to the title.

    Raises:
        UsageError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    image, map_ = _scale(explanation, _LONGEST)
    height, width = image.shape
    # At 100 dots an inch an image's pixel is one of the picture; narrow images leave room for the title and the scale.
    high, wide = max(height / 100, 2.0), max(width / 100, 3.2)
    figure = Figure((2 * wide + 1.5, high + 0.9), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    whole = 2 * wide + 1.5, high + 0.9
    axes = []
    for left, picture in ((0.1, image), (wide + 0.2, blend(image, map_, explanation.limit))):
        place = (left / whole[0], 0.1 / whole[1], wide / whole[0], high / whole[1])
        panel = figure.add_axes(place)
        panel.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_axis_off()
        axes.append(panel)
    _hatch_unseen(axes[1], explanation, (height, width))
    limit = explanation.limit
    bar = figure.add_axes(((2 * wide + 0.35) / whole[0], 0.3 / whole[1], 0.18 / whole[0], (high - 0.4) / whole[1]))
    scale = ScalarMappable(Normalize(-limit, limit), _bar_colours())
    figure.colorbar(scale, cax=bar).set_label(_plain(f"logits for {shorten(explanation.label, 24)}"), fontsize=10)
    figure.text(0.1 / whole[0], 1 - 0.12 / whole[1], _title(explanation, prediction), va="top", fontsize=11)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as a box
        figure.savefig(stream, format="png", metadata={"Software": None})
    write_bytes(path, stream.getvalue())


def render_thumbnail(explanation: Explanation, side: int) -> bytes:
    """Draw an image, and beside it the image under its map, as a small JPEG; each is `side` pixels at its longer side."""
    from PIL import Image

    image, map_ = _scale(explanation, side)
    both = np.hstack([np.repeat(image[..., None], 3, 2), blend(image, map_, explanation.limit)])
    stream = io.BytesIO()
    Image.fromarray(np.rint(both * 255).astype(np.uint8)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def render_heatmap(evidence: Evidence, longest: int = 448) -> bytes:
    """Draw a map alone as a PNG to be laid over its image: the colour tells the sign, the opacity the strength.

    It has the image's proportions, with `longest` pixels at its longer side; what the network did not see is clear.
    """
    from PIL import Image

    height, width = (max(1, round(longest * side / max(evidence.shape))) for side in evidence.shape)
    colours, strength = _paint(evidence.map((height, width)), evidence.limit)
    stream = io.BytesIO()
    picture = np.dstack([colours, strength])
    Image.fromarray(np.rint(picture * 255).astype(np.uint8), "RGBA").save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def list_colours(count: int = 15) -> list[str]:
    """The colours of `render_heatmap`, from the strongest evidence against to the strongest for, as #rrggbbaa."""
    from matplotlib.colors import to_hex

    colours, strength = _paint(np.linspace(-1, 1, count, dtype=np.float32)[None], 1.0)
    return [
        to_hex((*colour, opacity), keep_alpha=True) for colour, opacity in zip(colours[0], strength[0], strict=True)
    ]


def blend(image: NDArray[np.float32], map_: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    """Lay a map over an image: the colour tells the sign, its opacity the strength.

    Args:
        image: float32 (H, W) in [0, 1].
        map_: float32 (H, W), in logits; nan leaves the image as it is.
        limit: the strength of full opacity, in logits.

    Returns:
        float32 (H, W, 3) in [0, 1].
    """
    colours, strength = _paint(map_, limit)
    opacity = _OPACITY * strength[..., None]
    return np.asarray(image[..., None] * (1 - opacity) + colours * opacity, np.float32)


def write_explanations(
    predictor: Predictor,
    samples: Sequence[Sample],
    folder: Path,
    *,
    label: str | None = None,
    method: Method = "auto",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Explain files: `folder/explanations.csv` has a row for each, `folder/overlays/` a picture for each that is read.

    Args:
        predictor: the classifier.
        samples: the files.
        folder: what to write.
        label: the class to explain, as in `explain`.
        method: how, as in `explain`.
        overwrite: whether an earlier output may go.
        progress: called with the number of files done.

    Returns:
        How many files could not be read.

    Raises:
        UsageError: the folder holds something already, or the classifier has no such class.
    """
    check_label(predictor.model.labels, label)
    claim_folder(folder, (_TABLE, _PICTURES), overwrite)
    write_text(folder / _TABLE, ",".join(_COLUMNS) + "\n")  # so that what an interruption leaves is known
    (folder / _PICTURES).mkdir()
    failed = 0

    def rows() -> Iterator[dict[str, object]]:
        nonlocal failed
        for number, (sample, prediction) in enumerate(zip(samples, predictor.stream(samples), strict=True), start=1):
            row = dict.fromkeys(_COLUMNS) | {"path": sample.path.as_posix(), "decision": prediction.decision}
            try:
                found = explain(predictor, sample, label, method)
                stem = re.sub(r"[^\w.-]+", "_", sample.path.stem)[:60]
                # The number keeps files of one name apart.
                name = f"{number:0{len(str(len(samples)))}}-{stem}.png"
                write_overlay(found, folder / _PICTURES / name, prediction)
                row |= {key: getattr(found, key) for key in ("label", "method", "logit", "bias")}
                row |= {"minimum": float(found.cells.min()), "maximum": float(found.cells.max())}
                row["overlay"] = f"{_PICTURES}/{name}"
            except ImageError as problem:
                failed += 1
                row["error"] = str(problem)
            yield row
            if progress is not None:
                progress(number)

    write_text(folder / _TABLE, "".join(format_rows(rows())))
    return failed


def _scale(explanation: Explanation, longest: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The image and its map with a longer side of that many pixels."""
    from PIL import Image

    height, width = (max(1, round(longest * side / max(explanation.shape))) for side in explanation.shape)
    image = Image.fromarray(explanation.pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, np.float32), 0, 1), explanation.map((height, width))


def _paint(map_: NDArray[np.float32], limit: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours (H, W, 3) and how strong the evidence is, (H, W), both in [0, 1]."""
    strength = np.clip(np.nan_to_num(map_) / limit, -1, 1)
    # The dark middle of the colours is left out: there the image itself is to be seen.
    colours = _colours()((strength + np.sign(strength)) / 4 + 0.5)[..., :3]
    return colours, np.abs(strength)


def _colours() -> Colormap:
    """Blue to yellow, perceptually uniform and readable by colour-blind people (Crameri et al. 2020, Nat Commun 11)."""
    from matplotlib import colormaps

    return colormaps["managua_r"]


def _bar_colours() -> Colormap:
    """The colours as they look on mid-grey."""
    from matplotlib.colors import ListedColormap

    line = np.linspace(-1, 1, 255, dtype=np.float32)[None]
    return ListedColormap(blend(np.full_like(line, 0.4), line, 1.0)[0])


def _hatch_unseen(axes: Axes, explanation: Explanation, shape: tuple[int, int]) -> None:
    """Hatch the margins that a crop leaves out."""
    from matplotlib.patches import Rectangle

    height, width = shape
    across, down = width / explanation.shape[1], height / explanation.shape[0]
    left, top, right, bottom = (edge * scale for edge, scale in zip(explanation.box, (across, down) * 2, strict=True))
    margins = ((0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height))
    for x0, y0, x1, y1 in margins:
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            axes.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, hatch="///", lw=0, ec="#bbbbbb", alpha=0.6
                )
            )


def _title(explanation: Explanation, prediction: Prediction | None) -> str:
    lines = [
        shorten(explanation.path.name if explanation.path else "image", 70),
        f"logit for {shorten(explanation.label, 30)} {explanation.logit:+.2f}, of it bias {explanation.bias:+.2f}",
    ]
    if prediction is not None and prediction.decision is not None:
        stated = "" if prediction.probability is None else f" · probability {prediction.probability:.3f}"
        lines.append(f"decision {shorten(prediction.decision, 30)}{stated}")
    return "\n".join(_plain(line) for line in lines)


def _plain(text: str) -> str:
    """A text as it stands: no dollar sign in it begins a formula."""
    return printable(text).replace("$", r"\$")
