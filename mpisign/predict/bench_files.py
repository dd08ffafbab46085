"""What ``mpisign predict --from`` finds in results of ``mpisign bench``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpisign.experiments.errors import SettingsError
from mpisign.predict.wire import Wire

#: By field of Rates: the kernel's row, and whether its time is of ``n`` planes.
_ROWS = {
    "pack": ("pack_signum", False),
    "tally": ("majority", True),
    "unpack": ("unpack", False),
    "pack_error_feedback": ("pack_error_feedback", False),
    "sum_signs": ("weighted_sum", True),
}


@dataclass
class Found:
    """``rates``: seconds per coordinate, by fields of Rates; ``wires``: "remote" and "local"."""

    rates: dict[str, float] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def read_results(paths: list[Path], ranks: int) -> Found:
    """Reads files of ``mpisign bench kernels``, ``collectives`` and its ``--cost``.

    Args:
        paths: JSON documents; later ones win.
        ranks: of a tally: the measured number of planes next to it is taken.

    Returns:
        Found.

    Raises:
        SettingsError: a file cannot be read, or has nothing of use here.
    """
    found = Found()
    for path in paths:
        try:
            document = json.loads(path.read_text())
            name = document.get("name")
            if name == "kernels":
                _kernels(document, path, found, ranks)
            elif name == "collectives":
                _links(document, path, found)
            elif "remote_latency" in document:
                _costs(document, path, found)
            else:
                raise ValueError("neither mpisign bench kernels, collectives nor --cost wrote it")
        except LookupError as error:
            raise SettingsError(f"--from {path}: lacks what is needed: {error}") from error
        except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise SettingsError(f"--from {path}: {error}") from error
    return found


def _positive(value: Any, what: str) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{what} is {value}, not a number above 0")
    return float(value)


def _wire(latency: Any, per_message: Any, bandwidth: Any, where: str) -> Wire:
    if not (latency >= 0 and per_message >= 0 and latency + per_message < math.inf):
        raise ValueError(f"latencies are {latency} and {per_message}, not numbers from 0")
    return Wire(latency, per_message, _positive(bandwidth, "a bandwidth"), where)


def _kernels(document: Any, path: Path, found: Found, ranks: int) -> None:
    rows = [row for row in document["rows"] if row["time"] and row["threads"] == 1]
    for name, (kernel, of_planes) in _ROWS.items():
        mine = [row for row in rows if row["kernel"] == kernel]
        if kernel in ("majority", "weighted_sum"):
            mine = [row for row in mine if row["n"]]
            near = min((abs(row["n"] - ranks) for row in mine), default=0)
            mine = [row for row in mine if abs(row["n"] - ranks) == near]
        if not mine:
            continue
        # The largest size; of its variants the first: float32, positive ties.
        row = next(row for row in mine if row["size"] == max(r["size"] for r in mine))
        seconds = _positive(row["time"]["median"], f"{kernel}'s time")
        found.rates[name] = seconds / row["size"] / (row["n"] if of_planes else 1)
        found.sources[name] = path.name
    if not found.rates:
        raise ValueError("has no row of packing, voting or unpacking with one thread")


def _links(document: Any, path: Path, found: Found) -> None:
    link = document["links"][-1]
    nodes = document["nodes"]["of"]
    where = f"{path.name}: {link['library']}, {len(nodes)} ranks"
    kind = "remote" if max(nodes) else "local"
    found.wires[kind] = _wire(link["latency"], 0.0, link["bandwidth"], where)


def _costs(document: Any, path: Path, found: Found) -> None:
    for kind in ("remote", "local"):
        per_byte = document[f"{kind}_per_byte"]
        if per_byte:
            found.wires[kind] = _wire(
                document[f"{kind}_latency"], document.get(f"{kind}_per_message", 0.0),
                1 / per_byte, path.name,
            )  # fmt: skip
    if not found.wires:
        raise ValueError("has the costs of no exchange")
