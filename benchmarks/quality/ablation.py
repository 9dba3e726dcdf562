"""What each part of the recipe `best` is worth where films look different: trained on two series, tested on the others.

Normal films of the Kermany data come from two series (IM, NORMAL2-IM), the others show bacterial or viral pneumonia. A
transfer trains on one series of each and tests on the other two. "Changed" tests the same films again, each with one
random change of those in corruptions.py at a middling amount. All variants are trained for the same, short time, at a
smaller size than the recipe's.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from corruptions import corruptions
from PIL import Image
from protocol import TRANSFERS, arguments, complete, draw_transfer, print_table, read_kermany, spread
from sklearn.metrics import roc_auc_score

from pneumoscope.datasets.samples import Sample
from pneumoscope.inference.predictor import load

NO_VIEWS = dict.fromkeys(
    ("rotate", "shift", "zoom", "stretch", "brightness", "contrast", "gamma", "blur", "noise"), 0.0
)
FILMS = 300  # of each class, that are changed and tested again


def variants() -> dict[str, dict[str, Any]]:
    """What is changed from `best`, by name."""
    return {
        "best": {},
        "head alone": {"train_backbone": False, "epochs": 50, **NO_VIEWS, "views": 0, "half": False},
        "batch norms trained": {"freeze_batchnorm": False},
        "flips alone": NO_VIEWS,
        "weak views": {**NO_VIEWS, "rotate": 5.0, "shift": 0.05, "zoom": 0.1, "brightness": 0.1, "contrast": 0.2},
        "no warmed-up head": {"warmup_epochs": 0},
        "no moving average": {"ema": 0.0},
        "rate of the backbone x 3": {"backbone_lr": 1e-3},
        "rate of the backbone / 3": {"backbone_lr": 1e-4},
        "decisions without views": {"views": 0},
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--variants", default=",".join(variants()))
    parser.add_argument("--transfers", type=int, default=2, help=f"the first of {len(TRANSFERS)}")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=160, help="of the input, in pixels")
    options = parser.parse_args()
    samples = read_kermany(options.data)
    rows = []
    for name in options.variants.split(","):
        scores: dict[str, list[float]] = {}
        for tested in TRANSFERS[: options.transfers]:
            films = draw_transfer(samples, tested, seed=0)
            folder = options.runs / f"transfer-{name.replace(' ', '-').replace('/', 'by')}-{'-'.join(tested)}"
            short = {"epochs": 1, "min_steps": options.steps, "size": options.size}
            result = complete(films, folder, recipe="best", **{**short, **variants()[name]})
            for metric in ("auroc", "sensitivity", "specificity"):
                scores.setdefault(metric, []).append(result.value(metric))
            scores.setdefault("changed", []).append(test_changed(result.folder, films))
        balanced = (np.array(scores["sensitivity"]) + np.array(scores["specificity"])) / 2
        cells = [spread(scores[metric]) for metric in ("auroc", "changed", "sensitivity", "specificity")]
        rows.append([name, *cells, spread(balanced.tolist())])
    print_table(["variant", "AUROC", "AUROC, changed", "sensitivity", "specificity", "their mean"], rows)


def test_changed(folder: object, films: list[Sample]) -> float:
    """AUROC on test films of which each is changed in one way."""
    rng = np.random.default_rng(0)
    tested = np.array([i for i, film in enumerate(films) if film.split == "test"])
    labels = np.array([films[i].label == "PNEUMONIA" for i in tested])
    chosen = np.concatenate([rng.choice(tested[labels == kind], FILMS, replace=False) for kind in (False, True)])
    kinds = list(corruptions().values())
    contents = []
    for index in chosen:
        kind = kinds[rng.integers(len(kinds))]
        film = Image.open(films[index].path).convert("L")
        content = io.BytesIO()
        kind.change(film, float(rng.choice(kind.amounts[2:4]))).save(content, "PNG")
        contents.append(content.getvalue())
    found = load(str(folder), guarded=False).predict(contents)
    return float(roc_auc_score(np.arange(2 * FILMS) >= FILMS, [one.unguarded or 0.0 for one in found]))


if __name__ == "__main__":
    main()
