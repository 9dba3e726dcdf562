"""Robustness of a model to corruptions of increasing strength: AUROC, accuracy, and the share flagged as OOD.

The images are test images of its run (`samples.csv`) or of `--table`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corruptions import corruptions
from PIL import Image
from protocol import draw_images, encode, print_table
from sklearn.metrics import roc_auc_score

from pneumoscope.datasets.reading import read_samples
from pneumoscope.inference.predictor import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--table", type=Path, help="use the test split of this table instead of the run's")
    parser.add_argument("--images", type=int, default=150, help="of each class")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()
    predictor = load(options.run)
    samples = read_samples(options.table or options.run / "samples.csv")
    chosen = [image for images in draw_images(samples, predictor.model.labels, options.images) for image in images]
    truth = np.array([s.label == predictor.model.positive for s in chosen])
    pictures = [Image.open(s.path).convert("L") for s in chosen]
    rows: list[list[str]] = []
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, kind in corruptions().items():
        for amount in kind.amounts:
            predictions = predictor.predict([encode(kind.change(picture, amount)) for picture in pictures])
            scores = np.array([each.raw_probability for each in predictions], float)
            pairs = zip(predictions, chosen, strict=True)
            correct = np.mean([prediction.predicted_label == sample.label for prediction, sample in pairs])
            ood = np.mean([each.decision == "out_of_distribution" for each in predictions])
            auroc = float(roc_auc_score(truth, scores))
            curves.setdefault(name, []).append((amount, auroc, float(correct), float(ood)))
            rows.append([name, f"{amount:g} {kind.unit}", f"{auroc:.3f}", f"{correct:.3f}", f"{ood:.1%}"])
    print_table(["corruption", "amount", "AUROC", "accuracy", "out of distribution"], rows)
    if options.plot:
        draw(curves, options.plot)


def draw(curves: dict[str, list[tuple[float, float, float, float]]], path: Path) -> None:
    """Draw a panel for each corruption: AUROC and accuracy as lines, the share flagged as OOD as an area."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    units = {name: kind.unit for name, kind in corruptions().items()}
    figure, axes = plt.subplots(3, 4, figsize=(12, 8), layout="constrained")
    for place, (panel, (name, points)) in enumerate(zip(axes.flat, curves.items(), strict=True)):
        amounts, auroc, accuracy, ood = np.array(sorted(points)).T
        panel.plot(amounts, auroc, "o-", color="#0b6e99", label="AUROC")
        panel.plot(amounts, accuracy, "s-", color="#c8553d", label="accuracy")
        panel.axvline(points[0][0], color="#999999", linewidth=1, linestyle=":", label="unchanged")
        panel.set(title=name, xlabel=units[name], ylim=(0.8, 1.005))
        panel.spines[["top", "right"]].set_visible(False)
        shares = panel.twinx()
        shares.fill_between(amounts, ood, color="#dddddd", label="out of distribution (right axis)")
        shares.set(ylim=(0, 1.025), yticks=(0, 0.5, 1), yticklabels=("0%", "50%", "100%") if place % 4 == 3 else ())
        shares.spines[["top", "left"]].set_visible(False)
        panel.set_zorder(shares.get_zorder() + 1)
        panel.patch.set_visible(False)
    lines, area = panel.get_legend_handles_labels(), shares.get_legend_handles_labels()
    figure.legend(lines[0] + area[0], lines[1] + area[1], loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
