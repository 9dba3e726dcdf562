"""The intended use: where it comes from, and what is outside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.decisions import scope
from pneumoscope.decisions.scope import Scope
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom import Tags

CHILDREN = Scope((1.0, 5.0), ("AP",), ("CR", "DX"), ("CHEST",))


def warned(tags: Tags, intended: Scope = CHILDREN) -> list[str]:
    return [each.removeprefix("outside the intended use: ") for each in scope.apply(tags, intended)]


def test_what_a_header_says_is_compared_with_the_intended_use() -> None:
    assert warned(Tags(age=3, view="AP", modality="CR", body_part="CHEST")) == []
    assert warned(Tags()) == []
    assert scope.apply(None, CHILDREN) == ()
    assert warned(Tags(age=45, view="PA", modality="RG", body_part="HAND", for_processing=True)) == [
        "age 45 (meant for 1 to 5 years)",
        "view PA (meant for AP)",
        "modality RG (meant for CR, DX)",
        "body part HAND (meant for CHEST)",
        "raw data before processing (FOR PROCESSING; meant for images FOR PRESENTATION)",
    ]


@pytest.mark.parametrize(
    ("age", "ages", "inside"),
    [
        (1, (1, 5), True), (0.99, (1, 5), False), (5.9, (1, 5), True), (6, (1, 5), False), (5.9, (1, 5.5), True),
        (0.5, (0, 0.5), True), (0.9, (0, 0.5), False), (0, (0, 0), True), (1, (0, 0), False), (18, (18, 18), True),
    ],
)  # fmt: skip
def test_a_child_of_five_is_five_until_the_sixth_birthday(age: float, ages: tuple[float, float], inside: bool) -> None:
    assert (warned(Tags(age=age), Scope(ages=ages)) == []) == inside


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL", "LAT", "LAO", "OBLIQUE"])
def test_a_model_that_states_nothing_is_meant_for_frontal_radiographs_of_the_chest(view: str) -> None:
    nothing = Scope()
    assert warned(Tags(view=view), nothing) == [f"view {view} (meant for frontal views)"]
    assert warned(Tags(view=view), Scope(views=("AP", view))) == []
    assert warned(Tags(view="PA", modality="DX", body_part="CHEST", age=99), nothing) == []
    assert warned(Tags(modality="CT", body_part="SKULL"), nothing) == [
        "modality CT (meant for radiographs)",
        "body part SKULL (meant for CHEST)",
    ]


def test_the_scope_is_what_headers_say_and_what_is_known_of_the_sources() -> None:
    headers = [
        Tags(age=155),  # a mistake, as the NIH data have some
        Tags(age=30, view="PA", modality="DX"),
        Tags(age=60, view="AP"),
        None,
        Tags(body_part="CHEST"),
    ]
    nothing, adults = Scope(), Scope(views=("AP", "PA"))
    fitted = Scope((30.0, 60.0), ("AP", "PA"), ("DX",), ("CHEST",))
    assert scope.fit((each, nothing) for each in headers) == fitted
    assert scope.fit([(None, CHILDREN), (None, CHILDREN)]) == replace(CHILDREN, modalities=())
    assert scope.fit([(Tags(view="LL"), CHILDREN)]) == Scope((1.0, 5.0), ("LL",), (), ("CHEST",))
    assert scope.fit([(None, CHILDREN), (Tags(age=60), adults)]).ages == (1.0, 60.0)
    assert scope.fit([(None, CHILDREN), (None, adults)]).ages is None  # those of the second image are unknown
    assert scope.fit([(Tags(age=4), CHILDREN), (None, adults)]).ages == (4.0, 4.0)
    assert scope.fit([(None, CHILDREN), (None, adults)]).views == ("AP", "PA")


def test_a_file_replaces_what_it_states(tmp_path: Path) -> None:
    file = tmp_path / "use.yaml"
    file.write_text("ages: [18, 90]\nviews: pa\nmodalities: [dx, CR]\n")
    assert scope.state(file, CHILDREN) == Scope((18.0, 90.0), ("PA",), ("CR", "DX"), ("CHEST",))
    assert scope.state(str(file), Scope()).body_parts == ()
    file.write_text("views: []\n")
    assert scope.state(file, CHILDREN).views == ()
    assert scope.state(None, CHILDREN) == CHILDREN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ages: [5, 1]", "youngest patient comes before the oldest"), ("ages: [1]", "ages"), ("ages: [-1, 5]", "ages"),
        ("view: [AP]", "view: unknown key. Known keys: ages, views, modalities, body_parts"), ("- AP", "key: value"),
        ("ages: old", "ages"),
    ],
)  # fmt: skip
def test_a_file_that_states_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "use.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        scope.state(tmp_path / "use.yaml", Scope())
    assert message in str(caught.value)
    with pytest.raises(UsageError, match=r"gone\.yaml: cannot be read"):
        scope.state(tmp_path / "gone.yaml", Scope())


def test_the_intended_use_has_a_description() -> None:
    assert scope.describe(CHILDREN) == "patients of 1 to 5 years; view AP; modality CR or DX; body part CHEST"
    assert scope.describe(Scope()) == ""
