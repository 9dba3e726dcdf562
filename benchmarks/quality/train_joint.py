"""Train the pretrained model of children and adults, in two steps: the network, then its head and what it decides by.

python benchmarks/quality/train_joint.py network && python benchmarks/quality/train_joint.py decisions

The network continues from `pneumonia-lite0`, the model of children alone, on as many draws of children as of adults,
half of them PA images. OTHER (not normal, no opacity) is negative in training. The decisions are between opacity and
normal. They are fitted to validation images without OTHER, two of children for each of an adult. The test images are
the adults of one fold of patients and the 100 published images of children.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import yaml
from chest_data import CHILD_VAL, assign, draw_normal, read_adults, split_adults, split_children
from protocol import make_parser, train_once

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.augment import Augmentation
from pneumoscope.images.dicom import Tags
from pneumoscope.training.settings import RECIPES

NORMAL = 500  # training images of rsna-normal, which has no opacities
AUGMENTED = [each.name for each in dataclasses.fields(Augmentation) if each.name in RECIPES["best"]]
NETWORK: dict[str, Any] = {
    "recipe": "best", "epochs": 4, "backbone_lr": 1e-4, "augmented_copies": 2, "precision": "float32",
}  # fmt: skip
DECISIONS: dict[str, Any] = {
    "recipe": "head",
    "prevalence": 0.5,  # the share in training is that of two collections, not of any hospital
    **{name: RECIPES["best"][name] for name in ("fit", "alpha", "half_precision", "augmented_copies", *AUGMENTED)},
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("stage", choices=("network", "decisions"))
    parser.add_argument("--name", default=None, help="name of the run; by default joint-STAGE")
    parser.add_argument("--init", default=None, help="by default pneumonia-lite0, or the run joint-network")
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    network = options.stage == "network"
    rng = np.random.default_rng(0)
    adults = draw_normal(assign(read_adults(options.data), split_adults(options.data)), NORMAL, rng)
    children = split_children(options.data, 200 if network else CHILD_VAL)
    halves = rng.integers(2, size=len(children))  # drawn like two groups, as the adults have two views
    samples = [
        *(mark(each, str(half)) for each, half in zip(children, halves, strict=True)),
        *map(relabel, adults),
    ]
    if not network:
        samples = [sample for sample, image in zip(samples, [*children, *adults], strict=True) if decides(image)]
    init = options.init or ("pneumonia-lite0" if network else str(options.runs / "joint-network"))
    usual = {"seed": 0, "size": 224, "balance": "sampling", "balance_by": "group, half", "init": init}
    folder = options.runs / (options.name or f"joint-{options.stage}")
    train_once(samples, folder, **{**usual, **(NETWORK if network else DECISIONS), **given})


def decides(sample: Sample) -> bool:
    """Whether an image is trained on, or is one of those that decisions are fitted to or tested on."""
    if sample.split == "train":
        return True
    if "reading" in sample.metadata:
        return sample.label != "OTHER" and sample.metadata["source"] != "rsna-normal"
    return sample.split == "val" or "seed-400" in sample.path.parts  # others validated the first model


def mark(sample: Sample, half: str) -> Sample:
    """A child's image with its group and public dataset; only to train it also has a half, which is no subgroup."""
    drawn = {"half": half} if sample.split == "train" else {}
    return dataclasses.replace(sample, metadata={"group": "children", "source": "kermany", **drawn})


def relabel(sample: Sample) -> Sample:
    """An adult's image with a class of the children's, its public dataset, and its group."""
    label = "PNEUMONIA" if sample.label == "OPACITY" else "NORMAL"
    source = "nih" if sample.metadata["source"] == "nih" else "rsna"
    tags = sample.tags or Tags()
    known = {"age": "" if tags.age is None else f"{tags.age:g}", "sex": tags.sex or "", "view": tags.view or ""}
    return dataclasses.replace(
        sample, label=label, metadata={"group": f"adults {tags.view}", "source": source, **known}
    )


if __name__ == "__main__":
    main()
