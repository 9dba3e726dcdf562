"""Models pushed to the Hugging Face hub and pulled from it, with their cards."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.config import checked
from pneumoscope.errors import ModelError, UsageError
from pneumoscope.files import check_folder, claim_folder, lock_folder, read_regular
from pneumoscope.models.fetched_models import CARD, SHARED, verify_model
from pneumoscope.models.hub import HUB, TIMEOUT, ask, download, explain, open_hub, split_name, to_page
from pneumoscope.models.model_folder import Model, find_model
from pneumoscope.models.references import locate_model

_MAX_CARD = 1 << 20  # bytes


@dataclass(frozen=True)
class SharedModel:
    """A model on the hub: its name, the commit that holds it, the page that shows it, and the bytes of its files."""

    name: str
    commit: str
    page: str
    files: Mapping[str, int]


@checked
def pull(name: str, out: str | Path, *, revision: str | None = None, overwrite: bool = False) -> SharedModel:
    """Fetch a model from the Hugging Face hub into a new model folder, and check every file.

    Args:
        name: `OWNER/NAME`, perhaps with `@REVISION`.
        out: the model folder to write.
        revision: a branch, a tag or a commit; by default the main branch.
        overwrite: whether to replace an earlier model folder in `out`.

    Raises:
        DownloadError: the hub cannot be reached, or has no such model for you.
        MissingExtraError: the hub's client is not installed.
        ModelError: what is there is not a model of pneumoscope, or is damaged, or could run code.
        UsageError: the name is not valid, or `out` exists.
    """
    out = Path(out)
    repository, named = split_name(name)
    if revision is not None and named is not None:
        raise UsageError(f"{name!r} names a revision, too. Leave out one of the two.", "revision")
    check_folder(out, SHARED, overwrite)
    api = open_hub()
    info = ask(api, repository, revision or named)
    with lock_folder(out), tempfile.TemporaryDirectory() as place:
        draft = Path(place) / repository.partition("/")[2]
        draft.mkdir()
        download(api, info, draft)
        try:
            verify_model(draft)
        except ModelError as problem:
            raise ModelError(str(problem).replace(str(draft), HUB + repository)) from None
        claim_folder(out, SHARED, overwrite)
        names = [each for each in SHARED if (draft / each).is_file()]
        for each in [*names[1:], names[0]]:  # the description comes last, as it makes the folder a model
            shutil.move(draft / each, out / each)
    return SharedModel(repository, str(info.sha), to_page(api, repository), _measure(out, names))


@checked
def push(
    model: str | Path, name: str, *, private: bool = False, message: str | None = None, licence: str | None = None
) -> SharedModel:
    """Publish a model on the Hugging Face hub: the files of its folder, and no image, table or prediction.

    The token comes from `hf auth login` or `HF_TOKEN`.

    Args:
        model: path, address or name of a model, as for `load`.
        name: `OWNER/NAME` on the hub; what is there is replaced, and stays in its history.
        private: whether only you and people you invite can see it; otherwise a new name is public.
        message: describes the change; by default it names this program.
        licence: of the model, as the hub calls it, such as `apache-2.0`; by default what the card says.

    Raises:
        DownloadError: the hub cannot be reached, or does not let you write there.
        MissingExtraError: the hub's client is not installed.
        ModelError: the model is damaged, or could run code.
        UsageError: the name is not valid, or it is public although `private` is requested.
    """
    folder, files = list_shared(model)
    repository, revision = split_name(name)
    if revision is not None:
        raise UsageError(f"{name!r}: models are pushed to the main branch. Leave out @{revision}.", "name")
    api = open_hub()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    card = write_card(folder, verify_model(folder), licence).encode()
    with explain(api, repository), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how the hub's client calls its HTTP library
        api.create_repo(repository, private=private, exist_ok=True)
        there = api.model_info(repository, timeout=TIMEOUT)
        if private and not there.private:
            raise UsageError(f"{repository} exists and is public. Choose another name.", "private")
        present = {each.rfilename for each in there.siblings or ()}
        operations: list[Any] = [CommitOperationAdd(CARD, card)]
        operations += [CommitOperationAdd(each, folder / each) for each in files if each != CARD]
        operations += [CommitOperationDelete(each) for each in SHARED if each in present and each not in files]
        commit = api.create_commit(repository, operations, commit_message=message or f"pneumoscope {__version__}")
    return SharedModel(repository, commit.oid, to_page(api, repository), {**files, CARD: len(card)})


def list_shared(model: str | Path) -> tuple[Path, dict[str, int]]:
    """The folder of a model, and the names and bytes of the files that `push` uploads.

    Raises:
        ModelError: the model is damaged, or could run code.
    """
    folder = find_model(locate_model(model))
    verify_model(folder)
    return folder, _measure(folder, [name for name in SHARED if name == CARD or (folder / name).is_file()])


def write_card(folder: Path, model: Model, licence: str | None) -> str:
    """The text of a model's card, with the metadata that the hub reads; what the card states already stays."""
    import yaml

    text = f"# {' or '.join(model.labels)}: a classifier of chest radiographs\n"
    if (folder / CARD).is_file():
        text = read_regular(folder / CARD, _MAX_CARD).decode("utf-8", "replace")
    stated, body = divide_card(text)
    try:
        values = yaml.safe_load(stated) if stated else {}
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise ModelError(f"{folder / CARD}: the metadata between its lines of --- are not valid YAML. Correct them.")
    tags = ["chest-x-ray", "radiology", *sorted(label.lower() for label in model.labels), "not-for-clinical-use"]
    values = {"library_name": "pneumoscope", "pipeline_tag": "image-classification", "tags": tags} | values
    if licence is not None:
        values = {"license": licence} | {key: value for key, value in values.items() if key != "license"}
    head = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n\n{body}"


def divide_card(text: str) -> tuple[str, str]:
    """The metadata that a card begins with, empty where there are none, and all that follows."""
    found = re.match(r"---\n(.*?)\n---\n+", text, re.DOTALL)
    return (found[1], text[found.end() :]) if found else ("", text)


def _measure(folder: Path, names: list[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size if (folder / name).is_file() else 0 for name in names}
