"""What runs the network: an engine takes prepared input and gives features and feature maps, as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError

if TYPE_CHECKING:
    import torch

    from pneumoscope.models.classifier import Backbone

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Activations:
    """What a network makes of a batch.

    Attributes:
        features: float32 (B, D), the global average of the feature map.
        maps: float32 (B, D, h, w), the feature map, where it was asked for.
        stages: float32 (B, E), the averages of all stages' maps, which the novelty guard looks at; None where the
            engine cannot tell.
    """

    features: Array
    maps: Array | None = None
    stages: Array | None = None


class Engine(Protocol):
    """Runs a backbone; the same interface whatever is behind it."""

    @property
    def fingerprint(self) -> str:
        """Names the function computed: weights, architecture, precision and kind of device."""

    @property
    def batch_size(self) -> int:
        """How many inputs are best run at a time."""

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""


class TorchEngine:
    """Runs a backbone with PyTorch, in float32, batch norms folded into their convolutions.

    Args:
        backbone: (B, 3, S, S) -> (B, D, h, w); it is copied.
        size: side S of the input.
        device: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, backbone: Backbone, size: int, device: str = "auto") -> None:
        import torch

        from pneumoscope.models.backbones import fingerprint_state
        from pneumoscope.models.classifier import fold_batchnorms

        self._device = choose_device(device)
        backbone = backbone.eval()
        kind = f"{backbone.architecture}, torch {torch.__version__} float32 {self._device.type}"
        self.fingerprint = f"{fingerprint_state(backbone.state_dict())} {kind}"
        folded = fold_batchnorms(backbone.cpu(), size)
        self.backbone = folded.to(self._device).to(memory_format=torch.channels_last)
        # On a processor, small batches stay in its caches (docs/log.md).
        self.batch_size = 64 if self._device.type == "cuda" else 8

    def run(self, inputs: Array, maps: bool = False) -> Activations:
        """Run a batch of prepared input, float32 (B, 3, S, S)."""
        import torch

        from pneumoscope.models.classifier import pool

        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            batch = torch.from_numpy(inputs).to(self._device, memory_format=torch.channels_last)
            found, stages = self.backbone.describe(batch)
            features = pool(found).cpu().numpy()
            return Activations(
                features, found.contiguous().cpu().numpy() if maps else None, stages.float().cpu().numpy()
            )


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: CUDA is asked for where there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
