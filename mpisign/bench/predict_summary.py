"""Sums up several runs of ``mpisign bench predict``, whose --json are the arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mpisign.bench.predict_shown import percent
from mpisign.bench.table import Table

_WITHIN = 0.15


def summary_of(documents: Sequence[dict[str, Any]]) -> Table:
    """A row for each network and one for all: how far off predictions are.

    Args:
        documents: what ``mpisign bench predict --json`` wrote.

    Returns:
        Table.

    Raises:
        KeyError: a document is none of these.
    """
    rows = []
    every: list[float] = []
    for document in documents:
        of, rate = document["nodes"]["of"], document["nodes"]["rate"]
        link = f", {8 * rate / 1e6:,.0f} Mbit/s" if rate else ""
        off = [row["off"] for row in document["rows"] if row["off"] is not None]
        rows.append(_row(f"{len(of)} ranks on {max(of) + 1} nodes{link}", off))
        every += off
    rows.append(_row("all", every))
    heads = ("network", "steps", "within 15%", "median error", "too short by", "too long by")
    return Table("how far predictions are off", heads, rows)


def _row(name: str, off: Sequence[float]) -> tuple[str, ...]:
    if not off:
        return (name, "0", "", "", "", "")
    within = sum(abs(x) <= _WITHIN for x in off)
    worst = percent(min(off)) if min(off) < 0 else "", percent(max(off)) if max(off) > 0 else ""
    return (name, str(len(off)), str(within), f"{median(map(abs, off)):.0%}", *worst)


if __name__ == "__main__":
    print(summary_of([json.loads(Path(name).read_text()) for name in sys.argv[1:]]).markdown())
