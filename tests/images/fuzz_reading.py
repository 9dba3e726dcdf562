"""Coverage-guided fuzzing of reading: any bytes give pixels as promised or an ImageError, in bounded time and memory.

    pip install atheris
    python tests/images/fuzz_reading.py raster FOLDER -max_total_time=3600 -timeout=60 -rss_limit_mb=2000
    python tests/images/fuzz_reading.py dicom FOLDER -max_total_time=3600 -timeout=60 -rss_limit_mb=2000

The folder takes the growing corpus; generated files start it. Further arguments are libFuzzer's. Python code is
instrumented (ours, Pillow's and pydicom's), the decoders in C are not. An input that breaks the promise is written as
`crash-...`; once mended it goes to `corpus/`, as small as it can be made, where `test_read.py` replays it.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found, unused-ignore]

with atheris.instrument_imports(include=["PIL", "pydicom", "pneumoscope.images"]):
    from dicom_files import IMPLICIT, JPEG, LOSSLESS, dicom, image, look_up
    from PIL import Image

    Image.init()  # the modules of all formats, while imports are instrumented
    from test_read import SOURCES, require_image_or_image_error

    from pneumoscope.images import limits
    from pneumoscope.images.dicom import is_dicom

import numpy as np

# At a tenth of the size that is allowed, so that inputs are many; time and memory are held to a tenth too.
PIXELS, SECONDS = limits.MAX_PIXELS // 10, 5


def main() -> None:
    target, folder, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable()
    limits.MAX_PIXELS = PIXELS
    corpus = Path(folder)
    corpus.mkdir(parents=True, exist_ok=True)
    for kind, content in (dicom_sources() if target == "dicom" else SOURCES).items():
        (corpus / kind.replace(" ", "-")).write_bytes(content)

    def attempt(content: bytes) -> None:
        if is_dicom(content[:512]) != (target == "dicom"):
            return
        started = time.process_time()
        require_image_or_image_error(content)
        assert time.process_time() - started < SECONDS

    atheris.Setup([sys.argv[0], *options, "-max_len=65536", folder], attempt)
    atheris.Fuzz()


def dicom_sources() -> dict[str, bytes]:
    """Small images of every pixel type, look-up table and transfer syntax."""
    levels, small = image(12, 16), image(12, 16, 8)
    window: dict[str, Any] = {"WindowCenter": 900, "WindowWidth": 1200, "RescaleSlope": "2", "RescaleIntercept": "-10"}
    signed: dict[str, Any] = {"PixelRepresentation": 1, "VOILUTFunction": "SIGMOID"}
    padded: dict[str, Any] = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 3}
    table: dict[str, Any] = {
        "ModalityLUTSequence": [look_up(range(64), 5, 12)],
        "VOILUTSequence": [look_up(range(32), 0, 8)],
    }
    hues = ("Red", "Green", "Blue")
    palette: dict[str, Any] = {f"{hue}PaletteColorLookupTableDescriptor": [256, 0, 16] for hue in hues}
    palette |= {f"{hue}PaletteColorLookupTableData": np.arange(256, dtype=np.uint16).tobytes() for hue in hues}
    tags: dict[str, Any] = {"PatientAge": "034Y", "PatientSex": "F", "ViewPosition": "PA", "ImageLaterality": "U"}
    return {
        **{f"deep {syntax}": dicom(levels, 12, syntax, **window) for syntax in LOSSLESS},
        **{f"flat {syntax}": dicom(small, 8, syntax) for syntax in (*LOSSLESS, JPEG + "50", JPEG + "81", JPEG + "91")},
        "MONOCHROME1": dicom(levels, PhotometricInterpretation="MONOCHROME1", **padded, **window),
        "signed": dicom(levels, **signed, **window),
        "tables": dicom(levels, **table),
        "frames": dicom(levels, frames=3, **tags),
        "colour": dicom(np.stack([small] * 3, axis=-1), 8),
        "planes": dicom(np.stack([small] * 3, axis=-1), 8, PlanarConfiguration=1),
        "palette": dicom(small, 8, PhotometricInterpretation="PALETTE COLOR", **palette),
        "CT": dicom(levels, Modality="CT"),
        "bare": dicom(levels, syntax=IMPLICIT, meta=False, **window),
        "bare explicit": dicom(levels, meta=False, **tags),
    }


if __name__ == "__main__":
    main()
