"""Train a chest backbone on images of lungs alone: three classes, from ImageNet's weights; docs/log.md has the result.

python benchmarks/quality/train_chest.py [epochs=6]
"""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from chest_data import assign, restore_lungs, split_adults
from protocol import make_parser, train_once


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    samples = assign(restore_lungs(options.data, options.runs / "lungs"), split_adults(options.data))
    samples = [  # half of the validation images are left out, since they decide nothing
        dataclasses.replace(each, metadata={"source": "rsna", "view": each.metadata["view"]})
        for i, each in enumerate(samples)
        if each.split != "val" or i % 2 == 0
    ]
    usual: dict[str, Any] = {"recipe": "best", "seed": 0, "size": 160, "epochs": 6, "augmented_copies": 0}
    train_once(samples, options.runs / "chest-lungs", balance_by="view", **{**usual, **given})


if __name__ == "__main__":
    main()
