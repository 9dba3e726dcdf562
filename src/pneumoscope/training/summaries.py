"""What the model folder and the report say about a training."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.auditing.intake import Images
from pneumoscope.datasets.samples import count_samples, describe_counts, fingerprint_samples
from pneumoscope.datasets.sources import recognise_sources
from pneumoscope.decisions.decisions import to_json
from pneumoscope.inference.prediction import SHORT
from pneumoscope.models.lineage import describe_lineage
from pneumoscope.models.model_folder import Model
from pneumoscope.training.data import Setup
from pneumoscope.training.decisions import FittedDecisions
from pneumoscope.training.phases import Trained
from pneumoscope.training.settings import Settings, flatten


def describe_model(setup: Setup, images: Images, trained: Trained, decisions: FittedDecisions) -> Model:
    """What `model.json` will say."""
    return Model(
        backbone=setup.spec.name,
        architecture=setup.spec.architecture,
        arguments=dict(setup.spec.arguments),
        labels=setup.classes,
        positive=setup.settings.data.positive,
        input=setup.input,
        decisions=to_json(decisions.decisions),
        training=_summarise_training(setup, trained),
        data=summarise_data(setup, images),
        version=__version__,
        lineage=() if setup.initial is None else setup.initial.lineage,
        about=setup.settings.about,
    )


def _summarise_training(setup: Setup, trained: Trained) -> dict[str, Any]:
    """What the model folder stores about training."""
    return {
        "recipe": setup.settings.run.recipe,
        "epochs": len(trained.history),
        "phases": dict(Counter(row["phase"] for row in trained.history)),
        "best_epoch": trained.history.index(trained.best) + 1,
        "best": trained.best,
        "settings": select_settings(setup.settings),
    }


def select_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a model folder stores: all but those that name files or the machine."""
    private = ("path", "weights", "init", "device", "intended_use", "groups")
    named = flatten({name: group for name, group in asdict(settings).items() if name != "about"})
    return {name: value for name, value in named.items() if name not in private}


def summarise_data(setup: Setup, images: Images) -> dict[str, Any]:
    """What the model folder stores about its data: fingerprint, counts, and digests of images that it learned from."""
    initial_seen = setup.initial.seen if setup.initial is not None else frozenset()
    learned = [sample for sample in setup.samples if sample.split != "test"]
    pairs = [(sample, digest) for sample, digest in zip(images.samples, images.digests, strict=True)]
    return {
        "fingerprint": fingerprint_samples(images.samples, images.digests),
        "counts": count_samples([sample for sample, digest in pairs if digest]),
        "sources": [source.name for source in recognise_sources(learned)],
        "seen": sorted({digest[:SHORT] for sample, digest in pairs if sample.split != "test"} | initial_seen),
    }


def list_facts(setup: Setup, model: Model, folder: Path) -> dict[str, str]:
    """List what a reader needs to understand and repeat the run."""
    settings, training = setup.settings, model.training
    trained = "all layers trained" if training["best"]["phase"] == "finetune" else "frozen, with its batch norms"
    return {
        "Data": settings.data.path,
        "Splits": describe_counts(setup.samples),
        "Data fingerprint": model.data["fingerprint"],
        "Backbone": f"{model.backbone} (weights: {setup.spec.licence}), {trained}",
        **({"Lineage": describe_lineage(model.lineage)} if model.lineage else {}),
        "Input": f"{model.input.size} x {model.input.size}, {model.input.fit}",
        "Recipe": f"{settings.run.recipe}; kept epoch {training['best_epoch']} of {training['epochs']}",
        "Class balance": settings.optimisation.balance,
        "Seed": str(settings.run.seed),
        "Command": shlex.join(["pneumoscope", "train", "--config", str(folder / "config.yaml"), "--out", "NEW_RUN"]),
    }
