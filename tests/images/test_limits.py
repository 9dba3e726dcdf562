"""Files made to exhaust time or memory are refused before they are decoded, whatever the format; others are read."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_files import DEFLATED, EXPLICIT, IMPLICIT, JPEG, RLE, dicom, image, written
from PIL import Image
from pydicom.encaps import encapsulate
from test_read import IMAGE, chunk, encoded, first_scan, png

from pneumoscope.errors import ImageError
from pneumoscope.images.read import read_pixels, read_radiograph

MANY = 600_000  # small parts of a file


def refused(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_radiograph(content, "image")
    assert str(caught.value).startswith("image: ")
    return str(caught.value)


def in_dicom(stream: bytes, syntax: str, rows: int = 24, columns: int = 32, samples: int = 1) -> bytes:
    """A file with one compressed frame of 8 bits."""
    levels = np.zeros((2, 2) if samples == 1 else (2, 2, 3), np.uint8)
    data = pydicom.dcmread(io.BytesIO(dicom(levels, 8, JPEG + "50", Rows=rows, Columns=columns)))
    data.PixelData = encapsulate([stream])
    return written(data, syntax)


# JPEG 2000


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def jpeg_2000(width: int = 2700, height: int = 2600, **how: Any) -> bytes:
    """A stream of 200 to 300 bytes: headers, and a tile-part without data."""
    tile = how.get("tile", (width, height))
    precincts: tuple[int, ...] = how.get("precincts", ())
    levels, wide = how.get("levels", 5), how.get("block", 6) - 2
    size = struct.pack(">H8IH", 0, width, height, 0, 0, *tile, 0, 0, how.get("components", 1)) + b"\7\1\1" * how.get(
        "components", 1
    )
    style = bytes([levels, wide, wide, 0, 1, *(both | both << 4 for both in precincts)])
    general = struct.pack(">BBHB", bool(precincts), 0, how.get("layers", 1), 0)
    steps = bytes([how.get("guard", 2) << 5, *[how.get("exponent", 8) << 3] * (3 * levels + 1)])
    part: bytes = how.get("part", b"")  # segments of the header of the tile-part
    main: bytes = (
        segment(0xFF51, size) + segment(0xFF52, general + style) + segment(0xFF5C, steps) + how.get("main", b"")
    )
    return (
        b"\xff\x4f" + main + segment(0xFF90, struct.pack(">HIBB", 0, 14 + len(part), 0, 1)) + part + b"\xff\x93\xff\xd9"
    )


def boxed(stream: bytes, outside: bytes = b"", inside: bytes = b"") -> bytes:
    """A JP2 file."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    header = box(b"ihdr", struct.pack(">IIHBBBB", 24, 32, 1, 7, 7, 0, 0)) + inside
    header += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))
    head = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + outside
    return head + box(b"jp2h", header) + box(b"jp2c", stream)


SMALL_BLOCKS = struct.pack(">BBHBBBBBB", 0, 0, 1, 0, 5, 0, 0, 0, 1)
SMALLER = segment(0xFF52, SMALL_BLOCKS)
JPEG_2000_BOMBS: dict[str, tuple[bytes, str]] = {
    "precincts of one sample": (jpeg_2000(precincts=(0, 1, 1, 1, 1, 1)), "code-blocks and precincts"),
    "one level of them": (jpeg_2000(levels=0, precincts=(0,)), "code-blocks and precincts"),
    "small code-blocks": (jpeg_2000(5000, 5000, block=2), "code-blocks and precincts"),
    "in the tile-part": (jpeg_2000(5000, 5000, part=SMALLER), "code-blocks and precincts"),
    "in one component": (
        jpeg_2000(3000, 3000, components=3, main=segment(0xFF53, b"\2\0\5\0\0\0\1")),
        "code-blocks and precincts",
    ),
    "layers": (jpeg_2000(layers=65535, precincts=(7,) * 6), "packets"),
    "progressions": (jpeg_2000(precincts=(5,) * 6, main=segment(0xFF5F, bytes(7) * 9000)), "packets"),
    "tiles": (jpeg_2000(tile=(9, 9)), "tiles"),
    "tiles of one sample": (jpeg_2000(30000, 1, tile=(1, 1)), "tiles"),
    "bit planes": (jpeg_2000(9000, 9000, exponent=30), "bit planes"),
    "of a region": (jpeg_2000(9000, 9000, exponent=1, main=segment(0xFF5E, b"\0\0\x1e")), "bit planes"),
    "styles": (
        jpeg_2000(part=b"".join(segment(0xFF53, bytes([0, 0, i, 4, 4, 0, 1])) for i in range(20))),
        "coding styles",
    ),
    "segments": (jpeg_2000(main=segment(0xFF64, b"\0\1") * 30000), "segments"),
}


@pytest.mark.parametrize("kind", JPEG_2000_BOMBS)
@pytest.mark.parametrize("place", ["stream", "JP2", "DICOM"])
def test_a_jpeg_2000_header_cannot_ask_for_much_work_or_memory(kind: str, place: str) -> None:
    stream, reason = JPEG_2000_BOMBS[kind]
    width, height = struct.unpack(">II", stream[8:16])
    if place == "DICOM":
        stream = in_dicom(stream, JPEG + "90", height, width)
        if kind == "in one component":
            pytest.skip("the header of the file already contradicts it")
    assert reason in refused(boxed(stream) if place == "JP2" else stream)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"irreversible": True},
        {"num_resolutions": 1},
        {"tile_size": (128, 128)},
        {"tile_size": (100, 60), "offset": (7, 9), "tile_offset": (3, 2)},
        {"precinct_size": (64, 64), "codeblock_size": (16, 16)},
        {"codeblock_size": (4, 4)},
        {"quality_layers": [80, 40, 20, 10, 1], "progression": "RPCL"},
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_ordinary_jpeg_2000_is_read_however_it_is_cut_up(mode: str, options: dict[str, Any]) -> None:
    levels = image(300, 400, 16 if mode == "I;16" else 8)
    picture = Image.fromarray(levels if mode != "RGB" else np.stack([levels] * 3, -1))
    for plain in (False, True):
        content = encoded(picture, "JPEG2000", no_jp2=plain, **options)
        decoded = imagecodecs.jpeg2k_decode(content)  # Pillow's encoder is wrong about some of the last tiles
        decoded = decoded if mode != "RGB" else decoded @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(read_pixels(content), decoded / (255 if mode != "I;16" else 65535), atol=1 / 255)


@pytest.mark.parametrize("exponent", [0, 1, 3])
def test_blocks_are_counted_as_they_are_made(exponent: int) -> None:
    """Twice the side of blocks and precincts makes a quarter of them: the limit lies where arithmetic says."""
    side = 700 << exponent  # 490,000 precincts of one level, and as many code-blocks
    assert "code-blocks" in refused(jpeg_2000(side, side, levels=0, precincts=(exponent,)))
    most = 490 << exponent  # 240,100 of each
    assert "code-blocks" not in refused(jpeg_2000(most, most, levels=0, precincts=(exponent,)))


def test_boxes_of_a_jpeg_2000_file_are_limited() -> None:
    stream = encoded(IMAGE, "JPEG2000", no_jp2=True)
    empty = struct.pack(">I4s", 8, b"free")
    assert read_pixels(boxed(stream, outside=empty * 9, inside=empty * 9)).shape == IMAGE.shape
    assert "boxes" in refused(boxed(stream, outside=empty * 2000))
    assert "boxes" in refused(boxed(stream, inside=empty * 2000))
    assert "resolution" in refused(boxed(stream, inside=struct.pack(">I4s", 8 + 16000, b"res ") + empty * 2000))


# JPEG


def jpeg_bombs(stream: bytes) -> dict[str, bytes]:
    """What can be put into a JPEG, many times."""
    scan = stream.index(b"\xff\xda")
    return {
        "fill": stream[:2] + b"\xff" * MANY + stream[2:],
        "fill before the scan": stream[:scan] + b"\xff" * MANY + stream[scan:],
        "fill in the scan": stream[:-2] + b"\xff" * MANY + stream[-2:],
        "empty segments": stream[:2] + b"\xff\xe5\0\2" * MANY + stream[2:],
        "empty comments": stream[:scan] + b"\xff\xfe\0\2" * MANY + stream[scan:],
        "empty tables": stream[:scan] + b"\xff\xc4\0\2" * MANY + stream[scan:],
        "segments after the scan": stream[:-2] + b"\xff\xe5\0\2" * MANY + stream[-2:],
    }


@pytest.mark.parametrize("kind", jpeg_bombs(encoded(IMAGE, "JPEG")))
@pytest.mark.parametrize("place", ["file", "DICOM"])
def test_a_jpeg_of_very_many_parts_is_refused(kind: str, place: str) -> None:
    content = jpeg_bombs(encoded(IMAGE, "JPEG"))[kind]
    reason = refused(content if place == "file" else in_dicom(content, JPEG + "50"))
    assert "fill bytes" in reason or "segments" in reason or "small parts" in reason


@pytest.mark.parametrize("junk", [b"\xff\0", b"\xff\xd0", b"\xff\xd8", b"\xff\x01"])
def test_junk_before_the_header_of_a_jpeg_is_not_gone_through_for_long(junk: bytes) -> None:
    stream = encoded(IMAGE, "JPEG")
    assert "image: " in refused(stream[:2] + junk * MANY + stream[2:])


@pytest.mark.parametrize("syntax", [JPEG + "51", JPEG + "50"])
def test_scans_of_a_jpeg_in_dicom_are_limited_as_in_a_file(syntax: str) -> None:
    stream = encoded(IMAGE, "JPEG", progressive=True)
    at, scan = first_scan(stream)
    read_pixels(in_dicom(stream[:at] + 20 * scan + stream[at:], syntax))
    assert "scans, too many" in refused(in_dicom(stream[:at] + 2000 * scan + stream[at:], syntax))


def test_a_few_fill_bytes_and_a_hundred_segments_are_read() -> None:
    stream = encoded(IMAGE, "JPEG")
    start = stream[:2] + b"\xff" * 100 + b"\xff\xe5\0\x06abcd" * 200
    white = b"\xff\xe6\xff\xff" + b"\xff" * 65533  # a white preview is no fill
    for content in (start + stream[2:], start + white + stream[2:]):
        np.testing.assert_array_equal(read_pixels(content), read_pixels(stream))
        np.testing.assert_array_equal(read_pixels(in_dicom(content, JPEG + "50")), read_pixels(stream))


@pytest.mark.parametrize("part", [b"\xff" * MANY, b"\xff\xe5\0\2" * MANY])
def test_the_header_of_jpeg_ls_is_limited(part: bytes) -> None:
    stream = bytes(imagecodecs.jpegls_encode(IMAGE))
    np.testing.assert_allclose(read_pixels(in_dicom(stream, JPEG + "80")), IMAGE / 255, atol=1e-6)
    reason = refused(in_dicom(stream[:2] + part + stream[2:], JPEG + "80"))
    assert "fill bytes" in reason or "segments" in reason


# PNG, GIF and BMP


@pytest.mark.parametrize("kind", [b"abCd", b"IDAT", b"tEXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_of_very_many_chunks_is_refused(kind: bytes, place: str) -> None:
    content = png(2, 1, b"\0\1\2")
    at = content.index(b"IDAT") - 4 if place == "before" else len(content) - 12
    many = chunk(kind, b"k\0v" if kind == b"tEXt" else b"") * (MANY // 2)
    assert "small parts" in refused(content[:at] + many + content[at:])
    assert read_pixels(content[:at] + chunk(b"abCd", b"") * 100 + content[at:]).shape == (1, 2)


@pytest.mark.parametrize("part", [b"!\xfe\1a\0", b"!\xf9\4\0\0\0\0\0", b"\0", b"!\xfe" + b"\1a" * MANY + b"\0"])
def test_a_gif_of_very_many_blocks_is_refused(part: bytes) -> None:
    content = encoded(IMAGE, "GIF")
    at = 13 + (3 << (content[10] & 7) + 1)
    many = part * (MANY if len(part) < 9 else 1)
    assert "small parts" in refused(content[:at] + many + content[at:])


def bitmap(width: int, height: int, runs: bytes) -> bytes:
    """A run-length encoded BMP of 8 bits."""
    start = 54 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    palette = b"".join(bytes([level] * 3 + [0]) for level in range(256))
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def test_a_run_length_encoded_bitmap_is_limited_since_python_decodes_it() -> None:
    np.testing.assert_allclose(read_pixels(bitmap(4, 1, b"\2\x0a\2\x14\0\1")) * 255, [[10, 10, 20, 20]], atol=1e-4)
    assert "run-length" in refused(bitmap(10_000, 10_000, b"\1\5\0\0" * 10_000))
    assert "small parts" in refused(bitmap(1, 10, b"\1\5" * MANY))


# TIFF


def tiff_of(tags: dict[int, int | bytes], data: bytes, big: bool = False) -> bytes:
    """A TIFF; values are a LONG, or the bytes of several."""
    count, place, size = ("Q", "Q", 8) if big else ("I", "I", 4)
    head = b"II" + (struct.pack("<HHHQ", 43, 8, 0, 16 + len(data)) if big else struct.pack("<HI", 42, 8 + len(data)))
    entries, values = b"", b""
    end = len(head) + len(data) + (8 if big else 2) + len(tags) * (20 if big else 12) + size
    for tag, value in sorted(tags.items()):
        several = isinstance(value, bytes)
        entries += struct.pack("<HH" + count, tag, 4, len(value) // 4 if isinstance(value, bytes) else 1)
        entries += struct.pack("<" + place, end + len(values) if several else value)
        values += value if isinstance(value, bytes) else b""
    return head + data + struct.pack("<Q" if big else "<H", len(tags)) + entries + bytes(size) + values


def grey_tiff(width: int, height: int, data: bytes, compression: int = 8, **tags: Any) -> bytes:
    start = 16 if tags.get("big") else 8
    basic: dict[int, int | bytes] = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 278: height}
    basic |= {273: start, 279: len(data)} | {int(tag[1:]): value for tag, value in tags.items() if tag != "big"}
    return tiff_of({tag: value for tag, value in basic.items() if value is not None}, data, bool(tags.get("big")))


def longs(value: int, count: int) -> bytes:
    return struct.pack("<I", value) * count


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_of_very_many_strips_or_shared_bytes_is_refused(compression: int, big: bool) -> None:
    row = bytes(range(10)) if compression == 1 else zlib.compress(bytes(range(10)))
    start = 16 if big else 8

    def strips(count: int, size: int) -> bytes:
        places, sizes = longs(start, count), longs(size, count)
        return grey_tiff(10, count, row + bytes(4000), compression, big=big, t278=1, t273=places, t279=sizes)

    assert read_pixels(strips(30, len(row))).shape == (30, 10)
    assert "values in tag 273" in refused(strips(100_001, len(row)))
    if compression == 8:
        assert "share their bytes" in refused(strips(5000, 4000))


def test_a_compressed_tiff_that_does_not_say_where_its_strips_end_is_not_searched_again_and_again() -> None:
    row = zlib.compress(bytes(10))
    content = grey_tiff(10, 9000, row + bytes(90_000), t278=1, t273=longs(8, 9000), t279=None)
    assert "share their bytes" in refused(content)


def test_tiles_far_larger_than_the_image_are_refused() -> None:
    tile: dict[str, Any] = {"t278": None, "t273": None, "t279": None, "t322": 32_000, "t323": 32_000}
    squeezed = zlib.compress(bytes(1_000_000))
    assert "tiles of 32000 x 32000" in refused(grey_tiff(10, 10, squeezed, t324=8, t325=len(squeezed), **tile))
    thin = tile | {"t322": 1, "t323": 100_000_000, "t324": longs(8, 9000), "t325": longs(9, 9000)}
    assert "far larger than the image" in refused(grey_tiff(9000, 1, squeezed, **thin))


def test_scans_of_jpegs_in_tiff_are_limited() -> None:
    stream = encoded(IMAGE, "JPEG", progressive=True)
    scan = stream[stream.rindex(b"\xff\xda") : -2]
    assert read_pixels(grey_tiff(32, 24, stream, 7)).shape == (24, 32)
    assert "too many scans" in refused(grey_tiff(32, 24, stream[:-2] + 200 * scan + stream[-2:], 7))


@pytest.mark.parametrize("tag", [258, 282, 320, 339])
def test_a_tag_of_a_million_values_is_refused(tag: int) -> None:
    content = grey_tiff(10, 10, bytes(100), 1, **{f"t{tag}": longs(1, 1_000_000)})
    assert f"values in tag {tag}" in refused(content)


# Memory


LARGE: dict[str, Callable[[], bytes]] = {
    "WebP": lambda: encoded(Image.new("RGBA", (9000, 9000), (9, 9, 9, 9)), "WEBP", lossless=True, quality=0, method=0),
    "JPEG 2000": lambda: jpeg_2000(490, 490, levels=0, precincts=(0,)),
    "PNG": lambda: encoded(Image.new("LA", (9900, 9900)), "PNG", compress_level=1),
}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
@pytest.mark.parametrize("kind", LARGE)
def test_the_largest_that_is_decoded_stays_within_the_stated_memory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(LARGE[kind]())
    script = """if True:
        import re, sys
        from pathlib import Path
        from pneumoscope.errors import ImageError
        from pneumoscope.images.limits import MAX_MEMORY
        from pneumoscope.images.read import read_pixels
        try:
            read_pixels(Path(sys.argv[1]))
        except ImageError as problem:
            assert "limit" not in str(problem), problem
        peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        assert peak < MAX_MEMORY + 100 * 2**20, peak
        """
    command = ["/bin/sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_would_need_more_memory_is_refused_by_its_header() -> None:
    content = bytearray(encoded(Image.new("RGBA", (8, 8)), "WEBP", lossless=True))
    at = content.index(b"VP8L") + 9  # 14 bits each: width and height less one
    content[at : at + 4] = struct.pack("<I", 9998 | 9998 << 14 | 1 << 28)
    assert "9999 x 9999 pixels in this WEBP need 1,599,680,016 bytes" in refused(bytes(content))


@pytest.mark.parametrize(
    ("syntax", "bits", "allocated", "needed"),
    [
        (RLE, 16, 32, "2,800,000,000"), (RLE, 16, 16, "1,600,000,000"), (DEFLATED, 16, 16, "1,600,000,000"),
        (JPEG + "70", 16, 16, "1,600,000,000"), (JPEG + "80", 16, 16, "1,600,000,000"),
        (JPEG + "90", 8, 8, "2,200,000,000"),
    ],
)  # fmt: skip
def test_a_dicom_image_that_would_need_more_memory_is_refused_by_its_header(
    syntax: str, bits: int, allocated: int, needed: str
) -> None:
    levels = np.zeros((4, 4, 3), np.uint8 if bits <= 8 else np.uint16)
    message = refused(dicom(levels, bits, syntax, BitsAllocated=allocated, Rows=10_000, Columns=10_000))
    assert f"10000 x 10000 pixels of 3 x {allocated} bits need {needed} bytes" in message


def test_a_jpeg_2000_needs_memory_for_all_its_components() -> None:
    stream = jpeg_2000(10_000, 10_000, components=4, exponent=1, guard=1)
    assert "10000 x 10000 pixels in this JPEG2000 need 2,800,000,000 bytes" in refused(stream)


# DICOM


def element(tag: int, content: bytes, kind: bytes | None = None) -> bytes:
    """An element with a length of 32 bits; without a type of value as in implicit encoding."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (kind + b"\0\0" if kind else b"")
    return head + struct.pack("<I", len(content)) + content


def with_elements(elements: bytes, before: bytes, syntax: str = EXPLICIT) -> bytes:
    """A file with elements put in front of the first that begins with `before`."""
    content = dicom(image(), 12, syntax, PatientID=None)
    at = content.index(before, 132)
    return content[:at] + elements + content[at:]


ITEM = b"\xfe\xff\0\xe0\0\0\0\0"
PIXELS, ROWS, SOP = b"\xe0\x7f\x10\0", b"\x28\0\x10\0", b"\x08\0\x16\0"
VOI, MODALITY, VIEW = 0x00283010, 0x00283000, 0x00540220


def item(content: bytes) -> bytes:
    return ITEM[:4] + struct.pack("<I", len(content)) + content


def falling_table(entries: int) -> bytes:
    """An item that turns 12 bits around; beyond 4,096 entries it holds zeros."""
    falling = np.zeros(entries, "<u2")
    falling[:4096] = np.arange(4095, -1, -1)
    return item(
        element(0x00283002, struct.pack("<3H", entries & 0xFFFF, 0, 12)) + element(0x00283006, falling.tobytes())
    )


def test_only_the_first_item_of_a_sequence_is_read() -> None:
    """Two million empty ones took half a minute and more than a gigabyte."""
    content = with_elements(element(VOI, falling_table(4096) + ITEM * 2_000_000), PIXELS, IMPLICIT)
    np.testing.assert_allclose(read_pixels(content), 1 - image() / 4095, atol=1e-6)
    for tag in (VOI, MODALITY):
        assert "no LUTDescriptor" in refused(with_elements(element(tag, ITEM * 2_000_000, b"SQ"), PIXELS))


@pytest.mark.parametrize("kind", [b"SQ", b"UN", None])
def test_a_sequence_with_an_item_of_very_many_elements_is_refused(kind: bytes | None) -> None:
    many = b"\x09\x60\x10\x10" + (b"LO\0\0" if kind == b"SQ" else b"\0\0\0\0")
    syntax = EXPLICIT if kind else IMPLICIT
    content = with_elements(element(VOI, item(many * MANY), kind), PIXELS, syntax)
    assert "too many elements" in refused(content)


def test_nested_sequences_cost_nothing_until_they_are_looked_at() -> None:
    inner = b""
    for _ in range(2000):
        inner = element(VOI, item(inner), b"SQ")
    assert "no LUTDescriptor" in refused(with_elements(inner, PIXELS))


@pytest.mark.parametrize(
    ("tag", "before"),
    [
        *((0x00281050, PIXELS), (0x00281051, PIXELS), (0x00281053, PIXELS), (0x00100020, b"\x20\0\x0d\0")),
        *((0x00280004, ROWS), (0x00185101, b"\x20\0\x0d\0")),
    ],
)
def test_a_value_that_would_take_long_to_convert_is_refused(tag: int, before: bytes) -> None:
    long = with_elements(element(tag, b"1\\" * MANY), before, IMPLICIT)
    assert f"{2 * MANY:,} bytes" in refused(long)


def test_a_table_larger_than_any_is_refused_and_the_largest_read() -> None:
    largest = with_elements(element(VOI, falling_table(65536)), PIXELS, IMPLICIT)
    np.testing.assert_allclose(read_pixels(largest), 1 - image() / 4095, atol=1e-6)
    assert "600,000 bytes" in refused(with_elements(element(VOI, falling_table(300_000)), PIXELS, IMPLICIT))


@pytest.mark.parametrize("name", [b"ISO_IR 100\\", b"nothing\\"])
@pytest.mark.parametrize("place", ["file", "item", "open sequence"])
def test_very_many_character_sets_are_refused(name: bytes, place: str) -> None:
    sets = element(0x00080005, name * 20_000, b"UN")
    content = {
        "file": lambda: with_elements(sets, SOP),
        "item": lambda: with_elements(element(VOI, item(sets), b"SQ"), PIXELS),
        "open sequence": lambda: with_elements(
            b"\x38\0\x04\0SQ\0\0\xff\xff\xff\xff" + item(sets) + b"\xfe\xff\xdd\xe0\0\0\0\0", PIXELS
        ),
    }[place]()
    assert "character set" in refused(content)


def test_an_offset_table_of_more_frames_than_there_are_is_refused() -> None:
    content = in_dicom(encoded(IMAGE, "JPEG"), JPEG + "50")
    at = content.index(ITEM[:4], content.index(PIXELS)) + 4
    size = int.from_bytes(content[at : at + 4], "little")
    table = struct.pack("<I", 4 * MANY) + bytes(4 * MANY)
    assert "offset table" in refused(content[:at] + table + content[at + 4 + size :])


def test_a_transfer_syntax_of_a_megabyte_is_refused() -> None:
    content = dicom(image())
    at = content.index(b"\2\0\x10\0", 132)
    assert "bytes" in refused(content[:at] + element(0x00020010, b"1.2\\" * MANY, b"UN") + content[at + 28 :])
