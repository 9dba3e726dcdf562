"""What each part of the recipe `best` is worth: on images of the same series, and where one class of them is changed.

All variants but the recipe `head` are trained for the same, short time, on fewer images and at a smaller size than
usual; all are tested on the same fold of cross-validation, as they are and with the changes of one_sided.py.
`--transfers` tests them on series that were not trained on, too (the Kermany data's normal images come from IM and
NORMAL2-IM, the others show bacterial or viral pneumonia).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from learning_curve import draw
from one_sided import judge
from protocol import TRANSFERS, arguments, complete, draw_folds, draw_transfer, print_table, read_kermany, spread

from pneumoscope.images.augment import GEOMETRY

ACQUISITION = dict.fromkeys(("blur", "noise", "sharpen", "compress"), 0.0)
GREY = dict.fromkeys(("brightness", "contrast", "gamma"), 0.0)
NO_VIEWS = {**dict.fromkeys(GEOMETRY, 0.0), **GREY, **ACQUISITION}
IMAGES = 120  # of each class, that are changed


def variants() -> dict[str, dict[str, Any]]:
    """What is changed from `best`, by name."""
    return {
        "best": {},
        "recipe head": {"recipe": "head", "epochs": 300, "min_steps": 0, "fit": "squash"},
        "batch norms trained": {"freeze_batchnorm": False},
        "flips alone": NO_VIEWS,
        "proportions kept": {"stretch": 0.0},
        "frames kept": {"crop": 0.0},
        "weak views": {"rotate": 5.0, "shift": 0.05, "zoom": 0.1, "stretch": 0.1, "crop": 0.05},
        "no change of grey": GREY,
        "no other acquisition": ACQUISITION,
        "no warmed-up head": {"warmup_epochs": 0},
        "no moving average": {"ema": 0.0},
        "rate of the backbone x 3": {"backbone_lr": 1e-3},
        "rate of the backbone / 3": {"backbone_lr": 1e-4},
        "decisions without views": {"views": 0},
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--variants", default=",".join(variants()))
    parser.add_argument("--images", type=int, default=800, help="to train and validate on, together")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--transfers", type=int, default=0, help=f"the first of {len(TRANSFERS)}")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=160, help="of the input, in pixels")
    options = parser.parse_args()
    samples = read_kermany(options.data)
    home = draw_folds(samples, 5, 0)[0]
    rows = []
    for name in options.variants.split(","):
        short = {"epochs": 1, "min_steps": options.steps, "size": options.size}
        settings = {"recipe": "best", **short, **variants()[name]}
        kept = "ablation-" + name.replace(" ", "-").replace("/", "by")
        cells: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            run = complete(draw(home, options.images, seed), options.runs / f"{kept}-{seed}", seed=seed, **settings)
            _, changes = judge(run.folder, IMAGES)
            found = {"AUROC": run.value("auroc"), "mean": (run.value("sensitivity") + run.value("specificity")) / 2}
            for side, label in enumerate(("normal", "pneumonia")):
                found[f"{label} mean"] = float(np.mean([one.auroc[side] for one in changes]))
                found[f"{label} lowest"] = min(one.auroc[side] for one in changes)
            for column, value in found.items():
                cells.setdefault(column, []).append(value)
            for tested in TRANSFERS[: options.transfers]:
                away = draw_transfer(samples, tested, seed)
                folder = options.runs / f"{kept}-{'-'.join(tested)}-{seed}"
                cells.setdefault("away", []).append(complete(away, folder, seed=seed, **settings).value("auroc"))
        rows.append([name, *(spread(values) for values in cells.values())])
    print_table(
        ["variant", "AUROC", "mean of sensitivity and specificity", "normal changed: mean", "lowest",
         "pneumonia changed: mean", "lowest", *(["AUROC, other series"] if options.transfers else [])],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
