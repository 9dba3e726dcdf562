"""Put a finished run's bundle among those that ship: in half precision, with its attribution, decisions unchanged.

    python benchmarks/quality/ship.py RUN --data FILMS

Nothing ships that calls or decides a film otherwise than the run does, holds a path or a film's name, or is too big.
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

from pneumoscope.datasets.samples import Sample, read_samples
from pneumoscope.datasets.sources import Source, list_sources
from pneumoscope.errors import DataError, PneumoscopeError, UsageError
from pneumoscope.evaluation.model_card import escape
from pneumoscope.inference.predictor import load
from pneumoscope.models import shipped
from pneumoscope.models.backbones import rebuild_backbone
from pneumoscope.models.bundle import GRAPH, Bundle, find_bundle, load_bundle, load_weights, save_bundle
from pneumoscope.models.graphs import try_graph
from pneumoscope.outputs import claim_folder, write_bytes, write_text

MOST = 20_000_000  # bytes
FILES = ("bundle.json", "weights.safetensors", "README.md", GRAPH)
FIGURES = ("accuracy", "auroc", "sensitivity", "specificity")
DECISIONS = ("films", "foreign", "answered", "coverage")
LICENCE = "apache-2.0"


@dataclass(frozen=True)
class Shipment:
    """What was put where.

    Attributes:
        folder: of the bundle that ships.
        size: bytes.
        films: how many were predicted by both bundles.
        difference: the largest of any class's probability.
    """

    folder: Path
    size: int
    films: int
    difference: float


def ship(run: Path, data: Path, name: str = shipped.DEFAULT, overwrite: bool = False, note: str = "") -> Shipment:
    """Store a run's bundle in half precision in the zoo, and see that it decides as before.

    Args:
        run: a finished run.
        data: films to decide on, such as those of validation.
        name: which the bundle ships by.
        overwrite: whether an earlier bundle of that name may go.
        note: what its card is to say about the test.

    Raises:
        DataError: a call, a decision or a label set changes, or no film can be read.
        UsageError: its card names no public data set, it is too big, or it would tell where or on which files it was
            made.
    """
    bundle, card = load_bundle(run), (find_bundle(run) / "README.md").read_text(encoding="utf-8")
    source = next((each for each in list_sources() if f"**Source**: {escape(each.title)}" in card), None)
    if source is None:
        raise UsageError(f"{run}: its card names no public data set that it was trained on: nothing can be attributed.")
    samples = read_samples(data)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / name
        noted = replace(
            bundle,
            training={**bundle.training, "test": {**_read_figures(run), "note": note}},
            data={**bundle.data, "source": source.name},
        )
        state = load_weights(run, bundle)
        graph = try_graph(rebuild_backbone(bundle, state), bundle.input.size)
        saved = save_bundle(draft, noted, state, half=True, graph=graph)
        write_text(draft / "README.md", _complete_card(card, bundle, saved, source, name, note))
        _refuse_traces(draft, run, data)
        if (size := sum(path.stat().st_size for path in draft.iterdir())) >= MOST:
            raise UsageError(f"{run}: {size / 1e6:.1f} MB in half precision; {MOST / 1e6:g} MB may ship.")
        difference = _compare(run, draft, samples)
        folder = shipped.zoo() / name
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


def _complete_card(card: str, bundle: Bundle, saved: Bundle, source: Source, name: str, note: str) -> str:
    """The run's card with the stored weights' checksum, the model's licence, what CC BY asks for, and a note."""
    for pattern, text in (
        (re.escape(bundle.weights_sha256), saved.weights_sha256),
        (r"(?<=\*\*Licence of this model\*\*: ).*", f"{LICENCE}; the data's licence asks for the attribution below."),
        (r"\A---\n(license: .*\n)?", f"---\nlicense: {LICENCE}\n"),
    ):
        card, count = re.subn(pattern, text, card)
        if count != 1:
            raise UsageError(f"The run's card has {count} places like {pattern}, not one: it was changed.")
    card = re.sub(r"(?<=--model )BUNDLE|(?<=pneumoscope evaluate )BUNDLE", name, card).replace(
        "`BUNDLE` is the folder of this file. Nothing", "Nothing"
    )
    counts = " and ".join(
        f"{sum(bundle.data['counts'].get(split, {}).values()):,} to {use}"
        for split, use in (("train", "train"), ("val", "decide on"))
    )
    weights = "The weights of convolutions and of the last layer are stored in half precision."
    more = f"\n\n## About the test\n\n{escape(note)}" if note else ""
    return f"""{card.rstrip()}{more}

## Attribution

Trained on films ({counts}) from: {escape(source.citation)}

Those films are licensed under {escape(source.licence)} (<{source.licence_url}>), and to be had at
<{source.homepage}>. They were converted to greyscale, resized and changed at random in training;
none is contained here. Their authors have not endorsed this model.

This model ships with pneumoscope as `{name}`. {weights}
"""


def _refuse_traces(draft: Path, run: Path, data: Path) -> None:
    """Hold text and tensor names against the paths and film names that nobody else should see."""
    films = [sample.path for sample in read_samples(run / "samples.csv")]
    words = {str(each.absolute()) for each in (run, data, Path.home(), Path.cwd(), *films)} - {"/"}
    words |= {name for film in films for name in (film.name, film.stem) if len(name) >= 6}
    for file in ("bundle.json", "README.md"):
        text = (draft / file).read_text(encoding="utf-8")
        if found := [word for word in sorted(words) if word in text]:
            raise UsageError(f"{file}: holds {found[0]!r}, which nobody else should see. Take it out of the run's.")
    guard = [f"novelty.{name}" for name in ("mean", "directions", "variances", "rest")]
    strange = [
        name
        for name in load_weights(draft, load_bundle(draft))
        if not name.startswith(("backbone.", "head.")) and name not in guard
    ]
    if strange:
        raise UsageError(f"weights.safetensors: holds {strange[0]}, which is of no network and no guard.")


def _compare(run: Path, draft: Path, samples: Sequence[Sample]) -> float:
    """The largest difference of a probability between two bundles.

    Raises:
        DataError: they decide otherwise, or no film can be read.
    """
    before, after = (load(folder).predict(samples) for folder in (run, draft))
    changed = [
        one
        for one, other in zip(before, after, strict=True)
        if (one.call, one.decision, one.label_set) != (other.call, other.decision, other.label_set)
    ]
    if changed:
        raise DataError(
            f"{changed[0].path}: decided otherwise in half precision, as are {len(changed)} of {len(before)} films. "
            "Round the weights before the threshold and all else is fitted (classifier.round_to_half)."
        )
    first, second = (
        np.array([list(each.probabilities.values()) for each in part if each.probabilities is not None])
        for part in (before, after)
    )
    if not len(first):
        raise DataError(f"None of the {len(before)} films could be read.")
    return float(np.abs(first - second).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="labelled films, to decide on with both bundles")
    parser.add_argument("--name", default=shipped.DEFAULT)
    parser.add_argument("--note", default="", help="what its card is to say about the test")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    try:
        done = ship(options.run, options.data, options.name, options.overwrite, options.note)
    except PneumoscopeError as problem:
        parser.exit(problem.exit_code, f"error: {problem}\n")
    print(f"{done.folder}: {done.size / 1e6:.1f} MB")
    print(f"{done.films} films: no decision changes; the largest difference of a probability is {done.difference:.2g}")


if __name__ == "__main__":
    main()
