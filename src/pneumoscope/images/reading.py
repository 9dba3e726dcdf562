"""Raster files become pixels. No file is trusted: formats, size and memory are bounded, and errors are ours."""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.errors import ImageError
from pneumoscope.images.preparing import Pixels

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 100_000_000  # the largest detectors give about 20 million; beyond this a file is an attack or an accident
MAX_BYTES = 512 * 1024 * 1024
_ODD_METADATA = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF


def read_bytes(path: Path) -> bytes:
    """Read a file that may become a radiograph.

    Raises:
        ImageError: the file is missing, unreadable, empty or larger than `MAX_BYTES`.
    """
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - pathlib's raises where it has no answer, without our words
            path.stat()  # says why, where it is not there or may not be looked at
            raise ImageError(f"{path}: not a regular file.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageError(f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} that are read.")
        content = path.read_bytes()
    except (OSError, ValueError) as problem:  # a name with a null byte is a ValueError
        raise ImageError(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}.") from None
    if not content:
        raise ImageError(f"{path}: the file is empty. Copy it again from its source.")
    return content


def read_pixels(source: str | Path | bytes, name: str | None = None) -> Pixels:
    """Read a radiograph of one channel, air dark and bone bright, at the file's own size.

    Colour is turned into luminance, transparency is laid on black, the EXIF orientation is applied, and the 16-bit
    depth of grey images is kept.

    Args:
        source: a path, or the file's content.
        name: what to call the content in messages.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        ImageError: not an image of a known format, damaged, or larger than `MAX_PIXELS`.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    content = read_bytes(Path(source)) if isinstance(source, str | Path) else source
    if content[128:132] == b"DICM":
        raise ImageError(f"{name}: DICOM is not read by this version. Convert it to PNG, for instance with dcm2img.")
    if not content:
        raise ImageError(f"{name}: the file is empty. Copy it again from its source.")
    from PIL import Image, UnidentifiedImageError

    if _ODD_METADATA not in warnings.filters[:1]:
        # Pillow warns of odd metadata, which is harmless. The filter stays: to take it back would race with other
        # threads that read, and could leave all warnings of the process ignored.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if min(width, height) == 0:
                raise ImageError(f"{name}: {width} x {height} pixels. Export it again.")
            image.load()
            return _upright(_to_pixels(image, name), image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{name}: not an image of a known format ({', '.join(FORMATS)}) and pixel type. "
            "Save it as PNG with 8 or 16 bits."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: more than the {MAX_PIXELS:,} pixels that are read. Save it smaller.") from None
    except MemoryError:
        raise ImageError(f"{name}: does not fit in memory. Save it smaller.") from None
    except Exception as problem:  # Pillow's decoders raise nearly anything on a damaged file
        raise ImageError(f"{name}: damaged or truncated ({problem}). Copy it again from its source.") from None


def _to_pixels(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I;16"):
        return _deep_pixels(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name}: signed, 32-bit or float pixels have no agreed range. Save it with 8 or 16 bits.")
    if image.mode == "1":
        image = image.convert("L")
    if image.has_transparency_data:
        from PIL import Image

        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), np.float32) / np.float32(255)


def _deep_pixels(image: Image.Image) -> Pixels:
    """Grey of 12 or 16 bits. Pillow leaves to us what TIFF says of range and polarity, and PNG of transparency."""
    tags: Any = getattr(image, "tag_v2", {})
    levels = np.asarray(image)
    pixels = levels.astype(np.float32) / np.float32(2 ** tags.get(_BITS, (16,))[0] - 1)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        pixels = 1 - pixels
    if (clear := image.info.get("transparency")) is not None:
        pixels[levels == clear] = 0
    return pixels


def _upright(pixels: Pixels, image: Image.Image) -> Pixels:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # metadata that cannot be read says nothing; the film is there all the same
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
