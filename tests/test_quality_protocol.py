"""The draws that quality is measured on: no patient is on both sides, and a transfer tests what was not trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corruptions import corruptions
from learning_curve import draw
from PIL import Image
from protocol import TRANSFERS, complete, draw_folds, draw_small, draw_transfer, series_of

from pneumoscope.datasets.samples import Sample
from pneumoscope.datasets.splitting import find_shared_patients
from pneumoscope.errors import UsageError


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
    assert not find_shared_patients(films)


def test_a_learning_curve_tests_the_same_films_with_ever_more_to_train_on(named_films: list[Sample]) -> None:
    home = draw_folds(named_films, 5, 0)[0]
    drawn = [draw(home, count, 0) for count in (60, 200, 0)]
    tested = [{film.path for film in films if film.split == "test"} for films in drawn]
    assert tested[0] == tested[1] == tested[2]
    counts = [sum(film.split != "test" for film in films) for films in drawn]
    assert counts == [pytest.approx(60, abs=4), pytest.approx(200, abs=4), len(named_films) - len(tested[0])]
    assert not any(find_shared_patients(films) for films in drawn)


def test_a_run_is_made_once_and_again_when_its_settings_or_films_change(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    options = {"recipe": "head", "size": 64, "epochs": 2, "resamples": 20}
    first = complete(films, tmp_path / "run", **options)
    assert complete(films, tmp_path / "run", **options) == first
    assert "other source code" not in capsys.readouterr().err
    mark = tmp_path / "run.json"
    mark.write_text(mark.read_text().replace('"code": "', '"code": "0'))
    assert complete(films, tmp_path / "run", **options) == first
    assert "made by other source code" in capsys.readouterr().err
    changed = complete(films, tmp_path / "run", **{**options, "seed": 1})
    assert changed.metrics != first.metrics or changed.seconds != first.seconds
    copied = Path(shutil.copytree(films, tmp_path / "copied"))
    next((copied / "train" / "NORMAL").iterdir()).unlink()
    assert complete(copied, tmp_path / "run", **{**options, "seed": 1}).seconds != changed.seconds


def test_no_result_is_left_of_a_run_that_was_replaced_and_not_finished(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    options = {"recipe": "head", "size": 64, "epochs": 2, "resamples": 20}
    complete(films, tmp_path / "run", **options)
    with pytest.raises(UsageError):
        complete(films, tmp_path / "run", **{**options, "positive": "OTHER"})
    assert not (tmp_path / "run.json").exists()


def test_the_first_amount_of_a_corruption_leaves_the_film_as_it_is_and_the_others_do_not() -> None:
    rows, columns = np.indices((64, 64))
    film = Image.fromarray((96 + 60 * np.sin(rows / 2) * np.cos(columns / 3)).astype(np.uint8))
    for name, kind in corruptions().items():
        first, *others = (np.asarray(kind.change(film, amount).resize(film.size), float) for amount in kind.amounts)
        assert np.abs(first - film).max() <= 1, name  # JPEG at its best is not exact
        assert all(np.abs(other - film).max() > 2 for other in others), name
