"""Train the chest backbone in two steps: lungs alone from ImageNet, then images of adults, both in three classes.

python benchmarks/quality/train_chest.py lungs && python benchmarks/quality/train_chest.py adults
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import yaml
from chest_data import assign, draw_normal, read_adults, restore_lungs, split_adults
from protocol import make_parser, train_once

from pneumoscope.datasets.samples import Sample


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("stage", choices=("lungs", "adults"))
    parser.add_argument("--name", default=None, help="name of the run; by default chest-STAGE")
    parser.add_argument("--init", default=None, help="for adults; by default the run chest-lungs")
    parser.add_argument("--normal", type=int, default=500, help="training images of rsna-normal")
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    patients = split_adults(options.data)
    if options.stage == "lungs":
        samples = assign(restore_lungs(options.data, options.runs / "lungs"), patients)
        samples = [each for i, each in enumerate(samples) if each.split != "val" or i % 2 == 0]  # they decide nothing
        settings: dict[str, Any] = {"size": 160, "epochs": 6, "augmented_copies": 0}
    else:
        samples = draw_normal(assign(read_adults(options.data), patients), options.normal, np.random.default_rng(0))
        settings = {"size": 224, "epochs": 6, "backbone_lr": 1e-4, "init": options.init or options.runs / "chest-lungs"}
    samples = [name_source(each) for each in samples]
    folder = options.runs / (options.name or f"chest-{options.stage}")
    train_once(samples, folder, recipe="best", seed=0, balance_by="view", **{**settings, **given})


def name_source(sample: Sample) -> Sample:
    """With the name of its public dataset, which the model's card cites, and the view, which is balanced."""
    source = "nih" if sample.metadata["source"] == "nih" else "rsna"
    return dataclasses.replace(sample, metadata={"source": source, "view": sample.metadata["view"]})


if __name__ == "__main__":
    main()
