"""`pneumoscope.adapt`: a model for the images of another hospital, made of a trained one and a few labelled images."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pneumoscope import __version__
from pneumoscope.config import Count, Progress, Seed, checked, write_mapping
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample, fingerprint_samples
from pneumoscope.datasets.sources import find_sources, recognise_sources
from pneumoscope.decisions import scope
from pneumoscope.decisions.decisions import Decider, to_json
from pneumoscope.evaluation.before_after import Evidence, compare_predictions
from pneumoscope.evaluation.evaluate import Plan, measure, measure_predictions
from pneumoscope.evaluation.results import Evaluation, without_nan
from pneumoscope.files import claim_folder, lock_folder, write_text
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache, open_cache
from pneumoscope.inference.engines import Engine, Kind
from pneumoscope.inference.prediction import SHORT, Prediction
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.lineage import LocalImages, Step, describe_lineage
from pneumoscope.models.model_folder import Model, name_model, save_changed, save_model, to_parent
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.models.pretrained import DEFAULT
from pneumoscope.models.references import hide_signature, locate_model
from pneumoscope.notebook import Drawn, notebook_progress, to_frame, to_html
from pneumoscope.reports.evaluation_report import OUTPUTS, check_labels, write_evaluation
from pneumoscope.reports.figures import parse_formats
from pneumoscope.reports.model_card import write_model_card
from pneumoscope.reports.pages import format_command
from pneumoscope.reports.report import Provenance
from pneumoscope.training.adaptation import Adapted, Parent, Wishes, check_wishes, describe_changes, fit
from pneumoscope.training.adaptation_data import FOLDS, Data, extract
from pneumoscope.training.data import Setup
from pneumoscope.training.decisions import find_weak_promises
from pneumoscope.training.finetuning import (
    CrossTrained,
    Readout,
    cross_train,
    describe_training,
    finetune_network,
    load_setup,
)
from pneumoscope.training.run_folder import log_to

ADAPTATION, OUT_OF_FOLD = "adaptation.json", "out-of-fold"
SHARED = (
    "Fine-tuning was tried. Out of fold, each image is predicted by a network that did not learn from its patient, but "
    "choice, slope, intercept, threshold, prediction sets and OOD limit were fitted with networks that did. These "
    "metrics may be too optimistic; only a test split gives unbiased ones."
)
FILES = ("config.yaml", "model", "log.txt", ADAPTATION, "out_of_fold.csv", *OUTPUTS)


@dataclass(frozen=True)
class Adaptation(Drawn):
    """An adapted model, and what it is worth.

    Attributes:
        folder: where it is.
        evidence: what was changed and why, and each metric before and after.
        evaluation: metrics of the adapted model with intervals: on the test split if the data have one, else on the
            images it was adapted to, each predicted without its own fold.
    """

    folder: Path
    evidence: Evidence
    evaluation: Evaluation

    def __repr__(self) -> str:
        return f"Adaptation({self.folder}; {self.evidence.changes[0]})"

    def _repr_html_(self) -> str:
        return to_html(f"{self.folder}; {self.evidence.changes[0]}", self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each metric: before, after, difference and its interval; undefined values are None."""
        return self.evidence.to_rows()

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each metric.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_frame(self.to_rows())

    @property
    def model(self) -> Path:
        """The adapted model's folder."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Options:
    """What `config.yaml` records."""

    data: str
    model: str
    intended_use: str | None
    patient_pattern: str | None
    reading: Reading
    naming: Naming
    wishes: Wishes


@dataclass(frozen=True, eq=False)
class _Job:
    """One adaptation."""

    folder: Path
    options: Options
    source: Path  # the model that is adapted
    plan: Plan
    plot_formats: str
    predictor: Predictor  # the model as it is
    parent: Parent  # the same, as far as it is adapted
    setup: Setup | None  # what fine-tuning starts from, if that is requested
    device: str
    progress: Progress


@checked
def adapt(
    data: str | Path, out: str | Path = "runs/adapted", *, model: str | Path | None = None, head: bool = False,
    finetune: bool = False,
    threshold: float | str | None = None, alpha: float | None = None, false_alarms: float | None = None,
    prevalence: float | None = None, intended_use: str | None = None, patient_pattern: str | None = None,
    reading: Reading = Reading(), naming: Naming = Naming(), device: str = "auto",
    resamples: Count = 2000, seed: Seed = 0, cache: FeatureCache | bool = True, plot_formats: str = "svg",
    patient_ids: bool = False, excel: bool = False, overwrite: bool = False,
    progress: Progress = notebook_progress,
) -> Adaptation:  # fmt: skip
    """Adapt a trained model to a hospital's own labelled images, of which 20 to 500 are enough.

    What is changed about the probabilities follows from cross-validation on these images: nothing, an intercept, a
    slope, too, with `head` another head, or with `finetune` the whole network, trained at a low rate. Threshold,
    prediction sets and the limit of the OOD detector are then fitted to them. Images of a test split are only measured.

    Args:
        data: a folder of classes, or a table.
        out: folder to write.
        model: path, address or name of a model, as for `load`; by default the pretrained model.
        head: whether another head on the same features is tried.
        finetune: experimental: whether the whole network is fine-tuned, too, to see by cross-validation whether that
            is better. It needs 60 patients, and trains four networks.
        threshold: a rule of `train`, or a number; by default the rule of the model.
        alpha: how often prediction sets may miss the true class, by default as the model's.
        false_alarms: the share of ordinary images that the OOD detector may flag, by default as the model's.
        prevalence: the share of the positive class where the model will be used, if it is another than in `data`.
        intended_use: YAML file that states the patients and images that the adapted model is meant for.
        patient_pattern: regular expression that finds the patient in the path of a file.
        reading: how to read images, unless a table says otherwise.
        naming: what columns and classes are called.
        device: `auto`, `cpu` or `cuda`.
        resamples: bootstrap resamples behind each interval.
        seed: fixes folds, resamples and fine-tuning.
        cache: keeps features between calls: True for the user's on disk, False for none, or a given one.
        plot_formats: formats of the files in `plots`, such as `svg,pdf,png`.
        patient_ids: whether metrics and report may name patients.
        excel: whether CSV files begin with a byte order mark, which Excel needs to read UTF-8.
        overwrite: whether to replace an earlier adaptation in `out`.
        progress: called with the number of images done; by default a bar in a notebook.

    Raises:
        ModelError, DataError, UsageError: the model, the data or an option cannot be used, or `out` exists.
    """
    rule = None if threshold is None else str(threshold)
    wishes = Wishes(head, finetune, rule, alpha, false_alarms, prevalence, seed)
    name = hide_signature(str(model or DEFAULT))
    options = Options(str(data), name, intended_use, patient_pattern, reading, naming, wishes)
    plan = Plan("", resamples=resamples, seed=seed, patient_ids=patient_ids, excel=excel)
    parse_formats(plot_formats)
    with open_cache(cache) as opened:
        source = locate_model(model)
        predictor = load(source, device, opened)
        parent = describe_parent(predictor)
        check_wishes(parent, wishes)
        setup = load_setup(wishes, options.data, str(source), device)
        job = _Job(Path(out), options, source, plan, plot_formats, predictor, parent, setup, device, progress)
        return _adapt_into(job, _read(job), overwrite)


def _read(job: _Job) -> list[Sample]:
    """Read the samples, and check all that can be checked before anything is computed."""
    scope.state(job.options.intended_use, scope.Scope())  # a faulty file shows early
    given = job.options
    samples = read_samples(given.data, given.patient_pattern, given.reading, given.naming)
    check_labels(samples, job.predictor.model)
    return samples


def _adapt_into(job: _Job, samples: Sequence[Sample], overwrite: bool) -> Adaptation:
    with lock_folder(job.folder):
        claim_folder(job.folder, FILES, overwrite)
        write_mapping(job.folder / "config.yaml", job.options)
        with log_to(job.folder / "log.txt"):
            return _adapt(job, samples)


def describe_parent(predictor: Predictor) -> Parent:
    """What of a loaded model is adapted."""
    return Parent(
        predictor.model.labels, predictor.weight, predictor.bias, predictor.decisions, predictor.decider.detector
    )


def _adapt(job: _Job, samples: Sequence[Sample]) -> Adaptation:
    """Extract, fit, save and measure."""
    data, test, notes = extract(job.predictor, samples, job.progress)
    classes, how = job.parent.classes, (job.plan.resamples, job.plan.seed)
    data, crossed = _finetune(job, data)
    notes += (SHARED,) if crossed is not None and test is None else ()
    adapted = fit(job.parent, data.local, job.options.wishes)
    notes += find_weak_promises(adapted.decisions, data.local.labels, classes, "images")
    for note in notes:
        _logger().warning("%s", note)
    changes = describe_changes(job.parent, adapted)
    for change in changes:
        _logger().debug("%s", change)
    model = _save(job, data, adapted, changes)
    before = [job.predictor.decide(each) for each in data.extracts]
    after, thresholds = _predict_out_of_fold(job, data, crossed)
    differences = {OUT_OF_FOLD: compare_predictions(before, after, classes, *how)}
    engine: Kind | Engine = "auto" if adapted.choice.chosen.step == "finetune" else job.predictor.engine
    successor = load(job.folder / "model", job.device, job.predictor.cache, engine=engine)
    outside = sum(any("outside the intended use" in warning for warning in each.warnings) for each in before)
    if outside and job.options.intended_use is None:
        notes += (
            f"{outside} of {len(before)} images are outside the intended use, which stays as it was. State that of the "
            "adapted model with `intended_use`.",
        )
        _logger().warning("%s", notes[-1])
    plan = replace(job.plan, split=OUT_OF_FOLD)
    measured = measure_predictions(successor, data.samples, after, thresholds, job.folder, plan, notes=notes)
    if test is not None:
        (job.folder / "predictions.csv").replace(job.folder / "out_of_fold.csv")
        measured = measure(successor, test.samples, job.folder, replace(plan, split="test"), notes=notes)
        earlier = [job.predictor.decide(each) for each in test.extracts]
        differences["test"] = compare_predictions(earlier, measured.predictions, classes, *how)
    evidence = Evidence(adapted.choice.chosen, changes, adapted.choice.candidates, differences)
    write_text(job.folder / ADAPTATION, json.dumps(without_nan(asdict(evidence)), indent=2) + "\n")
    provenance = Provenance(notes=measured.evaluation.notes, facts=_list_facts(job, model), adaptation=evidence)
    write_evaluation(job.folder, successor, measured, provenance, job.plot_formats)
    sources = find_sources(model.data.get("sources", ()))
    write_model_card(job.folder / "model", model, measured.evaluation, notes=measured.evaluation.notes, sources=sources)
    return Adaptation(job.folder, evidence, measured.evaluation)


def _finetune(job: _Job, data: Data) -> tuple[Data, CrossTrained | None]:
    """Add to the images what networks compute of them that were fine-tuned on other patients, if requested."""
    if job.setup is None:
        return data, None
    crossed = cross_train(job.setup, job.parent, data, job.options.wishes, job.progress)
    return replace(data, local=replace(data.local, tuned=crossed.tuned)), crossed


def _predict_out_of_fold(job: _Job, data: Data, crossed: CrossTrained | None) -> tuple[list[Prediction], ArrayLike]:
    """Predict each image with a model that was adapted to other patients' images, by everything that is chosen.

    Also give the threshold of each image's fold, for two classes. With fine-tuning the folds are those of its networks.
    The network that computes an image's logits then has not seen its patient. But all else that decides for the fold
    (the choice, slope, intercepts, threshold, prediction sets, OOD limit) is fitted to outputs of the other networks,
    which learned from the fold, and so from this very image and its label.
    """
    local, classes = data.local, job.parent.classes
    folds = np.random.default_rng(job.plan.seed).permutation(int(local.clusters.max()) + 1)[local.clusters] % FOLDS
    if crossed is not None:
        folds = crossed.tuned.folds
    found: dict[int, Prediction] = {}
    thresholds = np.full(len(folds), np.nan)
    for fold in np.unique(folds):
        job.progress("Cross-validation", int(fold) + 1, int(folds.max()) + 1)
        adapted = fit(job.parent, local.take(folds != fold), job.options.wishes)
        own, extracts = Readout(adapted.weight, adapted.bias, job.parent.detector), data.extracts
        if crossed is not None and adapted.choice.chosen.step == "finetune":
            own, extracts = crossed.readouts[fold], crossed.extracts
        decider = Decider(classes, adapted.decisions, own.detector)
        model, engine = job.predictor.model, job.predictor.engine
        predictor = Predictor(model, own.weight, own.bias, engine, decider)
        for place in np.flatnonzero(folds == fold).tolist():
            found[place] = predictor.decide(extracts[place])
            thresholds[place] = predictor.threshold
    predictions = [found[i] for i in range(len(folds))]
    return predictions, thresholds if len(classes) == 2 else job.predictor.cut


def _save(job: _Job, data: Data, adapted: Adapted, changes: Sequence[str]) -> Model:
    """Write the model folder with its lineage."""
    parent = job.predictor.model
    digests = [each.sha256 for each in data.extracts]
    intended = scope.state(job.options.intended_use, adapted.decisions.scope)
    labels = Counter(str(sample.label) for sample in data.samples)
    tuned = job.setup if adapted.choice.chosen.step == "finetune" else None
    step = Step(
        to_parent(name_model(job.source), parent),
        adapted.choice.chosen.step,
        __version__,
        LocalImages(
            fingerprint_samples(data.samples, digests),
            {name: labels[name] for name in parent.labels},
            int(data.local.clusters.max()) + 1,
        ),
        tuple(changes),
        tuple(asdict(each) for each in adapted.choice.candidates),
        asdict(job.options.wishes),
        None if tuned is None else describe_training(tuned),
    )
    named = [*parent.data.get("sources", ()), *(each.name for each in recognise_sources(data.samples))]
    sources = list(dict.fromkeys(named))
    seen = {*parent.data.get("seen", ()), *(digest[:SHORT] for digest in digests)}
    model = replace(
        parent,
        decisions=to_json(replace(adapted.decisions, scope=intended)),
        data={**parent.data, "sources": sources, "seen": sorted(seen)},
        training={key: value for key, value in parent.training.items() if key != "test"},  # of the parent's decisions
        lineage=(*parent.lineage, step),
        version=__version__,
    )
    if tuned is not None:
        return _save_network(job, tuned, data, model)
    changed = {"head.weight": adapted.weight} if adapted.weight is not job.parent.weight else {}
    return save_changed(job.folder / "model", job.source, model, changed)


def _save_network(job: _Job, setup: Setup, data: Data, model: Model) -> Model:
    """Fine-tune on all images, and write the model folder with its own weights and graph."""
    chosen, task = np.ones(len(data.samples), bool), "Fine-tuning (all images)"
    network = finetune_network(setup, job.parent, data, job.options.wishes, chosen, task, job.progress)
    own = network.readout
    state = {f"backbone.{name}": tensor for name, tensor in network.backbone.state_dict().items()}
    state |= {"head.weight": torch.from_numpy(own.weight), "head.bias": torch.from_numpy(own.bias)}
    state |= {name: torch.tensor(array) for name, array in (own.detector.to_arrays() if own.detector else {}).items()}
    graph = try_graph(network.backbone, model.input.size)
    half = setup.settings.network.half_precision
    return save_model(job.folder / "model", replace(model, files={}), state, half=half, graph=graph)


def _list_facts(job: _Job, model: Model) -> dict[str, str]:
    """List what a reader needs to understand and repeat the adaptation."""
    options = job.options
    given = {**asdict(options.wishes), **asdict(options.reading), **options.naming.to_options()}
    command = format_command(
        "adapt", options.data, model=options.model, out="NEW_FOLDER", intended_use=options.intended_use,
        patient_pattern=options.patient_pattern, resamples=job.plan.resamples, **given,
    )  # fmt: skip
    return {
        "Data": options.data,
        "Model": options.model,
        "Lineage": describe_lineage(model.lineage),
        "Command": command,
    }


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
