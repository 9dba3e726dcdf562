"""The network up to its probabilities as TorchScript, which PyTorch alone runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pneumoscope.models.classifier import Backbone, pool


class _Probabilities(nn.Module):
    """A backbone with a head and the calibration that `decisions.rules.describe_rules` states as numbers."""

    weight: Tensor
    bias: Tensor
    intercept: Tensor
    knots: Tensor

    def __init__(self, backbone: Backbone, head: nn.Linear, rules: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.slope = float(rules["slope"])
        for name, value in (
            ("weight", head.weight), ("bias", head.bias), ("intercept", torch.tensor(rules["intercept"])),
            ("knots", torch.tensor(rules["knots"])),
        ):  # fmt: skip
            self.register_buffer(name, value.detach().double())

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C), in the order of the labels; float32."""
        features = pool(self.backbone.describe(image)[0])
        logits = features.double() @ self.weight.T + self.bias
        if self.knots.numel():
            positive = _interpolate(logits, self.knots)
        elif logits.shape[1] == 1:
            positive = torch.sigmoid(self.slope * logits + self.intercept)
        else:
            return torch.softmax(self.slope * logits + self.intercept, 1).float()
        return torch.cat([1 - positive, positive], 1).float()


def _interpolate(logits: Tensor, knots: Tensor) -> Tensor:
    """Straight lines between knots (K, 2), and level beyond them, as `numpy.interp` draws them."""
    x, y = knots[:, 0].contiguous(), knots[:, 1]
    if len(x) == 1:
        return y.expand_as(logits)
    right = torch.searchsorted(x, logits).clamp(1, len(x) - 1)
    share = ((logits - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return y[right - 1] + share * (y[right] - y[right - 1])


def write_script(backbone: Backbone, head: nn.Linear, size: int, rules: Mapping[str, Any], path: Path) -> None:
    """Write the network of a model for images (B, 3, `size`, `size`), with the calibration that `rules` states."""
    network = _Probabilities(backbone, head, rules).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # a MONAI bundle holds TorchScript, although PyTorch prefers torch.export
        # No check by PyTorch, which would trace again: the export compares the file with the model on images.
        script = torch.jit.trace(network, torch.zeros(2, 3, size, size), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(script, path)
