"""Every error pneumoscope raises on purpose, and the exit code that each one gives on the command line.

PneumoscopeError            1  a fault of ours
├── UsageError              2  an option, a name or a setting that cannot be meant
├── DataError               3  input data that cannot be used
│   └── ImageError          3  one image file that cannot be read
├── ModelError             4  a model that is damaged, incomplete or too new
├── DownloadError           5  something that has to be downloaded is out of reach
└── MissingExtraError       6  an optional dependency is not installed

A message says what was found, where, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class PneumoscopeError(Exception):
    """Base of all errors that pneumoscope raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(PneumoscopeError):
    """An option, a name or a setting that cannot be meant."""

    exit_code = 2


class DataError(PneumoscopeError):
    """Input data that cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """One image file that cannot be read."""


class ModelError(PneumoscopeError):
    """A model that is damaged, incomplete or too new."""

    exit_code = 4


class DownloadError(PneumoscopeError):
    """Something that has to be downloaded is out of reach."""

    exit_code = 5


class MissingExtraError(PneumoscopeError):
    """An optional dependency is not installed."""

    exit_code = 6
