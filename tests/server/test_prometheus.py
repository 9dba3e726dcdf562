"""What Prometheus gets, and what the example rules make of it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from services import draw, run_thread, wait_until
from test_store import make_record

from pneumoscope.models.model_folder import load_model
from pneumoscope.server.monitoring.measurements import MIN_SHARE, Measurements, ModelInfo
from pneumoscope.server.monitoring.summary import MIN_IMAGES
from pneumoscope.server.monitoring.watch import Watch
from pneumoscope.server.storage.store import Review, Store

if TYPE_CHECKING:
    from pneumoscope.server.settings import Settings
    from pneumoscope.training.train import Run

EXAMPLES = Path(__file__).parents[2] / "deploy" / "prometheus"
ROOM = "pneumoscope_"


@pytest.fixture
def promtool(tmp_path: Path) -> list[str]:
    """Checks files of Prometheus, in a folder with the examples and a token."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool on this machine")
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "token").write_text("a token", encoding="ascii")
    return [program]


def run_in(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_loads_the_example_files(promtool: list[str], tmp_path: Path) -> None:
    run_in(tmp_path, *promtool, "check", "rules", "rules.yaml")
    run_in(tmp_path, *promtool, "check", "config", "prometheus.yaml")


def test_the_example_rules_fire_when_they_should_and_only_then(promtool: list[str], tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "prometheus_rules.yaml", tmp_path)
    run_in(tmp_path, *promtool, "test", "rules", "prometheus_rules.yaml")


def test_the_rules_ask_for_metrics_that_there_are(settings: Settings) -> None:
    rules = (EXAMPLES / "rules.yaml").read_text(encoding="utf-8")
    with run_thread(settings) as url:
        wait_until(lambda: "pneumoscope_monitoring_days" in httpx.get(f"{url}/metrics").text)
        known = {each.name for each in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)}
    asked = {word for word in rules.replace("(", " ").replace("{", " ").replace(")", " ").split() if ROOM in word}
    assert {word for word in asked if word.startswith(ROOM)} <= known


def read(watch: Watch) -> dict[tuple[str, str], float]:
    measurements = Measurements(watch, lambda: [ModelInfo("a", "f" * 64, "1", "answers")])
    return {
        (sample.name.removeprefix(ROOM), sample.labels.get("of", "")): sample.value
        for family in measurements.collect()
        for sample in family.samples
    }


def fill(store: Store, first: int, last: int) -> None:
    drawn = np.random.default_rng(0).beta(5, 1, last)
    store.add(
        [
            make_record(
                sha256=str(i), probabilities={"NORMAL": 1 - drawn[i], "PNEUMONIA": drawn[i]},
                decision="uncertain" if i % 4 == 0 else "PNEUMONIA",
            )
            for i in range(first, last)
        ]
    )  # fmt: skip


def test_what_has_too_few_images_is_absent_and_never_zero(url: str, run: Run) -> None:
    with Store(url) as store:
        watch = Watch(store, load_model(run.model), "f" * 64, 30)
        assert set(read(watch)) == {("model_info", "")}  # nothing is known before the first look
        fill(store, 0, MIN_SHARE - 1)
        watch.refresh()
        found = read(watch)
        assert found["share_images", "uncertain"] == MIN_SHARE - 1
        assert not any(name in ("share", "agreement", "drift_psi") for name, _ in found)
        fill(store, MIN_SHARE - 1, MIN_IMAGES)
        watch.refresh()
        found = read(watch)
        message = watch.summarise(30)
    assert found["share", "uncertain"] == 0.25
    assert found["share", "unreadable"] == 0
    assert found["agreement_images", "all"] == 0
    assert ("agreement", "all") not in found
    assert message.drift is not None
    assert message.ood_drift is not None
    assert found["drift_psi", "probabilities"] == message.drift.psi
    assert found["drift_psi", "ood_scores"] == message.ood_drift.psi
    assert found["drift_images", "probabilities"] == MIN_IMAGES


def test_services_on_one_database_give_the_same_values(url: str, run: Run) -> None:
    model = load_model(run.model)
    with Store(url) as store, Store(url) as other:
        one, two = Watch(store, model, "f" * 64, 30), Watch(other, model, "f" * 64, 30)
        fill(store, 0, 80)
        for _ in range(15):
            one.unreadable.count("image-damaged")
        for _ in range(5):
            two.unreadable.count("image-damaged")
        two.refresh()
        one.refresh()
        two.refresh()
        for watch in (one, two):
            found = read(watch)
            assert found["share", "unreadable"] == 0.2
            assert found["share_images", "unreadable"] == 100
        assert one.latest is not None
        assert one.latest.message.unreadable_reasons == {"image-damaged": 20}


def test_a_summary_is_made_again_only_if_something_has_changed(url: str, run: Run) -> None:
    with Store(url) as store:
        watch = Watch(store, load_model(run.model), "f" * 64, 30)
        fill(store, 0, 5)
        first = watch.refresh()
        again = watch.refresh()
        assert again.message is first.message
        assert again.at >= first.at
        record = store.list_predictions(1)[0]
        store.add([Review(prediction_id=record.id, agrees=True)])
        assert watch.refresh().message.agreement["all"].n == 1
        store.delete([record.id])
        changed = watch.refresh()
        assert changed.message.images == 4
        assert changed.message.agreement["all"].n == 0


def test_the_service_says_which_model_answers_and_how_many_files_it_could_not_read(settings: Settings) -> None:
    with run_thread(replace(settings, monitoring_days=7)) as url, httpx.Client(base_url=url, timeout=60) as client:
        files = [("files", ("broken.png", draw(1)[:500])), ("files", ("text.txt", b"no image"))]
        client.post("/v1/predictions", files=[*files, ("files", ("image.png", draw(2)))])
        client.post("/v1/predictions", files=files, params={"store": False})
        wait_until(lambda: "pneumoscope_monitoring_days 7" in client.get("/metrics").text)
        wait_until(lambda: "pneumoscope_ready 1" in client.get("/metrics").text)
        text = client.get("/metrics").text
        summary = client.get("/v1/monitoring").json()
        name = client.get("/v1/models").json()[0]["fingerprint"]
    assert f'pneumoscope_model_info{{fingerprint="{name}"' in text
    assert "pneumoscope_images_limit 256" in text
    assert (summary["unreadable"]["n"], summary["unreadable"]["value"]) == (3, pytest.approx(2 / 3))
    assert summary["unreadable_reasons"] == {"image-damaged": 1, "not-an-image": 1}
