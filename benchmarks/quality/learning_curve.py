"""Accuracy against the number of films, training and validation together; tested on the same held-out fifth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from protocol import METRICS, arguments, complete, draw_folds, print_table, read_kermany, summarise

from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splitting import split_samples


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipes", default="head,best")
    parser.add_argument("--counts", default="50,100,200,400,800,1600,3200,0", help="0: all four fifths")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    samples = read_kermany(options.data)
    home = draw_folds(samples, 5, 0)[0]
    rows = []
    for recipe in options.recipes.split(","):
        for count in map(int, options.counts.split(",")):
            results = []
            for seed in range(options.seeds):
                films = draw(home, count, seed)
                results.append(
                    complete(films, options.runs / f"curve-{recipe}-{count}-{seed}", recipe=recipe, seed=seed)
                )
            rows.append([recipe, sum(film.split != "test" for film in films), *summarise(results)])
    print_table(["recipe", "films", *METRICS, "a run"], rows)


def draw(home: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """So many films of whole patients, stratified, of what is not tested; a third of the smaller class validates."""
    test = [film for film in home if film.split == "test"]
    rest = [dataclasses.replace(film, split=None) for film in home if film.split != "test"]
    if count:
        drawn = split_samples(rest, test_count=count, val_count=2, groups=group_identical(rest), seed=seed)
        rest = [film for film in drawn if film.split == "test"]
    chosen = [dataclasses.replace(film, split="train") for film in rest] + test
    return split_samples(chosen, groups=group_identical(chosen), seed=seed)


if __name__ == "__main__":
    main()
