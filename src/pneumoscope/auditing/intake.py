"""What an audit measures of each image while the image is decoded; the results are kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pneumoscope.auditing.measurements import FIELDS, MANY, Measured, Measurements
from pneumoscope.config import Progress, silent
from pneumoscope.datasets.samples import Sample
from pneumoscope.images import read
from pneumoscope.images.appearance import sample_grey, shrink
from pneumoscope.images.hash import hash_pixels
from pneumoscope.images.prepare import InputSpec
from pneumoscope.images.read import Radiograph
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Array, Engine
from pneumoscope.inference.features import Measurement, Wanted, extract_features
from pneumoscope.inference.prediction import log_warnings

Features: TypeAlias = NDArray[np.floating[Any]]

FORMATS = ("other", *read.FORMATS, "DICOM")
MODES = (
    "other", "L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L", "F",
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422",
)  # fmt: skip
COMPRESSIONS = (
    "usual for the format", "uncompressed", "deflated", "RLE", "JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K",
    "raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "other",
)  # fmt: skip
MODALITIES = ("unknown", "CR", "DX", "DR", "RG", "other")
VIEWS = ("unknown", "PA", "AP", "LL", "RL", "other")


@dataclass(frozen=True)
class Images:
    """A measured dataset; all attributes have one entry per image, in the dataset's order."""

    samples: Sequence[Sample]
    digests: Sequence[str]  # SHA-256 of the content; empty where unreadable
    errors: Sequence[str | None]  # why a file could not be read
    measured: Measured  # structured (N,) of `FIELDS`; zeros where unreadable
    # (N, D) of a pretrained network, float16 for many images; zeros where unreadable; None in a quick audit
    features: Features | None = None

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images could be read, (N,)."""
        return np.array([error is None for error in self.errors], bool)


def measure_images(
    samples: Sequence[Sample],
    spec: InputSpec,
    engine: Engine | None = None,
    cache: FeatureCache | None = None,
    progress: Progress = silent,
) -> Images:
    """Read and measure images, each once, and count their warnings; with an engine, extract features too.

    For more than 20,000 images, pictures are kept in a temporary file, and features are rounded to 16 bits.
    """
    n = len(samples)
    measured: Measured = Measurements(n) if n > MANY else np.zeros(n, FIELDS)
    features: Features | None = None
    digests = [""] * n
    errors: list[str | None] = [None] * n
    warnings: list[tuple[str, ...]] = [()] * n
    for i, extract in enumerate(extract_features(samples, engine, spec, Wanted(measurement=MEASUREMENT), cache)):
        digests[i], errors[i], warnings[i] = extract.sha256, extract.error, extract.warnings
        if extract.measured is not None:
            measured[i] = unpack(extract.measured)
        if extract.features is not None:
            if features is None:
                features = np.zeros((n, extract.features.shape[-1]), np.float16 if n > MANY else np.float32)
            features[i] = extract.features[0]
        progress("Measuring", i + 1, n)
    log_warnings(warnings)
    return Images(samples, digests, errors, measured, features)


def measure_image(content: bytes, image: Radiograph) -> Array:
    """Measure one image; return the bytes of `FIELDS` as float32 (K,)."""
    measured = np.zeros(1, FIELDS)
    values = measured[0]
    values["format"] = FORMATS.index(image.format) if image.format in FORMATS else 0
    values["mode"] = MODES.index(image.mode) if image.mode in MODES else 0
    compression = image.compression or COMPRESSIONS[0]
    values["compression"] = COMPRESSIONS.index(compression if compression in COMPRESSIONS else "other")
    for name, known in (("view", VIEWS), ("modality", MODALITIES)):
        value = (getattr(image.tags, name) if image.tags else None) or "unknown"
        values[name] = known.index(value if value in known else "other")
    values["height"], values["width"] = image.size
    values["bytes"] = len(content)
    values["quality"] = np.nan if image.quality is None else image.quality
    values["colour"] = image.colour
    values["hash"] = hash_pixels(image.grey)
    grey = sample_grey(image.grey)
    counts = np.bincount(grey.ravel(), minlength=256) / grey.size
    levels = np.arange(256) / 255
    values["mean"] = mean = counts @ levels
    values["spread"] = np.sqrt(counts @ (levels - mean) ** 2)
    values["low"], values["high"] = levels[np.searchsorted(counts.cumsum(), (0.01, 0.99))]
    values["black"], values["white"] = counts[0], counts[-1]
    values["sharpness"] = np.abs(np.diff(grey[::4].astype(np.int16))).mean() / 255 if grey.shape[1] > 1 else 0
    rows, columns = (max(1, round(0.04 * side)) for side in grey.shape)
    strips = (grey[:rows], grey[:, -columns:], grey[-rows:], grey[:, :columns])
    values["border"] = [strip.mean() / 255 for strip in strips]
    values["thumbnail"] = shrink(grey)
    return np.frombuffer(measured.tobytes(), np.float32)


def unpack(vector: Array) -> np.void:
    """Turn what `measure_image` returned into a scalar of `FIELDS`."""
    values: np.void = np.frombuffer(np.ascontiguousarray(vector, np.float32).tobytes(), FIELDS)[0]
    return values


MEASUREMENT = Measurement(f"audit 1, {FIELDS.itemsize} bytes", measure_image)
