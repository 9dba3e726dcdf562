"""Put a finished run's model among those that ship: in half precision, with its attribution, decisions unchanged.

    python benchmarks/quality/convert_pretrained.py RUN --data IMAGES

Nothing ships that calls or decides an image otherwise than the run does, holds a path or an image's name, or is too big.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pneumoscope.datasets.kermany import Source, list_sources
from pneumoscope.datasets.samples import Sample, read_samples
from pneumoscope.errors import DataError, PneumoscopeError, UsageError
from pneumoscope.files import claim_folder, write_bytes, write_text
from pneumoscope.inference.predictor import load
from pneumoscope.models import pretrained
from pneumoscope.models.backbones import rebuild_backbone
from pneumoscope.models.model_folder import GRAPH, Model, find_model, load_model, load_weights, save_model
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.reports.pages import escape_markdown

MOST = 20_000_000  # bytes
FILES = ("model.json", "weights.safetensors", "README.md", GRAPH)
FIGURES = ("accuracy", "auroc", "sensitivity", "specificity")
DECISIONS = ("images", "out_of_distribution", "answered", "coverage")
LICENCE = "apache-2.0"


@dataclass(frozen=True)
class Shipment:
    """What was put where.

    Attributes:
        folder: of the model that ships.
        size: bytes.
        images: how many were predicted by both models.
        difference: the largest of any class's probability.
    """

    folder: Path
    size: int
    images: int
    difference: float


def ship(run: Path, data: Path, name: str = pretrained.DEFAULT, overwrite: bool = False, note: str = "") -> Shipment:
    """Store a run's model in half precision in the pretrained_models, and see that it decides as before.

    Args:
        run: a finished run.
        data: images to decide on, such as those of validation.
        name: which the model ships by.
        overwrite: whether an earlier model of that name may go.
        note: what its card is to say about the test.

    Raises:
        DataError: a call, a decision or a prediction set changes, or no image can be read.
        UsageError: its card names no public data set, it is too big, or it would tell where or on which files it was
            made.
    """
    model, card = load_model(run), (find_model(run) / "README.md").read_text(encoding="utf-8")
    source = next((each for each in list_sources() if f"**Source**: {escape_markdown(each.title)}" in card), None)
    if source is None:
        raise UsageError(f"{run}: its card names no public data set that it was trained on: nothing can be attributed.")
    samples = read_samples(data)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / name
        noted = replace(
            model,
            training={**model.training, "test": {**_read_figures(run), "note": note}},
            data={**model.data, "source": source.name},
        )
        state = load_weights(run, model)
        graph = try_graph(rebuild_backbone(model, state), model.input.size)
        saved = save_model(draft, noted, state, half=True, graph=graph)
        write_text(draft / "README.md", _complete_card(card, model, saved, source, name, note))
        _refuse_traces(draft, run, data)
        if (size := sum(path.stat().st_size for path in draft.iterdir())) >= MOST:
            raise UsageError(f"{run}: {size / 1e6:.1f} MB in half precision; {MOST / 1e6:g} MB may ship.")
        difference = _compare(run, draft, samples)
        folder = pretrained.pretrained_folder() / name
        claim_folder(folder, FILES, overwrite)
        for path in sorted(draft.iterdir()):
            write_bytes(folder / path.name, path.read_bytes())
    return Shipment(folder, size, len(samples), difference)


def _read_figures(run: Path) -> dict[str, object]:
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {
        "split": found["split"],
        "n": found["n"],
        "decisions": {key: found["decisions"][key] for key in DECISIONS if key in found["decisions"]},
        "metrics": {name: {key: found["metrics"][name][key] for key in ("value", "low", "high")} for name in FIGURES},
    }


def _complete_card(card: str, model: Model, saved: Model, source: Source, name: str, note: str) -> str:
    """The run's card with the stored weights' checksum, the model's licence, what CC BY asks for, and a note."""
    for pattern, text in (
        (re.escape(model.weights_sha256), saved.weights_sha256),
        (r"(?<=\*\*Licence of this model\*\*: ).*", f"{LICENCE}; the data's licence asks for the attribution below."),
        (r"\A---\n(license: .*\n)?", f"---\nlicense: {LICENCE}\n"),
    ):
        card, count = re.subn(pattern, text, card)
        if count != 1:
            raise UsageError(f"The run's card has {count} places like {pattern}, not one: it was changed.")
    card = re.sub(r"(?<=--model )MODEL", name, card).replace(
        "`MODEL` is the folder of this file. Nothing", "Nothing"
    )
    counts = " and ".join(
        f"{sum(model.data['counts'].get(split, {}).values()):,} to {use}"
        for split, use in (("train", "train"), ("val", "decide on"))
    )
    weights = "The weights of convolutions and of the last layer are stored in half precision."
    more = f"\n\n## About the test\n\n{escape_markdown(note)}" if note else ""
    return f"""{card.rstrip()}{more}

## Attribution

Trained on images ({counts}) from: {escape_markdown(source.citation)}

Those images are licensed under {escape_markdown(source.licence)} (<{source.licence_url}>), and to be had at
<{source.homepage}>. They were converted to greyscale, resized and changed at random in training;
none is contained here. Their authors have not endorsed this model.

This model ships with pneumoscope as `{name}`. {weights}
"""


def _refuse_traces(draft: Path, run: Path, data: Path) -> None:
    """Hold text and tensor names against the paths and image names that nobody else should see."""
    images = [sample.path for sample in read_samples(run / "samples.csv")]
    words = {str(each.absolute()) for each in (run, data, Path.home(), Path.cwd(), *images)} - {"/"}
    words |= {name for image in images for name in (image.name, image.stem) if len(name) >= 6}
    for file in ("model.json", "README.md"):
        text = (draft / file).read_text(encoding="utf-8")
        if found := [word for word in sorted(words) if word in text]:
            raise UsageError(f"{file}: holds {found[0]!r}, which nobody else should see. Take it out of the run's.")
    detector = [f"ood.{name}" for name in ("mean", "directions", "variances", "rest")]
    strange = [
        name
        for name in load_weights(draft, load_model(draft))
        if not name.startswith(("backbone.", "head.")) and name not in detector
    ]
    if strange:
        raise UsageError(f"weights.safetensors: holds {strange[0]}, which is of no network and no detector.")


def _compare(run: Path, draft: Path, samples: Sequence[Sample]) -> float:
    """The largest difference of a probability between two models.

    Raises:
        DataError: they decide otherwise, or no image can be read.
    """
    before, after = (load(folder).predict(samples) for folder in (run, draft))
    changed = [
        one
        for one, other in zip(before, after, strict=True)
        if (one.predicted_label, one.decision, one.prediction_set)
        != (other.predicted_label, other.decision, other.prediction_set)
    ]
    if changed:
        raise DataError(
            f"{changed[0].path}: decided otherwise in half precision, as are {len(changed)} of {len(before)} images. "
            "Round the weights before the threshold and all else is fitted (classifier.round_to_half)."
        )
    first, second = (
        np.array([list(each.probabilities.values()) for each in part if each.probabilities is not None])
        for part in (before, after)
    )
    if not len(first):
        raise DataError(f"None of the {len(before)} images could be read.")
    return float(np.abs(first - second).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled images, to decide on with both models")
    parser.add_argument("--name", default=pretrained.DEFAULT)
    parser.add_argument("--note", default="", help="what its card is to say about the test")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    try:
        done = ship(options.run, options.data, options.name, options.overwrite, options.note)
    except PneumoscopeError as problem:
        parser.exit(problem.exit_code, f"error: {problem}\n")
    print(f"{done.folder}: {done.size / 1e6:.1f} MB")
    print(
        f"{done.images} images: no decision changes; the largest difference of a probability is {done.difference:.2g}"
    )


if __name__ == "__main__":
    main()
