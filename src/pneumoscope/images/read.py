"""Reads radiographs. No file is trusted: formats, size and memory are bounded, and every failure is an ImageError."""

from __future__ import annotations

import io
import re
import stat
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.config import checked
from pneumoscope.errors import ImageError
from pneumoscope.images import limits
from pneumoscope.images.appearance import find_faults
from pneumoscope.images.checksums import check_chunks
from pneumoscope.images.colour import lay_on_black, measure_colour
from pneumoscope.images.dicom import Tags, is_dicom, read_dicom
from pneumoscope.images.dicom_display import Display
from pneumoscope.images.jpeg2000_streams import check_stream, find_stream
from pneumoscope.images.jpeg_completeness import (
    MISSING,
    TailFile,
    can_count,
    check_left_over,
    check_refinement,
    has_restarts,
    pad,
)
from pneumoscope.images.jpeg_streams import PROGRESSIVE, SEQUENTIAL, check_scans, read_outline
from pneumoscope.images.limits import CostError, LimitedFile
from pneumoscope.images.other_formats import describe_content
from pneumoscope.images.prepare import Pixels
from pneumoscope.images.resize import Grey, to_float
from pneumoscope.images.tiff_tags import check_tiff
from pneumoscope.text import escape, is_utf8, to_line

if TYPE_CHECKING:
    from PIL import Image

# Raster formats by Pillow's names, with the suffixes of their files, the usual one first.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "TIFF": (".tif", ".tiff"), "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",), "GIF": (".gif",), "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx"),
}  # fmt: skip
FORMATS = tuple(SUFFIXES)
MEDIA_TYPES = tuple(f"image/{'jp2' if name == 'JPEG2000' else name.lower()}" for name in SUFFIXES)
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000_SIGNATURES = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
_MAX_RLE_PIXELS = 5_000_000
_STRIP = 2**18  # pixels converted at a time: bounds the memory and stays in the cache
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_TABLE_SUM = 3688  # of the luminance table K.1 (ITU-T T.81)
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read an unusual file. A person decides this; nothing is guessed.

    Attributes:
        invert: swap black and white, because the scan shows air bright.
        any_modality: also read DICOM files that are not projection radiographs.
    """

    invert: bool = False
    any_modality: bool = False


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image file's content, its name for messages, and how to read it."""

    content: bytes
    name: str = "image"
    reading: Reading = Reading()


@dataclass(frozen=True, slots=True, eq=False)
class Radiograph:
    """A decoded file."""

    grey: Grey  # (H, W): bytes, but float32 for DICOM, grey of more than 8 bits, and inverted images
    format: str  # one of `FORMATS`, or `DICOM`
    mode: str  # kind of pixels stored: Pillow's mode, or DICOM's PhotometricInterpretation
    size: tuple[int, int]  # height and width as stored, upright
    # in DICOM and TIFF, such as `JPEG lossless` or `tiff_lzw`; None where the format implies it
    compression: str | None = None
    quality: float | None = None  # of a JPEG, on the scale 1 to 100 of the IJG encoder; else None
    colour: float | None = None  # `measure_colour`, if wanted; DICOM is read as grey
    tags: Tags | None = None  # what a DICOM header says about the image
    display: Display | None = None  # how to show a DICOM image at any window
    warnings: tuple[str, ...] = ()  # what is unusual about the file or the image, and what was made of it

    @property
    def pixels(self) -> Pixels:
        """The image as float32 (H, W) in [0, 1], not to be changed; may be smaller than `size` (`min_side`)."""
        return to_float(self.grey)


def is_image(head: bytes) -> bool:
    """Whether a file that begins with these 512 bytes has a supported format."""
    if is_dicom(head):
        return True
    signatures = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", *_TIFF_SIGNATURES, b"GIF87a", b"GIF89a")
    if head.startswith(signatures + _JPEG_2000_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    # Two letters are weak evidence: a bitmap also has one of these sizes of its header.
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)


def read_bytes(path: Path) -> bytes:
    """Read a file that may be a radiograph.

    Raises:
        ImageError: the file is missing, unreadable, empty or larger than `MAX_BYTES`, or no table could hold its name.
    """
    if not is_utf8(str(path)):
        raise ImageError(f"{escape(str(path))}: its name is not valid UTF-8. Rename the file.")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: not a regular file.")
        if status.st_size > limits.MAX_BYTES:
            raise ImageError(f"{path}: {status.st_size:,} bytes; the limit is {limits.MAX_BYTES:,}.")
        content = path.read_bytes()
    except (OSError, ValueError) as problem:  # a name with a null byte is a ValueError
        raise ImageError(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}.") from None
    if not content:
        raise ImageError(f"{path}: the file is empty. Copy it again from its source.")
    return content


@checked
def read_pixels(source: str | Path | bytes, name: str | None = None, reading: Reading = Reading()) -> Pixels:
    """Read a radiograph with one channel, air dark and bone bright, at its own size.

    Args:
        source: a path, or the file's content.
        name: what error messages call the content.
        reading: how to read it, if it is unusual.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        ImageError: not an image of a known format, damaged, or larger than `MAX_PIXELS`.
        MissingExtraError: a DICOM file, and the extra to read it is not installed.
    """
    return read_radiograph(source, name, reading).pixels


def read_radiograph(
    source: str | Path | bytes,
    name: str | None = None,
    reading: Reading = Reading(),
    min_side: int | None = None,
    colour: bool = False,
) -> Radiograph:
    """Read a radiograph and what its file says about it.

    Colour becomes luminance, transparency becomes black, the EXIF orientation is applied, and grey images keep their
    depth of 16 bits. The arguments are those of `read_pixels`; `min_side` also allows decoding a JPEG at a reduced
    scale whose shorter side has at least this many pixels, and `colour` measures the colour.

    Raises:
        ImageError, MissingExtraError: as in `read_pixels`.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    content = read_bytes(Path(source)) if isinstance(source, str | Path) else source
    if not content:
        raise ImageError(f"{name}: the file is empty. Copy it again from its source.")
    if is_dicom(content[:512]):
        dicom = read_dicom(content, name, reading.any_modality)
        image = Radiograph(
            dicom.pixels,
            "DICOM",
            dicom.mode,
            dicom.pixels.shape,
            compression=dicom.compression,
            colour=0.0 if colour else None,
            tags=dicom.tags,
            display=dicom.display,
            warnings=dicom.warnings,
        )
    else:
        image = _read_raster(content, name, min_side, colour)
    if reading.invert:
        pixels = image.pixels
        image = replace(image, grey=np.subtract(1, pixels, out=pixels))
    return replace(image, warnings=image.warnings + find_faults(image.grey))


def _read_raster(content: bytes, name: str, min_side: int | None, colour: bool) -> Radiograph:
    from PIL import Image, UnidentifiedImageError

    if _PILLOW_WARNINGS not in warnings.filters[:2]:
        # Pillow warns of unusual metadata, which is harmless. The filter is never removed: that would race with other
        # threads that read, and could leave all warnings of the process ignored.
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        if content[:4] in _TIFF_SIGNATURES:
            check_tiff(content)
        stream = find_stream(content) if content.startswith(_JPEG_2000_SIGNATURES) else 0
        file = TailFile(content)
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limits.MAX_PIXELS:
                raise Image.DecompressionBombError
            if min(width, height) == 0:
                raise ImageError(f"{name}: {width} x {height} pixels. Export it again.")
            form = {"MPO": "JPEG"}.get(str(picture.format), str(picture.format))  # MPO: several JPEGs in one file
            mode, quality = picture.mode, None
            _check_cost(picture, form, content, file)
            if form == "JPEG2000":
                check_stream(content, stream)
            faults: list[str] = []
            if form == "PNG" and (fault := check_chunks(content)):
                faults.append(fault)
            if form == "JPEG":
                quality = _find_quality(picture)
                _load_jpeg(picture, file, min_side, faults)
            picture.load()
            orientation = _find_orientation(picture)
            return Radiograph(
                grey=_to_grey(picture, orientation, name),
                format=form,
                mode=mode,
                size=(width, height) if orientation > 4 else (height, width),
                compression=picture.info.get("compression") if form == "TIFF" else None,
                quality=quality,
                colour=measure_colour(picture) if colour else None,
                warnings=tuple(faults),
            )
    except ImageError:
        raise
    except CostError as problem:
        raise ImageError(f"{name}: {problem}. Save it again, as PNG with 8 or 16 bits.") from None
    except UnidentifiedImageError:
        kind = describe_content(content)
        found = "unknown format or pixel type" if kind is None else f"unknown format: this is {kind}"
        advice = "Save it as PNG with 8 or 16 bits." if kind is None else "Give the image itself."
        raise ImageError(f"{name}: {found}. Supported are {', '.join(FORMATS)} and DICOM. {advice}") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name}: too large; the limit is {limits.MAX_PIXELS:,} pixels. Save it at a smaller size."
        ) from None
    except MemoryError:
        raise ImageError(f"{name}: does not fit in memory. Save it at a smaller size.") from None
    except Exception as problem:  # Pillow's decoders raise nearly anything on a damaged file
        reason = to_line(str(problem))[:200] or type(problem).__name__
        raise ImageError(f"{name}: damaged or truncated ({reason}). Copy it again from its source.") from None


def _check_cost(picture: Any, form: str, content: bytes, file: LimitedFile) -> None:
    """Refuse what would take too much time or memory to decode."""
    width, height = picture.size
    needed = width * height * _count_bytes(picture, form)
    if needed > limits.MAX_MEMORY:
        raise CostError(
            f"{width} x {height} pixels in this {form} need {needed:,} bytes; the limit is {limits.MAX_MEMORY:,}"
        )
    if form == "JPEG":
        check_scans(content, width * height)
    elif form == "BMP" and picture.tile[0][0] == "bmp_rle":  # decoded in Python
        if width * height > _MAX_RLE_PIXELS:
            raise CostError(f"{width} x {height} run-length encoded pixels; the limit is {_MAX_RLE_PIXELS:,}")
        file.left += 2 * width * height


def _count_bytes(picture: Any, form: str) -> int:
    """How many bytes of memory decoding takes for each pixel, with 4 for the result, which is float32 at most."""
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(picture.mode, 4)
    if form == "WEBP":
        return 4 + 3 * stored  # the picture, and two frames of libwebp's
    if form == "JPEG" and picture.info.get("progressive"):
        return 4 + stored + 2 * len(picture.getbands())  # coefficients
    if form == "JPEG2000":
        return 4 + stored + 5 * len(picture.getbands())  # OpenJPEG's 32 bits, and a copy of a tile
    return 4 + stored


def _find_quality(picture: Any) -> float | None:
    """Invert the scaling by which the IJG encoder makes its first table from K.1 of ITU-T T.81 and a quality."""
    table = picture.quantization.get(0)
    if not table:
        return None
    scale = 100 * sum(table) / _TABLE_SUM
    return float(np.clip(5000 / scale if scale > 100 else (200 - scale) / 2, 1, 100))


def _load_jpeg(picture: Image.Image, file: TailFile, min_side: int | None, faults: list[str]) -> None:
    """Decode a JPEG, and refuse one whose compressed data are too few or too many.

    Raises:
        ValueError: they are.
        CostError: it has very many restart markers.
    """
    from PIL import Image

    content = file.getvalue()
    outline = read_outline(content)
    if outline is None:
        raise ValueError("a JPEG without image")
    divided = has_restarts(content, outline) or len(outline.scans) > 1
    _request_scale(picture, min_side)
    size, mode = picture.size, picture.mode
    if can_count(outline):
        file.end = outline.scans[0].end
        picture.load()
        if fault := check_left_over(file.count_left_over()):
            faults.append(fault)
        if not outline.ended:
            faults.append("the file ends without the end marker of its JPEG; the image is complete")
    else:
        check_refinement(outline)
        picture.load()
    if divided and outline.frame in (*SEQUENTIAL, PROGRESSIVE):
        with Image.open(io.BytesIO(pad(content, outline)), formats=("JPEG",)) as padded:
            padded.draft(mode, size)
            rows = max(1, _STRIP // size[0])
            for top in range(0, size[1], rows):
                box = (0, top, size[0], min(top + rows, size[1]))
                if padded.crop(box).tobytes() != picture.crop(box).tobytes():
                    raise ValueError(MISSING)


def _request_scale(picture: Image.Image, min_side: int | None) -> None:
    """Request luminance as it is stored, and 1/2, 1/4 or 1/8 of the image if that suffices.

    Only if the sides are divisible: a remainder would shift the image by a fraction of a pixel, which changes results.
    """
    width, height = picture.size
    for scale in (8, 4, 2, 1):
        if scale == 1 or (min_side and min(width, height) >= scale * min_side and width % scale == height % scale == 0):
            picture.draft("YCbCr" if _holds_luminance(picture) else None, (width // scale, height // scale))
            return


def _holds_luminance(picture: Any) -> bool:
    """Whether the channels of a JPEG are luminance and two of colour, by the rules of libjpeg (`jdapimin.c`)."""
    if picture.mode != "RGB":
        return False
    if "jfif" in picture.info:
        return True
    if "adobe" in picture.info:
        return bool(picture.info.get("adobe_transform") == 1)
    return [layer[0] for layer in picture.layer] == [1, 2, 3]


def _find_orientation(picture: Image.Image) -> int:
    try:
        orientation: Any = picture.getexif().get(_ORIENTATION)
    except Exception:  # unreadable metadata must not make the image unreadable
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _to_grey(picture: Image.Image, orientation: int, name: str) -> Grey:
    """Convert strip by strip, each directly to its place in the upright image."""
    if picture.mode in ("I", "F"):
        raise ImageError(f"{name}: signed, 32-bit and float pixels have no defined range. Save it with 8 or 16 bits.")
    width, height = picture.size
    deep = picture.mode.startswith("I;16")
    grey: Any = np.empty((width, height) if orientation > 4 else (height, width), np.float32 if deep else np.uint8)
    stored = grey[:, ::-1] if orientation in (2, 3, 6, 7) else grey
    stored = stored[::-1] if orientation in (3, 4, 7, 8) else stored
    stored = stored.T if orientation > 4 else stored
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        if deep:
            _convert_grey(strip, picture, stored[top : top + rows])
        else:
            stored[top : top + rows] = np.asarray(lay_on_black(strip).convert("L"))
    upright: Grey = grey
    return upright


def _convert_grey(strip: Image.Image, picture: Image.Image, out: Pixels) -> None:
    """Convert grey of 12 or 16 bits. Pillow does not apply range and polarity of TIFF, nor transparency of PNG."""
    tags: Any = getattr(picture, "tag_v2", {})
    levels = np.asarray(strip)
    np.divide(levels, np.float32(2 ** tags.get(_BITS, (16,))[0] - 1), out=out)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        np.subtract(1, out, out=out)
    if (transparent := picture.info.get("transparency")) is not None:
        out[levels == transparent] = 0
