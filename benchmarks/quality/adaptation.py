"""What adapting a model to another source is worth: log loss, sensitivity, specificity, coverage, before and after.

Three shifts of real radiographs, and simulated ones:

- children to adults: the model as it comes, adapted to the adults that RSNA's radiologists read (sources rsna and nih,
  OPACITY against NORMAL);
- rsna to nih, and PA to AP: the same model, first adapted with another head to all images of the first kind, then to
  some of the second;
- simulated: scores of two normal distributions, that a model states right or with a wrong slope or intercept.

Each draw takes so many images at random, by patient, adapts with `pneumoscope.training.adaptation.fit`, which is what
`pneumoscope adapt` calls, and measures on the images of all patients that were not drawn. `worse` is the share of draws
after which the log loss is higher. The estimates without labels (`pneumoscope predict --estimate`) are of the same
images; their error is the mean distance from what the labels say.

    python benchmarks/quality/adaptation.py --data ../shared/data --draws 50 --plot docs/adaptation.png
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample, cluster_by_patient
from pneumoscope.decisions.calibration import normalise
from pneumoscope.decisions.decisions import OUT_OF_DISTRIBUTION, Decider
from pneumoscope.evaluation.expected import measure_expected
from pneumoscope.evaluation.metrics import measure
from pneumoscope.images.prepare import prepare
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.cache import FeatureCache, default_cache_path
from pneumoscope.inference.features import extract_features
from pneumoscope.inference.prediction import SHORT
from pneumoscope.inference.predictor import Predictor, compute_logits, load
from pneumoscope.training.adapt import describe_parent
from pneumoscope.training.adaptation import Local, Parent, Wishes, fit
from pneumoscope.training.adaptation_choice import Images, choose
from pneumoscope.training.adaptation_data import FEWEST

sys.path.insert(0, str(Path(__file__).parents[1]))
from ood_images import SPOILED, draw_images, hand, limb, page, photographs

SIZES = (20, 50, 100, 200, 500)
FOREIGN = 40  # images of each kind that are no chest radiographs
FEWEST_TEST = 60  # images left to measure on
ESTIMATED = ("accuracy", "sensitivity", "specificity", "auroc")
SHOWN = ("log_loss", "sensitivity", "specificity", "coverage +", "coverage -", "answered", "refused", "auroc")
SHIFTS = ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.0, 2.0), (2.0, 0.0), (0.5, 0.0))  # true slope and intercept
SEPARATION = 2.2  # of the two simulated classes, in standard deviations: AUROC 0.94


@dataclass(frozen=True)
class Shift:
    """A model, and images of another source."""

    name: str
    parent: Parent
    images: Local


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the datasets")
    parser.add_argument("--model", default="pneumonia-lite0", help="the model that is adapted")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--plot", type=Path, help="file of the adaptation curves")
    options = parser.parse_args()
    curves: dict[str, list[tuple[int, float, float, float]]] = {}
    shifts = load_shifts(options.data, options.model)
    for head in (False, True):
        print(f"\n## {'With another head (`--head`)' if head else 'Without another head'}\n")
        print_header()
        for shift in shifts:
            curve = [(n, *show(shift, n, options.draws, head)) for n in options.sizes]
            curves[f"{shift.name}{', head' if head else ''}"] = [each for each in curve if len(each) > 1]
    print("\n## Other images that the OOD detector refuses, adapted to adults\n")
    show_refused(shifts[0], load(options.model), options.data / "adults", options.sizes, options.draws)
    print("\n## Simulated\n\n| slope, intercept | images | log loss before | change | ± | best possible | unchanged |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for slope, intercept in SHIFTS:
        for n in options.sizes:
            simulate(slope, intercept, n, options.draws)
    if options.plot:
        draw_curves(curves, options.plot)


def load_shifts(data: Path, model: str | None) -> list[Shift]:
    """The shifts between real sources, with features from the cache."""
    with (data / "adults" / "films.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] in ("rsna", "nih")]
    rows = [row for row in rows if row["label"] in ("NORMAL", "OPACITY")]
    with FeatureCache(default_cache_path()) as cache:
        predictor = load(model, cache=cache)
        samples = [Sample(data / "adults" / row["path"], patient=row["patient"]) for row in rows]
        extracts = list(extract_features(samples, predictor.engine, predictor.model.input, cache=cache))
    seen = set(predictor.model.data.get("seen", ()))
    unseen = [i for i, each in enumerate(extracts) if each.sha256[:SHORT] not in seen]
    if len(unseen) < len(rows):
        print(
            f"{len(rows) - len(unseen)} of {len(rows)} images left out: the model learned from them.", file=sys.stderr
        )
    if len(unseen) < 2 * FEWEST_TEST:
        sys.exit("Too few images are left. Give a model that did not learn from them (--model).")
    rows, extracts = [rows[i] for i in unseen], [extracts[i] for i in unseen]
    everything = Local(
        np.array([row["label"] == "OPACITY" for row in rows], np.int64),
        np.array([each.features[0] for each in extracts if each.features is not None]),
        np.array([each.intermediate for each in extracts if each.intermediate is not None]),
        cluster_by_patient([row["patient"] for row in rows], len(rows)),
    )
    parent = describe_parent(predictor)
    shifts = [Shift("children to adults", parent, everything)]
    for name, column, first, second in (("rsna to nih", "source", "rsna", "nih"), ("PA to AP", "view", "PA", "AP")):
        kinds = np.array([row[column] for row in rows])
        known = kinds == first
        shared = np.isin(everything.clusters, everything.clusters[known])  # patients who are in both
        source = fit(parent, everything.take(known), Wishes(head=True))
        adapted = replace(parent, weight=source.weight, bias=source.bias, decisions=source.decisions)
        shifts.append(Shift(name, adapted, everything.take((kinds == second) & ~shared)))
    return shifts


def print_header() -> None:
    estimates = " | ".join(f"estimate: {name}" for name in ESTIMATED)
    print(f"| shift | images | model | {' | '.join(SHOWN)} | {estimates} | worse | changed |")
    print("| --- | ---: | --- |" + " ---: |" * (len(SHOWN) + len(ESTIMATED) + 1) + " --- |")


def show(shift: Shift, n: int, draws: int, head: bool) -> tuple[float, ...]:
    """Print two rows of the table; return mean log losses before and after, and the standard deviation after."""
    found = [each for seed in range(draws) if (each := draw(shift, n, head, seed)) is not None]
    if not found:
        print(f"| {shift.name} | {n} | too few images |")
        return ()
    before, after, steps = zip(*found, strict=True)
    losses = np.array([[each["log_loss"] for each in some] for some in (before, after)])
    worse = f"{(losses[1] > losses[0]).mean():.0%}"
    counts = ", ".join(f"{step} {count / len(steps):.0%}" for step, count in Counter(steps).most_common())
    for name, some, more in (("before", before, ("", "")), ("after", after, (worse, counts))):
        cells = []
        for metric in (*SHOWN, *(f"estimate {metric}" for metric in ESTIMATED)):
            values = [each[metric] for each in some]
            cells.append(
                f"{np.mean(values):.3f} ± {np.std(values):.3f}" if name == "after" else f"{np.mean(values):.3f}"
            )
        print(f"| {shift.name} | {n} | {name} | {' | '.join([*cells, *more])} |", flush=True)
    return float(losses[0].mean()), float(losses[1].mean()), float(losses[1].std())


def draw(shift: Shift, n: int, head: bool, seed: int) -> tuple[dict[str, float], dict[str, float], str] | None:
    """Adapt to n images and measure on the images of other patients; None where too few are left."""
    images, rng = shift.images, np.random.default_rng([seed, n])
    for _ in range(100):
        order = rng.permutation(int(images.clusters.max()) + 1)[images.clusters]
        places = np.argsort(order, kind="stable")[:n]
        others = ~np.isin(images.clusters, images.clusters[places])
        if len(places) < n or others.sum() < FEWEST_TEST:
            return None
        chosen = np.zeros(len(images.labels), bool)
        chosen[places] = True
        if np.bincount(images.labels[chosen], minlength=2).min() >= FEWEST:
            break
    else:
        return None
    adapted = fit(shift.parent, images.take(chosen), Wishes(head=head, seed=seed))
    other = replace(shift.parent, weight=adapted.weight, bias=adapted.bias, decisions=adapted.decisions)
    test = images.take(others)
    return evaluate(shift.parent, test), evaluate(other, test), adapted.choice.chosen.step


def evaluate(parent: Parent, images: Local) -> dict[str, float]:
    """Every number of the table; coverage + is that of the positive class, `refused` the share out of distribution."""
    outcome = Decider(parent.classes, parent.decisions, parent.detector).apply(
        compute_logits(images.features, parent.weight, parent.bias), images.intermediate
    )
    y, p = images.labels, outcome.probabilities[:, 1]
    own = outcome.probabilities[np.arange(len(y)), y]
    held = outcome.in_set[np.arange(len(y)), y]
    cuts = np.where(outcome.predicted == 1, 0.0, 2.0)
    measured = {name: float(value[0]) for name, value in measure(y, p, threshold=cuts).items()}
    expected = measure_expected(p, outcome.predicted == 1)
    decisions = np.array(outcome.decisions)
    return {
        **measured,
        "log_loss": float(-np.log(np.maximum(own, 1e-6)).mean()),
        "coverage +": float(held[y == 1].mean()),
        "coverage -": float(held[y == 0].mean()),
        "answered": float(np.isin(decisions, parent.classes).mean()),
        "refused": float((decisions == OUT_OF_DISTRIBUTION).mean()),
        **{f"estimate {name}": abs(float(expected[name][0]) - measured[name]) for name in ESTIMATED},
    }


def show_refused(shift: Shift, predictor: Predictor, adults: Path, sizes: Sequence[int], draws: int) -> None:
    """Print how many images that are no chest radiographs, or altered ones, the detector refuses before and after."""
    makers = {"hands": hand, "limbs": limb, "text pages": page}
    kinds = {name: draw_images(maker, FOREIGN, 0) for name, maker in makers.items()}
    kinds["photographs"] = photographs(FOREIGN, 0)
    with (adults / "films.csv").open(encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["source"] in ("rsna", "nih") and row["label"]]
    chests = [read_pixels(adults / path) for path in paths[:: len(paths) // FOREIGN][:FOREIGN]]
    kinds |= {name: SPOILED[name](chests, 0) for name in ("turned by 90°", "turned by 180°", "inverted")}
    distances = {}
    for name, pixels in kinds.items():
        inputs = np.stack([prepare(each, predictor.model.input) for each in pixels])
        found = [predictor.engine.run(inputs[i : i + 8]).intermediate for i in range(0, len(inputs), 8)]
        assert shift.parent.detector is not None
        distances[name] = shift.parent.detector.measure(np.concatenate(found))
    print(f"| images | limit | {' | '.join(kinds)} |\n| ---: | ---: |" + " ---: |" * len(kinds))
    for n in (0, *sizes):
        limits = []
        for seed in range(draws if n else 1):
            chosen = np.random.default_rng([seed, n]).permutation(len(shift.images.labels))[:n]
            parent = shift.parent
            mask = np.isin(np.arange(len(shift.images.labels)), chosen)
            decisions = fit(parent, shift.images.take(mask), Wishes()).decisions if n else parent.decisions
            assert decisions.ood is not None
            limits.append(decisions.ood.limit)
        shares = [np.mean([(found > limit).mean() for limit in limits]) for found in distances.values()]
        print(
            f"| {n or 'before'} | {np.mean(limits):.3f} | {' | '.join(f'{share:.0%}' for share in shares)} |",
            flush=True,
        )


def simulate(slope: float, intercept: float, n: int, draws: int) -> None:
    """Print what adapting changes where the truth is `slope` times a model's log odds plus `intercept`."""
    rows, unchanged = [], 0
    for seed in range(draws):
        rng = np.random.default_rng([seed, n])
        (labels, truth), (test_labels, test_truth) = (draw_scores(rng, size) for size in (n, 4000))
        stated = [to_log_probabilities((each - intercept) / slope) for each in (truth, test_truth)]
        nothing = np.zeros((n, 0))
        images = Images(labels, stated[0], nothing, np.ones(n), np.arange(n))
        change = choose(images, seed=seed).change
        unchanged += change is None
        after = stated[1] if change is None else change.apply(stated[1], np.zeros((4000, 0)))
        losses = (stated[1], after, to_log_probabilities(test_truth))
        rows.append([-each[np.arange(4000), test_labels].mean() for each in losses])
    before, after, best = np.mean(rows, axis=0)
    error = np.std([row[1] - row[0] for row in rows]) / np.sqrt(draws)
    print(
        f"| {slope:g}, {intercept:g} | {n} | {before:.4f} | {after - before:+.4f} | {error:.4f} | {best - before:+.4f} "
        f"| {unchanged / draws:.0%} |",
        flush=True,
    )


def draw_scores(rng: np.random.Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels, half of them positive and both there, and true log odds of n images."""
    while True:
        labels = rng.integers(2, size=n)
        if 0 < labels.sum() < n:
            return labels, SEPARATION * rng.normal((2 * labels - 1) * SEPARATION / 2, 1)


def to_log_probabilities(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) log odds to (N, 2) log probabilities."""
    return normalise(np.stack([np.zeros_like(log_odds), log_odds], axis=1))


def draw_curves(curves: dict[str, list[tuple[int, float, float, float]]], path: Path) -> None:
    """Draw log loss against the number of images, with one standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in curves if not name.endswith("head")]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for kind, colour in ((name, "C0"), (f"{name}, head", "C1")):
            if curves.get(kind):
                n, before, after, spread = np.array(curves[kind]).T
                label = "with another head" if kind != name else "without"
                axis.plot(n, after, "o-", color=colour, label=label)
                axis.fill_between(n, after - spread, after + spread, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(before.mean(), color="0.4", linestyle="--", label="left alone")
        axis.set(title=name, xlabel="labelled images", xscale="log")
        axis.set_xticks(n, [f"{each:.0f}" for each in n], minor=False)
        axis.minorticks_off()
    axes[0][0].set_ylabel("log loss on other patients")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
