"""Splitting: no patient is ever drawn into two splits, whatever the data look like."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.datasets.samples import SPLITS, Sample
from pneumoscope.datasets.splits import find_shared_patients, fold_samples, require_classes, split_samples
from pneumoscope.errors import DataError, UsageError

seeds = st.integers(0, 2**32 - 1)
fractions = st.floats(0.1, 0.5)


def images(patients: Sequence[Sequence[str]], *, known: bool = True, split: str | None = None) -> list[Sample]:
    """A sample for each label of each patient."""
    return [
        Sample(Path(f"{split}/{number}-{place}.png"), label, f"p{number}" if known else None, split)
        for number, labels in enumerate(patients)
        for place, label in enumerate(labels)
    ]


def singles(**counts: int) -> list[Sample]:
    return images([[label] for label, count in counts.items() for _ in range(count)])


def count(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        counts[str(sample.split)][str(sample.label)] += 1
    return {split: dict(found) for split, found in counts.items()}


def patients_of(samples: Sequence[Sample], split: str) -> set[str | None]:
    return {sample.patient for sample in samples if sample.split == split}


@st.composite
def hospitals(draw: st.DrawFn) -> list[Sample]:
    """Two or three classes of at least eight patients with one to three images each, in any order, some unknown."""
    patients = [
        [label] * size
        for label in draw(st.sampled_from(["AB", "ABC"]))
        for size in draw(st.lists(st.integers(1, 3), min_size=8, max_size=25))
    ]
    samples = [
        sample if draw(st.integers(0, 9)) else replace(sample, patient=None)
        for sample in images(draw(st.permutations(patients)))
    ]
    return draw(st.permutations(samples))


@settings(max_examples=60, deadline=None)
@given(samples=hospitals(), seed=seeds, test=fractions, val=fractions)
def test_drawn_splits_are_patient_disjoint_stratified_and_repeatable(
    samples: list[Sample], seed: int, test: float, val: float
) -> None:
    result = split_samples(samples, test_fraction=test, val_fraction=val, seed=seed)
    assert [replace(sample, split=None) for sample in result] == samples
    assert result == split_samples(samples, test_fraction=test, val_fraction=val, seed=seed)
    assert find_shared_patients(result) == {}
    counts, classes = count(result), {str(sample.label) for sample in samples}
    assert {split: set(found) for split, found in counts.items()} == dict.fromkeys(SPLITS, classes)
    largest = 3  # images of a patient
    total = Counter(sample.label for sample in samples)
    left = {label: total[label] - counts["test"][label] for label in classes}
    for label in classes:
        wanted = max(1, round(test * total[label]))
        assert wanted - largest < counts["test"][label] <= max(wanted, largest)
        wanted = max(1, round(val * min(left.values())))
        assert wanted - largest < counts["val"][label] <= max(wanted, largest)


@settings(max_examples=40, deadline=None)
@given(a=st.integers(4, 60), b=st.integers(4, 60), seed=seeds, known=st.booleans())
def test_with_one_image_a_patient_test_is_stratified_and_val_is_balanced_exactly(
    a: int, b: int, seed: int, known: bool
) -> None:
    samples = images([["A"]] * a + [["B"]] * b, known=known)
    counts = count(split_samples(samples, seed=seed))
    test = {"A": max(1, round(a / 4)), "B": max(1, round(b / 4))}
    val = max(1, round(min(a - test["A"], b - test["B"]) / 3))
    assert counts["test"] == test
    assert counts["val"] == {"A": val, "B": val}
    assert counts["train"] == {"A": a - test["A"] - val, "B": b - test["B"] - val}


def test_the_published_seed_is_divided_as_published() -> None:
    samples = [replace(sample, split="train") for sample in singles(NORMAL=150, PNEUMONIA=150)]
    samples += images([["NORMAL"]] * 50 + [["PNEUMONIA"]] * 50, known=False, split="test")
    half = {"NORMAL": 50, "PNEUMONIA": 50}
    assert count(split_samples(samples)) == {"train": {"NORMAL": 100, "PNEUMONIA": 100}, "val": half, "test": half}


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.lists(st.sampled_from("AB"), min_size=1, max_size=5), min_size=1, max_size=12),
    seed=seeds,
    data=st.data(),
)
def test_any_patients_at_all_are_divided_or_refused_never_shared(
    patients: list[list[str]], seed: int, data: st.DataObject
) -> None:
    samples = images(patients)  # few, of mixed classes, perhaps too few
    given_ = data.draw(st.sampled_from([(None,), ("train", "test"), ("train", "val"), SPLITS]))
    whose = {sample.patient: data.draw(st.sampled_from(given_)) for sample in samples}
    samples = [replace(sample, split=whose[sample.patient]) for sample in samples]
    try:
        result = split_samples(samples, seed=seed)
    except DataError as problem:
        assert "split" in str(problem)  # noqa: PT017 - either outcome is right
        return
    assert find_shared_patients(result) == {}
    require_classes(result)
    for before, after in zip(samples, result, strict=True):
        assert replace(after, split=before.split) == before
        assert after.split == before.split or before.split in (None, "train")


def test_seeds_draw_different_splits() -> None:
    samples = singles(A=30, B=30)
    drawn = [split_samples(samples, seed=seed) for seed in range(10)]
    for split in ("val", "test"):
        assert len({tuple(sample.path for sample in result if sample.split == split) for result in drawn}) == 10


def test_every_patient_may_be_drawn_into_every_split() -> None:
    samples = singles(A=12, B=12)
    seen = Counter((s.patient, s.split) for seed in range(60) for s in split_samples(samples, seed=seed))
    assert len(seen) == 24 * 3
    shares = np.array([seen[f"p{i}", "test"] for i in range(24)]) / 60
    assert abs(shares.mean() - 0.25) < 1e-9
    assert shares.min() > 0.05


def test_splits_of_the_user_are_kept_as_they_are() -> None:
    samples = images([["A"], ["B"]] * 3)
    samples = [replace(sample, split=SPLITS[i // 2]) for i, sample in enumerate(samples)]
    assert split_samples(samples, seed=5) == samples


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_only_what_is_missing_is_drawn_and_only_from_train(seed: int) -> None:
    groups = [["A", "A"], ["A"], ["B"], ["B", "B"]] * 6
    for missing in ("val", "test"):
        other = "test" if missing == "val" else "val"
        own = [replace(sample, patient=f"{other}-{sample.patient}") for sample in images(groups, split=other)]
        samples = images(groups, split="train") + own
        result = split_samples(samples, seed=seed)
        assert result[len(samples) - len(own) :] == own
        assert {sample.split for sample in result[: len(samples) - len(own)]} == {"train", missing}
        assert find_shared_patients(result) == {}


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_patient_whom_the_users_folders_share_stays_where_it_is(seed: int) -> None:
    train = images([["A"], ["B"]] * 8, split="train")
    shared = [replace(sample, path=Path(f"again-{i}.png"), split="test") for i, sample in enumerate(train[:4])]
    result = split_samples(train + shared, seed=seed)
    assert find_shared_patients(result) == {f"p{i}": ("test", "train") for i in range(4)}
    assert {sample.split for sample in result[:4]} == {"train"}
    assert not patients_of(result, "val") & {f"p{i}" for i in range(4)}
    assert count(result)["val"] == {"A": 3, "B": 3}


def test_a_class_of_large_patients_still_reaches_every_split() -> None:
    samples = images([["A"]] * 30 + [["B"] * 9] * 4)
    result = split_samples(samples)
    assert find_shared_patients(result) == {}
    assert [count(result)[split]["B"] for split in SPLITS] == [18, 9, 9]


@settings(deadline=None)
@given(seed=seeds)
def test_where_every_patient_is_too_large_the_smallest_is_drawn(seed: int) -> None:
    samples = images([["A"]] * 20 + [["B"] * size for size in (9, 6, 5, 7, 8)])
    result = split_samples(samples, test_fraction=0.05, val_fraction=0.1, seed=seed)
    assert [count(result)[split]["B"] for split in SPLITS] == [24, 6, 5]


@pytest.mark.parametrize("rare", [1, 2])
def test_a_class_of_too_few_images_is_an_error_that_names_it_and_a_remedy(rare: int) -> None:
    with pytest.raises(DataError, match=rf"cannot be drawn: class B has only {rare} image.*Add patients"):
        split_samples(singles(A=20, B=rare))


def test_a_class_of_one_patient_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"class B has 40 images, all of one patient \(p20\)"):
        split_samples(images([["A"]] * 20 + [["B"] * 40]))


def test_a_class_whose_images_all_stay_together_is_an_error_that_says_so() -> None:
    samples = singles(A=20, B=40)
    groups = [None] * 20 + [0] * 40
    with pytest.raises(DataError, match="class B has 40 images in one group of the same patient or of near-duplicates"):
        split_samples(samples, groups=groups)
    given = [replace(sample, split="test" if i % 20 == 0 else "train") for i, sample in enumerate(samples)]
    with pytest.raises(DataError, match=r"class B has 38 images in one group.*but train and val each need"):
        split_samples(given, groups=[None] * 20 + [None if i % 20 == 0 else 0 for i in range(40)])


@pytest.mark.parametrize("empty", SPLITS)
def test_a_split_without_images_or_without_a_class_is_an_error_that_names_it(empty: str) -> None:
    samples = [Sample(Path(f"{i}-{split}"), label, None, split) for split in SPLITS for i, label in enumerate("AB")]
    require_classes(samples)
    with pytest.raises(DataError, match=f"The split '{empty}' is empty after reading"):
        require_classes([sample for sample in samples if sample.split != empty], "after reading")
    with pytest.raises(DataError, match=f"The split '{empty}' has no image of class B"):
        require_classes([sample for sample in samples if (sample.split, sample.label) != (empty, "B")])


@pytest.mark.parametrize("given_", [["val"], ["test"], ["val", "test"], []])
def test_without_a_train_split_there_is_nothing_to_draw_from(given_: list[str]) -> None:
    samples = [replace(sample, split=split) for split in given_ for sample in singles(A=5, B=5)]
    with pytest.raises(DataError, match="The split 'train' is empty"):
        split_samples(samples)


def test_a_class_that_only_the_test_split_has_is_an_error_that_names_it() -> None:
    samples = images([["A"], ["B"]] * 6, split="train") + images([["A"], ["B"], ["C"]], split="test", known=False)
    with pytest.raises(DataError, match="'train' has no image of class C"):
        split_samples(samples)


def test_samples_of_which_only_some_have_a_split_are_an_error() -> None:
    samples = singles(A=5, B=5)
    with pytest.raises(DataError, match="Some samples have a split and some have none"):
        split_samples([replace(samples[0], split="train"), *samples[1:]])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["test_fraction", "val_fraction"])
def test_a_fraction_out_of_range_is_wrong_usage(name: str, fraction: float) -> None:
    with pytest.raises(UsageError, match=f"{name}: .*between 0 and 1"):
        split_samples(singles(A=9, B=9), **{name: fraction})  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(samples=hospitals(), seed=seeds, data=st.data())
def test_the_order_of_the_samples_makes_no_difference(samples: list[Sample], seed: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(samples))))
    groups = data.draw(st.lists(st.none() | st.integers(0, 9), min_size=len(samples), max_size=len(samples)))
    moved, moved_groups = [samples[i] for i in order], [groups[i] for i in order]
    try:
        expected = split_samples(samples, groups=groups, seed=seed)
    except DataError:
        with pytest.raises(DataError):
            split_samples(moved, groups=moved_groups, seed=seed)
        return
    assert split_samples(moved, groups=moved_groups, seed=seed) == [expected[i] for i in order]


@settings(max_examples=30, deadline=None)
@given(samples=hospitals(), seed=seeds, data=st.data())
def test_groups_and_patients_stay_together_directly_and_through_each_other(
    samples: list[Sample], seed: int, data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.none() | st.integers(0, len(samples)), min_size=len(samples), max_size=len(samples)))
    try:
        result = split_samples(samples, groups=groups, seed=seed)
    except DataError:  # what hangs together may be too much to be divided
        return
    assert find_shared_patients(result) == {}
    assert (
        find_shared_patients(
            [replace(s, patient=None if g is None else str(g)) for s, g in zip(result, groups, strict=True)]
        )
        == {}
    )
    require_classes(result)


def test_a_group_that_existing_splits_share_stays_where_it_is() -> None:
    samples = images([["A"], ["B"]] * 8, split="train") + images([["A"], ["B"]] * 4, split="test", known=False)
    groups = [0 if i < 2 else None for i in range(16)] + [0] + [None] * 7
    for seed in range(10):
        result = split_samples(samples, groups=groups, seed=seed)
        assert [sample.split for sample in result[:2]] == ["train", "train"]
        assert [sample.split for sample in result[16:]] == ["test"] * 8


@settings(max_examples=30, deadline=None)
@given(a=st.integers(20, 60), b=st.integers(20, 60), test=st.integers(2, 15), val=st.integers(2, 15), seed=seeds)
def test_counts_are_met_exactly_with_one_image_a_patient(a: int, b: int, test: int, val: int, seed: int) -> None:
    samples = singles(A=a, B=b)
    plain = count(split_samples(samples, test_count=test, val_count=val, balanced=(), seed=seed))
    even = count(split_samples(samples, test_count=test, val_count=val, balanced=("val", "test"), seed=seed))
    for counts in (plain, even):
        assert sum(counts["test"].values()) == test
        assert sum(counts["val"].values()) == val
    assert abs(plain["test"]["A"] - test * a / (a + b)) <= 1
    for split in ("val", "test"):
        assert 0 <= even[split]["A"] - even[split]["B"] <= 1


def test_counts_make_the_published_division_of_400_images() -> None:
    counts = count(
        split_samples(singles(NORMAL=900, PNEUMONIA=300), test_count=100, val_count=100, balanced=("test", "val"))
    )
    assert counts["test"] == counts["val"] == {"NORMAL": 50, "PNEUMONIA": 50}


def test_test_can_be_balanced_and_val_stratified_by_fraction() -> None:
    counts = count(split_samples(singles(A=80, B=40), test_fraction=0.25, val_fraction=0.5, balanced=("test",)))
    assert counts["test"] == {"A": 10, "B": 10}
    assert counts["val"] == {"A": 35, "B": 15}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"test_count": 30}, DataError, "The split 'test' cannot have 30 of 30 images"),
        (
            {"test_count": 20, "balanced": ("test",)},
            DataError,
            "balanced split 'test' of 20 needs 10 images of class B",
        ),
        ({"test_count": 1}, UsageError, "test_count: 1 is too few: the split needs an image of each of the 2 classes"),
        ({"val_count": -3}, UsageError, "val_count: -3 is too few"),
        ({"balanced": ("train",)}, UsageError, "balanced: train: only val and test can be balanced"),
    ],
)
def test_impossible_splits_are_errors_that_name_the_reason(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        split_samples(singles(A=20, B=10), **options)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(samples=hospitals(), folds=st.integers(2, 5), seed=seeds, data=st.data())
def test_folds_test_every_image_once_and_are_disjoint_stratified_and_repeatable(
    samples: list[Sample], folds: int, seed: int, data: st.DataObject
) -> None:
    results = fold_samples(samples, folds, seed=seed)
    assert len(results) == folds
    for result in results:
        assert [replace(sample, split=None) for sample in result] == samples
        assert find_shared_patients(result) == {}
        require_classes(result)
    assert [sum(r[i].split == "test" for r in results) for i in range(len(samples))] == [1] * len(samples)
    for label in {str(sample.label) for sample in samples}:
        tested = [count(result)["test"][label] for result in results]
        assert max(tested) - min(tested) <= 3  # images of a patient
    order = data.draw(st.permutations(range(len(samples))))
    moved = fold_samples([replace(samples[i], split="train") for i in order], folds, seed=seed)
    assert moved == [[result[i] for i in order] for result in results]


@settings(max_examples=20, deadline=None)
@given(a=st.integers(6, 40), b=st.integers(6, 40), folds=st.integers(2, 5), seed=seeds)
def test_folds_of_one_image_a_patient_are_as_even_as_can_be(a: int, b: int, folds: int, seed: int) -> None:
    counts = [count(result)["test"] for result in fold_samples(singles(A=a, B=b), folds, seed=seed)]
    for sizes in ([c["A"] for c in counts], [c["B"] for c in counts], [sum(c.values()) for c in counts]):
        assert max(sizes) - min(sizes) <= 1


def test_near_duplicates_stay_in_one_fold_and_seeds_draw_different_folds() -> None:
    samples = singles(A=20, B=20)
    groups = [i // 4 for i in range(40)]
    drawn = set()
    for seed in range(5):
        results = fold_samples(samples, 5, groups=groups, val_count=8, seed=seed)
        for result in results:
            assert count(result)["val"] == {"A": 4, "B": 4}
            assert all(len({s.split for s in result[i : i + 4]}) == 1 for i in range(0, 40, 4))
        drawn.add(tuple(sample.split for sample in results[0]))
    assert len(drawn) == 5


def test_too_few_patients_for_the_folds_are_an_error_that_counts_them() -> None:
    with pytest.raises(DataError, match=r"Class B has images of 3 patients .* too few for 4 folds"):
        fold_samples(images([["A"]] * 20 + [["B"] * 9] * 3), 4)
    with pytest.raises(UsageError, match="folds: 1 is too few: cross-validation needs at least 2"):
        fold_samples(singles(A=9, B=9), 1)
