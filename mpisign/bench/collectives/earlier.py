"""An earlier run's times, read from what its ``--json`` wrote: other nodes, other links."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.record import SCHEMA
from mpisign.experiments.errors import SettingsError


@dataclass(frozen=True)
class EarlierRow:
    """One method's median of an earlier run, in seconds."""

    size: int
    via: str
    method: str
    median: float


@dataclass(frozen=True)
class Earlier:
    """The ranks and the times of an earlier run of ``mpisign bench collectives``."""

    file: str
    nodes: Nodes
    rows: tuple[EarlierRow, ...]

    def median(self, row: Any) -> float | None:
        """The seconds that the method of ``row`` took at its size over its library."""
        known = (row.size, row.via, row.method)
        return next((r.median for r in self.rows if (r.size, r.via, r.method) == known), None)


def read(path: Path) -> Earlier:
    """Reads a record; SettingsError if it is none, or of another bench."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"--beside {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"--beside {path}: not JSON ({error})") from error
    try:
        if (document["schema"], document["name"]) != (SCHEMA, "collectives"):
            raise ValueError(f"schema {document['schema']} of {document['name']}")
        known = document["nodes"]
        rate = known["rate"]
        nodes = Nodes(tuple(map(int, known["of"])), None if rate is None else float(rate))
        rows = tuple(
            EarlierRow(int(r["size"]), str(r["via"]), str(r["method"]), float(r["time"]["median"]))
            for r in document["rows"]
            if r["time"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"--beside {path}: not what mpisign bench collectives --json writes ({error!r})"
        ) from error
    return Earlier(path.name, nodes, rows)
