"""Draws splits that share no patient and no group of near-duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import SupportsIndex

import numpy as np

from pneumoscope.config import Seed, checked
from pneumoscope.datasets.duplicates import group_pairs
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.errors import DataError, UsageError
from pneumoscope.text import counted

MIN_VAL = 20  # images of a class in val
REDRAW = "`pneumoscope data split DATA --redraw --out NEW.csv`"  # as messages quote it


@checked
def split_samples(
    samples: Sequence[Sample],
    *,
    test_fraction: float = 0.25,
    val_fraction: float = 1 / 3,
    test_count: int | None = None,
    val_count: int | None = None,
    balanced: Collection[str] = ("val",),
    groups: Sequence[SupportsIndex | None] | None = None,
    seed: Seed = 0,
) -> list[Sample]:
    """Give every sample a split: existing splits are kept, missing ones are drawn from train.

    A drawn split has the class proportions of train (stratified), or as many images of each class (balanced). Its
    patients and groups are in no other split. The order of the samples does not matter.

    Args:
        samples: labelled samples, all with a split or all without one.
        test_fraction: share of each class (balanced: of the smallest) in a drawn test split, in (0, 1).
        val_fraction: the same for a drawn validation split, as a share of the images outside test.
        test_count: number of images, instead of `test_fraction`. Images of a patient stay together, so there may be
            a few fewer.
        val_count: the same for validation.
        balanced: which of `val` and `test` are balanced.
        groups: for each sample the group that it must stay with, such as its near-duplicates, or None.
        seed: fixes the draw.

    Raises:
        DataError: a class or a split is empty, or there are too few images or patients.
        UsageError: a fraction is not in (0, 1), a count leaves out a class, or `balanced` names another split.
    """
    for name, fraction in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
        if not 0 < fraction < 1:
            raise UsageError(f"{fraction} is not between 0 and 1.", name)
    if unknown := set(balanced) - {"val", "test"}:
        raise UsageError(f"{', '.join(sorted(unknown))}: only val and test can be balanced.", "balanced")
    given = {sample.split for sample in samples}
    if None in given and len(given) > 1:
        raise DataError("Some samples have a split and some have none. Give a split to all, or to none.")
    result = [sample if sample.split else replace(sample, split="train") for sample in samples]
    units = _find_units(samples, groups)
    _require_units(samples, units, [split for split in ("val", "test") if split not in given])
    rng = np.random.default_rng(seed)
    for split, fraction, count in (("test", test_fraction, test_count), ("val", val_fraction, val_count)):
        if split not in given:
            counts = _class_counts(result)
            if count is None:
                quotas = _share(counts, fraction, split in balanced)
            else:
                quotas = _apportion(counts, count, split, split in balanced)
            result = _draw(result, units, split, quotas, rng)
    require_classes(result)
    return result


def split_training(
    samples: Sequence[Sample], *, val_fraction: float = 1 / 3, groups: Sequence[SupportsIndex | None] | None = None,
    seed: Seed = 0,
) -> list[Sample]:  # fmt: skip
    """Divide samples into train and a balanced val, for data whose test images are elsewhere; see `split_samples`."""
    units = _find_units(samples, groups)
    result = [replace(sample, split="train") for sample in samples]
    _require_units(samples, units, ["val"])
    quotas = _share(_class_counts(result), val_fraction, balanced=True)
    result = _draw(result, units, "val", quotas, np.random.default_rng(seed))
    require_classes(result, splits=("train", "val"))
    return result


def fold_samples(
    samples: Sequence[Sample],
    folds: int = 5,
    *,
    val_fraction: float = 1 / 3,
    val_count: int | None = None,
    balanced: Collection[str] = ("val",),
    groups: Sequence[SupportsIndex | None] | None = None,
    seed: int = 0,
) -> list[list[Sample]]:
    """Split samples for cross-validation: each is in the test split of exactly one fold.

    Test splits are stratified, patients and groups stay together, and the validation split of a fold is drawn from its
    other images as in `split_samples`, by the same arguments; only `val` can be balanced. Existing splits and the order
    of the samples do not matter.

    Returns:
        For each fold all samples in input order, with their splits in this fold.

    Raises:
        DataError: a class has fewer patients than there are folds, or too few for a validation split.
        UsageError: fewer than 2 folds, or an argument that `split_samples` refuses.
    """
    if folds < 2:
        raise UsageError(f"{folds} is too few: cross-validation needs at least 2.", "folds")
    units = _find_units(samples, groups)
    costs = {unit: Counter(str(samples[index].label) for index in images) for unit, images in units.items()}
    totals = sum(costs.values(), Counter[str]())
    for label in sorted(totals):
        if (patients := sum(label in cost for cost in costs.values())) < folds:
            raise DataError(
                f"Class {label} has images of {patients} patients (or groups of near-duplicates), too few for {folds} "
                "folds. Use fewer folds, or add patients."
            )
    fold_of: dict[int, int] = {}
    for unit, fold in _assign_folds(costs, totals, folds, np.random.default_rng(seed)).items():
        fold_of.update(dict.fromkeys(units[unit], fold))
    return [
        split_samples(
            [replace(s, split="test" if fold_of[i] == fold else "train") for i, s in enumerate(samples)],
            val_fraction=val_fraction,
            val_count=val_count,
            balanced=balanced,
            groups=groups,
            seed=seed,
        )
        for fold in range(folds)
    ]


def find_shared_patients(samples: Sequence[Sample]) -> dict[str, tuple[str, ...]]:
    """Find patients that are in more than one split, with their splits."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.patient is not None and sample.split is not None:
            splits[sample.patient].add(sample.split)
    return {patient: tuple(sorted(where)) for patient, where in sorted(splits.items()) if len(where) > 1}


def describe_small_val(samples: Sequence[Sample]) -> tuple[str, str] | None:
    """What is wrong with a validation split that is small beside train, and what to do; None if nothing is.

    A sensitivity of 0.95 needs 20 images of a class to be seen at all.
    """
    val = Counter(str(sample.label) for sample in samples if sample.split == "val")
    train = _class_counts(samples)
    if not (val and train) or (least := min(val.values())) >= MIN_VAL or min(train.values()) < 5 * least:
        return None
    counts = ", ".join(f"{count:,} {label}" for label, count in sorted(val.items()))
    return (
        f"The validation split has only {val.total():,} images ({counts}), too few to choose a threshold",
        "Calibration, threshold and prediction sets would depend on single images. Draw a larger one from train; test "
        "stays: `pneumoscope data split DATA --redraw-val --out NEW.csv`.",
    )


def require_classes(
    samples: Sequence[Sample], when: str = "", splits: Sequence[str] = SPLITS, classes: Collection[str] | None = None
) -> None:
    """Check that each of the splits has images of every class, of those of the samples by default.

    `when` says what happened before, for the message.

    Raises:
        DataError: a split is empty, or has no image of a class.
    """
    counts = Counter((sample.split, sample.label) for sample in samples)
    classes = sorted({str(sample.label) for sample in samples} if classes is None else classes)
    after = f" {when}" if when else ""
    sizes = Counter(str(sample.split) for sample in samples)
    for split in splits:
        if not any(counts[split, label] for label in classes):
            others = ", ".join(f"{sizes[name]:,} are in {name}" for name in SPLITS if sizes[name])
            found = f"of {counted(len(samples), 'image')}, {others}" if others else "no other split has images either"
            raise DataError(
                f"The split {split!r} is empty{after}: {found}. Give images to {split}, or redraw all splits with "
                f"{REDRAW}."
            )
        for label in classes:
            if not counts[split, label]:
                total = sum(counts[s, label] for s in SPLITS)
                raise DataError(
                    f"The split {split!r} has no image of class {label}{after} ({total} in all: too few images "
                    "or patients). Add images of that class, or leave the class out."
                )


def _require_units(samples: Sequence[Sample], units: Mapping[int, Sequence[int]], drawn: Sequence[str]) -> None:
    """Check that each class has units, images that stay together, enough for train and the splits drawn from it."""
    free = [images for images in units.values() if all(samples[i].split in (None, "train") for i in images)]
    # Without any, the message of `require_classes` is the better one.
    for label in sorted({str(sample.label) for sample in samples}) if free else ():
        own = [images for images in free if any(samples[i].label == label for i in images)]
        if not own or len(own) > len(drawn):
            continue
        patients = {samples[i].patient for images in own for i in images}
        n = sum(samples[i].label == label for images in own for i in images)
        images = counted(n, "image")
        if n <= len(drawn):
            why = f"has only {images}"
        elif len(patients) == 1 and None not in patients:
            why = f"has {images}, all of one patient ({patients.pop()})"
        else:
            number = "one group" if len(own) == 1 else f"{len(own)} groups"
            why = f"has {images} in {number} of the same patient or of near-duplicates, which stay together"
        raise DataError(
            f"The splits cannot be drawn: class {label} {why}, but {' and '.join(('train', *drawn))} each need "
            "different patients. Add patients of this class, identify patients in a table or with `patient_pattern`, "
            "or leave the class out."
        )


def _class_counts(samples: Sequence[Sample]) -> Counter[str]:
    return Counter(str(sample.label) for sample in samples if sample.split == "train")


def _share(counts: Mapping[str, int], fraction: float, balanced: bool) -> dict[str, int]:
    if balanced:
        return dict.fromkeys(counts, max(1, round(fraction * min(counts.values(), default=0))))
    return {label: max(1, round(fraction * count)) for label, count in counts.items()}


def _apportion(counts: Mapping[str, int], wanted: int, split: str, balanced: bool) -> dict[str, int]:
    """Divide a number of images among the classes by largest remainder."""
    if wanted < len(counts):
        raise UsageError(
            f"{wanted} is too few: the split needs an image of each of the {len(counts)} classes.", f"{split}_count"
        )
    if wanted >= (total := sum(counts.values())):
        raise DataError(f"The split {split!r} cannot have {wanted} of {total} images. Choose a smaller number.")
    labels = sorted(counts)
    exact = {label: wanted * (1 / len(counts) if balanced else counts[label] / total) for label in labels}
    quotas = {label: max(1, int(exact[label])) for label in labels}
    for label in sorted(labels, key=lambda label: quotas[label] - exact[label])[: wanted - sum(quotas.values())]:
        quotas[label] += 1
    for label in labels:
        if quotas[label] >= counts[label]:
            raise DataError(
                f"A {'balanced ' * balanced}split {split!r} of {wanted} needs {quotas[label]} images of class {label}, "
                f"but there are only {counts[label]}. Choose a smaller number{', or do not balance it' * balanced}."
            )
    return quotas


def _find_units(samples: Sequence[Sample], groups: Sequence[SupportsIndex | None] | None) -> dict[int, list[int]]:
    """Indices of the images that patients and groups keep together, in an order independent of the input's."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].path.parts, str(samples[i].label)))
    first: dict[tuple[str, object], int] = {}
    pairs = []
    for index, (sample, group) in enumerate(zip(samples, groups or [None] * len(samples), strict=True)):
        if sample.patient:
            pairs.append((first.setdefault(("patient", sample.patient), index), index))
        if group is not None:
            pairs.append((first.setdefault(("group", group), index), index))
    components = group_pairs(pairs, len(samples))
    units: defaultdict[int, list[int]] = defaultdict(list)
    for index in order:
        component = components[index]
        units[-1 - index if component is None else component].append(index)
    return dict(units)


def _assign_folds(
    costs: Mapping[int, Counter[str]], totals: Mapping[str, int], folds: int, rng: np.random.Generator
) -> dict[int, int]:
    """Assign each unit to the fold that has the smallest share of its classes, the largest units first."""
    names = list(costs)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    filled = [Counter[str]() for _ in range(folds)]
    fold_of = {}
    for unit in sorted(shuffled, key=lambda unit: -costs[unit].total()):
        cost = costs[unit]
        fullness = [(sum(n * counts[c] / totals[c] for c, n in cost.items()), counts.total()) for counts in filled]
        fold_of[unit] = fullness.index(min(fullness))
        filled[fold_of[unit]] += cost
    return fold_of


def _draw(
    samples: list[Sample],
    units: Mapping[int, Sequence[int]],
    split: str,
    quotas: Mapping[str, int],
    rng: np.random.Generator,
) -> list[Sample]:
    """Move whole patients from train to `split` at random, as long as they fit the quotas of the classes."""
    # Patients that existing splits share stay in train: moving them would hide the leak.
    names = [unit for unit, images in units.items() if all(samples[index].split == "train" for index in images)]
    missing = Counter(quotas)
    moved: set[int] = set()
    costs = {unit: Counter(str(samples[index].label) for index in units[unit]) for unit in names}
    shuffled = [names[i] for i in rng.permutation(len(names))]
    for unit in shuffled:
        if costs[unit] <= missing:
            moved.update(units[unit])
            missing -= costs[unit]
    for label in quotas:
        if missing[label] == quotas[label]:  # every patient has more images than the quota: take the smallest
            options = [unit for unit in shuffled if label in costs[unit] and moved.isdisjoint(units[unit])]
            moved.update(units[min(options, key=lambda unit: costs[unit].total())] if options else ())
    return [replace(sample, split=split) if i in moved else sample for i, sample in enumerate(samples)]
