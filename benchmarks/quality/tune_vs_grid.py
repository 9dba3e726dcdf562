"""Evaluations that `tune` needs on the published small task, against a grid search over the same settings.

Everything is measured on inner folds by patient of the 300 images to train and validate; the 100 test images are not
opened. Each point of the grid is trained once, fold by fold, and kept in a table. Then the search of `tune` runs with
many seeds on this table: a trial has the scores of the nearest point of the grid. So search and grid see the same
scores, and each search costs seconds. `--real N` also runs `tune` itself with N seeds, between the points of the grid.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from protocol import make_parser, print_table

from pneumoscope.inference.cache import FeatureCache, default_cache_path
from pneumoscope.training import studies
from pneumoscope.training.data import read_split_samples
from pneumoscope.training.search_space import SPACES, apply, read_space
from pneumoscope.training.settings import Settings, resolve_settings
from pneumoscope.training.trials import Parts, Trainer, divide
from pneumoscope.training.tuning import tune

GRID: dict[str, Sequence[Any]] = {
    "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "weight_decay": [1e-4, 1e-2, 1.0],
    "batch_size": [16, 64, 128],
}
SPACE = {"lr": SPACES["head"]["lr"], "weight_decay": SPACES["head"]["weight_decay"], "batch_size": GRID["batch_size"]}
Point = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """The scores of the grid, in place of training."""

    scores: Mapping[Point, Sequence[float]]  # of each fold
    parts: Parts

    def score(self, settings: Settings, part: int) -> float:
        """The score of the nearest point of the grid."""
        optimisation = settings.optimisation
        lr = min(GRID["lr"], key=lambda value: abs(math.log(value / optimisation.lr)))
        decay = min(GRID["weight_decay"], key=lambda value: abs(math.log(value / optimisation.weight_decay)))
        return self.scores[lr, decay, optimisation.batch_size][part]


def measure_grid(base: Settings, parts: Parts, path: Path) -> dict[Point, list[float]]:
    """Train each point of the grid on each fold; those in the file are not trained again."""
    known = {tuple(point): scores for point, scores in json.loads(path.read_text())} if path.exists() else {}
    with FeatureCache(default_cache_path()) as cache:
        trainer = Trainer(parts, "auroc", cache)
        for point in product(*GRID.values()):
            if point not in known:
                settings = apply(base, dict(zip(GRID, point, strict=True)))
                known[point] = [trainer.score(settings, part) for part in range(len(parts.samples))]
                path.write_text(json.dumps(list(known.items())))
                print(*point, f"{np.mean(known[point]):.4f}", flush=True)
    return known


def search(table: Table, base: Settings, seed: int, trials: int) -> tuple[list[float], list[int]]:
    """The best score after each trial of one search, and the folds that were trained until then."""
    space = read_space(SPACE, base)
    study = optuna.create_study(direction="maximize", sampler=studies.SeededSampler(seed), pruner=studies.FoldPruner())
    objective = studies.make_objective(table, space, base)  # type: ignore[arg-type]
    study.optimize(objective, n_trials=trials)
    found = studies.list_trials(study)
    best = np.maximum.accumulate([-1.0 if each.score is None else each.score for each in found])
    return best.tolist(), np.cumsum([len(each.folds) for each in found]).tolist()


def first(best: Sequence[float], goal: float) -> int:
    """The number of trials until the goal is reached; one more than there are if it is not."""
    return next((i + 1 for i, value in enumerate(best) if value >= goal - 1e-12), len(best) + 1)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--real", type=int, default=0)
    options = parser.parse_args()
    base = resolve_settings({"path": str(options.data / "seed-400"), "recipe": "head"}, {})
    parts = divide(read_split_samples(base)[0], base, options.folds)
    options.runs.mkdir(parents=True, exist_ok=True)
    scores = measure_grid(base, parts, options.runs / f"tune-grid-{options.folds}.json")
    means = {point: math.fsum(each) / len(each) for point, each in scores.items()}
    goal, n = max(means.values()), len(means)
    places = sorted(means, key=lambda point: -means[point])
    print(f"\nGrid: {n} points of {options.folds} folds; AUROC {min(means.values()):.4f} to {goal:.4f}, the best:")
    for point in places[:5]:
        print(f"  {means[point]:.4f}", *point)
    with studies.quiet():
        rows = compare(Table(scores, parts), base, means, options.seeds)
    print_table(
        ["search", "evaluations until the grid's best", "fold trainings", "best after a third", "and all"], rows
    )
    for seed in range(options.real):
        with tempfile.TemporaryDirectory() as folder:
            result = tune(
                options.data / "seed-400", Path(folder) / "tune", trials=n, folds=options.folds, space=SPACE,
                test=False, recipe="head", seed=seed,
            )  # fmt: skip
            found = result.search.trials
            best = np.maximum.accumulate([-1.0 if each.score is None else each.score for each in found]).tolist()
            trained = sum(len(each.folds) for each in found)
            print(
                f"tune, seed {seed}: {first(best, goal)} evaluations, {trained} folds, best {best[-1]:.4f}", flush=True
            )


def compare(table: Table, base: Settings, means: Mapping[Point, float], seeds: int) -> list[list[str]]:
    """A row for the grid in random order, and one for the search of `tune`."""
    goal, n, folds = max(means.values()), len(means), len(table.parts.samples)
    values = np.array(list(means.values()))
    orders = [np.random.default_rng(seed).permutation(n) for seed in range(seeds)]
    grid = [np.maximum.accumulate(values[order]).tolist() for order in orders]
    found = [search(table, base, seed, n) for seed in range(seeds)]
    rows = []
    for name, best, trained in (
        ("grid, random order", grid, [[folds * (i + 1) for i in range(n)]] * seeds),
        ("tune", [each for each, _ in found], [each for _, each in found]),
    ):
        needed = [first(each, goal) for each in best]
        cost = [each[min(count, n) - 1] for each, count in zip(trained, needed, strict=True)]
        missed = sum(count > n for count in needed)
        rows.append(
            [
                name,
                f"median {np.median(needed):.0f} (quartiles {np.quantile(needed, 0.25):.0f} to "
                f"{np.quantile(needed, 0.75):.0f}); not reached in {missed} of {seeds}",
                f"median {np.median(cost):.0f}",
                *(f"{np.mean([each[stop - 1] for each in best]):.4f}" for stop in (n // 3, n)),
            ]
        )
    return rows


if __name__ == "__main__":
    main()
