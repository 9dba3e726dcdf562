"""Train a chest backbone that never saw a child: three classes, from ImageNet's weights; docs/log.md has the result.

python benchmarks/quality/train_chest.py [--lungs] [epochs=6]

By default on whole images of adults and on images of lungs alone; with `--lungs` on the latter only. Both have all
classes, and half of the draws of each class are whole images, so that a mask tells no class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from chest_data import assign, draw_normal, read_adults, restore_lungs, split_adults
from protocol import make_parser, train_once

NORMAL = 500  # training images of rsna-normal, which has no opacities


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--lungs", action="store_true", help="only images of lungs alone")
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    patients = split_adults(options.data)
    samples = assign(restore_lungs(options.data, options.runs / "lungs"), patients)
    if not options.lungs:
        samples += draw_normal(assign(read_adults(options.data), patients), NORMAL, np.random.default_rng(0))
    samples = [  # half of the validation images are left out, since they decide nothing
        dataclasses.replace(each, metadata={"source": "rsna", "group": name_group(each.metadata)})
        for i, each in enumerate(samples)
        if each.split != "val" or i % 2 == 0
    ]
    usual: dict[str, Any] = {"recipe": "best", "seed": 0, "size": 160, "epochs": 6, "augmented_copies": 0}
    folder = options.runs / ("chest-lungs" if options.lungs else "chest")
    train_once(samples, folder, balance_by="group", **{**usual, **given})


def name_group(metadata: Mapping[str, str]) -> str:
    """Lungs alone or whole images, and the view."""
    return f"{'lungs' if metadata['source'] == 'lungs-only' else 'whole'} {metadata['view']}"


if __name__ == "__main__":
    main()
