"""Milliseconds per image of a fine-tuning step, with batch norms trained, frozen and folded, in fp32 and bf16.

python benchmarks/finetune_step.py [--size 224] [--batch 32]
"""

from __future__ import annotations

import argparse
import copy
import time

import torch

from pneumoscope.models.backbones import find_backbone, load_backbone
from pneumoscope.models.classifier import Classifier, build_head, fold_batchnorms
from pneumoscope.training.loop import compute_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    fastest = measure(options.backbone, options.size, options.batch, options.rounds)
    print("| batch norms | fp32 | bf16 | fp32, relative to trained |\n| --- | --- | --- | --- |")
    for name in dict.fromkeys(name for name, _ in fastest):
        ratio = fastest[name, False] / fastest["trained", False]
        print(f"| {name} | {fastest[name, False]:.1f} ms | {fastest[name, True]:.1f} ms | {ratio:.2f} |")


def measure(name: str, size: int = 224, batch: int = 32, rounds: int = 6) -> dict[tuple[str, bool], float]:
    """Milliseconds per image of a step, by kind of batch norms and whether in bf16."""
    backbone = load_backbone(find_backbone(name)).eval()
    kinds = {"trained": backbone, "frozen": backbone, "folded": fold_batchnorms(backbone, size)}
    models = {
        name: Classifier(
            copy.deepcopy(each), build_head(each.width, 2), frozen=False, freeze_batchnorm=name != "trained"
        ).to(memory_format=torch.channels_last)
        for name, each in kinds.items()
    }
    inputs = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 2, (batch,))
    fastest: dict[tuple[str, bool], float] = {}
    for _ in range(rounds):  # all take turns, so that other load on the machine affects them alike
        for name, model in models.items():
            for half in (False, True):
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    logits = model.train()(inputs)
                torch.autograd.backward(compute_loss(logits.float(), targets))
                taken = (time.perf_counter() - start) / batch * 1000
                fastest[name, half] = min(taken, fastest.get((name, half), taken))
    return fastest


if __name__ == "__main__":
    main()
