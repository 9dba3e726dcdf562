"""The lineage of a model: what it was made from, in a line, and which of it describes the model itself."""

from __future__ import annotations

from pneumoscope.models.lineage import (
    LocalImages,
    Parent,
    Step,
    describe_lineage,
    find_adaptations,
    name_earlier_sources,
)

TRAINED = Step(Parent("first", "a" * 64, sources=("kermany", "nih")), "train")
AGAIN = Step(Parent("third", "c" * 64, sources=("nih", "rsna")), "train")
ADAPTED = Step(
    Parent("second", "b" * 64, sources=("kermany",)),
    "shift",
    data=LocalImages("f" * 64, {"NORMAL": 1200, "PNEUMONIA": 10}, 30),
    changes=("Threshold 0.4 instead of 0.5.",),
)


def test_each_model_is_named_with_what_was_done_to_it() -> None:
    assert describe_lineage(()) == ""
    first, second = describe_lineage((TRAINED, ADAPTED)).split("; then ")
    assert first.startswith("training continued from first (weights aaaaaaaaaaaaaaaa), trained on Labeled Optical")
    assert second == (
        "adapted from second (weights bbbbbbbbbbbbbbbb) on 1,200 NORMAL, 10 PNEUMONIA images (fingerprint "
        "ffffffffffffffff): Threshold 0.4 instead of 0.5."
    )


def test_a_model_that_was_trained_again_is_not_an_adapted_one() -> None:
    assert find_adaptations((TRAINED, ADAPTED, ADAPTED)) == (ADAPTED, ADAPTED)
    assert find_adaptations((ADAPTED,)) == (ADAPTED,)
    assert find_adaptations((ADAPTED, AGAIN)) == find_adaptations(()) == ()


def test_datasets_of_all_models_that_training_continued_from_are_named_once() -> None:
    assert name_earlier_sources((TRAINED, ADAPTED, AGAIN)) == ("kermany", "nih", "rsna")
    assert name_earlier_sources((ADAPTED,)) == ()
