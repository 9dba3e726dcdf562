"""What arithmetic of 16 bits (bf16) would change: probabilities and decisions of real images against 32 bits.

    python benchmarks/short_arithmetic.py [--models pneumonia-lite0,runs/first/model] [--step 3]

Also how many images would have to be computed again in 32 bits, were all computed in 16 first, so that nothing shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pneumoscope.datasets.samples import Sample, read_samples
from pneumoscope.inference.engines import Engine, OpenVinoEngine
from pneumoscope.inference.features import extract_features
from pneumoscope.inference.predictor import Prediction, Predictor, load
from pneumoscope.models.model_folder import GRAPH, find_model


class ShortEngine(OpenVinoEngine):
    """The same engine in 16 bits, where the processor has them."""

    _precision = "bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="pneumonia-lite0")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--step", type=int, default=3, help="of kermany-train-224 every so manyth image")
    options = parser.parse_args()
    samples = read_samples(options.shared / "seed-400")
    samples += read_samples(options.shared / "kermany-train-224")[:: options.step]
    print(
        "| model | images | probability, at most | more than 0.01 | logit, at most | decisions | again |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in options.models.split(","):
        predictor = load(name, "cpu", engine="openvino")
        exact = judge(predictor, predictor.engine, samples)
        short = judge(predictor, ShortEngine(find_model(Path(name)) / GRAPH, "bf16"), samples)
        pairs = list(zip(exact, short, strict=True))
        stated = np.array([[one.raw_probability or 0.0, other.raw_probability or 0.0] for one, other in pairs])
        logits = np.array([[one.logits[0], other.logits[0]] for one, other in pairs])
        far, moved = np.abs(np.diff(stated))[:, 0], np.abs(np.diff(logits))[:, 0]
        changed = sum(one.decision != other.decision for one, other in pairs)
        near = [
            0.02 < one.raw_probability < 0.98 or abs((one.ood_score or 0) - 1) < 0.05
            for one in short
            if one.raw_probability
        ]
        print(
            f"| {name} | {len(exact):,} | {far.max():.3f} | {(far > 0.01).sum()} | {moved.max():.2f} | {changed} | "
            f"{np.mean(near):.0%} |",
            flush=True,
        )


def judge(predictor: Predictor, engine: Engine, samples: list[Sample]) -> list[Prediction]:
    extracts = extract_features(samples, engine, predictor.model.input)
    return [predictor.judge(one.features[:1], one.stages) for one in extracts if one.features is not None]


if __name__ == "__main__":
    main()
