"""Seconds of CPU and memory that the costliest files take that are still read: as large as the limits allow, and noise.

    python benchmarks/hostile_files.py                 # all of them: half an hour, mostly to make the files
    python benchmarks/hostile_files.py --only "JPEG 2000" --only WebP

Each is read in a process of its own. The memory is the largest that the process had, the file and the program included.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 10_000  # pixels: 100 million in all
PLAIN, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4."
READ = """if True:
    import json, re, resource, sys
    from pathlib import Path
    from pneumoscope.errors import ImageError
    from pneumoscope.images.read import read_radiograph
    def spent():
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    before = spent()
    try:
        shape = read_radiograph(Path(sys.argv[1]), "image").pixels.shape
        result = f"read, {shape[1]} x {shape[0]}"
    except ImageError as problem:
        result = str(problem)[7:100]
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9
    print(json.dumps([spent() - before, peak, result]))
    """


def noise(height: int, width: int, bits: int = 8) -> Any:
    """Levels that nothing compresses; rows repeat after a while, so that they are quickly made."""
    kind = np.uint8 if bits <= 8 else np.uint16
    some = np.random.default_rng(0).integers(0, 2**bits, (min(height, 997), width), kind)
    return np.resize(some, (height, width))


def encode(levels: Any, form: str, **options: Any) -> bytes:
    """An image file as Pillow writes it."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    file = io.BytesIO()
    Image.fromarray(levels).save(file, form, **options)
    return file.getvalue()


def wrap(pixels: bytes, syntax: str, height: int, width: int, bits: int, frames: int = 1) -> bytes:
    """A DICOM file of these pixels, compressed if the syntax says so."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = "1.2.840.10008.5.1.4.1.1.1", "1.2.3", "CR"
    data.Rows, data.Columns, data.SamplesPerPixel, data.NumberOfFrames = height, width, 1, frames
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = -(-bits // 8) * 8, bits, bits - 1
    data.PixelData = encapsulate([pixels]) if UID(syntax).is_encapsulated else pixels
    data["PixelData"].VR = "OB" if UID(syntax).is_encapsulated else "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, UID("1.2.3")
    file = io.BytesIO()
    dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def repeat_scan(stream: bytes, times: int) -> bytes:
    """A progressive JPEG whose first scan is there several times more."""
    at = stream.index(b"\xff\xda")
    end = stream.index(b"\xff\xc4", at) if b"\xff\xc4" in stream[at:] else stream.index(b"\xff\xda", at + 2)
    return stream[:at] + times * stream[at:end] + stream[at:]


def arithmetic(height: int, width: int) -> bytes:
    """A JPEG with arithmetic coding: any bytes are valid."""
    stream = encode(np.zeros((8, 8), np.uint8), "JPEG", quality=100)
    frame, scan = stream.index(b"\xff\xc0"), stream.index(b"\xff\xda")
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    data = np.random.default_rng(0).integers(0, 255, 130_000_000, np.uint8).tobytes()
    head = stream[: frame + 1] + b"\xc9" + stream[frame + 2 : frame + 5] + size + stream[frame + 9 : scan]
    return head + stream[scan : scan + 10] + data + b"\xff\xd9"


def compress(codec: str, levels: Any, **options: Any) -> bytes:
    """A stream as imagecodecs writes it."""
    import imagecodecs

    return bytes(getattr(imagecodecs, f"{codec}_encode")(levels, **options))


def run_lengths(levels: Any) -> bytes:
    """A DICOM run-length stream of 16 bits: literal runs of 128 bytes, which is the most that they can take."""
    planes = []
    for plane in (levels >> 8, levels & 255):
        content = plane.astype(np.uint8).reshape(-1, 125)  # a row may not share a run with the next
        runs = np.full((len(content), 126), 124, np.uint8)
        runs[:, 1:] = content
        planes.append(runs.tobytes() + b"\0" * (runs.size % 2))
    starts = [2, 64, 64 + len(planes[0]), *[0] * 13]
    return b"".join(start.to_bytes(4, "little") for start in starts) + b"".join(planes)


def make_cases() -> dict[str, Callable[[], bytes]]:
    """The files by name; each is made when it is needed."""
    s = SIDE

    def grey() -> Any:
        return noise(s, s)

    def deep() -> Any:
        return noise(s, s, 16)

    def colour(side: int) -> Any:
        return np.stack([noise(side, side)] * 3, -1)

    blank = np.zeros((s, s), np.uint8)
    j2k: dict[str, Any] = {"level": 0, "reversible": True, "codecformat": "j2k"}
    side = 4_860  # 24 million pixels of 16 bits are about what the limit of bit planes allows
    return {
        "JPEG": lambda: encode(grey(), "JPEG", quality=100),
        "JPEG, colour": lambda: encode(colour(s), "JPEG", quality=100, subsampling=0),
        "JPEG, restart markers": lambda: encode(grey(), "JPEG", quality=95, restart_marker_blocks=4),
        "JPEG, progressive": lambda: encode(grey(), "JPEG", quality=95, progressive=True),
        "JPEG, progressive, colour": lambda: encode(colour(9_500), "JPEG", quality=95, progressive=True),
        "JPEG, 20 scans": lambda: repeat_scan(encode(blank, "JPEG", progressive=True), 14),
        "JPEG, arithmetic": lambda: arithmetic(s, s),
        "PNG, 16 bits": lambda: encode(deep(), "PNG", compress_level=1),
        "TIFF, LZW": lambda: encode(deep(), "TIFF", compression="tiff_lzw"),
        "TIFF, deflate": lambda: encode(deep(), "TIFF", compression="tiff_adobe_deflate"),
        "TIFF, JPEG": lambda: encode(grey(), "TIFF", compression="jpeg", quality=100),
        "GIF": lambda: encode(grey(), "GIF"),
        "WebP, lossless": lambda: encode(colour(9_000), "WEBP", lossless=True, quality=0, method=0),
        "WebP, lossy": lambda: encode(colour(9_000), "WEBP", quality=50, method=0),
        "JPEG 2000": lambda: compress("jpeg2k", noise(side, side, 16), **j2k),
        "DICOM, 3 frames": lambda: wrap(
            noise(3 * 8_900, 8_900, 16).tobytes(), "1.2.840.10008.1.2.1", 8_900, 8_900, 16, 3
        ),
        "DICOM, deflated": lambda: wrap(deep().tobytes(), PLAIN + ".99", s, s, 16),
        "DICOM, RLE": lambda: wrap(run_lengths(deep()), "1.2.840.10008.1.2.5", s, s, 16),
        "DICOM, JPEG": lambda: wrap(encode(grey(), "JPEG", quality=100), JPEG + "50", s, s, 8),
        "DICOM, JPEG, 12 bits": lambda: wrap(
            compress("jpeg8", noise(9_000, 9_000, 12), level=100, bitspersample=12), JPEG + "51", 9_000, 9_000, 12
        ),
        "DICOM, JPEG, 20 scans": lambda: wrap(
            repeat_scan(encode(blank, "JPEG", progressive=True), 14), JPEG + "50", s, s, 8
        ),
        "DICOM, JPEG, arithmetic": lambda: wrap(arithmetic(s, s), JPEG + "50", s, s, 8),
        "DICOM, JPEG lossless": lambda: wrap(
            compress("jpeg8", noise(8_000, 8_000, 16), lossless=True, predictor=1, bitspersample=16),
            JPEG + "70",
            8_000,
            8_000,
            16,
        ),
        "DICOM, JPEG-LS": lambda: wrap(compress("jpegls", deep() >> 1), JPEG + "80", s, s, 16),
        "DICOM, JPEG 2000": lambda: wrap(compress("jpeg2k", noise(side, side, 16), **j2k), JPEG + "90", side, side, 16),
        "DICOM, HTJ2K": lambda: wrap(compress("htj2k", noise(side, side, 16)), JPEG + "201", side, side, 16),
    }


def main() -> None:
    """Make the files one after the other, read each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="files whose name contains this")
    wanted = parser.parse_args().only
    print("| file | size | seconds | memory | result |\n| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        for name, make in make_cases().items():
            if wanted and not any(each in name for each in wanted):
                continue
            path.write_bytes(make())
            done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"| {name} | | | | {done.stderr[-200:]} |", flush=True)
                continue
            seconds, peak, result = json.loads(done.stdout)
            size = path.stat().st_size / 1e6
            print(f"| {name} | {size:,.0f} MB | {seconds:.1f} | {peak:.2f} GB | {result} |", flush=True)


if __name__ == "__main__":
    main()
