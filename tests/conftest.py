"""What the tests share: real radiographs where there are any, a cache of their own, one small trained run."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import certifi
import hypothesis
import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch comes in; see cli.main
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

from commands import Command, make_command
from pneumoscope.datasets.phantom_sets import write_phantoms
from pneumoscope.inference.compilation import compile_graph
from pneumoscope.inference.runtimes import count_threads
from pneumoscope.models import pretrained
from pneumoscope.models.backbones import fingerprint_state
from pneumoscope.models.classifier import Backbone
from pneumoscope.models.onnx_graphs import trace_graph
from pneumoscope.reports import figures
from pneumoscope.reports.figures import render
from pneumoscope.training.train import Run, train

gc.set_threshold(10_000)  # as for the commands; see cli.main
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")
looked_at = threading.Event()  # set while a test looks at figures
pytest_plugins = ["service_fixtures"]  # of tests/server


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core, and one more because some tests wait."""
    return count_threads() + 1


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep away from the user's cache and key, and from the hub, in this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_PSEUDONYM_KEY_FILE", str(tmp_path_factory.mktemp("key") / "pseudonym.key"))
        patch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("NO_COLOR", "1")
        # A client of HTTP reads all known certificates when it is made, though it may never need one.
        certificate = tmp_path_factory.mktemp("certificates") / "one.pem"
        certificate.write_text("".join(Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")[:2]))
        patch.setenv("SSL_CERT_FILE", str(certificate))
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Trace and compile a network once in a process: hundreds of tests train or open the same few models."""

    @lru_cache(maxsize=6)
    def compile_once(graph: bytes, size: int, options: tuple[tuple[str, object], ...]) -> Any:
        return compile_graph(graph, size, dict(options))

    def compile_(graph: bytes | Path, size: int, options: Mapping[str, object], name: str) -> Any:
        if isinstance(graph, Path):
            return compile_graph(graph, size, options, name)
        return compile_once(graph, size, tuple(options.items()))

    traced: dict[tuple[str, str, int], bytes] = {}

    def trace(backbone: Backbone, size: int, head: Any = None) -> bytes:
        if head is not None:
            return trace_graph(backbone, size, head)
        key = fingerprint_state(backbone.state_dict()), backbone.architecture, size
        if key not in traced:
            traced[key] = trace_graph(backbone, size)
        return traced[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.inference.engines.compile_graph", compile_)
        patch.setattr("pneumoscope.models.onnx_graphs.trace_graph", trace)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Find out whether a test looks at figures, before its fixtures are made."""
    looks = "reports" in item.path.parts or item.get_closest_marker("figures")
    looked_at.set() if looks else looked_at.clear()


@pytest.fixture(scope="session", autouse=True)
def figures_if_looked_at() -> Iterator[None]:
    """Draw figures for tests that look at them: they take half of the time of a small training."""

    def draw(name: str, draw: Any, formats: Sequence[str] = ("svg",), *size: Any) -> dict[str, bytes]:
        if looked_at.is_set() or tuple(formats) != ("svg",):
            return render(name, draw, formats, *size)
        return {"svg": b'<svg class="plot" xmlns="http://www.w3.org/2000/svg"></svg>'}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "render", draw)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs: $PNEUMOSCOPE_DATA, else ../shared/data."""
    candidates = [Path(os.environ.get("PNEUMOSCOPE_DATA", "")), Path(__file__).parents[2] / "shared" / "data"]
    for folder in candidates:
        if (folder / "seed-400").is_dir():
            return folder
    pytest.skip("no real radiographs in $PNEUMOSCOPE_DATA or ../shared/data")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 small simulated radiographs in train, val and test."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", count=48, seed=1, size=128)


@pytest.fixture(scope="session")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run trained on `images`; tests read it and change nothing."""
    looked_at.set()
    return train(images, tmp_path_factory.mktemp("runs") / "run", recipe="baseline", epochs=3, size=128)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command line in this process."""
    return make_command(capsys, monkeypatch)


@pytest.fixture
def pretrained_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that no model ships with; what is put there ships."""
    folder = tmp_path / "pretrained_models"
    folder.mkdir()
    monkeypatch.setattr(pretrained, "pretrained_folder", lambda: folder)
    return folder


@pytest.fixture
def simulated_model(pretrained_models: Path, run: Run) -> str:
    """The name of the default model, as if `run` had made it."""
    (pretrained_models / pretrained.DEFAULT).symlink_to(run.model)
    return pretrained.DEFAULT
