"""Text from outside, made fit to show."""

from __future__ import annotations

import pytest

from pneumoscope.text import printable, shorten, tell_apart, to_line


def test_what_controls_a_terminal_is_replaced_or_left_out() -> None:
    assert printable("a\x1b[31m\tb\nc\udcff") == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b\nc\ufffd"
    assert to_line(" F\x00\nemale ") == "Female"


@pytest.mark.parametrize("middle", [False, True])
def test_a_long_text_is_cut_to_its_length(middle: bool) -> None:
    for length in range(1, 9):
        assert len(shorten("a rather long name", length, middle=middle)) == length
    assert shorten("short", 5, middle=middle) == "short"
    assert shorten("person1946_bacteria_4875.jpeg", 11, middle=True) == "perso….jpeg"
    assert shorten("person1946", 7) == "person…"


def test_names_have_as_many_folders_as_tell_them_apart() -> None:
    files = ["/d/p1/study1/front.jpg", "/d/p1/study2/front.jpg", "/d/p2/study1/front.jpg"]
    assert tell_apart(files) == ["p1/study1/front.jpg", "p1/study2/front.jpg", "p2/study1/front.jpg"]
    assert tell_apart(["/d/a.jpg", "/e/b.jpg", "/d/a.jpg"]) == ["a.jpg", "b.jpg", "a.jpg"]
    assert tell_apart(["/a.jpg", "a.jpg"]) == ["/a.jpg", "a.jpg"]
    assert tell_apart([]) == []
