"""What this project asks of its collectives, wherever a run is one that a goal speaks of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mpisign.bench.table import coordinates
from mpisign.bench.wire.nodes import Nodes
from mpisign.bench.wire.ours import IN_GROUPS
from mpisign.bench.wire.results import Row

_GIGABIT = 125e6  # bytes per second
_RESNET50 = 25_600_000
_OPERATORS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Goal:
    """``got`` compared with ``wanted``, a number after <= or >=."""

    what: str
    size: int
    got: float
    wanted: str

    @property
    def met(self) -> bool:
        """Whether it is."""
        sign, number = self.wanted.split()
        return _OPERATORS[sign](self.got, float(number))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "met": self.met}


def goals(rows: list[Row], nodes: Nodes) -> Iterator[Goal]:
    """Those of MPI's rows, which most goals speak of; of DETOX's over any wire."""
    votes = {
        (row.size, row.way): row
        for row in rows
        if row.via == "mpi" and row.kind == "vote" and row.time
    }

    def goal(size: int, way: str, field: str, what: str, wanted: str) -> Iterator[Goal]:
        row = votes.get((size, way))
        got = getattr(row, field, None)
        if got is not None:
            yield Goal(f"{way}: {what}", size, got, wanted)

    if nodes.rate == _GIGABIT and nodes.count == len(nodes.of) == 4:
        limit, fp32, fp16 = "time / the wire's limit", "times faster than fp32", "than fp16"
        yield from goal(_RESNET50, "vote alltoall", "ratio", limit, "<= 1.25")
        yield from goal(_RESNET50, "vote alltoall", "times_faster_than_fp32", fp32, ">= 20")
        yield from goal(_RESNET50, "vote alltoall", "times_faster_than_fp16", fp16, ">= 12")
        yield from goal(_RESNET50, "vote allgather", "ratio", limit, "<= 1.35")
    if nodes.count == 2 and nodes.most == 4:
        for size in sorted({row.size for row in rows}):
            yield from _fewer_bytes(votes, size)
    if nodes.rate is not None:
        yield from _in_groups(rows)
    if nodes.count == 1 and nodes.rate is None and len(nodes.of) == 4:
        for size in sorted({row.size for row in rows}):
            wanted = ">= 3" if size >= 10**6 else ">= 0.667" if size == 1000 else ""
            if wanted:
                what = "times faster than fp32"
                yield from goal(size, "vote auto", "times_faster_than_fp32", what, wanted)


def _in_groups(rows: list[Row]) -> Iterator[Goal]:
    """DETOX on signs beside the plain vote of the same size and wire."""
    plain = {(r.size, r.via): r for r in rows if r.way == "vote alltoall"}
    for row in rows:
        beside = plain.get((row.size, row.via))
        if row.way != IN_GROUPS or beside is None or not (row.time and beside.time):
            continue
        what = f"{IN_GROUPS} over {row.via}"
        yield Goal(f"{what}: bytes / alltoall's", row.size, _moved(row) / _moved(beside), "<= 1.05")
        slower = row.time.median / beside.time.median
        yield Goal(f"{what}: time / alltoall's", row.size, slower, "<= 1.15")


def _moved(row: Row) -> float:
    """Bytes both ways: those on the link where they are counted."""
    if row.counted_sent is not None and row.counted_received is not None:
        return row.counted_sent + row.counted_received
    return (row.sent or 0.0) + (row.received or 0.0)


def _fewer_bytes(votes: dict[tuple[int, str], Row], size: int) -> Iterator[Goal]:
    def counted(way: str) -> float:
        row = votes.get((size, way))
        return (row.counted_sent or 0) + (row.counted_received or 0) if row else 0.0

    few, flat = counted("vote hierarchical"), counted("vote alltoall")
    if few and flat:
        yield Goal("vote hierarchical: bytes on link / alltoall's", size, few / flat, "<= 0.75")


def told(found: list[Goal]) -> list[list[str]]:
    """Heads, then a row of text a goal."""
    heads = ["goal", "coordinates", "wanted", "got", ""]
    cells = [
        [g.what, coordinates(g.size), g.wanted, f"{g.got:#.3g}", "met" if g.met else "missed"]
        for g in found
    ]
    return [heads, *cells]
