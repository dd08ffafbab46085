"""Output files: paths checked before the work, atomic writes, what a result was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import mpisign
from mpisign.experiments.errors import SettingsError


def check_path(option: str, path: Path | None) -> None:
    """Raises SettingsError if no file can be written at ``path``."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SettingsError(f"{option} {path}: not a file in an existing directory")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise SettingsError(f"{option} {path}: cannot be written")


def make_folder(option: str, path: Path) -> None:
    """Makes ``path`` unless it is there; SettingsError if no files can be written in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{option} {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise SettingsError(f"{option} {path}: cannot be written")


def write(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, whole or not at all; directly where it must."""
    path = path.resolve()
    if (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK):
        path.write_text(text, encoding="utf-8")
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def around(path: Path, mark: str) -> tuple[str, str]:
    """The text before and after the generated part, with the marks; SettingsError without any."""
    before = ""
    if path.is_file():  # a device may have no end
        try:
            before = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--markdown {path}: {error}") from error
    marks = list(re.finditer(f"^{re.escape(mark)}[ \t]*$", before, re.MULTILINE))
    if len(marks) >= 2:
        return before[: marks[0].end()], before[marks[1].start() :]
    if before.strip():
        raise SettingsError(
            f"--markdown {path}: has text but not two lines reading {mark}; add them where the "
            "tables belong, or name a new file"
        )
    return mark, f"{mark}\n"


def write_between_marks(path: Path, mark: str, text: str) -> None:
    """Replaces what stands between the two lines ``mark`` of ``path`` by ``text``."""
    head, tail = around(path, mark)
    write(path, f"{head}\n\n{text}\n{tail}")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> str:
    """The processor and the number of cores available to this process, in words."""
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    except OSError:
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> str:
    """Versions in one line: the package with its commit where there is one, torch, Python."""
    command = ["git", "-C", str(Path(mpisign.__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        commit = f" {done.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        commit = ""
    python = platform.python_version()
    return f"mpisign {mpisign.__version__}{commit}, torch {version('torch')}, Python {python}"


def header() -> dict[str, Any]:
    """The head of a JSON document: version, time, libraries, host."""
    packages = ("torch", "numpy", "mpi4py", "horovod")
    return {
        "mpisign": mpisign.__version__,
        "time": now(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "host": {
            "name": platform.node(),
            "machine": platform.machine(),
            "processor": machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
    }
