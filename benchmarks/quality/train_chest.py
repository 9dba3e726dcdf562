"""Train `chest-lite0`, which has seen none of Kermany's images, from ImageNet's weights; then its decisions.

for stage in network decisions; do python benchmarks/quality/train_chest.py $stage; done

The network learns three classes from whole images and from lungs alone; with `--lungs` from the latter only
(docs/log.md has the result). Both have all classes, and half of the draws of each class are whole images, so that a
mask tells no class. The head and the decisions are then fitted to whole images. One fold of patients tests, another one
validates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import yaml
from chest_data import assign, draw_normal, read_adults, restore_lungs, split_adults
from protocol import make_parser, train_once
from train_joint import AUGMENTED

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.dicom import Tags
from pneumoscope.training.settings import RECIPES

NORMAL = 500  # training images of rsna-normal, which has no opacities
NETWORK: dict[str, Any] = {
    "recipe": "best", "epochs": 4, "backbone_lr": 2e-4, "precision": "float32", "augmented_copies": 2,
}  # fmt: skip
DECISIONS: dict[str, Any] = {
    "recipe": "head",
    **{name: RECIPES["best"][name] for name in ("fit", "alpha", "half_precision", "augmented_copies", *AUGMENTED)},
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("stage", choices=("network", "decisions"))
    parser.add_argument("--lungs", action="store_true", help="the network learns only from images of lungs alone")
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    patients = split_adults(options.data)
    lungs = assign(restore_lungs(options.data, options.runs / "lungs"), patients)
    whole = draw_normal(assign(read_adults(options.data), patients), NORMAL, np.random.default_rng(0))
    name = "chest-lungs" if options.lungs else "chest"
    usual: dict[str, Any] = {"seed": 0, "size": 224, "balance": "sampling", "balance_by": "group"}
    if options.stage == "decisions":
        samples = [each for each in whole if each.split == "train" or is_complete(each)]
        usual |= {**DECISIONS, "init": str(options.runs / name)}
        name += "-decisions"
    else:
        samples = lungs if options.lungs else [*lungs, *whole]
        samples = [each for i, each in enumerate(samples) if options.lungs or is_used(each, i)]
        usual |= NETWORK
    train_once([mark(each) for each in samples], options.runs / name, **{**usual, **given})


def is_used(sample: Sample, place: int) -> bool:
    """Whether the network uses an image: half of those of validation, for speed; to test, only whole ones."""
    return is_complete(sample) if sample.split == "test" else sample.split == "train" or place % 2 == 0


def is_complete(sample: Sample) -> bool:
    """Whether it is a whole image of a source that has all classes."""
    return sample.metadata["source"] in ("rsna", "nih")


def mark(sample: Sample) -> Sample:
    """An image with its group (lungs alone or whole, and the view), its public dataset, and what subgroups need."""
    source, view = sample.metadata["source"], sample.metadata["view"]
    tags = sample.tags or Tags()
    known = {"age": "" if tags.age is None else f"{tags.age:g}", "sex": tags.sex or "", "view": tags.view or ""}
    metadata = {
        "group": f"{'lungs' if source == 'lungs-only' else 'whole'} {view}",
        "source": "nih" if source == "nih" else "rsna",
        **known,
    }
    return dataclasses.replace(sample, metadata=metadata)


if __name__ == "__main__":
    main()
