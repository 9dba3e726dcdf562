"""What a model folder says about itself may be anything: `models show` ends with a result or an error of ours."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from test_hostile_models import WRONG, read, rewrite
from typer.testing import CliRunner

from pneumoscope.cli.main import app
from pneumoscope.errors import PneumoscopeError
from pneumoscope.training.train import Run

INTERVAL = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 20}
TEST: dict[str, Any] = {  # what the pretrained model says of its test
    "split": "test",
    "n": 20,
    "metrics": dict.fromkeys(("auroc", "accuracy", "sensitivity", "specificity"), INTERVAL),
    "decisions": {"answered": INTERVAL, "out_of_distribution": {"NORMAL": 1}, "coverage": {"NORMAL": INTERVAL}},
    "note": "A note.",
}
nasty = st.sampled_from([*WRONG, "\x1b[2Jred", "\u202egnp", "a\nclasses: forged", 10**5000, [[[[[[]]]]]], {"": {}}])
values = nasty | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = (
    "training", "training.recipe", "training.settings", "training.settings.augmented_copies", "training.settings.seed",
    "training.best", "training.test", "training.test.n", "training.test.metrics", "training.test.metrics.auroc",
    "training.test.metrics.auroc.value", "training.test.metrics.auroc.low", "training.test.metrics.auroc.high",
    "training.test.decisions", "training.test.decisions.answered", "training.test.decisions.answered.value",
    "training.test.decisions.out_of_distribution", "training.test.decisions.coverage",
    "training.test.decisions.coverage.NORMAL", "training.test.note", "lineage", "lineage.0",
    "lineage.0.parent", "lineage.0.parent.name", "lineage.0.parent.sources", "lineage.0.step", "lineage.0.data",
    "lineage.0.data.images", "lineage.0.changes", "data", "data.sources", "data.fingerprint",
    "data.counts", "data.counts.train", "version", "backbone", "labels", "labels.0", "decisions.scope",
    "decisions.scope.ages", "decisions.scope.views", "decisions.scope.modalities", "decisions.threshold",
    "decisions.threshold.rule", "input.fit", "surplus", "training.surplus", "training.test.surplus",
)  # fmt: skip
few = settings(
    max_examples=int(os.environ.get("EXAMPLES", "20")),
    deadline=None,
    derandomize="EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)


def change(values: dict[str, Any], place: str, value: Any) -> None:
    """Change the value at a place such as `training.test.n`, if the place is there."""
    *holders, last = place.split(".")
    found: Any = values
    for key in holders:
        found = found[int(key)] if isinstance(found, list) else found.get(key) if isinstance(found, dict) else None
    if isinstance(found, dict):
        found[last] = value
    elif isinstance(found, list) and last.isdigit():
        found[int(last)] = value


def run_command(*words: object) -> str | None:
    """What a command prints; None where it ends with an error of ours. Any other error is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert not {"\x1b", "\u202e"} & {*result.stdout, *result.stderr}
    if result.exception is None or (isinstance(result.exception, SystemExit) and result.exit_code == 0):
        return result.stdout
    if not isinstance(result.exception, PneumoscopeError):
        raise result.exception
    return None


@pytest.fixture(scope="module")
def original(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says of itself what the pretrained one does."""
    folder = Path(shutil.copytree(run.model, tmp_path_factory.mktemp("models") / "model"))
    described = read(folder)
    described["training"]["test"] = TEST
    described["data"]["sources"] = ["kermany"]
    parent = {"name": "first", "weights_sha256": "0" * 64, "sources": ["nih"]}
    local = {"fingerprint": "0" * 64, "images": {"NORMAL": 20}, "patients": 20}
    described["lineage"] = [{"parent": parent, "step": "shift", "data": local, "changes": ["Changed."]}]
    rewrite(folder, described)
    return folder


@few
@given(place=st.sampled_from(PLACES), value=values)
@example(place="training.test.metrics.auroc.value", value=None)
@example(place="training.test.metrics.auroc", value=[])
@example(place="training.test.n", value="many")
@example(place="training.test", value={"n": 1})
@example(place="data.sources", value="kermany")
@example(place="training.test.metrics.auroc.low", value=math.inf)
def test_models_show_describes_or_refuses_any_facts(place: str, value: Any, original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(original, folder)
    described = read(original)
    change(described, place, value)
    try:
        rewrite(folder, described)
    except (ValueError, UnicodeError):  # no JSON
        return
    printed = run_command("models", "show", folder)
    if printed is not None:
        assert printed.startswith("classes: ")
        assert "\nclasses: " not in printed
