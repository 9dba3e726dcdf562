"""The methods of a run in words, for a paper: only what happened, from recorded settings, history and results."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType

from pneumoscope.datasets.splits import find_shared_patients
from pneumoscope.decisions import groups
from pneumoscope.decisions.calibration import NAMES as CALIBRATIONS
from pneumoscope.decisions.calibration import Calibration
from pneumoscope.evaluation.metrics import NAMES
from pneumoscope.evaluation.subgroups import count_differences
from pneumoscope.images.augment import Augmentation
from pneumoscope.inference.prediction import SHORT
from pneumoscope.models.backbones import find_backbone
from pneumoscope.models.lineage import TRAINED, find_adaptations
from pneumoscope.reports.pages import format_level, format_percent, group_methods
from pneumoscope.reports.report import describe_rule
from pneumoscope.reports.study import SPLIT_NAMES, Study
from pneumoscope.text import counted, were

_FITS = {
    "crop": "resized so that the shorter side had {} pixels and cropped to the central square",
    "pad": "resized to fit into a square of {0} x {0} pixels and padded with black",
    "squash": "resized to {0} x {0} pixels without keeping their proportions",
}
_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "stochastic gradient descent"}
_CHANGES = {
    "rotate": "rotation by up to {:g}°", "shift": "shift by up to {:.0%} of the side", "zoom": "zoom by up to {:.0%}",
    "stretch": "a change of the ratio of width to height by a factor of up to exp({:g})",
    "crop": "a crop of up to {:.1%} at each edge", "brightness": "brightness by up to {:.0%} of the range",
    "contrast": "contrast by up to {:.0%}", "gamma": "a gamma of exp(-{0:g}) to exp({0:g})",
    "blur": "blurring that loses up to {:.0%} of the resolution",
    "noise": "Gaussian noise with a standard deviation of up to {:.0%} of the range",
    "sharpen": "sharpening by up to {:g} times the fine detail",
    "compress": "JPEG compression that loses up to {:.0%} of the quality",
}  # fmt: skip
_ONE_SIDED = {"crop": "crop", "blur": "blur", "noise": "noise", "sharpen": "sharpening", "compress": "compression"}


def write_methods(study: Study) -> dict[str, str]:
    """Paragraphs on the methods of a run, by heading."""
    return {heading: describe(study) for heading, describe in PARAGRAPHS.items()}


def describe_data(study: Study) -> str:
    """How many images of how many patients, from where, and what was left out."""
    samples = study.samples
    classes = Counter(str(sample.label) for sample in samples)
    patients, unknown = len({each.patient for each in samples if each.patient}), sum(not s.patient for s in samples)
    of = f" of {counted(patients, 'patient')}" if patients else ""
    parts = [
        f"The dataset comprised {counted(len(samples), 'radiograph')}{of} "
        f"({', '.join(f'{n:,} {name}' for name, n in sorted(classes.items()))})."
    ]
    if unknown:
        parts.append(f"The patient of {counted(unknown, 'image')} was not known; each counted as its own patient.")
    if study.sources:
        parts.append(f"The training images came from {' and '.join(each.title for each in study.sources)}.")
    parts += [describe_left_out(study), describe_unreadable(study)]
    return " ".join(filter(None, parts))


def describe_left_out(study: Study) -> str:
    """What reading the data left out, by reason."""
    if study.left_out is None:
        return ""
    if not (reasons := study.count_left_out()):
        return "No file of the dataset was left out before reading."
    return f"Left out before reading: {', '.join(f'{reason} ({n:,})' for reason, n in reasons.items())}."


def describe_unreadable(study: Study) -> str:
    """How many images could not be read, by split."""
    if not study.unreadable:
        return "All images could be read."
    listed = ", ".join(f"{n:,} {label} ({SPLIT_NAMES[split]})" for (split, label), n in study.unreadable.items())
    return f"{were(study.unreadable.total(), 'image')} left out because the file could not be used: {listed}."


def describe_splits(study: Study) -> str:
    """The sizes of the splits, whether they were given or drawn, and whether patients overlap."""
    sizes = [f"{SPLIT_NAMES[split]} {len(study.select(split)):,}" for split in study.splits]
    parts = [f"Images by split: {', '.join(sizes)}."]
    if study.drawn is not None:
        given = [split for split in study.splits if split not in study.drawn and len(study.drawn) < 2]
        if given:
            parts.append(f"Given by the dataset: {', '.join(SPLIT_NAMES[split] for split in given)}.")
        shares = {"val": "{} of the smallest class from each class", "test": "{} of each class"}
        for split in study.drawn:
            share = shares[split].format(format_percent(study.settings[f"{split}_fraction"]))
            parts.append(
                f"The {SPLIT_NAMES[split]} split was drawn at random (seed {study.settings['seed']}), {share}; images "
                "of a known patient and identical images stayed together."
            )
    return " ".join([*parts, describe_overlap(study)])


def describe_overlap(study: Study) -> str:
    """Whether a known patient is in more than one split."""
    known = sum(sample.patient is not None for sample in study.samples)
    if not known:
        return "Patients were not known, so the splits are disjoint by image only."
    shared = len(find_shared_patients(study.samples))
    unknown = len(study.samples) - known
    rest = f" The patient of {counted(unknown, 'image')} was not known." if unknown else ""
    if shared:
        return f"{counted(shared, 'patient')} had images in more than one split.{rest}"
    return f"No known patient had images in more than one split.{rest}"


def describe_preprocessing(study: Study) -> str:
    """How pixels became network input."""
    spec, settings = study.model.input, study.settings
    size = spec.size if spec.fit != "crop" else f"{spec.size}"
    mean, std = (f"({', '.join(f'{value:g}' for value in values)})" for values in (spec.mean, spec.std))
    parts = [
        f"Images were read as one grey channel in [0, 1], {_FITS[spec.fit].format(size)} ({spec.interpolation}, "
        f"antialiased), repeated in three channels and normalised with mean {mean} and standard deviation {std}."
    ]
    if settings.get("invert"):
        parts.append("Black and white were swapped, because air was bright in the files.")
    return " ".join(parts)


def describe_network(study: Study) -> str:
    """The network, its first weights, and which part of it was trained."""
    model = study.model
    spec = find_backbone(model.backbone)
    initial = next((each.parent for each in reversed(model.lineage) if each.step == TRAINED), None)
    outputs = "one output" if study.two else f"{len(model.labels)} outputs"
    if initial:
        start = f"training continued from the model {initial.name} (weights {initial.weights_sha256[:SHORT]})"
        start += (
            f", which had learned from {' and '.join(each.title for each in study.earlier)}" if study.earlier else ""
        )
    elif study.settings.get("weights"):
        start = f"its weights came from the file {study.settings['weights']}"
    else:
        start = f"its pretrained weights came from {spec.source} (licence {spec.licence})"
    phases = model.training.get("phases", {})
    trained = "The whole network was trained" if "finetune" in phases else "The backbone stayed frozen"
    return (
        f"The network was {model.backbone} (timm architecture {model.architecture}) with a linear layer of {outputs} "
        f"on its average-pooled features; {start}. {trained}."
    )


def describe_augmentation(study: Study) -> str:
    """The random changes of training images."""
    settings = study.settings
    images = sum(study.model.data["counts"]["train"].values())
    augmentation = Augmentation(**{each.name: settings[each.name] for each in fields(Augmentation)}).scale_crop(images)
    flip = f"flipped left to right with a probability of {augmentation.flip:g}" if augmentation.flip else ""
    changes = [text.format(amount) for name, text in _CHANGES.items() if (amount := getattr(augmentation, name))]
    if not settings["train_backbone"] or not changes:
        return (
            f"Training images were {flip}; nothing else was changed." if flip else "Images were not changed at random."
        )
    changes = [flip, *changes] if flip else changes
    halved = [word for name, word in _ONE_SIDED.items() if getattr(augmentation, name)]
    half = f" In half of the draws, each of these was left out: {', '.join(halved)}." if halved else ""
    return f"While the whole network was trained, images were changed at random: {', '.join(changes)}.{half}"


def describe_optimisation(study: Study) -> str:
    """Loss, optimiser, learning rates and class balance, for each phase that took place."""
    settings = study.settings
    loss = "binary cross-entropy" if study.two else "cross-entropy"
    optimizer = _OPTIMIZERS[settings["optimizer"]]
    if settings["optimizer"] == "sgd":
        optimizer += f" (momentum {settings['momentum']:g})"
    rates = {"head": f"a learning rate of {settings['lr']:g}"}
    rates["finetune"] = f"learning rates of {settings['lr']:g} (head) and {settings['backbone_lr']:g} (backbone)"
    phases = [rates[phase] for phase in _group_phases(study)]
    names = {"head": "the head on fixed features", "finetune": "the whole network"}
    steps = " and then ".join(
        f"{names[phase]} with {rate}" for phase, rate in zip(_group_phases(study), phases, strict=True)
    )
    parts = [
        f"{optimizer} minimised {loss} in batches of {settings['batch_size']} (weight decay "
        f"{settings['weight_decay']:g}): {steps}. {describe_balance(study)} Random choices were fixed by the seed "
        f"{settings['seed']}."
    ]
    if settings["ema"]:
        parts.append(f"An exponential moving average of the weights (decay {settings['ema']:g}) was kept.")
    if "finetune" in _group_phases(study):
        if settings["freeze_batchnorm"]:
            parts.append("Batch-norm statistics stayed fixed.")
        parts.append(f"Arithmetic was in {settings['precision']}.")
    return " ".join(parts)


def describe_balance(study: Study) -> str:
    """How classes were balanced."""
    by = study.settings.get("balance_by")
    return {
        "none": "Classes were not balanced.",
        "weights": "Each class had the same weight in the loss.",
        "sampling": "Classes were drawn equally often" + (f", and within each the groups by {by}." if by else "."),
    }[study.settings["balance"]]


def describe_stopping(study: Study) -> str:
    """How each phase ended, and which epoch was kept."""
    settings, best = study.settings, study.model.training["best"]
    parts = []
    for phase, rows in _group_phases(study).items():
        head = phase == "head"
        name = "the head" if head else "the whole network"
        limit = settings["warmup_epochs"] if head and settings["train_backbone"] else settings["epochs"]
        if not head and settings["schedule"] == "cosine":
            parts.append(
                f"Learning rates of {name} fell to zero along a cosine over {counted(len(rows), 'epoch')}, the last of "
                "which was kept."
            )
            continue
        lowest = min(rows, key=lambda row: float(row["val_loss"]))
        rates = f"{float(rows[0]['lr']):g} to {float(rows[-1]['lr']):g}"
        stopped = len(rows) - int(lowest["epoch"]) >= settings["patience"]
        end = f"stopped early after {len(rows)} of at most {limit}" if stopped else f"ran for all of its {len(rows)}"
        end = end if stopped or len(rows) == limit or not head else f"ended after {len(rows)} of at most {limit}"
        parts.append(
            f"Training of {name} {end} epochs; it was to stop after {settings['patience']} epochs without a lower "
            f"validation loss, which was lowest in epoch {lowest['epoch']} ({float(lowest['val_loss']):.4f}). The "
            f"learning rate, multiplied by {settings['plateau_factor']:g} after more than "
            f"{counted(settings['plateau_patience'], 'such epoch')}, went from {rates}."
        )
    which = "the trained head alone" if best["phase"] == "head" and len(_group_phases(study)) > 1 else "the weights"
    kept = f"The model has {which} of epoch {best['epoch']} of that phase (validation loss {best['val_loss']:.4f})."
    return " ".join([*parts, kept])


def _group_phases(study: Study) -> Mapping[str, list[Mapping[str, str]]]:
    phases: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in study.history:
        phases[row["phase"]].append(row)
    return phases


def describe_calibration(study: Study) -> str:
    """How logits became probabilities."""
    fitted = study.decisions.calibration
    shares = ", ".join(
        f"{format_percent(share)} {name}"
        for name, share in zip(study.model.labels, fitted.class_fractions, strict=True)
    )
    hold = f"Probabilities hold for these shares of the classes: {shares}."
    if fitted.method == "none":
        return f"Probabilities were not calibrated{_explain_none(fitted)}. {hold}"
    copies = study.settings.get("augmented_copies", 0)
    drawn = counted(copies, "augmented copy").replace("copys", "copies")
    also = f", of each the image itself or one of its {drawn}, drawn at random" if copies else ""
    chosen = ", chosen by cross-validated log loss," if study.settings.get("calibration") == "auto" else ""
    images = counted(fitted.images, "validation image")
    worse = fitted.after.get("log_loss", -math.inf) >= fitted.before.get("log_loss", math.inf)
    vain = " It did not lower the cross-validated log loss." if worse else ""
    return f"{CALIBRATIONS[fitted.method]}{chosen} was fitted on {images}{also}.{vain} {hold}"


def _explain_none(fitted: Calibration) -> str:
    others = [CALIBRATIONS[name].replace("T", "t").replace("I", "i") for name in fitted.tried if name != "none"]
    also = f", with {' or '.join(others)} it was higher" if others else ""
    return f", because the cross-validated log loss was lowest without{also}" if fitted.tried else ""


def describe_threshold(study: Study) -> str:
    """How probabilities became predicted labels."""
    decisions, labels = study.decisions, study.model.labels
    if decisions.threshold is not None:
        rule = describe_rule(decisions.threshold.rule)
        return (
            f"An image was predicted as {study.model.positive} if its probability was at least "
            f"{decisions.threshold.value:.4g}. Rule of this threshold: {rule}. The rule was set before training; no "
            "test image was used for it."
        )
    if decisions.class_thresholds:
        cuts = ", ".join(f"{name} {cut:.3g}" for name, cut in zip(labels, decisions.class_thresholds, strict=True))
        return f"The class that reached the largest multiple of its threshold was predicted ({cuts})."
    return "The likeliest class was predicted."


def describe_decisions(study: Study) -> str:
    """When an image gets no label."""
    sets, detector = study.decisions.prediction_sets, study.decisions.ood
    parts = []
    if sets is not None:
        parts.append(
            f"Class-wise conformal prediction sets, from validation images, may miss the true class in "
            f"{format_percent(sets.alpha)} of each class; an image whose set did not hold exactly the predicted label "
            "was called uncertain."
        )
    if detector is not None:
        parts.append(
            f"A detector ({detector.method}) called images out of distribution; its limit was set to flag "
            f"{format_percent(detector.false_alarms)} of the validation images of each class, but at least one."
        )
    cut = study.decisions.threshold
    limits = ["the threshold"] if cut is not None and cut.follows_prevalence else []
    limits += ["the limit of the detector"] if detector is not None else []
    if study.settings.get("augmented_copies") and limits:
        parts.append(f"The validation images with all their augmented copies set {' and '.join(limits)}.")
    if study.decisions.groups:
        adapted = bool(find_adaptations(study.model.lineage))
        listed = "; ".join(groups.describe(group, adapted=adapted) for group in study.decisions.groups)
        parts.append(
            "Groups by age and view, where a DICOM header or a table gives these, had rules of their own. All other "
            f"images were decided on as stated above: {listed}."
        )
    return " ".join(parts) or "Every image got a label."


def describe_metrics(study: Study) -> str:
    """What was measured, and on which images."""
    metrics = study.metrics
    defined = [NAMES[name] for name, each in metrics["metrics"].items() if each["value"] is not None]
    patients = f" of {counted(metrics['patients'], 'patient')}" if metrics["patients"] else ""
    split = SPLIT_NAMES.get(metrics["split"], metrics["split"])
    return (
        f"On {counted(metrics['n'], 'image')}{patients} of the {split} split: {', '.join(defined)}. They cover all "
        "readable images, whatever the decision."
    )


def describe_uncertainty(study: Study) -> str:
    """How intervals were computed."""
    metrics = study.metrics
    methods = "; ".join(f"{', '.join(names)}: {method}" for method, names in group_methods(metrics["methods"]).items())
    clusters = (
        "Images of one patient counted together." if metrics["patients"] else "Images were treated as independent."
    )
    return (
        f"Intervals are {format_level(metrics['confidence'])} intervals. {methods}. Where they resample: "
        f"{metrics['resamples']:,} resamples, seed {metrics['seed']}. {clusters} {describe_tests(study)}"
    )


def describe_tests(study: Study) -> str:
    """Which tests of significance were made, and how their p values were corrected."""
    tested = [
        (part.kind, name)
        for part in study.subgroups
        for name, difference in part.differences.items()
        if not math.isnan(difference.p)
    ]
    if not tested:
        return "No test of significance was made."
    kinds, metrics = (list(dict.fromkeys(each)) for each in zip(*tested, strict=True))
    number = count_differences(study.subgroups, study.metrics["n"])
    return (
        f"Each subgroup ({', '.join(kinds)}) was compared with all other images: {counted(number, 'two-sided test')} "
        f"({', '.join(NAMES[name] for name in metrics)}). Each p value belongs to the interval of its difference, and "
        "was corrected by Holm's method for all of these tests. No other test of significance was made."
    )


def _join(*parts: Callable[[Study], str]) -> Callable[[Study], str]:
    return lambda study: " ".join(part(study) for part in parts)


PARAGRAPHS: Mapping[str, Callable[[Study], str]] = MappingProxyType({
    "Data": describe_data,
    "Splits": describe_splits,
    "Preprocessing": describe_preprocessing,
    "Network": describe_network,
    "Augmentation": describe_augmentation,
    "Training": _join(describe_optimisation, describe_stopping),
    "Decisions": _join(describe_calibration, describe_threshold, describe_decisions),
    "Statistics": _join(describe_metrics, describe_uncertainty),
})  # fmt: skip
