"""What is measured of one way at one size, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpisign.bench.results import Timing
from mpisign.bench.wire.way import Kind


@dataclass(frozen=True)
class Row:
    """``error``: why there is nothing else. Seconds, bytes, bytes per second.

    ``sent``, ``received``: of a call, mean over the ranks: booked by mpisign.stats for votes
    (``bytes_by`` "stats"), else what the way must move ("formula"). ``counted_sent``,
    ``counted_received``: at each node's interface, mean over the nodes, headers included.
    ``limit``: seconds that the wire needs for the way's bytes, None where one message's latency is
    longer; ``ratio``: time / limit.
    """

    size: int
    tensors: int
    via: str
    way: str
    kind: Kind
    algorithm: str | None
    time: Timing | None = None
    calls_per_run: int = 0
    algbw: float | None = None
    busbw: float | None = None
    sent: float | None = None
    received: float | None = None
    bytes_by: str | None = None
    counted_sent: float | None = None
    counted_received: float | None = None
    limit: float | None = None
    ratio: float | None = None
    times_faster_than_fp32: float | None = None
    times_faster_than_fp16: float | None = None
    error: str | None = None
    notes: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def beside(rows: Sequence[Row]) -> list[Row]:
    """The rows of one size and wire, with how many times faster than its allreduces they are."""
    base = {row.kind: row.time.median for row in rows if row.time and row.kind in ("fp32", "fp16")}
    found = []
    for row in rows:
        if row.time is not None:
            fp32, fp16 = (
                base[k] / row.time.median if k in base else None for k in ("fp32", "fp16")
            )
            row = replace(row, times_faster_than_fp32=fp32, times_faster_than_fp16=fp16)
        found.append(row)
    return found
