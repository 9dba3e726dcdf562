"""Train the pretrained model of children and adults: the network, an average, then its head and what it decides by.

for stage in network average decisions; do python benchmarks/quality/train_joint.py $stage; done

The network continues from `pneumonia-lite0`, the model of children alone. A third of the draws are children, a third
adults and a third lungs of adults alone, each half PA and half AP. OTHER (not normal, no opacity) is negative in
training. The decisions are between opacity and normal. They are fitted to validation images without OTHER, two of
children for each of an adult, and to children and adults apart where their ages are known (`age_groups.yaml`). The test
images are the adults of one fold of patients and the 100 published images of children.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from chest_data import CHILD_VAL, assign, draw_normal, read_adults, restore_lungs, split_adults, split_children
from protocol import make_parser, train_once

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.augment import Augmentation
from pneumoscope.images.dicom import Tags
from pneumoscope.models.model_folder import find_model, load_model, load_weights, save_model
from pneumoscope.training.settings import RECIPES

SHARE = 0.6  # chosen by validation images
NORMAL = 500  # training images of rsna-normal, which has no opacities
AUGMENTED = [each.name for each in dataclasses.fields(Augmentation) if each.name in RECIPES["best"]]
NETWORK: dict[str, Any] = {
    "recipe": "best", "epochs": 3, "backbone_lr": 1.5e-4, "augmented_copies": 2, "precision": "float32",
}  # fmt: skip
DECISIONS: dict[str, Any] = {
    "recipe": "head",
    "prevalence": 0.5,  # the share in training is that of two collections, not of any hospital
    "groups": str(Path(__file__).with_name("age_groups.yaml")),
    **{name: RECIPES["best"][name] for name in ("fit", "alpha", "half_precision", "augmented_copies", *AUGMENTED)},
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("stage", choices=("network", "average", "decisions"))
    parser.add_argument("--name", default=None, help="name of the run; by default joint-STAGE")
    parser.add_argument("--init", default=None, help="by default pneumonia-lite0, or joint-average")
    parser.add_argument("--share", type=float, default=SHARE, help="of the trained network in the average")
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    if options.stage == "average":
        average(options.runs / "joint-network", options.runs / (options.name or "joint-average"), options.share)
        return
    network = options.stage == "network"
    rng = np.random.default_rng(0)
    patients = split_adults(options.data)
    adults = draw_normal(assign(read_adults(options.data), patients), NORMAL, rng)
    if network:
        lungs = assign(restore_lungs(options.data, options.runs / "lungs"), patients)
        adults += [each for each in lungs if each.split == "train"]
    children = split_children(options.data, 200 if network else CHILD_VAL)
    halves = rng.integers(2, size=len(children))  # drawn like two groups, as the adults have two views
    samples = [
        *(mark(each, str(half)) for each, half in zip(children, halves, strict=True)),
        *map(relabel, adults),
    ]
    if not network:
        samples = [sample for sample, image in zip(samples, [*children, *adults], strict=True) if decides(image)]
    init = options.init or ("pneumonia-lite0" if network else str(options.runs / "joint-average"))
    usual = {"seed": 0, "size": 224, "balance": "sampling", "balance_by": "group, half", "init": init}
    folder = options.runs / (options.name or f"joint-{options.stage}")
    train_once(samples, folder, **{**usual, **(NETWORK if network else DECISIONS), **given})


def average(run: Path, out: Path, share: float) -> None:
    """Write a model whose network lies between the one that training began with and the one of the run.

    Such an average forgets less of what the first one knew (Wortsman et al. 2022, arXiv:2109.01903).
    """
    model, first = load_model(run), find_model(Path("pneumonia-lite0"))
    trained, before = load_weights(run, model), load_weights(first, load_model(first))
    state = {
        name: torch.lerp(before[name], tensor, share) if tensor.is_floating_point() and name in before else tensor
        for name, tensor in trained.items()
        if not name.startswith("ood.")
    }
    save_model(out, model, {**trained, **state})


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
    kind = "lungs" if sample.metadata["source"] == "lungs-only" else "adults"
    view = tags.view or sample.metadata["view"]
    return dataclasses.replace(sample, label=label, metadata={"group": f"{kind} {view}", "source": source, **known})


if __name__ == "__main__":
    main()
