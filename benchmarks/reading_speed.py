"""How many images a second are read and prepared, compared with Pillow, pydicom and torchvision as usually used.

    python benchmarks/reading_speed.py [--rounds 15]

Both take turns in one run, so that other load on the machine affects both alike; compare the ratios of medians. `pool`
is `extract_features` with a network that does nothing, against the usual code in as many threads. Images are simulated.
The usual code clips 16-bit PNG (Pillow's `convert("RGB")` does).
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.images.prepare import prepare_grey
from pneumoscope.images.read import read_radiograph
from pneumoscope.inference.engines import Activations, Array, TorchEngine
from pneumoscope.inference.features import extract_features
from pneumoscope.models.backbones import find_backbone, load_backbone

POOL = 32  # images that are read at a time


class Idle:
    """An engine that computes nothing, so that only reading takes time."""

    fingerprint = "idle"
    batch_size = 8
    width = 1

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """One feature and a map of one cell for each image, zero."""
        zeros = np.zeros((len(inputs), 1), np.float32)
        return Activations(zeros, zeros, zeros[..., None, None] if maps else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    backbone = find_backbone("efficientnet_lite0")
    spec = backbone.input

    def ours(content: bytes) -> Array:
        return prepare_grey(read_radiograph(content, min_side=spec.min_side).grey, spec)

    transform = transforms.Compose(
        [
            transforms.Resize(spec.size, transforms.InterpolationMode(spec.interpolation)),
            transforms.CenterCrop(spec.size),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )

    def usual(content: bytes) -> torch.Tensor:
        image = read_dicom_as_usual(content) if content[128:132] == b"DICM" else Image.open(io.BytesIO(content))
        tensor: torch.Tensor = transform(image.convert("RGB"))
        return tensor

    workers = max(2, (os.cpu_count() or 2) // 2)
    print(f"Images a second, medians of {rounds} rounds. Load of the machine at the start: {os.getloadavg()[0]:.1f}.\n")
    print("| image | MB | usual | ours | ratio | usual, pool | ours, pool | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with ThreadPoolExecutor(workers) as threads:

        def pool_usual(contents: list[bytes]) -> None:
            consume(threads.map(usual, contents))

        def pool_ours(contents: list[bytes]) -> None:
            consume(extract_features(contents, Idle(), spec))

        for kind, content in images().items():
            alone = race(rounds, partial(usual, content), partial(ours, content))
            many = [content] * POOL
            pooled = race(
                max(3, rounds // 5),
                partial(pool_usual, many),
                partial(pool_ours, many),
            )
            rates = [1 / seconds for seconds in alone] + [POOL / seconds for seconds in pooled]
            print(
                f"| {kind} | {len(content) / 1e6:.2f} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} "
                f"| {rates[2]:.1f} | {rates[3]:.1f} | {rates[3] / rates[2]:.2f} |",
                flush=True,
            )
    engine = TorchEngine(load_backbone(backbone), spec.size, "cpu")
    batch = np.zeros((engine.batch_size, 3, spec.size, spec.size), np.float32)
    for count in (1, torch.multiprocessing.cpu_count()):
        torch.set_num_threads(count)
        (seconds,) = race(rounds, lambda: engine.run(batch))
        print(
            f"\nThe network (efficientnet_lite0, {count} threads): {engine.batch_size / seconds:.1f} images a second."
        )


def consume(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def race(rounds: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for taken, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def read_dicom_as_usual(content: bytes) -> Image.Image:
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    data = pydicom.dcmread(io.BytesIO(content))
    levels = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    levels = levels - levels.min()
    return Image.fromarray((255 * (levels / levels.max())).astype(np.uint8))


def images() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    phantom = Image.fromarray(draw_phantom(0, pneumonia=True, size=320).pixels)
    large = np.asarray(phantom.resize((2000, 1500), Image.Resampling.BICUBIC)) + rng.normal(0, 0.01, (1500, 2000))
    deep = (np.clip(large, 0, 1) * 65535).astype(np.uint16)
    image = Image.fromarray((deep >> 8).astype(np.uint8))
    small = image.resize((224, 224), Image.Resampling.BICUBIC)
    return {
        "JPEG 2000 x 1500, grey": encode(image, "JPEG", quality=90),
        "JPEG 2000 x 1500, RGB": encode(image.convert("RGB"), "JPEG", quality=90),
        "JPEG 4280 x 3520, grey": encode(image.resize((4280, 3520), Image.Resampling.BICUBIC), "JPEG", quality=90),
        "JPEG 224 x 224": encode(small, "JPEG", quality=90),
        "PNG 2000 x 1500, 8 bits": encode(image, "PNG"),
        "PNG 2000 x 1500, 16 bits": encode(Image.fromarray(deep), "PNG"),
        "DICOM 2000 x 1500, 16 bits": encode_dicom(deep),
    }


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def encode_dicom(levels: np.ndarray[Any, np.dtype[np.uint16]]) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = "1.2.840.10008.5.1.4.1.1.1", "1.2.3", "CR"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.Rows, data.Columns = levels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.WindowCenter, data.WindowWidth = 32768, 60000
    data.PixelData = levels.tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = io.BytesIO()
    data.save_as(content, enforce_file_format=True)
    return content.getvalue()


if __name__ == "__main__":
    main()
