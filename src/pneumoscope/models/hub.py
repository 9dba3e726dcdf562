"""The Hugging Face hub: models fetched by name. Its client sends no usage data, and moves only files of models."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope import __version__
from pneumoscope.errors import DownloadError, MissingExtraError, ModelError, PneumoscopeError, UsageError
from pneumoscope.files import cache_folder, write_text
from pneumoscope.models.fetched_models import SHARED, find_kept, keep
from pneumoscope.models.model_folder import MAX_FILE
from pneumoscope.models.pretrained import DESCRIPTION
from pneumoscope.text import printable_line, shorten

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

HUB = "hf:"  # begins the name of a model on the hub
TIMEOUT = 10.0  # seconds until a hub that does not answer counts as out of reach
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def fetch_from_hub(name: str) -> Path:
    """Fetch the newest version of a model into the cache folder; log a message if an older copy is used instead.

    Args:
        name: `OWNER/NAME`, perhaps with `@REVISION`.

    Raises:
        DownloadError: the hub cannot be reached and the model was not fetched before, or there is no such model.
        MissingExtraError: the hub's client is not installed.
        ModelError: what is there is not a model of pneumoscope, or is damaged, or could run code.
        UsageError: the name is not valid, or the cache folder cannot be written.
    """
    repository, revision = split_name(name)
    api = open_hub()
    place = f"{api.endpoint} {repository} {revision or ''}"
    note = cache_folder() / "models" / "hub" / f"{hashlib.sha256(place.encode()).hexdigest()}.json"
    try:
        info = ask(api, repository, revision)
    except DownloadError as problem:
        known = _read_note(note)
        kept = find_kept(_to_key(api, repository, known["commit"])) if known else None
        if known is None or kept is None:
            raise
        _log(f"{problem}\nUsing the copy of {known['date']} in the cache folder, commit {known['commit'][:12]}.")
        return kept
    commit = str(info.sha)

    def fill(folder: Path) -> None:
        _log(f"{HUB}{name}: downloading commit {commit[:12]}")
        download(api, info, folder)

    folder = keep(_to_key(api, repository, commit), repository.partition("/")[2], fill)
    note.parent.mkdir(exist_ok=True)
    write_text(note, json.dumps({"name": name, "commit": commit, "date": f"{datetime.date.today()}"}))
    return folder


def split_name(name: str) -> tuple[str, str | None]:
    """Divide `OWNER/NAME@REVISION`, with or without `hf:` before it, into the name and the revision, if there is one.

    Raises:
        UsageError: it is not such a name.
    """
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not _NAME.fullmatch(repository) or repository.endswith(".git") or ("@" in name and not revision.strip()):
        raise UsageError(f"{name!r} is not a name on the hub. Give OWNER/NAME or OWNER/NAME@REVISION.", "name")
    return repository, revision or None


def open_hub() -> HfApi:
    """The hub's client; it sends no usage data, and moves files over plain HTTP."""
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise MissingExtraError('The hub needs huggingface-hub: pip install "pneumoscope[train]".') from None
    constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_XET = True  # where it was imported before
    return HfApi(os.environ.get("HF_ENDPOINT") or None, library_name="pneumoscope", library_version=__version__)


def ask(api: HfApi, repository: str, revision: str | None) -> ModelInfo:
    """What the hub knows of a model: its commit and its files.

    Raises:
        DownloadError: the hub cannot be reached, or has no such model for you.
    """
    with explain(api, repository):
        return api.model_info(repository, revision=revision, timeout=TIMEOUT, files_metadata=True)


def download(api: HfApi, info: ModelInfo, folder: Path) -> None:
    """Fetch the files of a model into a folder.

    Raises:
        DownloadError: the hub cannot be reached.
        ModelError: there is no model, or its files are too large for one.
    """
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or () if each.rfilename in SHARED}
    if DESCRIPTION not in sizes:
        raise ModelError(f"{HUB}{info.id}: not a model of pneumoscope, because it has no {DESCRIPTION}.")
    if too_large := [name for name, size in sizes.items() if size > MAX_FILE]:
        raise ModelError(f"{HUB}{info.id}: {too_large[0]} is larger than the limit, {MAX_FILE:,} bytes.")
    with explain(api, info.id):
        for name in sizes:
            api.hf_hub_download(info.id, name, revision=info.sha, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of the client


@contextmanager
def explain(api: HfApi, repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into our own error, which holds no token."""
    try:
        yield
    except PneumoscopeError:
        raise
    except Exception as problem:  # of several HTTP libraries
        cause = problem.__cause__ if type(problem) is RuntimeError else None  # of a file among several
        raise DownloadError(f"{HUB}{repository}: {_describe(cause or problem, api)}") from None


def _describe(problem: BaseException, api: HfApi) -> str:
    from huggingface_hub import errors, get_token

    login = "Log in with `hf auth login`, or set HF_TOKEN"
    status = getattr(getattr(problem, "response", None), "status_code", None)
    said = getattr(problem, "server_message", None) or (str(problem) if isinstance(problem, ValueError) else "")
    if token := get_token():
        said = said.replace(token, "…")
    answer = f" It says: {shorten(printable_line(said.strip()), 300)}" if said else ""
    if isinstance(problem, errors.GatedRepoError):
        return f"access must be requested on its page, {to_page(api, '')}. {login}.{answer}"
    if isinstance(problem, errors.RevisionNotFoundError):
        return "the hub has no such revision of this model. Choose another `revision`."
    if isinstance(problem, errors.RepositoryNotFoundError) or status == 404:
        return f"the hub at {api.endpoint} has no such model, or it is private. Check the name. {login} if it is yours."
    if status in (401, 403) or isinstance(problem, errors.LocalTokenNotFoundError):
        return f"the hub refuses. {login}; the token must allow this.{answer}"
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it, or use a model on this machine."
    if status is not None or said:
        return f"the hub at {api.endpoint} answers with an error{f' ({status})' if status else ''}. Try again.{answer}"
    return (
        f"the hub at {api.endpoint} cannot be reached ({type(problem).__name__}). Check the connection, or copy the "
        "model's folder here from a machine with internet and give its path."
    )


def _to_key(api: HfApi, repository: str, commit: str) -> str:
    return hashlib.sha256(f"{api.endpoint} {repository} {commit}".encode()).hexdigest()


def to_page(api: HfApi, repository: str) -> str:
    """The address of a model's page."""
    return f"{api.endpoint}/{repository}"


def _read_note(path: Path) -> dict[str, str] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"commit": str(note["commit"]), "date": str(note["date"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log(message: str) -> None:
    logging.getLogger("pneumoscope").warning("%s", message)
