"""The cache of features: a row that is damaged in any part is computed anew."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.inference.cache import Array, FeatureCache
from pneumoscope.inference.predictor import load
from pneumoscope.training.train import Run

FEATURES = np.arange(12, dtype=np.float32).reshape(2, 6)


@pytest.mark.parametrize(
    "change",
    [
        "width = 5", "width = 12", "width = 3", "width = 0", "width = -6", "width = NULL", "width = 'six'",
        "width = 6.5",
        "vectors = substr(vectors, 1, 24)", "vectors = x''", "vectors = NULL", "vectors = 'text'", "vectors = 7",
        "vectors = zeroblob(48)", "sha256 = NULL", "sha256 = x'00'", "sha256 = 'text'",
    ],
)  # fmt: skip
def test_a_damaged_row_is_not_used(change: str, tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite"
    with FeatureCache(path) as cache:
        cache.put("key", [("a", FEATURES)])
        found = cache.get("a", "key")
        assert found is not None
        np.testing.assert_array_equal(found, FEATURES)
    database = sqlite3.connect(path)
    database.execute(f"UPDATE features SET {change}")
    database.commit()
    database.close()
    with FeatureCache(path) as cache:
        assert cache.get("a", "key") is None
        cache.put("key", [("a", FEATURES)])
        assert cache.get("a", "key") is not None


def test_features_of_another_shape_are_computed_anew(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next((images / "test" / "NORMAL").iterdir())
    with FeatureCache(tmp_path / "features.sqlite") as cache:
        predictor, own = load(run.model, "cpu", cache), cache.get
        (first,) = predictor.predict(image)

        def shorten(digest: str, key: str) -> Array | None:
            found = own(digest, key)
            return found[:, :-1] if found is not None and found.shape[1] == predictor.engine.width else found

        monkeypatch.setattr(cache, "get", shorten)
        (again,) = predictor.predict(image)
    assert again.logits == pytest.approx(first.logits)
