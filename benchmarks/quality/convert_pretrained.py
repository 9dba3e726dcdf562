"""Store the model of a finished run as a pretrained model: half precision, attribution, unchanged decisions.

    python benchmarks/quality/convert_pretrained.py RUN --data IMAGES

The model is refused if it decides any image differently from the run, names a path or an image, or is too large.
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

from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.sources import Source, find_sources
from pneumoscope.errors import DataError, PneumoscopeError, UsageError
from pneumoscope.files import claim_folder, write_bytes, write_text
from pneumoscope.inference.predictor import load
from pneumoscope.models import pretrained
from pneumoscope.models.backbones import rebuild_backbone
from pneumoscope.models.lineage import name_earlier_sources
from pneumoscope.models.model_folder import GRAPH, Model, find_model, load_model, load_weights, save_model
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.reports.pages import escape_markdown

MAX_BYTES = 20_000_000
FILES = ("model.json", "weights.safetensors", "README.md", GRAPH)
METRICS = ("accuracy", "auroc", "sensitivity", "specificity")
DECISIONS = ("images", "out_of_distribution", "answered", "coverage")
LICENCE = "apache-2.0"


@dataclass(frozen=True)
class Converted:
    """A run's model as a pretrained model.

    Attributes:
        folder: of the pretrained model.
        size: bytes.
        images: how many were predicted with both models.
        difference: the largest difference of any probability.
    """

    folder: Path
    size: int
    images: int
    difference: float


def convert(
    run: Path, data: Path, name: str = pretrained.DEFAULT, overwrite: bool = False, note: str = ""
) -> Converted:
    """Check a run's model and store it as a pretrained model.

    Args:
        run: a finished run.
        data: images to compare decisions on, such as those of validation.
        name: of the pretrained model.
        overwrite: whether to replace an earlier model of that name.
        note: for its card, about the test.

    Raises:
        DataError: a predicted label, decision or prediction set changes, or no image can be read.
        UsageError: its card names no public dataset, it is too large, or it reveals paths or image names.
    """
    model, card = load_model(run), (find_model(run) / "README.md").read_text(encoding="utf-8")
    named = [*model.data.get("sources", ()), *name_earlier_sources(model.lineage)]
    sources = find_sources(named)
    if not model.data.get("sources") or set(named) != {each.name for each in sources}:
        raise UsageError(f"{run}: the model does not name all its public datasets, so they cannot be attributed.")
    samples = read_samples(data)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / name
        noted = replace(
            model,
            training={**model.training, "test": {**_read_metrics(run), "note": note}},
        )
        state = load_weights(run, model)
        graph = try_graph(rebuild_backbone(model, state), model.input.size)
        saved = save_model(draft, noted, state, half=True, graph=graph)
        write_text(draft / "README.md", _complete_card(card, model, saved, sources, name, note))
        _refuse_traces(draft, run, data)
        if (size := sum(path.stat().st_size for path in draft.iterdir())) >= MAX_BYTES:
            raise UsageError(f"{run}: {size / 1e6:.1f} MB in half precision; the limit is {MAX_BYTES / 1e6:g} MB.")
        difference = _compare(run, draft, samples)
        folder = pretrained.pretrained_folder() / name
        claim_folder(folder, FILES, overwrite)
        for path in sorted(draft.iterdir()):
            write_bytes(folder / path.name, path.read_bytes())
    return Converted(folder, size, len(samples), difference)


def _read_metrics(run: Path) -> dict[str, object]:
    saved = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {
        "split": saved["split"],
        "n": saved["n"],
        "decisions": {key: saved["decisions"][key] for key in DECISIONS if key in saved["decisions"]},
        "metrics": {name: {key: saved["metrics"][name][key] for key in ("value", "low", "high")} for name in METRICS},
    }


def _complete_card(card: str, model: Model, saved: Model, sources: Sequence[Source], name: str, note: str) -> str:
    """The run's card with the checksum of the stored weights, the model's licence, the attribution and a note."""
    for pattern, text in (
        (re.escape(model.weights_sha256), saved.weights_sha256),
        (r"(?<=\*\*Licence of this model\*\*: ).*", f"{LICENCE}; the data's licence asks for the attribution below."),
        (r"\A---\n(license: .*\n)?", f"---\nlicense: {LICENCE}\n"),
    ):
        card, count = re.subn(pattern, text, card)
        if count != 1:
            raise UsageError(f"The run's card matches {pattern} {count} times, not once. Write the card again.")
    card = re.sub(r"(?<=--model )MODEL", name, card).replace("`MODEL` is the folder of this file. Nothing", "Nothing")
    counts = " and ".join(
        f"{sum(model.data['counts'].get(split, {}).values()):,} to {use}"
        for split, use in (("train", "train"), ("val", "decide on"))
    )
    more = f"\n\n## About the test\n\n{escape_markdown(note)}" if note else ""
    attributed = "\n".join(
        f"- {escape_markdown(each.title)}. Available at <{each.homepage}>, licensed as follows: "
        f"{escape_markdown(each.licence)} (<{each.licence_url}>). {escape_markdown(each.citation)}"
        for each in sources
    )
    return f"""{card.rstrip()}{more}

## Attribution

Trained on images ({counts}) from:

{attributed}

The images were converted to greyscale, resized and augmented for training; none is contained here. Their authors have
not endorsed this model.

This model comes with pneumoscope as `{name}`. The weights of convolutions and of the last layer are stored in half
precision.
"""


def _refuse_traces(draft: Path, run: Path, data: Path) -> None:
    """Check that no text holds a path or an image's name, and that every tensor is of the network or the detector."""
    images = [sample.path for sample in read_samples(run / "samples.csv")]
    words = {str(each.absolute()) for each in (run, data, Path.home(), Path.cwd(), *images)} - {"/"}
    words |= {name for image in images for name in (image.name, image.stem) if len(name) >= 6}
    for file in ("model.json", "README.md"):
        text = (draft / file).read_text(encoding="utf-8")
        if private := [word for word in sorted(words) if word in text]:
            raise UsageError(f"{file}: holds {private[0]!r}, which is private. Remove it from the run's {file}.")
    detector = [f"ood.{name}" for name in ("mean", "directions", "variances", "rest")]
    unknown = [
        name
        for name in load_weights(draft, load_model(draft))
        if not name.startswith(("backbone.", "head.")) and name not in detector
    ]
    if unknown:
        raise UsageError(f"weights.safetensors: holds {unknown[0]}, which belongs to no network and no detector.")


def _compare(run: Path, draft: Path, samples: Sequence[Sample]) -> float:
    """The largest difference of a probability between two models.

    Raises:
        DataError: they decide differently, or no image can be read.
    """
    before, after = (load(folder).predict(samples) for folder in (run, draft))
    changed = [
        old.path
        for old, new in zip(before, after, strict=True)
        if (old.predicted_label, old.decision, old.prediction_set)
        != (new.predicted_label, new.decision, new.prediction_set)
    ]
    if changed:
        raise DataError(
            f"{changed[0]}: decided differently in half precision, as are {len(changed)} of {len(before)} images. "
            "Train with half_precision, so that decisions are fitted with the rounded weights."
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
    parser.add_argument("--data", type=Path, required=True, help="labelled images to compare decisions on")
    parser.add_argument("--name", default=pretrained.DEFAULT)
    parser.add_argument("--note", default="", help="for the card, about the test")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    try:
        converted = convert(options.run, options.data, options.name, options.overwrite, options.note)
    except PneumoscopeError as problem:
        parser.exit(problem.exit_code, f"error: {problem}\n")
    print(f"{converted.folder}: {converted.size / 1e6:.1f} MB")
    print(f"{converted.images} images: no decision changed; probabilities differ by at most {converted.difference:.2g}")


if __name__ == "__main__":
    main()
