"""Goals of the project's collectives, for the runs that they apply to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.collectives.votes import IN_GROUPS
from mpisign.bench.record import Goal

GIGABIT = 125e6  # bytes per second
_RESNET50 = 25_600_000


def goals(rows: list[Any], nodes: Nodes) -> Iterator[Goal]:
    """Goals of the rows over MPI, and of DETOX over any library."""
    votes = {
        (row.size, row.method): row
        for row in rows
        if row.via == "mpi" and row.kind == "vote" and row.time
    }

    def goal(size: int, method: str, field: str, what: str, wanted: str) -> Iterator[Goal]:
        got = getattr(votes.get((size, method)), field, None)
        if got is not None:
            yield Goal(f"{method}: {what}", size, got, wanted)

    sizes = sorted({row.size for row in rows})
    if nodes.rate == GIGABIT and nodes.count == len(nodes.of) == 4:
        limit, fp32, fp16 = "time / the wire's limit", "times faster than fp32", "than fp16"
        yield from goal(_RESNET50, "vote alltoall", "ratio", limit, "<= 1.25")
        yield from goal(_RESNET50, "vote alltoall", "times_faster_than_fp32", fp32, ">= 20")
        yield from goal(_RESNET50, "vote alltoall", "times_faster_than_fp16", fp16, ">= 12")
        yield from goal(_RESNET50, "vote allgather", "ratio", limit, "<= 1.35")
    if nodes.count == 2 and nodes.most == 4:
        for size in sizes:
            few, flat = (votes.get((size, f"vote {a}")) for a in ("hierarchical", "alltoall"))
            if few and flat and few.counted_sent and flat.counted_sent:
                what = "vote hierarchical: bytes on link / alltoall's"
                yield Goal(what, size, _moved(few) / _moved(flat), "<= 0.75")
    if nodes.rate is not None:
        yield from _in_groups(rows)
    if nodes.count == 1 and nodes.rate is None and len(nodes.of) == 4:
        for size in sizes:
            wanted = ">= 3" if size >= 10**6 else ">= 0.667" if size == 1000 else ""
            if wanted:
                what = "times faster than fp32"
                yield from goal(size, "vote auto", "times_faster_than_fp32", what, wanted)


def _in_groups(rows: list[Any]) -> Iterator[Goal]:
    """DETOX on signs beside the plain vote of the same size and library."""
    plain = {(r.size, r.via): r for r in rows if r.method == "vote alltoall"}
    for row in rows:
        beside = plain.get((row.size, row.via))
        if row.method != IN_GROUPS or beside is None or not (row.time and beside.time):
            continue
        what = f"{IN_GROUPS} over {row.via}"
        yield Goal(f"{what}: bytes / alltoall's", row.size, _moved(row) / _moved(beside), "<= 1.05")
        slower = row.time.median / beside.time.median
        yield Goal(f"{what}: time / alltoall's", row.size, slower, "<= 1.15")


def _moved(row: Any) -> float:
    """Bytes both ways: those on the link where they are counted."""
    if row.counted_sent is not None and row.counted_received is not None:
        return float(row.counted_sent + row.counted_received)
    return (row.sent or 0.0) + (row.received or 0.0)
