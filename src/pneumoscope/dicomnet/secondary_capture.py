"""A prediction as a picture: a secondary capture, which every viewer shows (PS3.3 A.8)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, UNCERTAIN
from pneumoscope.dicomnet.algorithm import Algorithm
from pneumoscope.dicomnet.objects import refer_to, start_object
from pneumoscope.dicomnet.sources import Source
from pneumoscope.inference.overlays import render_overlay
from pneumoscope.text import printable_line, shorten

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont
    from pydicom.dataset import Dataset

    from pneumoscope.inference.prediction import Prediction

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LONGEST, _SHORTEST = 1024, 512  # pixels of the picture's longer side
_NARROWEST = 400  # pixels of the picture, so that words fit in
_MAP = 224  # the same for its heatmap, which is smooth
_WARNING = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
_BAND, _AMBER, _WHITE, _GREY = (16, 20, 24), (255, 190, 60), (240, 240, 240), (170, 175, 180)  # RGB


@dataclass(frozen=True)
class _Line:
    text: str
    colour: tuple[int, int, int]
    scale: float = 1.0  # of the size of letters


def make_capture(prediction: Prediction, source: Source, algorithm: Algorithm) -> Dataset:
    """Make a picture of an image with its evidence, and above it what the model says and that it is for research.

    Args:
        prediction: of the image, with its pixels, and with its evidence if that is to be drawn.
        source: its header.
        algorithm: what predicted it.

    Raises:
        ValueError: the prediction has no pixels.
    """
    picture = draw_capture(prediction, algorithm)
    result = start_object(source, algorithm, "sc", _SECONDARY_CAPTURE, "OT")
    header = source.header
    result.ConversionType = "WSD"
    result.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    result.DateOfSecondaryCapture, result.TimeOfSecondaryCapture = result.ContentDate, result.ContentTime
    result.BurnedInAnnotation = "YES"
    result.DerivationDescription = "Image with a heatmap of evidence and text, drawn by a program. " + _WARNING
    result.SourceImageSequence = [refer_to(source)]
    result.PatientOrientation = header.get("PatientOrientation") or None
    if "BodyPartExamined" in header:  # the chest, which has no side (C.7.3.1)
        result.BodyPartExamined = header.BodyPartExamined
    else:
        result.Laterality = header.get("Laterality") or None
    if header.get("LossyImageCompression") == "01":  # once lossy, always lossy (C.7.6.1.1.5)
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in header:
                setattr(result, keyword, header[keyword].value)
    result.SamplesPerPixel, result.PhotometricInterpretation, result.PlanarConfiguration = 3, "RGB", 0
    result.Rows, result.Columns = picture.shape[:2]
    result.BitsAllocated, result.BitsStored, result.HighBit, result.PixelRepresentation = 8, 8, 7, 0
    content = picture.tobytes()
    result.PixelData = content + b"\0" * (len(content) % 2)
    return result


def draw_capture(prediction: Prediction, algorithm: Algorithm) -> NDArray[np.uint8]:
    """Draw the picture of `make_capture`: uint8 (H, W, 3)."""
    from PIL import Image, ImageDraw

    image = _draw_image(prediction)
    height, width = image.shape[0], max(image.shape[1], _NARROWEST)
    size = max(13, round(width / 42))
    lines = [
        (piece, line.colour, font)
        for line in _list_lines(prediction, algorithm)
        for font in [_find_font(round(size * line.scale))]
        for piece in _wrap(line.text, font, width - size)
    ]
    steps = [round(font.size * 1.35) for _, _, font in lines]
    band = size + sum(steps)
    picture = Image.new("RGB", (width, height + band), _BAND)
    pen, top = ImageDraw.Draw(picture), size // 2
    for (text, colour, font), step in zip(lines, steps, strict=True):
        pen.text((size // 2, top), text, fill=colour, font=font)
        top += step
    picture.paste(Image.fromarray(image), ((width - image.shape[1]) // 2, band))
    return np.asarray(picture)


def _draw_image(prediction: Prediction) -> NDArray[np.uint8]:
    """The image, under its evidence if that means something: uint8 (H, W, 3)."""
    from PIL import Image

    if prediction.pixels is None:
        raise ValueError("a prediction without its pixels: run with pixels=True")
    height, width = prediction.pixels.shape
    side = min(_LONGEST, max(_SHORTEST, height, width)) / max(height, width)
    size = max(1, round(width * side)), max(1, round(height * side))
    grey = Image.fromarray(np.rint(np.clip(prediction.pixels, 0, 1) * 255).astype(np.uint8))
    picture = grey.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0).convert("RGB")
    if prediction.evidence is not None and prediction.decision != OUT_OF_DISTRIBUTION:
        heatmap = render_overlay(prediction.evidence, _MAP)
        # Colours and opacity apart: Pillow multiplies and divides one by the other when it resizes both.
        colours, opacity = (
            each.resize(size, Image.Resampling.BILINEAR) for each in (heatmap.convert("RGB"), heatmap.getchannel("A"))
        )
        picture.paste(colours, mask=opacity)
    return np.asarray(picture)


def _list_lines(prediction: Prediction, algorithm: Algorithm) -> list[_Line]:
    label = algorithm.positive or str(prediction.predicted_label)
    threshold = "" if algorithm.threshold is None else f", threshold {algorithm.threshold:.3f}"
    if prediction.decision == OUT_OF_DISTRIBUTION:
        found = [
            _Line("Out of distribution: unlike the training images", _WHITE, 1.3),
            _Line(f"No probability is given. OOD score {prediction.ood_score:.2f} (above 1).", _WHITE),
        ]
    else:
        decision = str(prediction.decision)
        if prediction.decision == UNCERTAIN:
            possible = " or ".join(prediction.prediction_set) or "typical of no class"
            decision = f"uncertain ({possible})"
        probability = (prediction.probabilities or {})[label]
        found = [
            _Line(f"Decision: {decision}", _WHITE, 1.3),
            _Line(f"Probability of {label}: {format_probability(probability)}{threshold}", _WHITE),
        ]
        if prediction.evidence is not None:
            shown = prediction.evidence.label
            found.append(_Line(f"Yellow supports {shown}, blue speaks against it. Not an outline.", _GREY, 0.9))
    made_by = f"{algorithm.name}, pneumoscope {algorithm.version}"
    warnings = [_Line(f"Warning: {text}", _AMBER, 0.9) for text in prediction.warnings]
    limits = _Line(algorithm.limits, _WHITE, 0.9)
    return [_Line(_WARNING, _AMBER), *found, limits, *warnings, _Line(made_by, _GREY, 0.9)]


def format_probability(value: float) -> str:
    """A probability with three decimals; one that is not exactly 0 or 1 never looks as if it were."""
    return ">0.999" if 0.9995 <= value < 1 else "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def _find_font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(_find_file(), size)


@cache
def _find_file() -> str:
    """A font with many scripts, which comes with matplotlib."""
    from matplotlib import get_data_path

    return str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _wrap(text: str, font: FreeTypeFont | ImageFont, width: int) -> list[str]:
    """Lines no wider than that many pixels, three at most."""
    lines = [""]
    for word in printable_line(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:3]
    if len(lines) > len(kept):
        kept[-1] += " …"
    return [shorten(line, 200) for line in kept]
