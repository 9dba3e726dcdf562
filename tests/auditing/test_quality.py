"""Each kind of bad film is known for what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pneumoscope.auditing.films import Films, measure_film, shrink, to_record
from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.quality import correlate_orientations, find_quality_faults
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample
from pneumoscope.images.dicom import Tags
from pneumoscope.images.preparing import Pixels
from pneumoscope.images.reading import Radiograph


def measured(*films: Pixels, tags: Tags | None = None, colour: float = 0.0) -> Films:
    samples = [Sample(Path(f"{i}.png"), "NORMAL", tags=tags) for i in range(len(films))]
    records = [
        to_record(measure_film(b"content", Radiograph(film, "PNG", "L", film.shape, colour=colour))) for film in films
    ]
    return Films(samples, ["digest"] * len(films), [None] * len(films), np.array(records))


def found(*films: Pixels, **options: object) -> list[str]:
    return [finding.title for finding in find_quality_faults(measured(*films, **options))]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def film() -> Pixels:
    return draw_phantom(7, pneumonia=False, size=160).pixels


def test_a_good_film_has_no_fault(film: Pixels) -> None:
    assert found(film) == []


def test_a_mirror_image_and_another_window_are_no_fault(film: Pixels) -> None:
    assert found(film[:, ::-1], film**0.6, film**1.5, 0.2 + 0.5 * film) == []


def test_bad_films_are_told_apart(film: Pixels) -> None:
    flat = np.full((90, 80), 0.3, np.float32)
    noise = np.random.default_rng(0).random((100, 100), np.float32)
    assert found(1 - film) == ["1 film is inverted: air is bright"]
    assert found(np.rot90(film).copy(), np.rot90(film, 3).copy()) == ["2 films lie on their side"]
    assert found(np.rot90(film, 2).copy()) == ["1 film is upside down"]
    assert found(flat) == ["1 film is blank"]
    assert found(np.clip(film * 3, 0, 1)) == ["1 film is burnt out"]
    assert found(0.5 + 0.08 * film) == ["1 film has next to no contrast"]
    assert found(film[::4, ::4].copy()) == ["1 film is tiny"]
    assert found(noise) == ["1 film does not look like a frontal chest film"]
    assert found(film, colour=0.2) == ["1 film is in colour"]


def test_sides_are_told_apart(film: Pixels) -> None:
    (finding,) = find_quality_faults(measured(np.rot90(film).copy(), np.rot90(film, 3).copy()))
    by_file = dict(zip((path.name for path in finding.files), finding.remarks, strict=True))
    assert by_file == {"0.png": "turned to the left", "1.png": "turned to the right"}


def test_headers_tell_lateral_views_and_several_frames(film: Pixels) -> None:
    def tags(**known: object) -> Tags:
        values = dict.fromkeys(("patient", "study", "instance", "modality", "view", "laterality", "age", "sex"))
        return Tags(**{**values, **known})  # type: ignore[arg-type]

    assert found(film, tags=tags(view="LL")) == ["1 film shows a lateral view"]
    assert found(film, tags=tags(view="PA")) == []
    assert found(film, tags=tags(frames=12)) == ["1 film has several frames"]


def test_unreadable_files_say_why() -> None:
    films = Films([Sample(Path("x.png"))], [""], ["x.png: damaged."], np.zeros(1, measured_type()))
    (finding,) = find_quality_faults(films)
    assert (finding.check, finding.severity, finding.remarks) == ("reading", "error", ("damaged.",))
    assert isinstance(finding, Finding)


def measured_type() -> np.dtype[np.void]:
    from pneumoscope.auditing.films import RECORD

    return RECORD


def test_the_template_is_the_mean_of_simulated_normal_films() -> None:
    mean = np.mean(
        [
            shrink(np.rint(draw_phantom(seed, pneumonia=False, size=128).pixels * 255).astype(np.uint8))
            for seed in range(1000, 1016)
        ],
        axis=0,
    )
    fits = correlate_orientations(np.stack([mean, mean[:, ::-1]]).astype(np.uint8))
    assert (fits[:, 0] > 0.95).all()
    assert (fits.argmax(1) == 0).all()


def test_correlation_is_numpys(film: Pixels) -> None:
    thumbnail = shrink(np.rint(film * 255).astype(np.uint8))
    upright, left, down, right = correlate_orientations(thumbnail[None])[0]
    turned = correlate_orientations(np.rot90(thumbnail)[None])[0]
    np.testing.assert_allclose(turned, [right, upright, left, down], atol=1e-12)
    np.testing.assert_allclose(
        correlate_orientations(255 - thumbnail[None])[0], [-upright, -left, -down, -right], atol=1e-12
    )
