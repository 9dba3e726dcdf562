"""How much a model's own OOD detector refuses of images that it should refuse, and of images that it should not.

The images are those that train_joint.py keeps for testing. Changed images are made from 60 children's and 60 adults'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from chest_data import CHILD_VAL, assign, read_adults, split_adults, split_children
from protocol import make_parser, print_table

from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION
from pneumoscope.inference.features import Source
from pneumoscope.inference.predictor import Predictor, load

sys.path.insert(0, str(Path(__file__).parents[1]))

from ood_detection import ood_sources

MADE = 40


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="model folder, run or name; by default the pretrained model")
    options = parser.parse_args()
    predictor = load(options.model)
    adults = draw(assign(read_adults(options.data), split_adults(options.data)))
    children = draw(split_children(options.data, CHILD_VAL))
    rows: dict[str, list[str]] = {
        "unchanged": [refuse(predictor, children), refuse(predictor, adults)],
    }
    for population in (children, adults):
        for name, files in ood_sources(population[:MADE], 10).items():
            rows.setdefault(name, []).append(refuse(predictor, files))
    print_table(("image", "children", "adults"), [[name, *cells] for name, cells in rows.items()])


def draw(samples: Sequence[Sample]) -> list[Sample]:
    """The test images, in a random order."""
    tested = [each for each in samples if each.split == "test"]
    return [tested[i] for i in np.random.default_rng(0).permutation(len(tested))]


def refuse(predictor: Predictor, images: Sequence[Source]) -> str:
    """The share that the detector refuses."""
    decisions = [each.decision for each in predictor.run(images)]
    return f"{np.mean([each == OUT_OF_DISTRIBUTION for each in decisions]):.0%} of {len(decisions)}"


if __name__ == "__main__":
    main()
