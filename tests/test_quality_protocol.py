"""The draws that quality is measured on: no patient is on both sides, and a transfer tests what was not trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corruptions import corruptions
from PIL import Image
from protocol import TRANSFERS, draw_folds, draw_small, draw_transfer, series_of

from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splitting import find_shared_patients


@pytest.fixture
def named_films(tmp_path: Path) -> list[Sample]:
    """900 films named like the Kermany data's, several a patient; each has a content of its own."""
    rng = np.random.default_rng(0)
    films = []
    for series, label in (
        ("IM", "NORMAL"),
        ("NORMAL2-IM", "NORMAL"),
        ("bacteria", "PNEUMONIA"),
        ("virus", "PNEUMONIA"),
    ):
        for number in range(225):
            patient = int(rng.integers(120))
            name = f"{series}-{patient:04}-{number:04}" if label == "NORMAL" else f"person{patient}_{series}_{number}"
            path = tmp_path / f"{name}.jpeg"
            path.write_bytes(name.encode())
            films.append(Sample(path, label, f"{series}-{patient}"))
    return films


def test_small_draws_have_as_many_films_of_each_class_and_leave_the_rest_to_test(named_films: list[Sample]) -> None:
    drawn = [draw_small(named_films, seed) for seed in (0, 1)]
    for films in drawn:
        counts = Counter((film.split, film.label) for film in films)
        assert [counts["train", label] for label in ("NORMAL", "PNEUMONIA")] == pytest.approx([100, 100], abs=3)
        assert [counts["val", label] for label in ("NORMAL", "PNEUMONIA")] == pytest.approx([50, 50], abs=3)
        assert len(films) == len(named_films)
        assert not find_shared_patients(films)
    assert drawn[0] != drawn[1]


def test_folds_test_every_film_once(named_films: list[Sample]) -> None:
    folds = draw_folds(named_films, 5, 0)
    tested = Counter(film.path for fold in folds for film in fold if film.split == "test")
    assert tested == Counter(film.path for film in named_films)
    assert not any(find_shared_patients(fold) for fold in folds)


@pytest.mark.parametrize("tested", TRANSFERS, ids="-".join)
def test_a_transfer_tests_series_that_were_not_trained_on(tested: tuple[str, str], named_films: list[Sample]) -> None:
    films = draw_transfer(named_films, tested, 0, count=50)
    assert {series_of(film) for film in films if film.split == "test"} == set(tested)
    assert {series_of(film) for film in films if film.split != "test"} == {s for pair in TRANSFERS for s in pair} - set(
        tested
    )
    assert Counter(film.label for film in films if film.split == "test") == {"NORMAL": 50, "PNEUMONIA": 50}


def test_the_first_amount_of_a_corruption_leaves_the_film_as_it_is_and_the_others_do_not() -> None:
    rows, columns = np.indices((64, 64))
    film = Image.fromarray((96 + 60 * np.sin(rows / 2) * np.cos(columns / 3)).astype(np.uint8))
    for name, kind in corruptions().items():
        first, *others = (np.asarray(kind.change(film, amount).resize(film.size), float) for amount in kind.amounts)
        assert np.abs(first - film).max() <= 1, name  # JPEG at its best is not exact
        assert all(np.abs(other - film).max() > 2 for other in others), name
