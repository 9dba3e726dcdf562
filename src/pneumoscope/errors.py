"""Every error that pneumoscope raises on purpose, with its exit code on the command line.

PneumoscopeError            1  internal error
├── UsageError              2  an argument, a name or a setting is not valid
├── DataError               3  input data cannot be used
│   └── ImageError          3  one image file cannot be read
├── ModelError              4  a model is damaged, incomplete or too new
├── DownloadError           5  a download failed
├── ServiceError            5  a service cannot be reached, or refuses a request
└── MissingExtraError       6  an optional dependency is not installed

A message says what was found, where, and what to do next. It names parameters as Python does: the one that is wrong in
`parameter`, others in backticks (`out`, `overwrite=True`). The command line shows both as flags (see `cli.flags`).
"""

from __future__ import annotations

import importlib
from typing import ClassVar


class PneumoscopeError(Exception):
    """Base of all errors that pneumoscope raises on purpose.

    Attributes:
        message: what was found, and what to do.
        parameter: name of the parameter whose value is at fault, if there is one; `str()` puts it before the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter

    def __str__(self) -> str:
        return self.message if self.parameter is None else f"{self.parameter}: {self.message}"


class UsageError(PneumoscopeError):
    """An argument, a name or a setting is not valid."""

    exit_code = 2


class DataError(PneumoscopeError):
    """Input data cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """One image file cannot be read."""


class ModelError(PneumoscopeError):
    """A model is damaged, incomplete or too new."""

    exit_code = 4


class DownloadError(PneumoscopeError):
    """A download failed."""

    exit_code = 5


class ServiceError(PneumoscopeError):
    """A service cannot be reached, or refuses a request.

    Attributes:
        status: of HTTP; 0 where there is no answer.
        code: which problem it is, as the page of the API lists them; empty where there is none.
        problem: the problem document.
    """

    exit_code = 5

    def __init__(self, message: str, status: int = 0, problem: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem or {}
        self.code = str(self.problem.get("code") or "")


class MissingExtraError(PneumoscopeError):
    """An optional dependency is not installed."""

    exit_code = 6


EXTRAS = {  # what each extra installs, by the names under which it is imported
    "evaluate": {"scipy"},
    "dicom": {"highdicom", "pydicom", "pynetdicom"},
    "train": {"captum", "huggingface_hub", "onnx", "pyarrow", "sklearn", "timm", "torch"},
    "serve": {
        "alembic",
        "fastapi",
        "pg8000",
        "prometheus_client",
        "python_multipart",
        "sqlalchemy",
        "starlette",
        "uvicorn",
    },
    "tune": {"colorlog", "optuna"},
}


def require_extra(extra: str) -> None:
    """Check that an extra is installed, before work whose result could not be used without it.

    Raises:
        MissingExtraError: a package of it is missing.
    """
    for name in sorted(EXTRAS[extra]):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise MissingExtraError(_describe_extra(name, extra)) from None


def find_missing_extra(problem: ModuleNotFoundError) -> MissingExtraError | None:
    """The error for a module that an extra would have installed; None for any other module."""
    name = (problem.name or "").partition(".")[0]
    found = next((extra for extra, names in EXTRAS.items() if name in names), None)
    return None if found is None else MissingExtraError(_describe_extra(name, found))


def _describe_extra(name: str, extra: str) -> str:
    return f'{name} is not installed: pip install "pneumoscope[{extra}]".'
