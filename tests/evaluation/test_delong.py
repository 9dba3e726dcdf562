"""Areas and covariance: a published example, pairs counted one by one, patients, and the edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals.delong import auroc_covariance

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Albumin, total protein, Krebs-Goldberg score (low is good), outcome: the data of DeLong et al. (1988) and the figures
# below stand in SAS/STAT's example of comparing ROC curves.
SURGERY = np.fromstring(
    """3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
    3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
    4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
    4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
    2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1""",
    sep=" ",
).reshape(-1, 4)


def brute(y: NDArray[np.int64], x: NDArray[np.float64], clusters: NDArray[np.int64]) -> tuple[float, float]:
    """One model, pairs held whole and clusters in a loop: Obuchowski (1997), equations 2 to 6."""
    kernel = (x[y == 1][:, None] > x[y == 0]) + 0.5 * (x[y == 1][:, None] == x[y == 0])
    area, (m, n) = kernel.mean(), kernel.shape
    diseased, normal = clusters[y == 1], clusters[y == 0]
    s10 = s01 = s11 = 0.0
    for cluster in set(clusters.tolist()):
        one = (kernel.mean(1)[diseased == cluster] - area).sum()
        other = (kernel.mean(0)[normal == cluster] - area).sum()
        s10, s01, s11 = s10 + one**2, s01 + other**2, s11 + one * other
    i10, i01, i = (len(set(part.tolist())) for part in (diseased, normal, clusters))
    s10, s01, s11 = i10 / ((i10 - 1) * m) * s10, i01 / ((i01 - 1) * n) * s01, i / (i - 1) * s11
    return float(area), s10 / m + s01 / n + 2 * s11 / (m * n)


def test_the_published_example() -> None:
    aurocs, covariance = auroc_covariance(SURGERY[:, 3], SURGERY[:, :3].T * [[1], [1], [-1]])
    assert aurocs == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1000, 0.1028], abs=5e-5)
    contrast = np.array([[1, 0, -1], [0, 1, -1]])  # both against the Krebs-Goldberg score
    differences = contrast @ aurocs
    chi_squared = differences @ np.linalg.solve(contrast @ covariance @ contrast.T, differences)
    assert chi_squared == pytest.approx(2.5340, abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 6)), min_size=8, max_size=40))
def test_pairs_counted_one_by_one_give_the_same(rows: list[tuple[int, int, int]]) -> None:
    y, x, clusters = np.array(rows).T
    if min(len(set(clusters[y == side].tolist())) for side in (0, 1)) < 2:
        return
    for groups in (clusters, np.arange(len(y))):
        aurocs, covariance = auroc_covariance(y, x[None], groups)
        assert (aurocs[0], covariance[0, 0]) == pytest.approx(brute(y, x, groups))
    np.testing.assert_array_equal(covariance, auroc_covariance(y, x[None])[1])


def test_a_model_does_not_differ_from_its_copy() -> None:
    rng = np.random.default_rng(0)
    y, clusters = rng.integers(0, 2, 90), rng.integers(0, 30, 90)
    x = rng.normal(y, 1, (1, 90)) + rng.normal(0, 0.5, (3, 90))
    x[2] = x[0]
    aurocs, covariance = auroc_covariance(y, x, clusters)
    np.testing.assert_allclose(covariance, covariance.T)
    assert aurocs[2] == aurocs[0]
    assert covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2] == pytest.approx(0, abs=1e-15)
    assert np.linalg.eigvalsh(covariance[:2, :2]).min() > 0


def test_twins_of_every_image_are_no_evidence() -> None:
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1], 20)
    x = rng.normal(y, 1)[None]
    single = auroc_covariance(y, x)
    twins = auroc_covariance(np.repeat(y, 2), np.repeat(x, 2, axis=1), np.repeat(np.arange(40), 2))
    np.testing.assert_allclose(twins[0], single[0])
    np.testing.assert_allclose(twins[1], single[1])


def test_what_is_undefined_is_nan() -> None:
    aurocs, covariance = auroc_covariance([1, 1], [[0.1, 0.2], [0.3, 0.1]])
    assert np.isnan(aurocs).all()
    assert np.isnan(covariance).all()
    aurocs, covariance = auroc_covariance([1, 0, 0], [[0.5, 0.2, 0.3]])
    assert aurocs.tolist() == [1]
    assert np.isnan(covariance).all()
    assert np.isnan(auroc_covariance([1, 1, 0, 0], [[1, 2, 0, 3]], [0, 0, 1, 2])[1]).all()


@pytest.mark.parametrize(
    ("labels", "scores", "clusters"),
    [
        ([0, 1], [0.1, 0.2], None),
        ([0, 2], [[0.1, 0.2]], None),
        ([0, 1], [[0.1, np.nan]], None),
        ([0, 1], [[1, 2]], [0]),
    ],
)
def test_what_cannot_be_measured(labels: list[int], scores: list[float], clusters: list[int] | None) -> None:
    with pytest.raises(DataError):
        auroc_covariance(labels, scores, clusters)
