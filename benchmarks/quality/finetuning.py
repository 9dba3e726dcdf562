"""What fine-tuning changes on images of other patients of the same source, and what the OOD detector then refuses.

The model is adapted to some adults (sources rsna and nih) with and without fine-tuning and measured on others. The
fine-tuned network is measured even if it is not chosen.

    python benchmarks/quality/finetuning.py --model pneumonia-lite0 --data ../shared/data --images 160 --rates 1e-4 2e-4
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.samples import Sample
from pneumoscope.images.prepare import InputSpec, prepare
from pneumoscope.images.read import read_pixels
from pneumoscope.inference.engines import Engine
from pneumoscope.inference.features import extract_features
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.pretrained import DEFAULT
from pneumoscope.training import adaptation_choice, finetuning
from pneumoscope.training.adapt import describe_parent
from pneumoscope.training.adaptation import Local, Parent, Wishes, fit
from pneumoscope.training.adaptation_data import Data, extract

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from adaptation import SHOWN, evaluate

from ood_images import SPOILED, draw_images, hand, limb, page, photographs

OOD = 40  # images of each kind that are no chest radiographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the datasets")
    parser.add_argument("--model", default=None, help="the model that is adapted; by default the pretrained one")
    parser.add_argument("--images", type=int, default=160, help="images to adapt to")
    parser.add_argument("--test", type=int, default=300, help="images of other patients, at most")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4], help="learning rates to try")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    predictor = load(options.model)
    samples = draw_samples(options.data / "adults", predictor, options.images, options.test, options.seed)
    data, test, _ = extract(predictor, samples, lambda *_: None)
    assert test is not None
    parent = describe_parent(predictor)
    print(f"| rate | way | chosen | minutes | {' | '.join(SHOWN)} |\n| --- |" + " --- |" * (3 + len(SHOWN)))
    show("", "left alone", "", 0, evaluate(parent, test.local))
    for head in (False, True):
        adapted = fit(parent, data.local, Wishes(head=head, seed=options.seed))
        other = replace(parent, weight=adapted.weight, bias=adapted.bias, decisions=adapted.decisions)
        way = "with another head" if head else "without"
        show("", way, adapted.choice.chosen.step, 0, evaluate(other, test.local))
    ood = draw_ood(test, predictor)
    for rate in options.rates:
        compare(rate, str(options.model or DEFAULT), predictor, parent, (data, test), ood, options.seed)


def draw_samples(adults: Path, predictor: Predictor, images: int, test: int, seed: int) -> list[Sample]:
    """Some adults to adapt to, and others as a test split."""
    with (adults / "films.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] in ("rsna", "nih")]
    rows = [row for row in rows if row["label"] in ("NORMAL", "OPACITY")]
    patients = sorted({row["patient"] for row in rows})
    place = dict(zip(np.random.default_rng(seed).permutation(patients).tolist(), range(len(patients)), strict=True))
    rows.sort(key=lambda row: place[row["patient"]])
    names = dict(zip(("NORMAL", "OPACITY"), predictor.model.labels, strict=True))
    chosen = {row["patient"] for row in rows[:images]}
    return [
        Sample(adults / row["path"], names[row["label"]], row["patient"], "test" if i >= images else "train")
        for i, row in enumerate(rows[: images + test])
        if i < images or row["patient"] not in chosen
    ]


def draw_ood(test: Data, predictor: Predictor) -> dict[str, NDArray[np.float32]]:
    """Prepared images that are no chest radiographs, and altered ones."""
    kinds = {name: draw_images(maker, OOD, 0) for name, maker in {"hand": hand, "limb": limb, "page": page}.items()}
    kinds["photograph"] = photographs(OOD, 0)
    chests = [read_pixels(each.path) for each in test.samples[:OOD]]
    kinds |= {name: SPOILED[name](chests, 0) for name in ("turned by 90°", "turned by 180°", "inverted")}
    return {name: np.stack([prepare(each, predictor.model.input) for each in some]) for name, some in kinds.items()}


def compare(
    rate: float, name: str, predictor: Predictor, parent: Parent, split: tuple[Data, Data],
    ood: dict[str, NDArray[np.float32]], seed: int,
) -> None:  # fmt: skip
    """Fine-tune at a rate, and print what that does to probabilities and to the detector."""
    data, test = split
    finetuning.SETTINGS |= {"lr": rate, "backbone_lr": rate}
    wishes, start = Wishes(finetune=True, seed=seed), time.monotonic()
    setup = finetuning.load_setup(wishes, "-", name, "cpu")
    assert setup is not None
    crossed = finetuning.cross_train(setup, parent, data, wishes, lambda *_: None)
    local = replace(data.local, tuned=crossed.tuned)
    for each in fit(parent, local, wishes).choice.candidates:
        print(f"{each.step} x{each.width:g}: {each.log_loss:.3f}, {each.gain:+.3f} ± {each.standard_error:.3f}")
    everything = np.ones(len(data.samples), bool)
    network = finetuning.finetune_network(setup, parent, data, wishes, everything, "", lambda *_: None)
    minutes, own = (time.monotonic() - start) / 60, network.readout
    weak, adaptation_choice.WEAK = adaptation_choice.WEAK, -1e9
    adapted = fit(parent, local, wishes)
    adaptation_choice.WEAK = weak
    other = replace(parent, weight=own.weight, bias=own.bias, decisions=adapted.decisions, detector=own.detector)
    show(f"{rate:g}", "fine-tuned", "", minutes, evaluate(other, recompute(test, network.engine, setup.input)))
    before = fit(parent, data.local, Wishes()).decisions.ood
    for title, detector, state, engine in (
        ("before", parent.detector, before, predictor.engine),
        ("after", own.detector, adapted.decisions.ood, network.engine),
    ):
        assert detector is not None
        assert state is not None
        shares = {kind: (detector.measure(each) > state.limit).mean() for kind, each in run(ood, engine).items()}
        found = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        print(f"refused {title} (limit {state.limit:.3f}): {found}", flush=True)


def recompute(data: Data, engine: Engine, spec: InputSpec) -> Local:
    """The same images with the features of another network."""
    found = list(extract_features(data.samples, engine, spec))
    features = np.array([each.features[0] for each in found if each.features is not None])
    intermediate = np.array([each.intermediate for each in found if each.intermediate is not None])
    return replace(data.local, features=features, intermediate=intermediate)


def run(kinds: dict[str, NDArray[np.float32]], engine: Engine) -> dict[str, NDArray[np.float32]]:
    """Intermediate features of each kind."""
    return {
        name: np.concatenate([engine.run(some[i : i + 8]).intermediate for i in range(0, len(some), 8)])
        for name, some in kinds.items()
    }


def show(rate: str, way: str, step: str, minutes: float, found: dict[str, float]) -> None:
    cells = " | ".join(f"{found[name]:.3f}" for name in SHOWN)
    print(f"| {rate} | {way} | {step} | {minutes:.1f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
