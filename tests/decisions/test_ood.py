from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from pneumoscope.decisions.ood import OOD, Mahalanobis, fit, fit_mahalanobis, pool_copies
from pneumoscope.errors import ModelError
from pneumoscope.inference.engines import TorchEngine
from pneumoscope.inference.features import extract_features
from pneumoscope.models.backbones import find_backbone, load_backbone

Features = NDArray[np.float32]


def draw_features(rng: np.random.Generator, n: int, width: int) -> Features:
    """Correlated features of very unequal variance, about a mean of their own."""
    mixing = np.random.default_rng(5).normal(size=(width, width)) * np.geomspace(1, 0.01, width)
    return (3 + rng.normal(size=(n, width)) @ mixing.T).astype(np.float32)


def find_limit(distances: NDArray[Any], rate: float, labels: NDArray[Any] | None = None) -> float:
    labels = np.zeros(len(distances)) if labels is None else labels
    by_class = {str(label): tuple(np.sort(distances[labels == label]).tolist()) for label in np.unique(labels)}
    return OOD("mahalanobis", rate, by_class).limit


@pytest.mark.parametrize(("n", "width"), [(400, 30), (60, 150), (5, 20)])
def test_distance_is_that_of_sklearns_ledoit_wolf(n: int, width: int) -> None:
    rng = np.random.default_rng(0)
    train, others = draw_features(rng, n, width), draw_features(rng, 50, width) * 1.5
    expected = np.sqrt(LedoitWolf().fit(train.astype(np.float64)).mahalanobis(others.astype(np.float64)) / width)
    np.testing.assert_allclose(fit_mahalanobis(train).measure(others), expected, rtol=0.01)


def test_many_small_directions_can_share_one_variance() -> None:
    rng = np.random.default_rng(1)
    train = (rng.normal(size=(2000, 60)) * np.r_[np.full(5, 10.0), np.ones(55)]).astype(np.float32)
    others = rng.normal(size=(50, 60)).astype(np.float32) * 3
    np.testing.assert_allclose(
        fit_mahalanobis(train, components=5).measure(others), fit_mahalanobis(train).measure(others), rtol=0.05
    )


def test_a_detector_survives_its_arrays_and_is_small() -> None:
    rng = np.random.default_rng(2)
    detector = fit_mahalanobis(rng.normal(size=(400, 1280)).astype(np.float32))
    stored = detector.to_arrays()
    assert sum(array.nbytes for array in stored.values()) < 1_500_000
    images = rng.normal(size=(20, 1280)).astype(np.float32)
    np.testing.assert_array_equal(Mahalanobis.from_arrays(stored).measure(images), detector.measure(images))


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("ood.mean"),
        lambda stored: stored.update({"ood.mean": stored["ood.mean"][:-1]}),
        lambda stored: stored.update({"ood.variances": -stored["ood.variances"]}),
        lambda stored: stored.update({"ood.directions": stored["ood.directions"] * np.float16(np.nan)}),
        lambda stored: stored.update({"ood.rest": np.zeros(1)}),
        lambda stored: stored.update({"ood.rest": np.array(1.0)}),
    ],
)
def test_damaged_arrays_are_told(damage: Any) -> None:
    stored = fit_mahalanobis(draw_features(np.random.default_rng(3), 20, 8)).to_arrays()
    damage(stored)
    with pytest.raises(ModelError, match="Copy the model again"):
        Mahalanobis.from_arrays(stored)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 20)),
        elements=st.floats(-1e6, 1e6, width=32) | st.just(1.0),
    ),
    st.floats(0.001, 0.5),
)
@settings(max_examples=60, deadline=None)
def test_few_constant_or_wide_features_never_fail(features: Features, rate: float) -> None:
    detector = Mahalanobis.from_arrays(fit_mahalanobis(features).to_arrays())
    distances = detector.measure(features)
    limit = find_limit(distances, rate)
    assert distances.shape == (len(features),)
    assert np.isfinite(distances / limit).all()
    assert limit > 0
    assert not (distances > limit).sum() > rate * (len(features) + 1)


def test_what_departs_from_constant_features_is_ood() -> None:
    constant = np.full((30, 6), 2.5, np.float32)
    detector = fit_mahalanobis(constant)
    limit = find_limit(detector.measure(constant), 0.05)
    assert (detector.measure(constant + 0.001) > limit).all()
    assert not (detector.measure(constant) > limit).any()


@pytest.mark.parametrize(("count", "rate"), [(99, 0.05), (100, 0.1), (19, 0.05), (12, 0.05), (50, 0.01)])
def test_false_alarms_are_as_promised(count: int, rate: float) -> None:
    """Over 20,000 draws of a limit and a new image; with too few images the promise is 1 / (M + 1)."""
    rng = np.random.default_rng(count)
    distances = rng.chisquare(5, size=(20_000, count + 1))
    limits = np.array([find_limit(row[:-1], rate) for row in distances])
    promised = max(rate, 1 / (count + 1))
    alarms = (distances[:, -1] > limits).mean()
    error = math.sqrt(promised / 20_000)
    assert promised - 1 / (count + 1) - 4 * error < alarms < promised + 4 * error


def test_augmented_copies_count_as_one_image_and_make_the_limit_steadier() -> None:
    rng = np.random.default_rng(0)
    of_images = rng.gamma(20, size=(300, 200, 1)) / 20
    distances = of_images + rng.gamma(2, scale=0.1, size=(300, 200, 5))  # 300 studies of 200 images with 5 copies
    one_each = [find_limit(study[:, 0], 0.01) for study in distances]
    pooled = [OOD("mahalanobis", 0.01, {"A": pool_copies(study)}).limit for study in distances]
    assert len(pool_copies(distances[0])) == 200
    assert np.std(pooled) < 0.9 * np.std(one_each)
    fresh = rng.gamma(20, size=100_000) / 20 + rng.gamma(2, scale=0.1, size=100_000)
    assert np.mean([(fresh > limit).mean() for limit in pooled]) == pytest.approx(0.01, abs=0.002)


def test_a_limit_is_fitted_to_all_copies_of_an_image() -> None:
    rng = np.random.default_rng(0)
    train, val = draw_features(rng, 200, 10), draw_features(rng, 300, 10).reshape(100, 3, 10)
    labels = np.repeat([0, 1], 50)
    limits, _ = fit(train, val, labels, ("A", "B"), 0.05)
    turned, _ = fit(train, val[:, ::-1], labels, ("A", "B"), 0.05)
    assert limits == turned
    assert {name: len(each) for name, each in limits.distances.items()} == {"A": 50, "B": 50}


def test_the_promise_holds_for_the_class_that_lies_farther_out() -> None:
    """Of a class that scatters twice as far, images are not called out-of-distribution more often than was promised."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["near", "far"], 100)
    scale = np.where(labels == "far", 2.0, 1.0)
    alarms = []
    for _ in range(500):
        distances, new = np.abs(rng.normal(0, scale)), np.abs(rng.normal(0, 2.0, 100))
        limits = find_limit(distances, 0.05), find_limit(distances, 0.05, labels)
        alarms.append([(new > limit).mean() for limit in limits])
    pooled, by_class = np.mean(alarms, axis=0)
    assert by_class == pytest.approx(0.05, abs=0.005)
    assert pooled > 0.08


def test_photographs_are_ood_to_simulated_images_and_other_simulated_images_are_not(images: Path) -> None:
    spec = find_backbone("efficientnet_lite0")
    engine = TorchEngine(load_backbone(spec).eval(), spec.input.size)

    def extract(sources: list[Path]) -> Features:
        found = [each.intermediate for each in extract_features(sources, engine, spec.input)]
        return np.stack([features for features in found if features is not None])

    train, val, test = (extract(sorted((images / split).rglob("*.png"))) for split in ("train", "val", "test"))
    photographs = [Path(skimage.__file__).parent / "data" / f"{name}.png" for name in ("astronaut", "brick", "coffee")]
    detector = fit_mahalanobis(train)
    limit = find_limit(detector.measure(val), 0.05)
    assert (detector.measure(extract(photographs)) > 2 * limit).all()
    assert (detector.measure(test) <= limit).mean() > 0.6
