"""Evidence laid over images, as pictures, and whole folders of them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.files import claim_folder, lock_folder, path_in_file, write_bytes, write_rows, write_text
from pneumoscope.inference.evidence import Evidence, Method, check_label
from pneumoscope.inference.prediction import Prediction, log_warnings
from pneumoscope.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from PIL.Image import Image as PILImage

    from pneumoscope.inference.predictor import Predictor

_TABLE, _PICTURES = "explanations.csv", "overlays"
_COLUMNS = (
    "path",
    "decision",
    "label",
    "method",
    "logit",
    "bias",
    "minimum",
    "maximum",
    "overlay",
    "warnings",
    "error",
)
_LONGEST = 900  # pixels of an image's longer side in an overlay
_HEATMAP = 448  # the same of a map alone
_COLOURS = 15  # in a scale
_OPACITY = 0.6  # of the strongest evidence; letters on the image stay readable through it


class OverlayFolder:
    """A folder of explanations: `explanations.csv` with a row for each image, `overlays/` with a picture for each.

    `count` is how many images there will be; `overwrite` allows replacing an earlier output; with `excel` the table
    begins with a byte order mark. As a context manager it makes the folder, keeps other processes out of it meanwhile,
    and writes the table.
    """

    def __init__(self, folder: Path, count: int, overwrite: bool = False, excel: bool = False) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._excel = excel
        self._open = ExitStack()
        self._digits = len(str(count))
        self._rows: list[dict[str, Any]] = []

    def add(self, prediction: Prediction) -> None:
        """Draw an image that was predicted with its evidence and pixels, or note why it could not be read."""
        path = prediction.path or Path("image")
        row = dict.fromkeys(_COLUMNS) | {
            "path": path_in_file(path, self._folder),
            "decision": prediction.decision,
            "warnings": "; ".join(prediction.warnings),
            "error": prediction.error,
        }
        if (evidence := prediction.evidence) is not None:
            stem = re.sub(r"[^\w.-]+", "_", path.stem)[:60]
            # The number keeps files of the same name apart.
            name = f"{len(self._rows) + 1:0{self._digits}}-{stem}.png"
            write_overlay(prediction, self._folder / _PICTURES / name)
            row |= {key: getattr(evidence, key) for key in ("label", "method", "logit", "bias")}
            row |= {"minimum": float(evidence.cells.min()), "maximum": float(evidence.cells.max())}
            row["overlay"] = f"{_PICTURES}/{name}"
        self._rows.append(row)

    def __enter__(self) -> Self:
        """Make the folder.

        Raises:
            UsageError: it holds something already, or another process is writing into it.
        """
        with ExitStack() as opening:
            opening.enter_context(lock_folder(self._folder))
            claim_folder(self._folder, (_TABLE, _PICTURES), self._overwrite)
            write_text(self._folder / _TABLE, ",".join(_COLUMNS) + "\n")  # marks it as ours if we are interrupted
            (self._folder / _PICTURES).mkdir()
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Write the table, also after an interruption."""
        with self._open:
            if self._rows:
                write_rows(self._folder / _TABLE, self._rows, self._excel)


def write_explanations(
    predictor: Predictor,
    samples: Sequence[Sample],
    folder: Path,
    *,
    label: str | None = None,
    method: Method = "auto",
    overwrite: bool = False,
    excel: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Explain files: an `OverlayFolder` with a row and a picture for each.

    Args:
        predictor: the classifier.
        samples: the files.
        folder: what to write.
        label: the class to explain, as in `explain`.
        method: how, as in `explain`.
        overwrite: whether to replace an earlier output.
        excel: whether the table begins with a byte order mark.
        progress: called with the number of files done.

    Returns:
        The errors of files that could not be read.

    Raises:
        UsageError: the folder holds something already, or the classifier has no such class.
    """
    check_label(predictor.model.labels, label)
    errors, warnings = list[str](), list[tuple[str, ...]]()
    predictions = predictor.run(samples, maps=True, pixels=True, label=label, method=method)
    with OverlayFolder(folder, len(samples), overwrite, excel) as overlays:
        for done, prediction in enumerate(predictions, start=1):
            overlays.add(prediction)
            errors.extend([prediction.error] if prediction.error else [])
            warnings.append(prediction.warnings)
            progress("Explaining", done, len(samples))
    log_warnings(warnings)
    return errors


def write_overlay(prediction: Prediction, path: Path) -> None:
    """Write a PNG: the image, beside it the image under its map, with a scale in logits and a title.

    Yellow is evidence for the class, blue against it; the stronger it is, the less the image shows through. Parts that
    the network did not see are hatched.

    Raises:
        UsageError: it cannot be written.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as a box
        draw_overlay(prediction).savefig(stream, format="png", metadata={"Software": None})
    write_bytes(path, stream.getvalue())


def draw_overlay(prediction: Prediction) -> Figure:
    """The picture of `write_overlay` as a figure."""
    evidence, pixels = _require_evidence(prediction)
    image, map_ = _scale(evidence, pixels, _LONGEST)
    figure, map_panel, bar = _lay_out(image, blend(image, map_, evidence.limit))
    _hatch_unseen(map_panel, evidence, image.shape)
    _draw_scale(figure, bar, evidence)
    width, height = figure.get_size_inches()
    figure.text(0.1 / width, 1 - 0.12 / height, _write_title(prediction, evidence), va="top", fontsize=11)
    return figure


def _require_evidence(prediction: Prediction) -> tuple[Evidence, NDArray[np.float32]]:
    if prediction.evidence is None or prediction.pixels is None:
        raise ValueError("a prediction without its evidence and pixels: run with maps=True and pixels=True")
    return prediction.evidence, prediction.pixels


def _lay_out(image: NDArray[np.float32], blended: NDArray[np.float32]) -> tuple[Figure, Axes, Axes]:
    """Lay out both pictures side by side; return the figure, the panel of the second, and the axes of the scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = image.shape
    # At 100 dots an inch an image's pixel is one of the picture; narrow images leave space for the title and the scale.
    high, wide = max(height / 100, 2.0), max(width / 100, 3.2)
    total = 2 * wide + 1.5, high + 0.9
    figure = Figure(total, dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    for left, picture in ((0.1, image), (wide + 0.2, blended)):
        panel = figure.add_axes((left / total[0], 0.1 / total[1], wide / total[0], high / total[1]))
        panel.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_axis_off()
    place = ((2 * wide + 0.35) / total[0], 0.3 / total[1], 0.18 / total[0], (high - 0.4) / total[1])
    return figure, panel, figure.add_axes(place)


def _draw_scale(figure: Figure, bar: Axes, evidence: Evidence) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(-evidence.limit, evidence.limit), _bar_colours())
    label = _escape(f"logits for {shorten(evidence.label, 24)}")
    figure.colorbar(scale, cax=bar).set_label(label, fontsize=10)


def render_thumbnail(prediction: Prediction, side: int) -> bytes:
    """Draw an image, and beside it the image under its map, as a JPEG, each `side` pixels on its longer side."""
    from PIL import Image

    evidence, pixels = _require_evidence(prediction)
    image, map_ = _scale(evidence, pixels, side)
    both = np.hstack([np.repeat(image[..., None], 3, 2), blend(image, map_, evidence.limit)])
    stream = io.BytesIO()
    Image.fromarray(np.rint(both * 255).astype(np.uint8)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def render_heatmap(evidence: Evidence, limit: float | None = None) -> bytes:
    """Draw a map alone as a PNG to be laid over its image: the colour tells the sign, the opacity the strength.

    It has the image's proportions. Parts that the network did not see are transparent. The strength is full at `limit`
    logits, by default at the strongest evidence of the image.
    """
    stream = io.BytesIO()
    _render(evidence, _HEATMAP, 1.0, limit).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def render_overlay(evidence: Evidence, side: int) -> PILImage:
    """Draw a map in RGBA, with so many pixels on its longer side, as `blend` would lay it over its image."""
    return _render(evidence, side, _OPACITY)


def _render(evidence: Evidence, longest: int, opacity: float, limit: float | None = None) -> PILImage:
    from PIL import Image

    height, width = (max(1, round(longest * side / max(evidence.shape))) for side in evidence.shape)
    colours, strength = _paint(evidence.map((height, width)), limit or evidence.limit)
    return Image.fromarray(np.rint(np.dstack([colours, opacity * strength]) * 255).astype(np.uint8), "RGBA")


def list_colours() -> list[str]:
    """The colours of `render_heatmap`, from the strongest evidence against to the strongest for, as #rrggbbaa."""
    from matplotlib.colors import to_hex

    colours, strength = _paint(np.linspace(-1, 1, _COLOURS, dtype=np.float32)[None], 1.0)
    return [
        to_hex((*colour, opacity), keep_alpha=True) for colour, opacity in zip(colours[0], strength[0], strict=True)
    ]


def blend(image: NDArray[np.float32], map_: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    """Lay a map over an image: the colour tells the sign, its opacity the strength, which is full at `limit` logits.

    The image is float32 (H, W) in [0, 1], the map (H, W) in logits, where nan leaves the image as it is.
    Returns float32 (H, W, 3) in [0, 1].
    """
    colours, strength = _paint(map_, limit)
    opacity = _OPACITY * strength[..., None]
    return np.asarray(image[..., None] * (1 - opacity) + colours * opacity, np.float32)


def _scale(
    evidence: Evidence, pixels: NDArray[np.float32], longest: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The image and its map with a longer side of that many pixels."""
    from PIL import Image

    height, width = (max(1, round(longest * side / max(evidence.shape))) for side in evidence.shape)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, np.float32), 0, 1), evidence.map((height, width))


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


def _hatch_unseen(axes: Axes, evidence: Evidence, shape: tuple[int, ...]) -> None:
    """Hatch the margins that a crop leaves out."""
    from matplotlib.patches import Rectangle

    height, width = shape
    across, down = width / evidence.shape[1], height / evidence.shape[0]
    left, top, right, bottom = (edge * scale for edge, scale in zip(evidence.box, (across, down) * 2, strict=True))
    margins = ((0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height))
    for x0, y0, x1, y1 in margins:
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            axes.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, hatch="///", lw=0, ec="#bbbbbb", alpha=0.6
                )
            )


def _write_title(prediction: Prediction, evidence: Evidence) -> str:
    lines = [
        shorten(prediction.path.name if prediction.path else "image", 70),
        f"logit for {shorten(evidence.label, 30)} {evidence.logit:+.2f}, including bias {evidence.bias:+.2f}",
    ]
    if prediction.decision is not None:
        probability = "" if prediction.probability is None else f" · probability {prediction.probability:.3f}"
        lines.append(f"decision {shorten(prediction.decision, 30)}{probability}")
    if prediction.decision == OUT_OF_DISTRIBUTION:
        lines[-1] = "out of distribution: this heatmap means nothing"
    return "\n".join(_escape(line) for line in lines)


def _escape(line: str) -> str:
    """A line without characters that cannot be printed, and without a dollar sign that would begin a formula."""
    return printable(line).replace("$", r"\$")
