"""How a bundle bears each corruption, in steps: AUROC, accuracy, and the share that the guard calls foreign.

The films are the test films of its run (`samples.csv`), or of `--table`, so many of each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corruptions import corruptions
from PIL import Image
from protocol import draw_films, encode, print_table
from sklearn.metrics import roc_auc_score

from pneumoscope.datasets.samples import read_samples
from pneumoscope.inference.predictor import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--table", type=Path, help="other films than the run's test films: the test split of this table"
    )
    parser.add_argument("--films", type=int, default=150, help="of each class")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()
    predictor = load(options.run)
    samples = read_samples(options.table or options.run / "samples.csv")
    chosen = [film for films in draw_films(samples, predictor.bundle.labels, options.films) for film in films]
    truth = np.array([s.label == predictor.bundle.positive for s in chosen])
    images = [Image.open(s.path).convert("L") for s in chosen]
    rows: list[list[str]] = []
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, kind in corruptions().items():
        for amount in kind.amounts:
            found = predictor.predict([encode(kind.change(image, amount)) for image in images])
            scores = np.array([one.unguarded for one in found], float)
            right = np.mean([one.call == sample.label for one, sample in zip(found, chosen, strict=True)])
            foreign = np.mean([one.decision == "foreign" for one in found])
            auroc = float(roc_auc_score(truth, scores))
            curves.setdefault(name, []).append((amount, auroc, float(right), float(foreign)))
            rows.append([name, f"{amount:g} {kind.unit}", f"{auroc:.3f}", f"{right:.3f}", f"{foreign:.1%}"])
    print_table(["corruption", "amount", "AUROC", "accuracy", "foreign"], rows)
    if options.plot:
        draw(curves, options.plot)


def draw(curves: dict[str, list[tuple[float, float, float, float]]], path: Path) -> None:
    """A panel for each corruption."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    units = {name: kind.unit for name, kind in corruptions().items()}
    figure, axes = plt.subplots(3, 5, figsize=(14, 8), sharey=True, layout="constrained")
    for panel, (name, points) in zip(axes.flat, curves.items(), strict=False):
        ordered = np.array(sorted(points))
        panel.plot(ordered[:, 0], ordered[:, 1], "o-", color="#0b6e99", label="AUROC")
        panel.plot(ordered[:, 0], ordered[:, 2], "s-", color="#c8553d", label="accuracy")
        panel.plot(ordered[:, 0], ordered[:, 3], ":", color="#666666", label="share called foreign")
        panel.axvline(points[0][0], color="#bbbbbb", linewidth=1, zorder=0)
        panel.set(title=name, xlabel=units[name], ylim=(0, 1.02))
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[len(curves) :]:
        panel.set_axis_off()
    axes.flat[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
