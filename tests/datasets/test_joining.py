"""Fast ways to join tables, and to look at paths, give what the plain ones give."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pneumoscope.datasets import joining
from pneumoscope.datasets.joining import join_names
from pneumoscope.errors import DataError
from pneumoscope.evaluation.external_tables import _list_below

NAMES = st.text(st.sampled_from("ab/. \\"), max_size=7).map(lambda text: f"{text}c")
FILES = st.tuples(NAMES, st.sampled_from(["", ".png", ".PNG", ".dcm", ".x", "."])).map("".join)


@settings(max_examples=200)
@given(FILES)
def test_a_suffix_is_the_one_of_pathlib(name: str) -> None:
    last = name.strip().replace("\\", "/").split("/")[-1]
    suffix = PurePosixPath(last).suffix.lower()
    assert joining._split(name)[2] in (suffix, "")
    assert (joining._split(name)[2] == suffix) == (suffix in ("", ".png", ".dcm"))


@settings(max_examples=200)
@given(st.lists(FILES, min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False), st.integers(0, 6))
def test_names_that_stand_in_both_tables_are_joined_as_if_one_did_not(
    others: list[str], random: Random, n: int
) -> None:
    names = [random.choice(others) for _ in range(n + 1)]
    assert join_names(names, others, "t").partners == tuple(others.index(name) for name in names)
    try:
        found = join_names([*names, "nobody.png"], others, "t")  # one of them, so the names are compared part by part
    except DataError:
        return
    assert found.partners[:-1] == join_names(names, others, "t").partners
    assert found.by_name == 0


@example(["//c"], "/")  # POSIX gives a path that begins with two slashes a meaning of its own
@given(st.lists(FILES, max_size=5), st.sampled_from([".", "a", "a/b", "/", "/a", "/a/b", "ab"]))
def test_paths_below_a_folder_are_those_of_pathlib(names: list[str], folder: str) -> None:
    root = Path(folder)
    paths = [root / name for name in names] + [Path(name) for name in names] + [root]
    expected = [(path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in paths]
    assert _list_below(paths, root) == expected
