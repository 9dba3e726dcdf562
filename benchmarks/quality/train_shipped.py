"""The run whose bundle ships: all 5,216 films to train and validate on, the published 100 to test; see ship.py."""

from __future__ import annotations

import dataclasses

from protocol import arguments, complete, read_kermany

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.samples import read_samples
from pneumoscope.datasets.splitting import split_samples


def main() -> None:
    options = arguments(__doc__).parse_args()
    films = [dataclasses.replace(film, split="train") for film in read_kermany(options.data)]
    films += [film for film in read_samples(options.data / "seed-400") if film.split == "test"]
    drawn = split_samples(films, groups=group_identical(films), seed=0)
    complete(drawn, options.runs / "shipped", recipe="best", seed=0)


if __name__ == "__main__":
    main()
