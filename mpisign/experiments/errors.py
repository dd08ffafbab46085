"""What a person can put right: shown as one line, never as a traceback."""

from __future__ import annotations

import importlib

from mpisign.errors import TORCH


class SettingsError(ValueError):
    """An option, or what it points to, cannot be used."""


class DataError(SettingsError):
    """A data directory or file is not what its format says."""


def missing(package: str, error: ImportError) -> SettingsError:
    """The error for a package that only ``mpisign train`` needs."""
    first = f"{TORCH}, then " if package.startswith("torch") else ""
    text = f'mpisign train needs {package} ({error}): {first}pip install "mpisign[train]"'
    return SettingsError(text)


def need(package: str) -> None:
    """Raises SettingsError if a package that only ``mpisign train`` needs is missing."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise missing(package, error) from error
