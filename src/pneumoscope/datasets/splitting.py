"""Patient-disjoint splits: whatever is drawn here never shares a patient with what it was drawn from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.errors import DataError, UsageError


def split_samples(
    samples: Sequence[Sample], *, test_fraction: float = 0.25, val_fraction: float = 1 / 3, seed: int = 0
) -> list[Sample]:
    """Give every sample a split; those that have one keep it, what is missing is drawn from train.

    The test split keeps the class proportions (stratified). The validation split is balanced: as many images of each
    class as `val_fraction` of the smallest class of what is left. No patient of a drawn split is in another split.

    Args:
        samples: labelled samples, all with a split or all without one.
        test_fraction: share of each class that a drawn test split takes, in (0, 1).
        val_fraction: share of the smallest class that a drawn validation split takes of each class, in (0, 1).
        seed: fixes the draw.

    Raises:
        DataError: a class or a split is empty, or too few patients are there to be divided.
        UsageError: a fraction is not in (0, 1).
    """
    for name, fraction in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
        if not 0 < fraction < 1:
            raise UsageError(f"{name} {fraction}: a share lies between 0 and 1.")
    given = {sample.split for sample in samples}
    if None in given and len(given) > 1:
        raise DataError("Some samples have a split and some have none. Give all of them one, or none.")
    result = [sample if sample.split else replace(sample, split="train") for sample in samples]
    rng = np.random.default_rng(seed)
    if "test" not in given:
        counts = _class_counts(result)
        result = _draw(result, "test", {c: max(1, round(test_fraction * n)) for c, n in counts.items()}, rng)
    if "val" not in given:
        counts = _class_counts(result)
        quota = max(1, round(val_fraction * min(counts.values(), default=0)))
        result = _draw(result, "val", dict.fromkeys(counts, quota), rng)
    require_classes(result)
    return result


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


def _draw(samples: list[Sample], split: str, quotas: Mapping[str, int], rng: np.random.Generator) -> list[Sample]:
    """Move whole patients from train to `split`, at random, as long as they fit what each class still wants."""
    patients: defaultdict[str, list[int]] = defaultdict(list)
    taken = {sample.patient for sample in samples if sample.split != "train"}
    for index, sample in enumerate(samples):
        if sample.split == "train":
            patients[sample.patient or f"\0{index}"].append(index)
    # Patients that the user's own folders share with another split stay in train: moving them would hide the leak.
    names = [name for name in patients if name not in taken]
    wanted = Counter(quotas)
    moved: set[int] = set()
    costs = {name: Counter(str(samples[index].label) for index in patients[name]) for name in names}
    shuffled = [names[i] for i in rng.permutation(len(names))]
    for name in shuffled:
        if costs[name] <= wanted:
            moved.update(patients[name])
            wanted -= costs[name]
    for label in quotas:
        if wanted[label] == quotas[label]:  # every patient has more films than are wanted: take the smallest
            options = [name for name in shuffled if label in costs[name] and moved.isdisjoint(patients[name])]
            moved.update(patients[min(options, key=lambda name: costs[name].total())] if options else ())
    return [replace(sample, split=split) if i in moved else sample for i, sample in enumerate(samples)]
