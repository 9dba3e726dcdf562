from __future__ import annotations

import math

import numpy as np
import pytest

from faithfulness import delete_evidence, points_inside, share_inside


def test_a_map_is_held_against_the_truth_where_the_network_saw_something() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 1:3] = True
    map_ = np.full((4, 5), -1, np.float32)
    map_[1, 1], map_[3, 4] = 3, 1
    map_[:, 0] = np.nan
    assert points_inside(map_, mask)
    assert share_inside(map_, mask) == pytest.approx(0.75)
    map_[3, 4] = 4
    assert not points_inside(map_, mask)
    assert not points_inside(map_, mask, tolerance=2.8)
    assert points_inside(map_, mask, tolerance=2.9)  # two down, two to the right
    assert math.isnan(share_inside(np.full((4, 5), -1, np.float32), mask))


def test_a_uniform_map_has_the_masks_share_of_the_area_inside() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.2
    assert share_inside(np.ones((30, 40), np.float32), mask) == pytest.approx(mask.mean())


def test_the_strongest_evidence_goes_first_in_equal_shares() -> None:
    image, base = np.ones((3, 8, 8), np.float32), np.zeros((3, 8, 8), np.float32)
    map_ = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    series = delete_evidence(image, base, map_, 4)
    assert series.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(series[0], image)
    np.testing.assert_array_equal(series[-1], base)
    assert [int(each[0].sum()) for each in series] == [64, 48, 32, 16, 0]
    for each in series[1:-1]:
        assert map_[each[0] == 0].min() > map_[each[0] == 1].max()
    np.testing.assert_array_equal(delete_evidence(base, image, map_, 4)[1], 1 - series[1])
