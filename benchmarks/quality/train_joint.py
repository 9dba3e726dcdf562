"""Train one model for children and adults, from a chest backbone's run.

Adults of fold 0 test, those of fold 1 validate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import yaml
from chest_data import assign, draw_normal, read_adults, split_adults
from protocol import make_parser, read_kermany, train_once

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splits import split_samples


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--name", default="joint")
    parser.add_argument("--init", required=True)
    parser.add_argument("--normal", type=int, default=500, help="training images of rsna-normal")
    parser.add_argument("--child-val", type=int, default=200, help="children's validation images of each class")
    parser.add_argument("--child-shares", type=int, default=2, help="the children's parts of draws; adults have two")
    parser.add_argument("--other", choices=("negative", "none"), default="negative")
    parser.add_argument("settings", nargs="*", help="settings of training, such as epochs=4")
    options = parser.parse_args()
    settings = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in options.settings)}
    rng = np.random.default_rng(0)
    adults = assign(read_adults(options.data), split_adults(options.data))
    if options.other == "none":
        adults = [each for each in adults if each.label != "OTHER"]
    adults = draw_normal(adults, options.normal, rng)
    children = split_children(options.data, options.child_val)
    parts = rng.integers(options.child_shares, size=len(children))
    samples = [
        *(
            dataclasses.replace(each, metadata={"group": f"children {part}", "source": "kermany"})
            for each, part in zip(children, parts, strict=True)
        ),
        *map(relabel, adults),
    ]
    train_once(
        samples, options.runs / options.name, recipe="best", seed=0, init=options.init, balance_by="group", **settings
    )


def split_children(data: Path, count: int) -> list[Sample]:
    """The split of the first pretrained model; of its validation images, `count` of each class validate, others test.

    No weights were fitted to those images, so that training may continue from that model.
    """
    images = [dataclasses.replace(image, split="train") for image in read_kermany(data)]
    images += [image for image in read_samples(data / "seed-400") if image.split == "test"]
    samples = split_samples(images, groups=group_identical(images), seed=0)
    patients = sorted({str(each.patient) for each in samples if each.split == "val"})
    order = [patients[i] for i in np.random.default_rng(0).permutation(len(patients))]
    places = {patient: place for place, patient in enumerate(order)}
    kept: dict[str, int] = {}
    result = [each for each in samples if each.split == "train"]
    for each in sorted((each for each in samples if each.split == "val"), key=lambda each: places[str(each.patient)]):
        label = str(each.label)
        kept[label] = kept.get(label, 0) + 1
        result.append(each if kept[label] <= count else dataclasses.replace(each, split="test"))
    tested = {each.patient for each in result if each.split == "test"}
    return [dataclasses.replace(each, split="test") if each.patient in tested else each for each in result]


def relabel(sample: Sample) -> Sample:
    label = "PNEUMONIA" if sample.label == "OPACITY" else "NORMAL"
    source = "nih" if sample.metadata["source"] == "nih" else "rsna"
    return dataclasses.replace(
        sample, label=label, metadata={"group": f"adults {sample.metadata['view']}", "source": source}
    )


if __name__ == "__main__":
    main()
