"""What 16-bit arithmetic (bf16) would change: probabilities and decisions of real images against 32 bits.

    python benchmarks/short_arithmetic.py [--models pneumonia-lite0,runs/first/model] [--step 3]

The last column says how many images would have to be computed again in 32 bits to hide the difference: those near a
threshold of the decision.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.inference.engines import Engine, OpenVinoEngine
from pneumoscope.inference.features import extract_features
from pneumoscope.inference.prediction import Prediction
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.model_folder import GRAPH, find_model


class ShortEngine(OpenVinoEngine):
    """The same engine in 16 bits, where the processor has them."""

    _precision = "bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="pneumonia-lite0")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="where the real images are")
    parser.add_argument("--step", type=int, default=3, help="take every n-th image of kermany-train-224")
    options = parser.parse_args()
    samples = read_samples(options.shared / "seed-400")
    samples += read_samples(options.shared / "kermany-train-224")[:: options.step]
    print(
        "| model | images | probability, at most | more than 0.01 | logit, at most | decisions | again |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in options.models.split(","):
        predictor = load(name, "cpu", engine="openvino")
        exact = predict(predictor, predictor.engine, samples)
        short = predict(
            predictor, ShortEngine(find_model(Path(name)) / GRAPH, "bf16", predictor.model.input.size), samples
        )
        pairs = list(zip(exact, short, strict=True))
        probabilities = np.array([[one.raw_probability or 0, other.raw_probability or 0] for one, other in pairs])
        logits = np.array([[one.logits[0], other.logits[0]] for one, other in pairs])
        difference = np.abs(np.diff(probabilities))[:, 0]
        changed = sum(one.decision != other.decision for one, other in pairs)
        near = (probabilities[:, 1] > 0.02) & (probabilities[:, 1] < 0.98)
        near |= np.array([abs((each.ood_score or 0) - 1) < 0.05 for each in short])
        print(
            f"| {name} | {len(exact):,} | {difference.max():.3f} | {(difference > 0.01).sum()} "
            f"| {np.abs(np.diff(logits)).max():.2f} | {changed} | {near.mean():.0%} |",
            flush=True,
        )


def predict(predictor: Predictor, engine: Engine, samples: list[Sample]) -> list[Prediction]:
    extracts = extract_features(samples, engine, predictor.model.input)
    return [predictor.decide(each) for each in extracts if each.error is None]


if __name__ == "__main__":
    main()
