"""Each kind of bad image is recognised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.auditing.findings import Finding
from pneumoscope.auditing.intake import Images, measure_image, unpack
from pneumoscope.auditing.measurements import FIELDS
from pneumoscope.auditing.quality import find_quality_faults
from pneumoscope.datasets.phantoms import draw_phantom
from pneumoscope.datasets.samples import Sample
from pneumoscope.images.appearance import correlate_orientations, shrink
from pneumoscope.images.dicom import Tags
from pneumoscope.images.prepare import Pixels
from pneumoscope.images.read import Radiograph


def measured(*images: Pixels, tags: Tags | None = None, colour: float = 0.0) -> Images:
    samples = [Sample(Path(f"{i}.png"), "NORMAL", tags=tags) for i in range(len(images))]
    rows = [
        unpack(measure_image(b"content", Radiograph(image, "PNG", "L", image.shape, colour=colour))) for image in images
    ]
    return Images(samples, ["digest"] * len(images), [None] * len(images), np.array(rows))


def found(*images: Pixels, **options: object) -> list[str]:
    return [finding.title for finding in find_quality_faults(measured(*images, **options))]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def image() -> Pixels:
    return draw_phantom(7, pneumonia=False, size=160).pixels


def test_a_good_image_has_no_fault(image: Pixels) -> None:
    assert found(image) == []


def test_a_mirror_image_and_another_window_are_no_fault(image: Pixels) -> None:
    assert found(image[:, ::-1], image**0.6, image**1.5, 0.2 + 0.5 * image) == []


def test_bad_images_are_distinguished(image: Pixels) -> None:
    flat = np.full((90, 80), 0.3, np.float32)
    noise = np.random.default_rng(0).random((100, 100), np.float32)
    assert found(1 - image) == ["1 image is inverted: air is bright"]
    assert found(np.rot90(image).copy(), np.rot90(image, 3).copy()) == ["2 images lie on their side"]
    assert found(np.rot90(image, 2).copy()) == ["1 image is upside down"]
    assert found(flat) == ["1 image is blank"]
    assert found(np.clip(image * 3, 0, 1)) == ["1 image is burnt out"]
    assert found(0.5 + 0.08 * image) == ["1 image has hardly any contrast"]
    assert found(image[::4, ::4].copy()) == ["1 image is tiny"]
    assert found(noise) == ["1 image does not look like a frontal chest image"]
    assert found(image, colour=0.2) == ["1 image is in colour"]


def test_sides_are_distinguished(image: Pixels) -> None:
    (finding,) = find_quality_faults(measured(np.rot90(image).copy(), np.rot90(image, 3).copy()))
    by_file = dict(zip((path.name for path in finding.files), finding.remarks, strict=True))
    assert by_file == {"0.png": "turned to the left", "1.png": "turned to the right"}


def test_lateral_views_and_several_frames_are_found_in_headers(image: Pixels) -> None:
    def tags(**known: object) -> Tags:
        values = dict.fromkeys(("patient", "study", "instance", "modality", "view", "laterality", "age", "sex"))
        return Tags(**{**values, **known})  # type: ignore[arg-type]

    assert found(image, tags=tags(view="LL")) == ["1 image shows a lateral view"]
    assert found(image, tags=tags(view="PA")) == []
    assert found(image, tags=tags(frames=12)) == ["1 image has several frames"]


def test_unreadable_files_say_why() -> None:
    images = Images([Sample(Path("x.png"))], [""], ["x.png: damaged."], np.zeros(1, FIELDS))
    (finding,) = find_quality_faults(images)
    assert (finding.check, finding.severity, finding.remarks) == ("reading", "error", ("damaged.",))
    assert isinstance(finding, Finding)


def test_the_template_is_the_mean_of_simulated_normal_images() -> None:
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


def test_correlation_is_numpys(image: Pixels) -> None:
    thumbnail = shrink(np.rint(image * 255).astype(np.uint8))
    upright, left, down, right = correlate_orientations(thumbnail[None])[0]
    turned = correlate_orientations(np.rot90(thumbnail)[None])[0]
    np.testing.assert_allclose(turned, [right, upright, left, down], atol=1e-12)
    np.testing.assert_allclose(
        correlate_orientations(255 - thumbnail[None])[0], [-upright, -left, -down, -right], atol=1e-12
    )


def test_no_absurd_distance_is_told_where_most_images_are_equal_to_a_network(image: Pixels) -> None:
    images = measured(*[image] * 30)
    features = np.ones((30, 8), np.float32)
    features[7] = 2
    (finding,) = find_quality_faults(replace(images, features=features))
    assert finding.title == "1 image is unlike all others"
    assert finding.remarks == ("over 20.0 standard deviations from the rest",)
    features[:] = np.random.default_rng(0).normal(size=(30, 8))
    features[7] = 60
    (finding,) = find_quality_faults(replace(images, features=features))
    assert 3.8 < float(finding.remarks[0].removesuffix(" standard deviations from the rest")) < 20
