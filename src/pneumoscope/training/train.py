"""Labelled radiographs become a run: samples, a trained model, its metrics and its report."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumoscope import __version__
from pneumoscope.auditing.audit import find_faults
from pneumoscope.auditing.intake import GAUGE, RECORD, Images, to_record
from pneumoscope.config import read_mapping, write_mapping
from pneumoscope.datasets.duplicates import group_identical
from pneumoscope.datasets.kermany import recognise_source
from pneumoscope.datasets.samples import (
    SPLITS,
    Sample,
    count_samples,
    describe_counts,
    find_classes,
    fingerprint_samples,
    format_samples,
    read_samples,
    write_samples,
)
from pneumoscope.datasets.splits import find_shared_patients, require_classes, split_samples
from pneumoscope.decisions.decisions import to_json
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.evaluate import OUTPUTS, assess
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.files import claim_folder, format_rows, write_text
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache
from pneumoscope.inference.engines import Engine, build_engine
from pneumoscope.inference.features import Wanted, extract_features
from pneumoscope.inference.prediction import SHORT
from pneumoscope.inference.predictor import load
from pneumoscope.inference.runtimes import choose_device
from pneumoscope.models.backbones import BackboneSpec, find_backbone, load_backbone, resize_input, try_backbone
from pneumoscope.models.classifier import Backbone, build_head, round_to_half
from pneumoscope.models.model_folder import Model, save_model
from pneumoscope.models.onnx_graphs import try_graph
from pneumoscope.reports.model_card import DataStatement, write_model_card
from pneumoscope.reports.report import ReportFinding
from pneumoscope.training.augmented import see_again
from pneumoscope.training.decisions import fit_decisions
from pneumoscope.training.phases import Network, Split, Stages
from pneumoscope.training.records import log_to, read_history, resume_settings
from pneumoscope.training.settings import Settings, resolve_settings

Progress = Callable[[str, int, int], None]
_CHECKPOINTS = "checkpoints"
RUN_FILES = ("config.yaml", "samples.csv", "history.csv", "model", "log.txt", _CHECKPOINTS, *OUTPUTS)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        settings: as resolved.
        evaluation: metrics with intervals on the test split.
    """

    folder: Path
    settings: Settings
    evaluation: Evaluation

    @property
    def model(self) -> Path:
        """The trained model's folder."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.folder / "report.html"


def train(
    data: str | Path | None,
    out: str | Path,
    *,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Train a classifier on labelled radiographs and measure it on their test split.

    Args:
        data: folder or table; None where `config` or the run to resume names it.
        out: the run's folder.
        config: YAML file of settings, such as another run's `config.yaml`.
        resume: take up a run that was interrupted; it ends as if it had not been.
        overwrite: whether an earlier run in `out` may go.
        cache: keeps features between runs.
        progress: called with what is being done, how much of it is done, and how much there is.
        notes: what the report is to say besides.
        **options: any field of `pneumoscope.training.settings.Settings`, such as `recipe="finetune"` or `lr=1e-3`.

    Raises:
        UsageError: settings that cannot be meant, or `out` exists.
        DataError: data that cannot be used.
        DownloadError: weights that are out of reach.
    """
    folder = Path(out)
    given = {**options, "data": None if data is None else str(data)}
    if resume and (config or overwrite):
        raise UsageError("--resume takes a run up as it began: leave out --config and --overwrite.")
    if resume:
        settings = resume_settings(folder, given)
    else:
        settings = resolve_settings(given, read_mapping(Path(config)) if config else {}, str(config))
    if settings.strict and not settings.audit:
        raise UsageError("--strict goes by what the audit finds: leave out --no-audit.")
    # Whatever is wrong with the data or the weights is found before a folder is made.
    samples = _read(settings)
    spec = find_backbone(settings.backbone)
    backbone = load_backbone(spec, Path(settings.weights) if settings.weights else None)
    try_backbone(backbone, resize_input(spec, settings.size, settings.fit).size)
    choose_device(settings.device)
    table = folder / "samples.csv"
    if not resume:
        claim_folder(folder, RUN_FILES, overwrite)
        write_mapping(folder / "config.yaml", settings)
    if resume and table.exists() and table.read_text(encoding="utf-8") != format_samples(samples, folder):
        raise DataError(f"{settings.data}: not what it was when {folder} began ({table}). Start another run.")
    write_samples(table, samples)
    own = FeatureCache(Path(":memory:")) if cache is None else nullcontext(cache)
    with log_to(folder / "log.txt"), own as features:
        job = _Job(folder, settings, spec, samples, features, progress or (lambda *_: None), notes)
        return job.run(backbone)


class _Job:
    """The steps of one run, and what they share."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        spec: BackboneSpec,
        samples: Sequence[Sample],
        cache: FeatureCache,
        progress: Progress,
        notes: Sequence[str],
    ) -> None:
        self.folder = folder
        self.cache = cache
        self.progress = progress
        self.device = choose_device(settings.device)
        self.input = resize_input(spec, settings.size, settings.fit)
        self.classes, self.positive = find_classes(samples, settings.positive)
        self.spec = spec
        self.samples = samples
        self.notes = list(notes)
        self.findings: list[ReportFinding] = []
        self.engine: Engine | None = None  # of the backbone as it stays, if that is frozen: its features are cached
        self.settings = dataclasses.replace(
            settings,
            positive=self.positive,
            size=self.input.size,
            fit=self.input.fit,
            device="cuda" if self.device.type == "cuda" else "cpu",
        )

    def run(self, backbone: Backbone) -> Run:
        """Train, unless that is done, and measure."""
        model, notes = self.folder / "model", self.folder / _CHECKPOINTS / "notes.json"
        if (model / "model.json").is_file() and notes.is_file():
            told = json.loads(notes.read_text(encoding="utf-8"))
            told = {"notes": told, "findings": []} if isinstance(told, list) else told  # as 0.2 wrote it
            self.notes = told["notes"]
            self.findings = [ReportFinding(**finding) for finding in told["findings"]]
        else:
            self._describe()
            notes.parent.mkdir(exist_ok=True)
            self._train(backbone.eval(), model, notes)
        test = [sample for sample in self.samples if sample.split == "test"]
        predictor = load(model, self.device.type, self.cache, engine=self.engine or "auto")
        evaluation = assess(
            predictor,
            test,
            self.folder,
            split="test",
            facts=self._facts(predictor.model),
            notes=self.notes,
            findings=self.findings,
            history=read_history(self.folder / "history.csv"),
            resamples=self.settings.resamples,
            seed=self.settings.seed,
            progress=lambda _, done, total: self.progress("Test", done, total),
        )
        write_model_card(
            model,
            predictor.model,
            evaluation,
            notes=[
                *evaluation.notes,
                *(
                    f"{finding.severity.capitalize()}: {finding.title}. {finding.advice}"
                    for finding in self.findings
                    if finding.severity != "note"
                ),
            ],
            data=DataStatement.of(recognise_source(self.samples)),
            backbone_licence=self.spec.licence,
        )
        shutil.rmtree(self.folder / _CHECKPOINTS, ignore_errors=True)
        _logger().debug("Report: %s", self.folder / "report.html")
        return Run(self.folder, self.settings, evaluation)

    def _describe(self) -> None:
        log = _logger()
        log.info("Data: %s", describe_counts(self.samples))
        log.info("Classes: %s%s.", ", ".join(self.classes), f"; positive is {self.positive}" if self.positive else "")
        known = {sample.patient for sample in self.samples if sample.patient}
        unknown = sum(sample.patient is None for sample in self.samples)
        if unknown:
            self.notes.append(
                f"The patient of {unknown} images is not known: each counts as a patient of its own. "
                "Name patients in a table, or with --patient-pattern."
            )
        log.info("Patients: %d known.", len(known))
        if known and all(patient.startswith("phantom") for patient in known) and not self.notes:
            self.notes.append(
                "Simulated radiographs: the figures show that the road works, and nothing about patients."
            )
        if shared := find_shared_patients(self.samples):
            some = ", ".join(f"{patient} ({' and '.join(splits)})" for patient, splits in list(shared.items())[:10])
            self.notes.append(
                f"{len(shared)} patients are in more than one split, as the data's own folders have it: {some}"
                f"{' and more, named in log.txt' if len(shared) > 10 else ''}."
            )
            log.debug("Shared patients: %s", shared)

    def _train(self, backbone: Backbone, model: Path, notes: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            head = build_head(backbone.width, len(self.classes))
            graph = try_graph(backbone, self.input.size) if self.device.type == "cpu" else None
            splits, images = self._extract(backbone, graph)
            digests = images.digests
            if self.settings.audit:
                self._audit(images)
            for note in self.notes:
                _logger().warning("%s", note)
            told = {"notes": self.notes, "findings": [dataclasses.asdict(finding) for finding in self.findings]}
            write_text(notes, json.dumps(told))
            network = Network(backbone, head, len(self.classes), self.input, self.device)
            stages = Stages(network, splits["train"], splits["val"], notes.parent, self._tell)
            if self.settings.train_backbone:
                precision = stages.choose_precision(self.settings)
                self.settings = dataclasses.replace(self.settings, precision=precision)
            write_mapping(self.folder / "config.yaml", self.settings)
            history, best = stages.run(self.settings)
        _logger().info(
            "Epoch kept: %d of %d, validation loss %.4f.", best["epoch"], history[-1]["epoch"], best["val_loss"]
        )
        write_text(self.folder / "history.csv", "".join(format_rows(history)))
        if self.settings.half:
            round_to_half(backbone)
            round_to_half(head)
        changed = self.settings.train_backbone or self.settings.half
        if changed or graph is None:
            graph = try_graph(backbone.cpu().eval(), self.input.size)
        if changed:  # features of the network as it has become
            self.engine = None
            engine = build_engine(backbone, self.input.size, self.device.type, graph)
            splits = see_again(splits, engine, self.input, self.settings, self.cache, self.progress)
        weight, bias = (part.detach().cpu().numpy() for part in (head.weight, head.bias))
        decisions = fit_decisions(splits["train"], splits["val"], weight, bias, self.classes, self.settings)
        for note in decisions.notes:
            _logger().warning("%s", note)
        self.notes += decisions.notes
        told["notes"] = self.notes
        write_text(notes, json.dumps(told))
        fitted = decisions.decisions.calibration
        _logger().info(
            "Calibration: %s; log loss of validation images held out of it %.4f, without it %.4f.",
            fitted.method,
            fitted.after["log_loss"],
            fitted.before["log_loss"],
        )
        state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
        state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        state |= {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in decisions.arrays.items()}
        made_here = ("data", "weights", "device")
        settings = {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in made_here}
        save_model(
            model,
            Model(
                backbone=self.spec.name,
                architecture=self.spec.architecture,
                arguments=dict(self.spec.arguments),
                labels=self.classes,
                positive=self.positive,
                input=self.input,
                decisions=to_json(decisions.decisions),
                training={
                    "recipe": self.settings.recipe,
                    "epochs": len(history),
                    "stages": dict(Counter(row["stage"] for row in history)),
                    "best_epoch": history.index(best) + 1,
                    "best": best,
                    "settings": settings,
                },
                data={
                    "fingerprint": fingerprint_samples(self.samples, digests),
                    "counts": count_samples([s for s, digest in zip(self.samples, digests, strict=True) if digest]),
                    "seen": sorted(
                        digest[:SHORT] for s, digest in zip(self.samples, digests, strict=True) if s.split != "test"
                    ),
                },
                version=__version__,
            ),
            state,
            half=self.settings.half,
            graph=graph,
        )

    def _audit(self, images: Images) -> None:
        """The quick part of an audit, on what was measured when the images were read."""
        serious = [finding for finding in find_faults(images, seed=self.settings.seed) if finding.severity != "note"]
        for finding in serious:
            if finding.check not in ("reading", "leaks"):  # that is said already
                some = ", ".join(path.name for path in finding.files[:3]) + ("…" if len(finding.files) > 3 else "")
                self.findings.append(ReportFinding(finding.severity, finding.title, finding.advice, some))
                _logger().warning(
                    "%s: %s. %s%s",
                    finding.severity.capitalize(),
                    finding.title,
                    finding.advice,
                    f" For instance: {some}" if some else "",
                )
        if serious:
            more = f"pneumoscope audit {shlex.quote(self.settings.data)}"
            self.findings.append(ReportFinding("note", "There is more, with pictures", more))
            _logger().warning("More, with pictures: %s", more)
        errors = [finding.title for finding in serious if finding.severity == "error"]
        if self.settings.strict and errors:
            raise DataError(
                f"{self.settings.data}: {'; '.join(errors)}. See pneumoscope audit {shlex.quote(self.settings.data)}, "
                "mend the data and start again with --overwrite, or leave out --strict."
            )

    def _extract(self, backbone: Backbone, graph: bytes | None) -> tuple[dict[str, Split], Images]:
        """Features of every split, and what an audit looks at; unreadable files are left out.

        The test images are read too: the fingerprint names their content, and a file that cannot be read shows early.
        """
        engine = self.engine = build_engine(backbone, self.input.size, self.device.type, graph)
        splits: dict[str, Split] = {}
        digests = [""] * len(self.samples)
        errors: list[str | None] = [None] * len(self.samples)
        records = np.zeros(len(self.samples), RECORD)
        gauge = GAUGE if self.settings.audit else None
        unreadable: list[str] = []
        done = 0
        for split in SPLITS:
            chosen = [i for i, sample in enumerate(self.samples) if sample.split == split]
            images = [self.samples[i] for i in chosen]
            read = []
            wanted = Wanted(mirror=split == "train", measurement=gauge)
            for place, extract in zip(
                chosen, extract_features(images, engine, self.input, wanted, self.cache), strict=True
            ):
                done += 1
                self.progress("Features", done, len(self.samples))
                digests[place], errors[place] = extract.sha256, extract.error
                if extract.measured is not None:
                    records[place] = to_record(extract.measured)
                if extract.features is None or extract.intermediate is None:
                    unreadable.append(str(extract.error))
                else:
                    read.append((place, extract.features, extract.intermediate[None]))
            if read:
                targets = [self.classes.index(str(self.samples[i].label)) for i, *_ in read]
                splits[split] = Split(
                    [self.samples[i] for i, *_ in read],
                    np.array(targets),
                    np.stack([vectors for _, vectors, _ in read]),
                    np.stack([stages for *_, stages in read]),
                )
        if unreadable:
            self.notes.append(
                f"{len(unreadable)} images could not be read and are left out: {'; '.join(unreadable[:10])}"
            )
            readable = [sample for sample, digest in zip(self.samples, digests, strict=True) if digest]
            require_classes(readable, "after unreadable images were left out")
        return splits, Images(self.samples, digests, errors, records)

    def _tell(self, row: Mapping[str, Any], epochs: int) -> None:
        self.progress(f"Training ({row['stage']})", row["epoch"], epochs)
        _logger().debug(
            "%s epoch %d: train loss %.4f, validation loss %.4f, validation accuracy %.3f, lr %.2g",
            *(row[key] for key in ("stage", "epoch", "train_loss", "val_loss", "val_accuracy", "lr")),
        )

    def _facts(self, model: Model) -> dict[str, str]:
        settings, training = self.settings, model.training
        number = training.get("best_epoch", training["best"]["epoch"])
        return {
            "Data": settings.data,
            "Splits": describe_counts(self.samples),
            "Data fingerprint": model.data["fingerprint"],
            "Backbone": f"{model.backbone} (weights: {self.spec.licence}), "
            + (
                "all layers trained" if training["best"]["stage"] == "finetune" else "frozen, batch-norm statistics too"
            ),
            "Input": f"{model.input.size} x {model.input.size}, {model.input.fit}",
            "Recipe": f"{settings.recipe}; {training['epochs']} epochs, of which number {number} was kept",
            "Class balance": settings.balance,
            "Seed": str(settings.seed),
            "Command": shlex.join(
                ["pneumoscope", "train", "--config", str(self.folder / "config.yaml"), "--out", "NEW_RUN"]
            ),
        }


def _refuse_for_more(settings: Settings) -> None:
    """Refuse what only two classes have."""
    if settings.calibration in ("platt", "isotonic"):
        raise UsageError(f"--calibration {settings.calibration}: for two classes only; take temperature.")
    if settings.prevalence is not None:
        raise UsageError("--prevalence: only two classes have one.")


def _read(settings: Settings) -> list[Sample]:
    """Read, check and split the samples; find errors of the data before anything is written."""
    reading = Reading(invert=settings.invert, any_modality=settings.any_modality)
    samples = read_samples(Path(settings.data), settings.patient_pattern, reading)
    classes, _ = find_classes(samples, settings.positive)
    if len(classes) > 2:
        _refuse_for_more(settings)
    given = {sample.split for sample in samples}
    return split_samples(
        samples,
        test_fraction=settings.test_fraction,
        val_fraction=settings.val_fraction,
        groups=None if {"val", "test"} <= given else group_identical(samples),
        seed=settings.seed,
    )


def _logger() -> logging.Logger:
    return logging.getLogger("pneumoscope")
