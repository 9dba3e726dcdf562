"""Names of models: a folder, a zip archive, a pretrained model, an https:// address, or a name on a hub."""

from __future__ import annotations

import logging
import re
import zipfile
from contextlib import suppress
from pathlib import Path

from pneumoscope.datasets.archives import hide_secrets
from pneumoscope.errors import PneumoscopeError
from pneumoscope.models.fetched_models import fetch_model, unpack_model
from pneumoscope.models.hub import HUB, fetch_from_hub
from pneumoscope.models.model_folder import find_model
from pneumoscope.models.pretrained import find_pretrained, list_pretrained

_REMOTE = re.compile(r"https?:/|hf:")


def locate_model(reference: str | Path | None = None, parameter: str = "model") -> Path:
    """Find a model, fetch it if it is elsewhere, and return its folder on this machine, or the run that holds it.

    If a path of that name exists, it is used.

    Args:
        reference: a run, a model folder, a zip archive of one, the name of a pretrained model, an address that begins
            with `https://`, or `hf:OWNER/NAME`, perhaps with `@REVISION`; None: the pretrained default.
        parameter: which parameter errors name.

    Raises:
        DownloadError: it cannot be downloaded.
        MissingExtraError: it is on the hub, whose client is not installed.
        ModelError: it is damaged, or there is no model.
        UsageError: there is no such file, folder or name.
    """
    if reference is None:
        return find_pretrained()
    path, text = Path(reference), str(reference)
    try:
        if _exists(path) or not is_name(text):
            if _REMOTE.match(text):
                logging.getLogger("pneumoscope").warning("%s: using the file or folder of this name.", path)
            if path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
                return unpack_model(path)
            find_model(path)
            return path  # not the folder inside a run, which also knows its images
        if not _REMOTE.match(text):
            return find_pretrained(text)
        if text.startswith(HUB):
            return fetch_from_hub(text.removeprefix(HUB))
        return fetch_model(_restore_slashes(text))
    except PneumoscopeError as problem:
        if problem.parameter is not None:
            raise type(problem)(problem.message, parameter) from None
        raise


def is_name(reference: str) -> bool:
    """Whether a reference is the name of a pretrained model, an address, or a name on the hub, and not a path."""
    return _REMOTE.match(reference) is not None or reference in list_pretrained()


def hide_signature(reference: str) -> str:
    """What names a model, for a report or a server: an address without user, password and query."""
    address, mark, pin = _restore_slashes(reference).partition("#")
    return hide_secrets(address) + mark + pin if re.match("https?://", address) else reference


def _restore_slashes(address: str) -> str:
    """An address that was a Path, which has one slash after the scheme."""
    return re.sub(r"^(https?):/+", r"\1://", address)


def _exists(path: Path) -> bool:
    with suppress(OSError, ValueError):  # an address may be too long for a path
        return path.exists()
    return False
