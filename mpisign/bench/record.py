"""What a bench measured and on which machine: the JSON document that programs read."""

from __future__ import annotations

import json
import operator
import os
import platform
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import mpisign
from mpisign import _kernels
from mpisign.experiments import files

SCHEMA = 1  # of the JSON documents; grows when a reader of the old ones would fail
_PACKAGES = (
    "numpy", "torch", "mpi4py", "horovod", "deepspeed", "byzfl", "cupy-cuda12x", "cupy-cuda13x",
    "cupy",
)  # fmt: skip
_OPERATORS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Goal:
    """``got`` compared with ``wanted``, a number after <, <= or >=."""

    DERIVED: ClassVar = ("met",)

    what: str
    size: int
    got: float
    wanted: str

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        sign, number = self.wanted.split()
        return bool(_OPERATORS[sign](self.got, float(number)))


@dataclass(kw_only=True)
class Record:
    """One run of ``mpisign bench NAME``. Benches with more to record add fields.

    A dataclass here, or in a field, may name properties in ``DERIVED``: the JSON document has them.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ()

    name: str
    command: str
    settings: Any
    rows: list[Any] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """The line before and after the tables in a Markdown page."""
        return f"<!-- mpisign bench {self.name} -->"

    @property
    def where(self) -> str:
        """What was measured on, if more than the machine."""
        return ""

    def write(self, path: Path) -> None:
        """Writes the JSON document."""
        document = {
            "schema": SCHEMA,
            "mpisign": mpisign.__version__,
            "time": files.now(),
            "host": {**host(), "name": platform.node(), "system": platform.platform()},
            "versions": {"python": platform.python_version(), **versions()},
            **_plain(self),
        }
        files.write(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def host() -> dict[str, Any]:
    """The processor: name, cores of this process, bytes of memory, instruction set of kernels."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu_model(), "cores": cores, "memory": memory, "isa": _kernels.isa()}


def versions() -> dict[str, str]:
    """Versions of the packages that a bench may use, of those that are installed."""
    return {name: version for name in _PACKAGES if (version := files.version(name))}


def machine() -> str:
    """One line on processor, memory and versions."""
    h = host()
    packages = {"Python": platform.python_version(), "mpisign": mpisign.__version__, **versions()}
    return (
        f"{h['cpu']}, {h['cores']} cores, {h['memory'] / 2**30:.1f} GiB of memory, kernels for "
        f"{h['isa']}; {', '.join(f'{name} {version}' for name, version in packages.items())}"
    )


def cpu_model() -> str:
    """The processor's name."""
    return files.machine().rpartition(",")[0]


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses as dicts, paths as text."""
    if is_dataclass(value):
        names = [f.name for f in fields(value)] + list(getattr(value, "DERIVED", ()))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
