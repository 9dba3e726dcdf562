"""Prediction as it is usually written, with DataLoader, torchvision and timm, to compare `pneumoscope predict` with.

    python benchmarks/plain_predict.py FOLDER MODEL [--workers 2]

The network and its head are those of a model folder, run by plain PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Images(Dataset[tuple[Tensor, str]]):
    """Prepared images and their paths."""

    def __init__(self, folder: Path, look: transforms.Compose) -> None:
        self.paths = sorted(str(path) for path in folder.iterdir())
        self.look = look

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        with Image.open(self.paths[index]) as image:
            return self.look(image.convert("RGB")), self.paths[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    network, look = open_model(options.model)
    table = csv.writer(sys.stdout)
    with torch.no_grad():
        for inputs, paths in DataLoader(Images(options.folder, look), 32, num_workers=options.workers):
            table.writerows(zip(paths, torch.sigmoid(network(inputs))[:, -1].tolist(), strict=True))


def open_model(model: Path) -> tuple[torch.nn.Module, transforms.Compose]:
    """A model's network with its head, and the transforms before it."""
    description = json.loads((model / "model.json").read_text())
    state = {name: tensor.float() for name, tensor in load_file(model / "weights.safetensors").items()}
    network = timm.create_model(description["architecture"], num_classes=0, **description["arguments"])
    network.load_state_dict(
        {k.removeprefix("backbone.network."): v for k, v in state.items() if k.startswith("backbone.network.")}
    )
    classes, width = state["head.weight"].shape
    head = torch.nn.Linear(width, classes)
    head.load_state_dict({"weight": state["head.weight"], "bias": state["head.bias"]})
    size = description["input"]["size"]
    look = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(description["input"]["mean"], description["input"]["std"]),
        ]
    )
    return torch.nn.Sequential(network, head).eval(), look


if __name__ == "__main__":
    main()
