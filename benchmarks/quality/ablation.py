"""What each part of the recipe `best` contributes: on images of the same series, and with one class of them changed.

All variants but the recipe `head` are trained for the same short time, on fewer images and at a smaller size than
usual. All are tested on the same fold of cross-validation, on unchanged images and with the changes of one_sided.py.
`--transfers` also tests them on series that they were not trained on (the normal images of the Kermany data come from
the series IM and NORMAL2-IM, the others show bacterial or viral pneumonia).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from learning_curve import draw
from one_sided import measure_changes
from protocol import (
    TRANSFERS,
    draw_folds,
    draw_transfer,
    make_parser,
    print_table,
    read_kermany,
    spread,
    train_once,
)

from pneumoscope.images.augment import GEOMETRY

ACQUISITION = dict.fromkeys(("blur", "noise", "sharpen", "compress"), 0.0)
GREY = dict.fromkeys(("brightness", "contrast", "gamma"), 0.0)
FLIPS_ONLY = {**dict.fromkeys(GEOMETRY, 0.0), **GREY, **ACQUISITION}
CHANGED = 120  # images of each class


def variants() -> dict[str, dict[str, Any]]:
    """What each variant changes from `best`, by name."""
    return {
        "best": {},
        "recipe head": {"recipe": "head", "epochs": 300, "min_steps": 0, "fit": "squash"},
        "batch norms trained": {"freeze_batchnorm": False},
        "flips only": FLIPS_ONLY,
        "no stretch": {"stretch": 0.0},
        "no crop": {"crop": 0.0},
        "weak augmentation": {"rotate": 5.0, "shift": 0.05, "zoom": 0.1, "stretch": 0.1, "crop": 0.05},
        "no greyscale changes": GREY,
        "no blur, noise, sharpening, compression": ACQUISITION,
        "no warm-up of the head": {"warmup_epochs": 0},
        "no moving average": {"ema": 0.0},
        "backbone learning rate x 3": {"backbone_lr": 1e-3},
        "backbone learning rate / 3": {"backbone_lr": 1e-4},
        "decisions without augmented copies": {"augmented_copies": 0},
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--variants", default=";".join(variants()), help="separated by semicolons")
    parser.add_argument("--images", type=int, default=800, help="to train and validate, together")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--transfers", type=int, default=0, help=f"how many of the {len(TRANSFERS)} transfers to test")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=160, help="of the input, in pixels")
    options = parser.parse_args()
    samples = read_kermany(options.data)
    fold = draw_folds(samples, 5, 0)[0]
    rows = []
    for name in options.variants.split(";"):
        short = {"epochs": 1, "min_steps": options.steps, "size": options.size}
        settings = {"recipe": "best", **short, **variants()[name]}
        prefix = "ablation-" + name.replace(",", "").replace(" ", "-").replace("/", "by")
        cells: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            run = train_once(draw(fold, options.images, seed), options.runs / f"{prefix}-{seed}", seed=seed, **settings)
            _, changes = measure_changes(run.folder, CHANGED)
            values = {"AUROC": run.value("auroc"), "mean": (run.value("sensitivity") + run.value("specificity")) / 2}
            for side, label in enumerate(("normal", "pneumonia")):
                values[f"{label} mean"] = float(np.mean([each.auroc[side] for each in changes]))
                values[f"{label} lowest"] = min(each.auroc[side] for each in changes)
            for column, value in values.items():
                cells.setdefault(column, []).append(value)
            for tested in TRANSFERS[: options.transfers]:
                transfer = draw_transfer(samples, tested, seed)
                folder = options.runs / f"{prefix}-{'-'.join(tested)}-{seed}"
                cells.setdefault("transfer", []).append(
                    train_once(transfer, folder, seed=seed, **settings).value("auroc")
                )
        rows.append([name, *(spread(values) for values in cells.values())])
    print_table(
        ["variant", "AUROC", "mean of sensitivity and specificity", "normal changed: mean", "lowest",
         "pneumonia changed: mean", "lowest", *(["AUROC, other series"] if options.transfers else [])],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
