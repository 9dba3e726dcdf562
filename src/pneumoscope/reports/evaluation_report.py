"""`pneumoscope.evaluate`: measure a model on labelled radiographs, and write metrics, predictions and a report."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pneumoscope.config import Count, Progress, Seed, checked, quote
from pneumoscope.datasets.columns import Naming
from pneumoscope.datasets.labels import look
from pneumoscope.datasets.reading import read_samples
from pneumoscope.datasets.samples import Sample
from pneumoscope.decisions.groups import describe
from pneumoscope.decisions.prior_shift import check_prevalence
from pneumoscope.decisions.threshold import fit as fit_threshold
from pneumoscope.decisions.threshold import parse_rule
from pneumoscope.errors import DataError, UsageError, require_extra
from pneumoscope.evaluation.evaluate import Measured, Plan, measure
from pneumoscope.evaluation.known_patients import describe_known_patients
from pneumoscope.evaluation.results import Evaluation
from pneumoscope.files import claim_folder, lock_folder
from pneumoscope.images.read import Reading
from pneumoscope.inference.cache import FeatureCache, open_cache
from pneumoscope.inference.prediction import index_labels, stack_probabilities
from pneumoscope.inference.predictor import Predictor, load
from pneumoscope.models.lineage import describe_lineage, find_adaptations
from pneumoscope.models.model_folder import Model
from pneumoscope.models.pretrained import DEFAULT
from pneumoscope.models.references import hide_signature
from pneumoscope.notebook import notebook_progress
from pneumoscope.reports.environment import describe_environment
from pneumoscope.reports.figures import parse_formats
from pneumoscope.reports.gallery import draw_explained
from pneumoscope.reports.pages import format_command
from pneumoscope.reports.report import Policy, Provenance, write_report
from pneumoscope.text import counted

_Options: TypeAlias = dict[str, Any]
OUTPUTS = ("predictions.csv", "errors.csv", "metrics.json", "plots", "report.html")  # the first is written first


@checked
def evaluate(
    data: str | Path,
    model: str | Path | None = None,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    patient_pattern: str | None = None,
    reading: Reading = Reading(),
    naming: Naming = Naming(),
    device: str = "auto",
    prevalence: float | None = None,
    adapt_prior: bool = False,
    threshold: float | str | None = None,
    alpha: float | None = None,
    false_alarms: float | None = None,
    refuse_out_of_scope: bool = False,
    subgroups: str | None = None,
    resamples: Count = 2000, seed: Seed = 0,
    cache: FeatureCache | bool = True,
    plot_formats: str = "svg",
    patient_ids: bool = False, excel: bool = False, overwrite: bool = False,
    progress: Progress = notebook_progress,
) -> Evaluation:  # fmt: skip
    """Measure a trained model on labelled radiographs, and write metrics, predictions, plots and a report.

    Args:
        data: a folder of classes, or a table.
        model: path, address or name of a model, as for `load`; by default the pretrained model.
        out: folder for `metrics.json`, `predictions.csv`, `errors.csv`, `plots` and `report.html`; None writes nothing.
        split: `train`, `val`, `test` or `all`; by default `test`, or the only split, or all images without splits.
        patient_pattern: regular expression that finds the patient in the path of a file.
        reading: how to read images, unless a table says otherwise.
        naming: what columns and classes are called.
        device: `auto`, `cpu` or `cuda`.
        prevalence: also measure as if the positive class had this share, with adjusted probabilities.
        adapt_prior: estimate the classes' shares without labels, and also measure with adjusted probabilities.
        threshold: for the positive class, instead of the model's; or a rule that chooses it on the val split of `data`.
        alpha: how often prediction sets may miss the true class, instead of the model's alpha.
        false_alarms: the share of ordinary images that the OOD detector may flag, instead of the model's.
        refuse_out_of_scope: leave out images outside the model's intended use, as errors.
        subgroups: what to divide the images by, such as `sex,age,sex*age`; by default by everything that is known.
        resamples: bootstrap resamples behind each interval.
        seed: fixes them.
        cache: keeps features between calls: True for the user's on disk, False for none, or a given one.
        plot_formats: formats of the files in `plots`, such as `svg,pdf,png`.
        patient_ids: whether metrics and report may name patients; `predictions.csv` always does.
        excel: whether `predictions.csv` begins with a byte order mark, which Excel needs to read UTF-8.
        overwrite: whether to replace an earlier evaluation in `out`.
        progress: called with the number of images done; by default a bar in a notebook.

    Raises:
        ModelError, DataError, UsageError: the model, the data or an option cannot be used, or `out` exists.
    """
    with _open(model, device, cache, given := _pick(threshold, alpha, false_alarms, refuse_out_of_scope)) as opened:
        plan = Plan(split or "", prevalence, adapt_prior, resamples, seed, patient_ids, excel, subgroups)
        every = read_samples(data, patient_pattern, reading, naming)
        predictor, samples, plan = _prepare(opened, every, plan, threshold, progress)
        known = _know(data, model, predictor.model, plan, given, patient_pattern, reading, naming)
        known = _note_leak(known, model, samples)
        return _evaluate_into(out, predictor, samples, plan, known, plot_formats, overwrite, progress)


def _note_leak(known: Provenance, model: str | Path | None, samples: Sequence[Sample]) -> Provenance:
    """Add a note on patients whom the model was trained on, and log it."""
    require_extra("evaluate")
    if leak := describe_known_patients(model, samples):
        logging.getLogger("pneumoscope").warning("%s", leak)
        return replace(known, notes=(*known.notes, leak))
    return known


@contextmanager
def _open(model: str | Path | None, device: str, cache: FeatureCache | bool, changes: _Options) -> Iterator[Predictor]:
    with open_cache(cache) as opened:
        yield load(model, device, opened, **{**changes, "threshold": _read_threshold(changes["threshold"])[0]})


def evaluate_predictor(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path | None = None,
    plan: Plan = Plan(),
    provenance: Provenance = Provenance(),
    *,
    plot_formats: str = "svg",
    validation: Evaluation | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a loaded model on samples whose labels it knows; write what `evaluate` writes into an existing folder.

    `validation` has the metrics of the validation split, if they are to stand beside these.

    Raises:
        DataError: none of the images could be read.
    """
    measured = measure(predictor, samples, out, plan, notes=provenance.notes, validation=validation, progress=progress)
    if out is not None:
        write_evaluation(out, predictor, measured, provenance, plot_formats)
    return measured.evaluation


def write_evaluation(
    out: Path, predictor: Predictor, measured: Measured, provenance: Provenance, plot_formats: str = "svg"
) -> None:
    """Write the report on what was measured of a model, and its plots, into an existing folder."""
    model, decisions = predictor.model, predictor.decisions
    adaptations = find_adaptations(model.lineage)
    write_report(
        out,
        measured,
        title="Chest radiograph classifier: " + " or ".join(model.labels),
        policy=Policy(
            decisions.threshold.rule if decisions.threshold else "",
            decisions.calibration.method,
            decisions.calibration.images,
            predictor.alpha,
            0 if adaptations else model.training.get("settings", {}).get("augmented_copies", 0),
            tuple(describe(group, adapted=bool(adaptations)) for group in decisions.groups),
        ),
        provenance=replace(
            provenance,
            notes=measured.evaluation.notes,
            facts={**provenance.facts, "Test fingerprint": measured.fingerprint},
            environment=describe_environment(),
        ),
        draw=lambda i: draw_explained(
            predictor, measured.samples[i], model.positive or measured.predictions[i].predicted_label
        ),
        plot_formats=plot_formats,
    )


def _read_threshold(given: float | str | None) -> tuple[float | None, str | None]:
    """A threshold as a number, or the rule by which it is to be chosen."""
    if not isinstance(given, str):
        return given, None
    rule = parse_rule(given)
    return (rule.value, None) if rule.kind == "fixed" else (None, given)


def _choose_threshold(
    predictor: Predictor, rule: str | None, samples: Sequence[Sample], split: str, progress: Progress
) -> Predictor:
    """The predictor with a threshold chosen by a rule, if there is one, on the validation split.

    The images are weighted to the class fractions of the model.

    Raises:
        UsageError: more than two classes, or no validation split apart from what is measured.
    """
    if rule is None:
        return predictor
    labels, val = predictor.model.labels, [sample for sample in samples if sample.split == "val"]
    if len(labels) > 2:
        raise UsageError("This model has more than two classes, and one threshold decides between two.", "threshold")
    if not val or split in ("val", "all"):
        raise UsageError(
            f"{quote(rule)} is chosen on a validation split, never on the images that are measured: "
            f"{'these are both' if val else 'the data have none'}. Evaluate another split, of data with a split val; "
            "train with this rule; or give a number.",
            "threshold",
        )
    found = [each for each in predictor.predict(val, progress) if each.error is None]
    y = index_labels(found, labels)
    if len(set(y.tolist())) < 2:
        raise UsageError(f"{quote(rule)} needs readable images of both classes in the split val.", "threshold")
    fractions = np.array(predictor.decisions.calibration.class_fractions)
    weights = (fractions / np.maximum(np.bincount(y, minlength=2), 1))[y] * len(y)
    chosen = fit_threshold(rule, y, stack_probabilities(found), weights)
    logging.getLogger("pneumoscope").info(
        "Threshold %.4g by the rule %s, chosen on %d of %d validation images.", chosen.value, rule, len(found), len(val)
    )
    other = copy.copy(predictor)
    other.decider = replace(predictor.decider, decisions=replace(predictor.decisions, threshold=chosen))
    return other


def _evaluate_into(
    out: str | Path | None,
    predictor: Predictor,
    samples: Sequence[Sample],
    plan: Plan,
    known: Provenance,
    plot_formats: str,
    overwrite: bool,
    progress: Progress,
) -> Evaluation:
    parse_formats(plot_formats)
    if out is None:
        idle = {"plot_formats": plot_formats != "svg", "excel": plan.excel, "overwrite": overwrite}
        for name in (name for name, given in idle.items() if given):
            logging.getLogger("pneumoscope").warning("`%s` has no effect without `out`.", name)
    how: dict[str, Any] = {"plot_formats": plot_formats, "progress": progress}
    if out is None:
        return evaluate_predictor(predictor, samples, None, plan, known, **how)
    with lock_folder(Path(out)):
        claim_folder(Path(out), OUTPUTS, overwrite)
        return evaluate_predictor(predictor, samples, Path(out), plan, known, **how)


def _prepare(
    predictor: Predictor, samples: Sequence[Sample], plan: Plan, threshold: float | str | None, progress: Progress
) -> tuple[Predictor, list[Sample], Plan]:
    """Choose the images to measure and, by a rule, the threshold."""
    chosen, plan = _choose_samples(samples, plan, predictor.model)
    rule = _read_threshold(threshold)[1]
    return _choose_threshold(predictor, rule, samples, plan.split, progress), chosen, plan


def _choose_samples(samples: Sequence[Sample], plan: Plan, model: Model) -> tuple[list[Sample], Plan]:
    """Return the samples of the plan's split, and the plan with its name.

    Raises:
        DataError: an unclear split, or labels that the model does not know.
        UsageError: no such split, or a prevalence that the model cannot be adjusted to.
    """
    if plan.adapt_prior and plan.prevalence is not None:
        raise UsageError("estimates the prevalence, and `prevalence` sets it: leave one out.", "adapt_prior")
    check_prevalence(plan.prevalence, model.labels)
    split = plan.split or _choose_split(samples)
    chosen = [sample for sample in samples if split in ("all", sample.split)]
    if not chosen:
        raise UsageError(f"no split {split!r}; the data have {_count_splits(samples)}. Use `all` for all.", "split")
    if not plan.split and len({sample.split for sample in samples}) > 1:
        logging.getLogger("pneumoscope").info(
            "Evaluating the split %s; the data have %s. To evaluate another one, or all, use `split`.",
            split, _count_splits(samples),
        )  # fmt: skip
    check_labels(chosen, model)
    if plan.prevalence is not None and len({sample.label for sample in chosen}) < 2:
        raise DataError("needs images of both classes; there are images of one only.", "prevalence")
    return chosen, replace(plan, split=split)


def check_labels(samples: Sequence[Sample], model: Model) -> None:
    """Check that a model knows the labels of samples.

    Raises:
        DataError: there are others.
    """
    unknown = [sample for sample in samples if sample.label not in model.labels]
    if unknown:
        label = str(unknown[0].label)
        raise DataError(
            f"{unknown[0].path}: its label {label!r} is not a class of the model ({', '.join(model.labels)}). This "
            f"concerns {counted(len(unknown), 'image')}. Say which class it is with `map`, such as "
            f"`map='{label}={_guess(label, model.labels)}'`, or use a model trained on it."
        )


def _choose_split(samples: Sequence[Sample]) -> str:
    """The split to evaluate if none is named: test, else the only one, else all images if there are no splits.

    Raises:
        DataError: several splits and no test, where all images would include those of training.
    """
    present = {str(sample.split) for sample in samples if sample.split}
    if "test" in present or not present:
        return "test" if present else "all"
    if len(present) > 1 or any(sample.split is None for sample in samples):
        raise DataError(f"the data have no test split, but {_count_splits(samples)}. Choose one, or `all`.", "split")
    return present.pop()


def _count_splits(samples: Sequence[Sample]) -> str:
    counts = Counter(sample.split or "no split" for sample in samples)
    return ", ".join(f"{split} ({count:,})" for split, count in sorted(counts.items()))


def _guess(label: str, labels: Sequence[str]) -> str:
    """The class that a label looks like, else a word for any class."""
    return next((each for each in labels if look(each) == look(label)), "CLASS")


def _know(
    data: str | Path, name: str | Path | None, model: Model, plan: Plan, given: _Options,
    patient_pattern: str | None, reading: Reading, naming: Naming,
) -> Provenance:  # fmt: skip
    options = {"patient_pattern": patient_pattern, **given, **asdict(reading), **naming.to_options()}
    return Provenance(facts=_list_facts(str(data), name, model, plan, options))


def _pick(threshold: float | str | None, alpha: float | None, false_alarms: float | None, refuse: bool) -> _Options:
    return {"threshold": threshold, "alpha": alpha, "false_alarms": false_alarms, "refuse_out_of_scope": refuse}


def _list_facts(data: str, name: str | Path | None, model: Model, plan: Plan, options: _Options) -> dict[str, str]:
    """List what a reader needs to understand and repeat an evaluation."""
    shown = None if name is None else hide_signature(str(name))
    given = {"model": shown, "out": "NEW_FOLDER"}
    command = format_command("evaluate", data, **given, **asdict(plan), **options)
    return {
        "Data": data,
        "Model": shown or DEFAULT,
        "Network": f"{model.backbone}, recipe {model.training.get('recipe')}",
        **({"Lineage": describe_lineage(model.lineage)} if model.lineage else {}),
        "Training fingerprint": str(model.data.get("fingerprint", "not known")),
        "Command": command,
    }
