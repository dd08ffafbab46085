"""Everything that was measured, between which ranks: the JSON that programs read."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mpisign
from mpisign.bench.host import cpu_model
from mpisign.bench.wire.goals import Goal
from mpisign.bench.wire.links import Link
from mpisign.bench.wire.nodes import Nodes
from mpisign.bench.wire.results import Row
from mpisign.collectives.costs import Costs

_PACKAGES = ("numpy", "mpi4py", "torch", "horovod", "deepspeed")


@dataclass
class Record:
    """One run of ``mpisign bench collectives``."""

    command: str
    nodes: Nodes
    settings: dict[str, Any]
    links: list[Link] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    costs: Costs | None = None
    goals: list[Goal] = field(default_factory=list)

    @property
    def ranks(self) -> str:
        """One line on who took part."""
        return on(self.nodes)

    def library(self, via: str) -> str:
        """What a wire is made of."""
        return next(link.library for link in self.links if link.via == via)

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            **heading(self.command, self.settings, self.nodes),
            "links": [link.as_dict() for link in self.links],
            "costs": None if self.costs is None else asdict(self.costs),
            "rows": [row.as_dict() for row in self.rows],
            "goals": [goal.as_dict() for goal in self.goals],
            "notes": self.notes,
        }

    def save_costs(self, path: Path) -> None:
        """Writes the file of ``--cost``."""
        assert self.costs is not None
        self.costs.save(path)

    def write(self, path: Path) -> None:
        """Writes the JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")


def on(nodes: Nodes) -> str:
    """One line on ranks and processor."""
    return f"{nodes}; {cpu_model()}, {len(os.sched_getaffinity(0))} cores"


def heading(command: str, settings: dict[str, Any], nodes: Nodes) -> dict[str, Any]:
    """What was asked for, when, between which ranks, on what: the head of a ``--json``."""
    return {
        "mpisign": mpisign.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": settings,
        "ranks": len(nodes.of),
        "nodes": asdict(nodes),
        "host": {
            "name": platform.node(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
