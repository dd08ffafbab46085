"""Everything that was measured, and on what: the JSON that programs read."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpisign
from mpisign.bench.results import Row, SmallCall

_PACKAGES = ("numpy", "torch", "cupy-cuda12x", "cupy-cuda13x", "cupy")
_WIDE = 0.1  # spread of a limit, above which others were at work


@dataclass
class Record:
    """One run of ``mpisign bench kernels``."""

    command: str
    device: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    calls: list[SmallCall] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def machine(self) -> str:
        """One line on what it was measured on."""
        d, versions = self.device, self.as_dict()["versions"]
        if d["kind"] == "cpu":
            what = f"{d['cpu']}, {d['cores']} cores, kernels for {d['isa']}"
        else:
            what = f"{d['gpu']}, CUDA {d['cuda']}"
        return what + "".join(f", {name} {v}" for name, v in versions.items() if v)

    @property
    def busy(self) -> str:
        """What to know if the machine had other work meanwhile, else nothing."""
        spreads = [row.limit_time.spread for row in self.rows if row.limit_time is not None]
        wide = sum(spread > _WIDE for spread in spreads)
        if wide * 5 < len(spreads) or not wide:
            return ""
        return (
            f"THE MACHINE WAS BUSY: {wide} of {len(spreads)} measurements of the limits spread by "
            f"more than {_WIDE:.0%}. Shares of the limit mean little in this run."
        )

    @property
    def verdicts(self) -> list[bool]:
        """Of everything that has a goal: was it met?"""
        found = [row.met for row in self.rows] + [row.scaling_met for row in self.rows]
        return [met for met in (*found, *(call.met for call in self.calls)) if met is not None]

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "mpisign": mpisign.__version__,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "settings": self.settings,
            "device": self.device,
            "host": {
                "name": platform.node(),
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                "system": platform.platform(),
            },
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in _PACKAGES},
            },
            "rows": [row.as_dict() for row in self.rows],
            "calls": [call.as_dict() for call in self.calls],
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Writes the JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
