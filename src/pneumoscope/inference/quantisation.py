"""A network in 8 bits, which ONNX Runtime runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import MissingExtraError
from pneumoscope.inference.engines import Array
from pneumoscope.inference.runtimes import import_onnxruntime

# How many images are in memory at a time, and the percentile of activations that is representable.
RANGE_STRIDE = 8
PERCENTILE = 99.99


class _Strides:
    """What ONNX Runtime calls a CalibrationDataReader: images in strides, as it keeps all activations of a stride."""

    def __init__(self, images: Sequence[Array]) -> None:
        self._images = images
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._stride = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._stride, None)
        return None if image is None else {"input": image[None]}


def quantise(path: Path, images: Sequence[Array], float_share: float) -> None:
    """Quantise the convolutions of an ONNX model to 8 bits (QDQ, by channel), with ranges from these images.

    Depthwise convolutions stay in float32, as they gain little and lose much (docs/log.md); so do the first
    convolution and a share of those that follow.

    Args:
        path: the file of the model, which is replaced.
        images: float32 (3, S, S), prepared.
        float_share: from 0 to 1, of the convolutions.

    Raises:
        MissingExtraError: ONNX Runtime or onnx is not installed.
    """
    try:
        import onnx

        import_onnxruntime()
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference
    except ImportError:
        raise MissingExtraError('ONNX Runtime is not installed: pip install "pneumoscope[train]".') from None

    stride = next(each for each in range(RANGE_STRIDE, 0, -1) if len(images) % each == 0)  # strides must be equal
    prepared = path.with_name("prepared.onnx")
    shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    convolutions = [node for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    grouped = [node.name for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    early = [node.name for node in convolutions[: max(1, round(float_share * len(convolutions)))]]
    with contextlib.redirect_stdout(io.StringIO()):  # ONNX Runtime prints its progress
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Strides(images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE, "CalibStridedMinMax": stride},
            nodes_to_exclude=[*grouped, *early],
        )
    prepared.unlink()
