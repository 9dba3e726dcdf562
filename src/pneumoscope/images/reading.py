"""Raster files become pixels. No file is trusted: formats, size and memory are bounded, and errors are ours."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.errors import ImageError
from pneumoscope.images.preparing import Pixels

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 100_000_000  # the largest detectors give about 20 million; beyond this a file is an attack or an accident
MAX_BYTES = 512 * 1024 * 1024


def read_bytes(path: Path) -> bytes:
    """Read a file that may become a radiograph.

    Raises:
        ImageError: the file is missing, unreadable, empty or larger than `MAX_BYTES`.
    """
    try:
        if not path.is_file():
            raise ImageError(f"{path}: no such file." if not path.exists() else f"{path}: not a regular file.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageError(f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} that are read.")
        content = path.read_bytes()
    except OSError as problem:
        raise ImageError(f"{path}: cannot be read: {problem.strerror or problem}.") from None
    if not content:
        raise ImageError(f"{path}: the file is empty. Copy it again from its source.")
    return content


def read_pixels(source: Path | bytes, name: str | None = None) -> Pixels:
    """Read a radiograph of one channel, air dark and bone bright, at the file's own size.

    Colour is turned into luminance, transparency is laid on black, the EXIF orientation is applied, and 16-bit depth
    is kept.

    Args:
        source: a path, or the file's content.
        name: what to call the content in messages.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        ImageError: not an image of a known format, damaged, or larger than `MAX_PIXELS`.
    """
    content = read_bytes(source) if isinstance(source, Path) else source
    name = name or (str(source) if isinstance(source, Path) else "image")
    if content[128:132] == b"DICM":
        raise ImageError(f"{name}: DICOM is not read by this version. Convert it to PNG, for instance with dcm2img.")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of large images; the former is harmless, the latter checked here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{width} x {height} pixels")
                if min(width, height) == 0:
                    raise ImageError(f"{name}: {width} x {height} pixels. Export it again.")
                return _to_pixels(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a known format ({', '.join(FORMATS)}).") from None
    except Image.DecompressionBombError as problem:
        raise ImageError(
            f"{name}: too large: {problem}; at most {MAX_PIXELS:,} pixels are read. Save it at a smaller size."
        ) from None
    except Exception as problem:  # Pillow's decoders raise nearly anything on a damaged file
        raise ImageError(f"{name}: damaged or truncated ({problem}). Copy it again from its source.") from None


def _to_pixels(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32) / np.float32(65535)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name}: 32-bit pixels have no agreed range. Save it with 8 or 16 bits.")
    if image.mode == "1":
        image = image.convert("L")
    if image.has_transparency_data:
        from PIL import Image

        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), np.float32) / np.float32(255)
