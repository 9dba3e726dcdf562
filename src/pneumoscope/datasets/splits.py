"""Patient-disjoint splits: what is drawn here shares no patient and no group with what it was drawn from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pneumoscope.datasets.duplicates import group_pairs
from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.errors import DataError, UsageError


def split_samples(
    samples: Sequence[Sample],
    *,
    test_fraction: float = 0.25,
    val_fraction: float = 1 / 3,
    test_count: int | None = None,
    val_count: int | None = None,
    balanced: Collection[str] = ("val",),
    groups: Sequence[int | None] | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Give every sample a split; those that have one keep it, what is missing is drawn from train.

    A drawn split keeps the class proportions (stratified), or has as many images of each class (balanced). Its
    patients and groups are in no other split. The order of the samples makes no difference to the draw.

    Args:
        samples: labelled samples, all with a split or all without one.
        test_fraction: share of each class (balanced: of the smallest) that a drawn test split takes, in (0, 1).
        val_fraction: the same for a drawn validation split, of what test leaves.
        test_count: number of images, instead of `test_fraction`. A patient's images move together, so that a few of
            them may be missing.
        val_count: the same for validation.
        balanced: which of `val` and `test` are balanced.
        groups: for each sample the group that it must stay with, such as its near-duplicates, or None.
        seed: fixes the draw.

    Raises:
        DataError: a class or a split is empty, or too few images or patients are there to be divided.
        UsageError: a fraction is not in (0, 1), a count leaves a class out, or `balanced` names another split.
    """
    for name, fraction in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
        if not 0 < fraction < 1:
            raise UsageError(f"{name} {fraction}: a share lies between 0 and 1.")
    if unknown := set(balanced) - {"val", "test"}:
        raise UsageError(f"balanced {', '.join(sorted(unknown))}: only val and test are drawn.")
    given = {sample.split for sample in samples}
    if None in given and len(given) > 1:
        raise DataError("Some samples have a split and some have none. Give all of them one, or none.")
    result = [sample if sample.split else replace(sample, split="train") for sample in samples]
    units = _find_units(samples, groups)
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


def fold_samples(
    samples: Sequence[Sample],
    folds: int = 5,
    *,
    val_fraction: float = 1 / 3,
    val_count: int | None = None,
    balanced: Collection[str] = ("val",),
    groups: Sequence[int | None] | None = None,
    seed: int = 0,
) -> list[list[Sample]]:
    """Divide samples for cross-validation: each is in the test split of exactly one fold.

    Test splits are stratified, patients and groups stay together, and each fold's validation split is drawn from its
    other images as `split_samples` draws it. Splits that the samples have are disregarded. The order of the samples
    makes no difference.

    Args:
        samples: labelled samples.
        folds: how many, at least 2.
        val_fraction: see `split_samples`.
        val_count: see `split_samples`.
        balanced: see `split_samples`; here only `val` is drawn.
        groups: see `split_samples`.
        seed: fixes the division.

    Returns:
        For each fold all samples, in input order, each with its split in this fold.

    Raises:
        DataError: a class has fewer patients than there are folds, or too few to be divided further.
        UsageError: fewer than 2 folds, or an option that `split_samples` refuses.
    """
    if folds < 2:
        raise UsageError(f"folds {folds}: cross-validation needs at least 2.")
    units = _find_units(samples, groups)
    costs = {unit: Counter(str(samples[index].label) for index in images) for unit, images in units.items()}
    totals = sum(costs.values(), Counter[str]())
    for label in sorted(totals):
        if (patients := sum(label in cost for cost in costs.values())) < folds:
            raise DataError(
                f"The class {label} comes from {patients} patients or groups of images that stay together, too few for "
                f"{folds} folds. Ask for fewer folds, or add patients."
            )
    names = list(units)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    have = [Counter[str]() for _ in range(folds)]
    fold_of: dict[int, int] = {}
    for unit in sorted(shuffled, key=lambda unit: -costs[unit].total()):  # the large first, while all folds have room
        cost = costs[unit]
        fullness = [(sum(n * own[c] / totals[c] for c, n in cost.items()), own.total()) for own in have]
        fold = fullness.index(min(fullness))
        have[fold] += cost
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
    """Find patients that are in more than one split, and name their splits."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.patient is not None and sample.split is not None:
            splits[sample.patient].add(sample.split)
    return {patient: tuple(sorted(found)) for patient, found in sorted(splits.items()) if len(found) > 1}


def require_classes(samples: Sequence[Sample], when: str = "") -> None:
    """Make sure that every split has images of every class.

    Args:
        samples: with labels and splits.
        when: what has just been done, for the message.

    Raises:
        DataError: a split is empty, or has no image of a class.
    """
    counts = Counter((sample.split, sample.label) for sample in samples)
    classes = sorted({str(sample.label) for sample in samples})
    after = f" {when}" if when else ""
    for split in SPLITS:
        if not any(counts[split, label] for label in classes):
            raise DataError(
                f"The split {split!r} is empty{after}. Add images to it, or leave it out so that it is drawn."
            )
        for label in classes:
            if not counts[split, label]:
                total = sum(counts[s, label] for s in SPLITS)
                raise DataError(
                    f"The split {split!r} has no image of class {label}{after} ({total} in all, from too few patients "
                    "to be divided). Add images of that class, or leave the class out."
                )


def _class_counts(samples: Sequence[Sample]) -> Counter[str]:
    return Counter(str(sample.label) for sample in samples if sample.split == "train")


def _share(counts: Mapping[str, int], fraction: float, balanced: bool) -> dict[str, int]:
    if balanced:
        return dict.fromkeys(counts, max(1, round(fraction * min(counts.values(), default=0))))
    return {label: max(1, round(fraction * count)) for label, count in counts.items()}


def _apportion(counts: Mapping[str, int], wanted: int, split: str, balanced: bool) -> dict[str, int]:
    """Divide a number of images among the classes, by largest remainder."""
    if wanted < len(counts):
        raise UsageError(f"{split}_count {wanted}: too few for an image of each of the {len(counts)} classes.")
    if wanted >= (total := sum(counts.values())):
        raise DataError(f"{wanted} images were asked for the split {split!r}, of {total} there are. Ask for fewer.")
    labels = sorted(counts)
    exact = {label: wanted * (1 / len(counts) if balanced else counts[label] / total) for label in labels}
    quotas = {label: max(1, int(exact[label])) for label in labels}
    for label in sorted(labels, key=lambda label: quotas[label] - exact[label])[: wanted - sum(quotas.values())]:
        quotas[label] += 1
    for label in labels:
        if quotas[label] >= counts[label]:
            raise DataError(
                f"{quotas[label]} images of class {label} are needed for a {'balanced ' * balanced}split {split!r} of "
                f"{wanted}, of {counts[label]} there are. Ask for fewer{', or not for balance' * balanced}."
            )
    return quotas


def _find_units(samples: Sequence[Sample], groups: Sequence[int | None] | None) -> dict[int, list[int]]:
    """What has to stay together: the indices of images that patients and groups connect, in an order of their own."""
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


def _draw(
    samples: list[Sample],
    units: Mapping[int, Sequence[int]],
    split: str,
    quotas: Mapping[str, int],
    rng: np.random.Generator,
) -> list[Sample]:
    """Move whole patients from train to `split`, at random, as long as they fit what each class still wants."""
    # Patients that the user's own folders share with another split stay in train: moving them would hide the leak.
    names = [unit for unit, images in units.items() if all(samples[index].split == "train" for index in images)]
    wanted = Counter(quotas)
    moved: set[int] = set()
    costs = {unit: Counter(str(samples[index].label) for index in units[unit]) for unit in names}
    shuffled = [names[i] for i in rng.permutation(len(names))]
    for unit in shuffled:
        if costs[unit] <= wanted:
            moved.update(units[unit])
            wanted -= costs[unit]
    for label in quotas:
        if wanted[label] == quotas[label]:  # every patient has more images than are wanted: take the smallest
            options = [unit for unit in shuffled if label in costs[unit] and moved.isdisjoint(units[unit])]
            moved.update(units[min(options, key=lambda unit: costs[unit].total())] if options else ())
    return [replace(sample, split=split) if i in moved else sample for i, sample in enumerate(samples)]
