"""Models are pushed to a hub and pulled from it; only their files move, and what comes back is checked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_stand_in import TOKEN, Hub, run_hub

from pneumoscope.cli import main as cli
from pneumoscope.errors import DownloadError, ModelError, UsageError
from pneumoscope.inference.predictor import load
from pneumoscope.models.pretrained import find_pretrained
from pneumoscope.models.references import locate_model
from pneumoscope.models.sharing import pull, push
from pneumoscope.training.train import Run

NAME = "a-hospital/chest"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, to which the user is logged in; nothing is in the cache."""
    with run_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_pretrained("pneumonia-lite0"), tmp_path / "my-model"))


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pushed_model_is_pulled_as_it_was(hub: Hub, model: Path, tmp_path: Path) -> None:
    pushed = push(model, NAME, message="The first")
    sha, files, message = hub.repositories[NAME].commits[-1]
    assert (pushed.commit, pushed.page, message) == (sha, f"{hub.url}/{NAME}", "The first")
    assert set(files) == {".gitattributes", *files_of(model)}
    pulled = pull(NAME, tmp_path / "pulled")
    assert pulled.commit == sha
    assert files_of(tmp_path / "pulled") == {name: each for name, each in files.items() if name != ".gitattributes"}
    for name in ("model.json", "weights.safetensors", "network.onnx"):
        assert files[name] == (model / name).read_bytes()


def test_only_files_of_the_model_are_pushed(hub: Hub, run: Run) -> None:
    (run.folder / "notes.txt").write_text("private")
    try:
        push(run.folder, NAME)
    finally:
        (run.folder / "notes.txt").unlink()
    assert set(hub.repositories[NAME].commits[-1][1]) == {
        ".gitattributes", "README.md", "model.json", "network.onnx", "weights.safetensors",
    }  # fmt: skip


def test_the_card_has_the_metadata_of_the_hub(hub: Hub, model: Path) -> None:
    card = (model / "README.md").read_text()
    (model / "README.md").write_text(card.partition("\n---\n")[2].lstrip())
    push(model, NAME, license="cc-by-4.0")
    pushed = hub.repositories[NAME].commits[-1][1]["README.md"].decode()
    _, head, body = pushed.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "library_name": "pneumoscope",
        "pipeline_tag": "image-classification",
        "tags": ["chest-x-ray", "radiology", "normal", "pneumonia", "not-for-clinical-use"],
    }
    assert body.strip() == card.partition("\n---\n")[2].strip()
    (model / "README.md").write_text(card)
    push(model, NAME)
    pushed = hub.repositories[NAME].commits[-1][1]["README.md"].decode()
    values, own = (yaml.safe_load(each.split("---\n", 2)[1]) for each in (pushed, card))
    assert values == own
    assert values["license"] == "apache-2.0"
    assert values["model-index"][0]["results"][0]["metrics"]


def test_pushing_again_replaces_the_files_of_the_model_and_no_others(hub: Hub, model: Path) -> None:
    hub.add(NAME, {"paper.pdf": b"x", "model.onnx": b"of an export"})
    push(model, NAME)
    assert set(hub.repositories[NAME].commits[-1][1]) == {"paper.pdf", *files_of(model)}


def test_a_public_name_is_not_taken_for_a_private_one(hub: Hub, model: Path) -> None:
    hub.add(NAME, {"README.md": b"public"})
    with pytest.raises(UsageError, match=r"private: .* exists and is public"):
        push(model, NAME, private=True)
    assert len(hub.repositories[NAME].commits) == 1
    push(model, "a-hospital/other", private=True)
    assert hub.repositories["a-hospital/other"].private


def test_the_client_reports_no_use(hub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, NAME)
    pull(NAME, tmp_path / "pulled")
    agents = {agent for _, path, agent, _ in hub.requests if not path.startswith("/objects/")}
    assert all("torch" not in each and "agent/" not in each for each in agents)
    assert not [path for _, path, _, _ in hub.requests if "telemetry" in path or "harness" in path]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_is_explained_and_shows_no_token(
    status: int, hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub.status = status
    assert typed(monkeypatch, "models", "push", model, NAME) == 5
    printed = capsys.readouterr().err
    assert typed(monkeypatch, "models", "pull", NAME, "--out", tmp_path / "out") == 5
    printed += capsys.readouterr().err
    assert TOKEN not in printed
    assert printed.count("error: hf:a-hospital/chest: ") == 2
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()
    if status in (401, 404):
        assert "hf auth login" in printed


def test_offline_it_fails_at_once_and_says_what_to_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for command in (
        ["models", "push", model, NAME],
        ["models", "pull", NAME, "--out", tmp_path / "out"],
        ["models", "show", f"hf:{NAME}"],
    ):
        assert typed(monkeypatch, *command) == 5
        printed = capsys.readouterr().err
        assert "http://127.0.0.1:9 cannot be reached" in printed
        assert "machine with internet" in printed
        assert TOKEN not in printed


def test_a_name_on_the_hub_is_accepted_as_a_model(
    hub: Hub, model: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = hub.add(NAME, files_of(model))
    image = next((images / "test" / "NORMAL").iterdir())
    (expected,) = load(model).predict([image])
    for reference in (f"hf:{NAME}", f"hf:{NAME}@{first}", f"hf:{NAME}@main"):
        (found,) = load(reference).predict([image])
        assert found == expected
    assert locate_model(f"hf:{NAME}").name == "chest"
    assert [each for each in caplog.messages if "downloading" in each] == [
        f"hf:{NAME}: downloading commit {first[:12]}"
    ]
    second = hub.add(NAME, files_of(find_pretrained("all-ages-lite0")))
    assert load(f"hf:{NAME}").model != load(f"hf:{NAME}@{first}").model
    assert caplog.messages[-1] == f"hf:{NAME}: downloading commit {second[:12]}"


def test_an_older_copy_is_used_only_with_a_message(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.add(NAME, files_of(model))
    folder = locate_model(f"hf:{NAME}")
    hub.status = 500
    caplog.clear()
    assert locate_model(f"hf:{NAME}") == folder
    (message,) = caplog.messages
    assert "answers with an error (500)" in message
    assert f"in the cache folder, commit {commit[:12]}" in message
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(DownloadError):
        locate_model(f"hf:{NAME}")
    hub.status = None
    assert locate_model(f"hf:{NAME}") == folder
    assert files_of(folder) == files_of(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.json": None}, r"hf:a-hospital/chest: not a model of pneumoscope"),
        ({"weights.safetensors": b"other"}, r"weights\.safetensors: damaged: its checksum"),
        ({"network.onnx": b"other"}, r"network\.onnx: damaged: its checksum"),
        ({"model.json": b"{}"}, r"model\.json: damaged"),
    ],
)
def test_what_is_no_intact_model_is_not_kept(
    change: dict[str, bytes | None], said: str, hub: Hub, model: Path, tmp_path: Path
) -> None:
    changed = {**files_of(model), **change}
    hub.add(NAME, {name: content for name, content in changed.items() if content is not None})
    with pytest.raises(ModelError, match=said):
        pull(NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match=said):
        load(f"hf:{NAME}")


def test_a_model_that_could_run_code_is_neither_pushed_nor_pulled(hub: Hub, model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from pneumoscope.models.model_folder import load_model, load_weights, save_model

    description = load_model(model)
    program = replace(description, files={"model.pt2": "0" * 64})
    save_model(tmp_path / "program", program, load_weights(model, description))
    with pytest.raises(ModelError, match="can run code"):
        push(tmp_path / "program", NAME)
    assert not hub.requests
    hub.add(NAME, files_of(tmp_path / "program"))
    with pytest.raises(ModelError, match="can run code"):
        pull(NAME, tmp_path / "out")


def test_a_folder_is_overwritten_only_on_request(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add(NAME, files_of(model))
    pull(NAME, tmp_path / "out")
    with pytest.raises(UsageError, match="already exists"):
        pull(NAME, tmp_path / "out")
    pull(NAME, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"contains mine\.txt"):
        pull(NAME, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("name", ["chest", "a/b/c", "a/..", "-a/b", "a/b@", "a/b.git", "https://a/b", "a b/c"])
def test_a_name_that_cannot_be_one_is_refused(name: str, hub: Hub, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a name on the hub"):
        push(model, name)
    with pytest.raises(UsageError, match="is not a name on the hub"):
        pull(name, tmp_path / "out")
    assert not hub.requests


def test_the_commands_say_what_moves(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "models", "push", model, NAME, "--message", "Better", "--private") == 0
    sha, _, message = hub.repositories[NAME].commits[-1]
    printed = capsys.readouterr()
    assert message == "Better"
    assert f"{model} goes to {NAME}" in printed.err
    assert "weights.safetensors" in printed.err
    assert printed.out == f"{hub.url}/{NAME}: commit {sha}\n"
    assert typed(monkeypatch, "models", "pull", f"hf:{NAME}@{sha}", "--out", tmp_path / "pulled") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'pulled'}\n"
    assert typed(monkeypatch, "models", "pull", NAME, "--revision", "v9", "--out", tmp_path / "other") == 5
    assert "no such revision of this model. Choose another --revision." in capsys.readouterr().err
    assert json.loads((tmp_path / "pulled" / "model.json").read_text())["labels"] == ["NORMAL", "PNEUMONIA"]
