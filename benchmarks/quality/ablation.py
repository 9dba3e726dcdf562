"""What each part of the recipe `best` is worth: on films of the same series, where one class is changed, and on others.

All variants but the recipe `head` are trained for the same, short time, and all at a smaller size than usual: on one
fold of cross-validation, with the tests of one_sided.py, and on two series, tested on the other two (the Kermany data's
normal films come from IM and NORMAL2-IM, the others show bacterial or viral pneumonia).
"""

from __future__ import annotations

from typing import Any

from one_sided import judge
from protocol import TRANSFERS, arguments, complete, draw_folds, draw_transfer, print_table, read_kermany, spread

from pneumoscope.images.augmenting import GEOMETRY

ACQUISITION = dict.fromkeys(("blur", "noise", "sharpen", "compress"), 0.0)
GREY = dict.fromkeys(("brightness", "contrast", "gamma"), 0.0)
NO_VIEWS = {**dict.fromkeys(GEOMETRY, 0.0), **GREY, **ACQUISITION}
FILMS = 120  # of each class, that are changed


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
    parser.add_argument("--transfers", type=int, default=1, help=f"the first of {len(TRANSFERS)}")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=160, help="of the input, in pixels")
    options = parser.parse_args()
    samples = read_kermany(options.data)
    home = draw_folds(samples, 5, 0)[0]
    rows = []
    for name in options.variants.split(","):
        short = {"epochs": 1, "min_steps": options.steps, "size": options.size}
        settings = {"recipe": "best", **short, **variants()[name]}
        kept = name.replace(" ", "-").replace("/", "by")
        own = complete(home, options.runs / f"ablation-{kept}", **settings)
        _, changes = judge(own.folder, FILMS)
        lowest = [f"{min(one.auroc[side] for one in changes):.3f}" for side in (0, 1)]
        away = [
            complete(
                draw_transfer(samples, tested, 0), options.runs / f"ablation-{kept}-{'-'.join(tested)}", **settings
            )
            for tested in TRANSFERS[: options.transfers]
        ]
        balanced = (own.value("sensitivity") + own.value("specificity")) / 2
        cells = [f"{own.value('auroc'):.4f}", f"{balanced:.3f}", *lowest, spread([one.value("auroc") for one in away])]
        rows.append([name, *cells])
    print_table(
        ["variant", "AUROC", "mean of sensitivity and specificity", "AUROC, normal changed, lowest",
         "pneumonia changed, lowest", "AUROC, other series"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
