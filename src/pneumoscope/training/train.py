"""Train a classifier: read -> extract -> fit -> decide -> save -> evaluate."""

from __future__ import annotations

import importlib
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pneumoscope.config import Progress, checked, silent
from pneumoscope.datasets.sources import find_sources
from pneumoscope.decisions import calibration
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.evaluate import Plan
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.evaluation.validation import measure_validation
from pneumoscope.files import format_rows, lock_folder, remove_partial, write_text
from pneumoscope.inference.cache import MEMORY, FeatureCache, open_cache
from pneumoscope.inference.engines import Engine, build_engine
from pneumoscope.inference.predictor import load
from pneumoscope.models.classifier import build_head, round_to_half
from pneumoscope.models.model_folder import load_model, save_changed, save_model
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.models.references import hide_signature
from pneumoscope.notebook import notebook_progress
from pneumoscope.reports.evaluation_report import evaluate_predictor
from pneumoscope.reports.model_card import write_model_card
from pneumoscope.reports.pages import load_templates
from pneumoscope.reports.report import Provenance
from pneumoscope.training.data import (
    Computing,
    Extracted,
    Setup,
    Split,
    extract,
    extract_again,
    prepare_computing,
    prepare_setup,
    read,
)
from pneumoscope.training.decisions import FittedDecisions, fit_decisions
from pneumoscope.training.distributed import ALONE, Processes, join
from pneumoscope.training.idle import log_idle
from pneumoscope.training.loop import Row, seed_torch
from pneumoscope.training.phases import Trained, run_phases, try_precisions
from pneumoscope.training.record import is_whole, load_remarks, record_digests, save_remarks, was_begun_by
from pneumoscope.training.remarks import Remarks, check_data, log_data
from pneumoscope.training.run import Callback
from pneumoscope.training.run import Run as Run
from pneumoscope.training.run_folder import (
    CHECKPOINTS,
    hush,
    open_run,
    read_history,
    read_settings,
    resume_settings,
    write_settings,
)
from pneumoscope.training.run_folder import log_to as keep_log
from pneumoscope.training.settings import Settings, flatten, resolve_settings
from pneumoscope.training.summaries import describe_model, list_facts, summarise_data
from pneumoscope.training.trackers import parse_trackers, track

OnEpoch: TypeAlias = Callable[[Mapping[str, Any], int], None]  # as `Callback.on_epoch`
_NOT_TESTED = (
    "The test split was not read (`test=False`). All metrics are those of the validation split, which decided when "
    "training stopped and to which the decisions were fitted: expect lower ones on other images."
)


@checked
def train(
    data: str | Path | None = None,
    out: str | Path = "runs/latest",
    *,
    config: Settings | str | Path | None = None,
    test: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    cache: FeatureCache | bool = True,
    log_to: str | Sequence[str] = "",
    callbacks: Sequence[Callback] = (),
    progress: Progress = notebook_progress,
    **options: Any,
) -> Run:
    """Train a classifier on labelled radiographs and evaluate it on their test split.

    The processes that `torchrun` starts train together, and all return the same run.

    Args:
        data: folder or table; None if `config` or the resumed run names it.
        out: the run's folder.
        config: settings, or a YAML file of them, such as another run's `config.yaml`.
        test: whether to read the test split and measure on it. If not, the metrics are those of the validation
            split, which are too good; `resume` without `test=False` measures the test split later.
        resume: continue an interrupted run, with the same result as without the interruption.
        overwrite: whether to replace an earlier run in `out`.
        cache: keeps features between runs: True for the user's on disk, False for none, or a given one.
        log_to: `mlflow`, `tensorboard` or both; if they fail, the training goes on.
        callbacks: called when training begins, after each epoch, and with the finished run.
        progress: called as `progress(task, done, total)`; by default a bar in a notebook.
        **options: any setting of `pneumoscope.training.settings` by its name, such as `recipe="finetune"`.

    Raises:
        UsageError, DataError, DownloadError: settings, data or weights that cannot be used, or `out` exists.
        MissingExtraError: a tracker is not installed.
    """
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    options["path"] = None if data is None else str(data)
    given = [name for name, value in options.items() if value is not None]
    with ExitStack() as stack:
        processes, folder = stack.enter_context(join()), Path(out)
        if not processes.leads:
            return assist(processes, cache)
        trackers = parse_trackers(log_to)
        if was_begun_by(folder, processes.launch):  # and `torchrun` starts it again
            config, resume, overwrite = None, True, False
        setup = read(resolve(options, folder, config, resume, overwrite), test=test, processes=processes)
        stack.enter_context(lock_folder(folder))
        if resume:
            remove_partial(folder)
        open_run(folder, setup, resume, overwrite)
        stack.enter_context(keep_log(folder / "log.txt"))
        features = stack.enter_context(open_cache(cache)) or stack.enter_context(FeatureCache(MEMORY))
        followers = stack.enter_context(track(trackers, callbacks, folder))
        public = flatten(asdict(setup.settings))
        followers.on_start(public | {"init": public["init"] and hide_signature(public["init"])})
        run = _train_and_test(setup, folder, features, given, followers, progress)
        processes.tell(run)
    return run


def _train_and_test(
    setup: Setup, folder: Path, cache: FeatureCache, given: Sequence[str], followers: Callback, progress: Progress
) -> Run:
    """Make the model, unless an earlier process did, and evaluate it."""
    remarks, engine = load_remarks(folder), None
    setup.processes.tell((setup.settings, setup.samples, setup.test) if remarks is None else None)
    if remarks is not None and (folder / "report.html").exists():
        _logger().info("The run in %s is finished. Its model is kept and evaluated again.", folder)
    if remarks is None:
        log_data(setup)
        log_idle(setup, given)
        setup, remarks, engine = make_model(setup, folder, cache, progress, on_epoch=followers.on_epoch)
    elif setup.test and not is_whole(folder):
        remarks = _add_test(replace(setup, processes=ALONE), folder, cache, remarks, progress)
    run = Run(folder, setup.settings, evaluate(setup, remarks, folder, cache, engine, progress))
    followers.on_end(run)
    return run


def assist(processes: Processes, cache: FeatureCache | bool) -> Run:
    """Do a share of the first process's work, and give its run; this is all that the other processes do."""
    with hush(), open_cache(cache) as features:
        if (request := processes.hear()) is not None:
            settings, samples, test = request
            setup = replace(prepare_setup(settings, samples), test=test, processes=processes)
            extracted = extract(setup, features, silent)
            setup = choose_precision(setup, extracted)
            extract_finally(setup, extracted, fit(setup, extracted, silent), features, silent)
        run: Run = processes.hear()
    return run


def make_model(
    setup: Setup, folder: Path, cache: FeatureCache, progress: Progress, computing: Computing | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[Setup, Remarks, Engine | None]:  # fmt: skip
    """Extract, fit, decide and save; give the engine of a backbone that stayed as it was, whose features are cached."""
    short = computing is not None  # a head alone, as of a fold, is sooner trained again than continued
    computing = computing or prepare_computing(setup)
    threading.Thread(target=_load_ahead).start()  # no daemon: a half-imported library can crash the end of a process
    extracted = extract(setup, cache, progress, computing)
    read_files = dict(zip((each.path for each in extracted.images.samples), extracted.images.digests, strict=True))
    record_digests(folder, [read_files.get(sample.path) for sample in setup.samples])
    remarks = check_data(setup, extracted)
    if (chosen := choose_precision(setup, extracted)) is not setup:  # recorded, so that a resumed run uses the same
        write_settings(folder / "config.yaml", chosen.settings)
    setup = chosen
    trained = fit(setup, extracted, progress, None if short else folder / CHECKPOINTS, on_epoch)
    write_text(folder / "history.csv", "".join(format_rows(trained.history)))
    decisions = decide(setup, extracted, trained, cache, progress)
    remarks = replace(remarks, notes=remarks.notes + decisions.notes)
    save(setup, extracted, trained, decisions, remarks, folder)
    return setup, remarks, None if setup.changes_backbone else extracted.engine


def _load_ahead() -> None:
    """Load what decisions and the report need while images are being read, because this takes over a second.

    What fails here fails again where it is needed, and is reported there.
    """
    with suppress(Exception):
        for name in ("matplotlib.figure", "scipy.optimize"):
            importlib.import_module(name)
        load_templates("report.html", "base.html", "macros.html", "explorer.html", "model_card.md")


def _add_test(setup: Setup, folder: Path, cache: FeatureCache, remarks: Remarks, progress: Progress) -> Remarks:
    """Check and record the data of a run that did not read its test split, now with it, as if it had."""
    extracted = extract(setup, cache, progress)
    remarks = replace(remarks, findings=check_data(setup, extracted).findings)
    model = replace(load_model(folder / "model"), data=summarise_data(setup, extracted.images))
    save_changed(folder / "model", folder / "model", model, {})
    record_digests(folder, extracted.images.digests)
    save_remarks(folder, remarks)
    return remarks


def fit(
    setup: Setup,
    extracted: Extracted,
    progress: Progress,
    checkpoints: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train the head, and the backbone if the settings say so."""

    def report(row: Row, epochs: int) -> None:
        progress(f"Training ({row['phase']})", row["epoch"], epochs)
        _logger().debug(
            "%s epoch %d: training loss %.4f, validation loss %.4f, validation accuracy %.3f, learning rate %.2g",
            *(row[key] for key in ("phase", "epoch", "train_loss", "val_loss", "val_accuracy", "lr")),
        )
        if on_epoch is not None:
            on_epoch({name: value for name, value in row.items() if name != "epoch"}, row["epoch"])

    with torch.random.fork_rng(devices=[]):
        seed_torch(setup.settings.run.seed)
        head = build_head(setup.backbone.width, len(setup.classes))
        if setup.initial is not None and setup.initial.labels == setup.classes:
            head.load_state_dict(setup.initial.head)
        history, best = run_phases(setup, head, extracted.splits, checkpoints, report)
    _logger().info("Kept epoch %d of %d, validation loss %.4f.", best["epoch"], history[-1]["epoch"], best["val_loss"])
    if setup.settings.network.half_precision:
        round_to_half(setup.backbone)
        round_to_half(head)
    graph = extracted.graph
    if setup.processes.once(lambda: setup.changes_backbone or graph is None):
        backbone = setup.backbone.cpu().eval()
        graph = setup.processes.once(lambda: try_graph(backbone, setup.input.size))
    return Trained(head, history, best, graph)


def choose_precision(setup: Setup, extracted: Extracted) -> Setup:
    """Resolve the precision `auto`."""
    optimisation = setup.settings.optimisation
    if optimisation.precision != "auto" or not setup.settings.network.train_backbone:
        return setup
    with torch.random.fork_rng(devices=[]):
        head = build_head(setup.backbone.width, len(setup.classes))
        precision = setup.processes.once(lambda: try_precisions(setup, head, extracted.splits))
    settings = replace(setup.settings, optimisation=replace(optimisation, precision=precision))
    return replace(setup, settings=settings)


def decide(
    setup: Setup, extracted: Extracted, trained: Trained, cache: FeatureCache | None, progress: Progress
) -> FittedDecisions:
    """Fit calibration, threshold, prediction sets and OOD detector to the trained network."""
    splits = extract_finally(setup, extracted, trained, cache, progress)
    weight, bias = (part.detach().cpu().numpy() for part in (trained.head.weight, trained.head.bias))
    decisions = fit_decisions(splits["train"], splits["val"], weight, bias, setup.classes, setup.settings)
    for note in decisions.notes:
        _logger().warning("%s", note)
    _logger().info("%s", calibration.describe_fit(decisions.decisions.calibration))
    return decisions


def extract_finally(
    setup: Setup, extracted: Extracted, trained: Trained, cache: FeatureCache | None, progress: Progress
) -> Mapping[str, Split]:
    """The features that decisions are fitted to: those of the trained network, and perhaps of augmented copies."""
    if not setup.changes_backbone and not setup.settings.decisions.augmented_copies:
        return extracted.splits
    engine = build_engine(setup.backbone, setup.input.size, setup.device.type, trained.graph)
    return extract_again(setup, extracted.splits, engine, cache, progress)


def save(
    setup: Setup, extracted: Extracted, trained: Trained, decisions: FittedDecisions, remarks: Remarks, folder: Path
) -> None:
    """Write the model folder, and the remarks for its evaluation."""
    state = {f"backbone.{name}": tensor for name, tensor in setup.backbone.state_dict().items()}
    state |= {f"head.{name}": tensor for name, tensor in trained.head.state_dict().items()}
    state |= {name: torch.tensor(array) for name, array in decisions.arrays.items()}
    model = describe_model(setup, extracted.images, trained, decisions)
    half = setup.settings.network.half_precision
    save_model(folder / "model", model, state, half=half, graph=trained.graph)
    save_remarks(folder, remarks)


def evaluate(
    setup: Setup, remarks: Remarks, folder: Path, cache: FeatureCache, engine: Engine | None, progress: Progress
) -> Evaluation:
    """Evaluate the stored model on the test split; write metrics, predictions, report and model card.

    The metrics of the validation split stand beside those of the test. Without a test, they stand alone, and everything
    that is written says so. `engine` is that of an unchanged backbone; if None, the stored model's is loaded.
    """
    split = "test" if setup.test else "val"
    notes = remarks.notes if setup.test else (*remarks.notes, _NOT_TESTED)
    if not setup.test:
        _logger().warning("%s", _NOT_TESTED)
    predictor, run = load(folder / "model", setup.device.type, cache, engine=engine or "auto"), setup.settings.run
    plan = Plan(split, resamples=run.resamples, seed=run.seed, patient_ids=run.patient_ids, excel=run.excel)
    evaluation = evaluate_predictor(
        predictor,
        setup.select(split),
        folder,
        plan,
        Provenance(
            history=read_history(folder / "history.csv"),
            findings=remarks.findings,
            notes=notes,
            facts=list_facts(setup, predictor.model, folder),
        ),
        plot_formats=run.plot_formats,
        validation=measure_validation(predictor, setup.select("val"), plan) if setup.test else None,
        progress=lambda _, done, total: progress("Test" if setup.test else "Validation", done, total),
    )
    serious = [finding for finding in remarks.findings if finding.severity != "note"]
    write_model_card(
        folder / "model",
        predictor.model,
        evaluation,
        notes=[*evaluation.notes, *(f"{each.severity.capitalize()}: {each.title}. {each.advice}" for each in serious)],
        sources=find_sources(predictor.model.data.get("sources", ())),
        backbone_licence=setup.spec.licence,
    )
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return evaluation


def resolve(
    options: Mapping[str, Any], folder: Path, config: Settings | str | Path | None, resume: bool, overwrite: bool
) -> Settings:
    """Settings of a new run or of the run to resume."""
    if resume and (config or overwrite):
        raise UsageError("continues a run with its own settings: leave out `config` and `overwrite`.", "resume")
    if resume:
        settings = resume_settings(folder, options)
    elif isinstance(config, Settings):
        settings = resolve_settings(options, asdict(config))
    else:
        settings = resolve_settings(options, read_settings(Path(config)) if config else {}, str(config))
    if settings.data.strict and not settings.data.audit:
        raise UsageError("needs the check of the data: leave out `audit=False`.", "strict")
    return settings


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
