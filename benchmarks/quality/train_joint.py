"""Train one model for children and adults, from a chest backbone's run.

Adults of fold 0 test, those of fold 1 validate.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import yaml
from chest_data import assign, draw_normal, read_adults, split_adults, split_children
from protocol import make_parser, train_once

from pneumoscope.datasets.samples import Sample


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--name", default="joint")
    parser.add_argument("--init", required=True)
    parser.add_argument("--normal", type=int, default=500, help="training images of rsna-normal")
    parser.add_argument("--child-val", type=int, default=70, help="children's validation images of each class")
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
    # Decisions are between opacity and normal, fitted on as many children as adults.
    adults = [each for each in adults if each.split != "val" or (each.label != "OTHER" and is_own(each))]
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


def is_own(sample: Sample) -> bool:
    """Whether an adult's image is from a source that has both classes."""
    return sample.metadata["source"] != "rsna-normal"


def relabel(sample: Sample) -> Sample:
    label = "PNEUMONIA" if sample.label == "OPACITY" else "NORMAL"
    source = "nih" if sample.metadata["source"] == "nih" else "rsna"
    return dataclasses.replace(
        sample, label=label, metadata={"group": f"adults {sample.metadata['view']}", "source": source}
    )


if __name__ == "__main__":
    main()
