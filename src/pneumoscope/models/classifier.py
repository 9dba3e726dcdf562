"""The network: backbone, global average pooling, one linear head."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from pneumoscope.errors import ModelError, UsageError

Network = TypeVar("Network", bound=nn.Module)


class Backbone(nn.Module):
    """A timm network up to its feature map: (B, 3, S, S) -> (B, D, h, w), whatever layout it uses inside.

    The architecture includes its arguments, because the same weights can define two functions.
    """

    def __init__(self, network: nn.Module, architecture: str) -> None:
        super().__init__()
        self.network = network
        self.architecture = architecture

    @property
    def width(self) -> int:
        """D, the number of features."""
        return int(self.network.num_features)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D, h, w)."""
        return self._lay_out(self.network.forward_features(inputs))  # type: ignore[operator]

    def describe(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> feature map (B, D, h, w) and intermediate features (B, E): each stage's average, early first.

        A network whose stages timm does not list counts as one stage.
        """
        if not hasattr(self.network, "forward_intermediates"):
            maps = self(inputs)
            return maps, pool(maps)
        maps, stages = self.network.forward_intermediates(inputs)  # type: ignore[operator]
        return self._lay_out(maps), torch.cat([pool(stage) for stage in stages], 1)

    def _lay_out(self, maps: Tensor) -> Tensor:
        if maps.ndim == 3:  # tokens of a transformer: leave out class and register tokens, lay the rest on its grid
            maps = maps[:, int(getattr(self.network, "num_prefix_tokens", 0)) :]
            side = int(maps.shape[1] ** 0.5)
            if side * side != maps.shape[1]:
                raise UsageError(f"{type(self.network).__name__}: its {maps.shape[1]} tokens do not form a square map.")
            maps = torch.unflatten(maps.transpose(1, 2), 2, (side, side))
        elif getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            maps = maps.permute(0, 3, 1, 2)
        return maps


class Classifier(nn.Module):
    """Backbone, average over the feature map, linear head: one logit for two classes, C for more.

    A frozen backbone is not trained, nor are its batch-norm statistics; `freeze_batchnorm` keeps only the latter.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Linear, frozen: bool = True, freeze_batchnorm: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = frozen
        self.freeze_batchnorm = freeze_batchnorm
        backbone.requires_grad_(not frozen)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) -> logits (B, 1) or (B, C)."""
        logits: Tensor = self.head(pool(self.backbone(inputs)))
        return logits

    def train(self, mode: bool = True) -> Classifier:
        """Switch to training; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.freeze_batchnorm:
            for norm in batchnorms(self.backbone):
                norm.eval()
        return self


def mixes_places(backbone: nn.Module) -> bool:
    """Whether attention or token mixing makes each cell of the map depend on all places in the image."""
    kinds = {type(layer).__name__ for layer in backbone.modules()}
    return any(re.search("attention|attn|mixer", kind, re.IGNORECASE) for kind in kinds)


def build_head(width: int, classes: int) -> nn.Linear:
    """Build a linear head: one output for two classes, C for more."""
    return nn.Linear(width, 1 if classes == 2 else classes)


def pool(maps: Tensor) -> Tensor:
    """Global average: (B, D, h, w) -> (B, D)."""
    return maps.mean((2, 3))


def batchnorms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Every batch-norm layer of a network."""
    return (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))


def to_half(tensor: Tensor) -> Tensor:
    """Weights, which have two or more dimensions, as float16; all other tensors unchanged.

    Raises:
        ModelError: a number does not fit.
    """
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not bool(half.isfinite().all()):
        raise ModelError(
            "A weight is not finite, or too large for half precision (65504). Keep this network in full precision."
        )
    return half


def round_to_half(module: nn.Module) -> None:
    """Round a network's weights in place to those that `save_model(half=True)` stores.

    Decisions fitted on the rounded network then hold for the loaded one, to the last bit.

    Raises:
        ModelError: a weight does not fit.
    """
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(to_half(tensor))


def fold_batchnorms(backbone: Network, size: int) -> Network:
    """Fold each batch norm that directly follows a convolution into it: same function, fewer passes over memory.

    The backbone, in evaluation mode, is not changed. If the output for an input of side `size` changes by more than
    1e-3 of its range, an unfolded copy is returned.
    """
    import copy

    from torch.nn.utils.fusion import fuse_conv_bn_weights

    folded = copy.deepcopy(backbone)
    with torch.no_grad():
        pairs, before = _find_pairs(folded, size)
        for conv, norm, name in ((folded.get_submodule(c), folded.get_submodule(n), n) for c, n in pairs):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.running_mean is None or norm.running_var is None or norm.weight is None or norm.bias is None:
                return copy.deepcopy(backbone)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            folded.set_submodule(name, _leave_activation(norm))
        after = folded(_probe(size))
    close = (after - before).abs().max() <= 1e-3 * before.abs().max()
    return folded if bool(close) else copy.deepcopy(backbone)


def unfold_batchnorms(folded: nn.Module, backbone: nn.Module, size: int) -> None:
    """Copy the weights of a network from `fold_batchnorms`, trained since, back into its backbone.

    A batch norm that was folded then only adds its convolution's bias.
    """
    state = folded.state_dict()
    with torch.no_grad():
        pairs, _ = _find_pairs(backbone, size)
    for conv, norm in pairs:
        layer = backbone.get_submodule(norm)
        if isinstance(folded.get_submodule(norm), nn.BatchNorm2d) or not isinstance(layer, nn.BatchNorm2d):
            continue
        bias = state.pop(f"{conv}.bias")
        if getattr(backbone.get_submodule(conv), "bias", None) is not None:
            state[f"{conv}.bias"] = torch.zeros_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - layer.eps)
        state |= {f"{norm}.num_batches_tracked": count for count in [layer.num_batches_tracked] if count is not None}
    backbone.load_state_dict(state)


def _probe(size: int) -> Tensor:
    return torch.linspace(-2, 2, 3 * size * size).reshape(1, 3, size, size)


def _find_pairs(network: nn.Module, size: int) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of convolutions and the batch norms that follow them, found by running one input; and the output."""
    made_by: dict[int, str] = {}
    alive: list[Tensor] = []  # keeps every tensor alive, so that no id is used twice
    pairs: list[tuple[str, str]] = []

    def note_conv(name: str, output: Tensor) -> None:
        made_by[id(output)] = name
        alive.append(output)

    def note_norm(name: str, received: Tensor) -> None:
        if id(received) in made_by:
            pairs.append((made_by[id(received)], name))

    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(lambda _, __, output, name=name: note_conv(name, output)))
        elif isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(lambda _, inputs, name=name: note_norm(name, inputs[0])))
    device = next(network.parameters()).device
    output = network(_probe(size).to(device))
    for hook in hooks:
        hook.remove()
    return pairs, output


def _leave_activation(norm: nn.BatchNorm2d) -> nn.Sequential:
    """The dropout and activation that timm attaches to a batch norm, under the same names."""
    layers = ((name, getattr(norm, name, None)) for name in ("drop", "act"))
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers if isinstance(layer, nn.Module)))
