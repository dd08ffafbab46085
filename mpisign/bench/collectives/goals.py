"""Goals of the project's collectives, for the runs that they apply to: ratios of medians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpisign.bench.collectives.earlier import Earlier
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.collectives.votes import IN_GROUPS, PLAN, WEIGHTED, WITHOUT_OUT
from mpisign.bench.record import Goal

GIGABIT = 125e6  # bytes per second
_RESNET50 = 25_600_000
#: On one node over MPI: of fp32's time, by size, two ranks.
_OF_FP32 = {1000: "<= 7", 10_000: "<= 2", 100_000: "< 1", 10**6: "< 1", 6_500_000: "< 1"}
_OF_BARE = {2: "<= 1.4", 4: "<= 2"}  # by ranks, at the same sizes
_OTHER_WIRES = (100_000, 10**6)  # where votes over Gloo and Horovod are held to fp32's time
_LIMITS = {"alltoall": "<= 1.12", "allgather": "<= 1.1"}


def goals(rows: list[Any], nodes: Nodes, earlier: Earlier | None = None) -> Iterator[Goal]:
    """Goals of the rows; ``earlier``: a run whose times this one's are held to."""
    measured = [row for row in rows if row.time]
    votes = [row for row in measured if row.kind == "vote"]
    if nodes.count == 1 and nodes.rate is None:
        yield from _on_one_node(votes, len(nodes.of))
    if nodes.rate == GIGABIT and nodes.count == len(nodes.of) == 4:
        yield from _at_the_limit([row for row in votes if row.size == _RESNET50])
    yield from _beside_alltoall(votes, nodes)
    if earlier is not None:
        yield from _beside(votes, nodes, earlier)


def _on_one_node(votes: list[Any], ranks: int) -> Iterator[Goal]:
    for row in votes:
        if row.method != "vote auto":
            continue
        what = f"{row.method} over {row.via}: time"
        of_fp32 = row.times_faster_than_fp32 and 1 / row.times_faster_than_fp32
        if row.via == "mpi" and row.size in _OF_FP32:
            if row.times_of_bare and ranks in _OF_BARE:
                yield Goal(f"{what} / bare's", row.size, row.times_of_bare, _OF_BARE[ranks])
            if of_fp32 and ranks == 2:
                yield Goal(f"{what} / fp32's", row.size, of_fp32, _OF_FP32[row.size])
        elif row.via != "mpi" and row.size in _OTHER_WIRES and of_fp32 and ranks == 2:
            yield Goal(f"{what} / fp32's", row.size, of_fp32, "<= 1")


def _at_the_limit(votes: list[Any]) -> Iterator[Goal]:
    for row in votes:
        wanted = _LIMITS.get(row.algorithm)
        plain = row.method in (PLAN, f"vote {row.algorithm}")
        if row.via != "mpi" or not row.ratio:
            continue
        if plain and wanted:
            label = row.method if row.method != PLAN else f"{PLAN}, {row.algorithm}"
            yield Goal(f"{label}: time / the wire's limit", row.size, row.ratio, wanted)
            slowest = row.slowest / row.time.median
            yield Goal(f"{label}: slowest call / median", row.size, slowest, "<= 1.5")
        elif row.method == WITHOUT_OUT:
            what = f"{row.method}: time / the wire's limit"
            yield Goal(what, row.size, row.ratio, "<= 1.5")


def _beside_alltoall(votes: list[Any], nodes: Nodes) -> Iterator[Goal]:
    """Other votes beside the plain alltoall-vote of the same size and library."""
    plain = {(row.size, row.via): row for row in votes if row.method == "vote alltoall"}
    for row in votes:
        flat = plain.get((row.size, row.via))
        if flat is None or row.method not in ("vote hierarchical", WEIGHTED, IN_GROUPS):
            continue
        what = f"{row.method} over {row.via}"
        if nodes.rate is not None:
            of_flat = row.time.median / flat.time.median
            yield Goal(f"{what}: time / alltoall's", row.size, of_flat, "<= 1.15")
        if row.method == IN_GROUPS and nodes.rate is not None:
            of_flat = _moved(row) / _moved(flat)
            yield Goal(f"{what}: bytes / alltoall's", row.size, of_flat, "<= 1.05")
        if row.method == "vote hierarchical" and nodes.count == 2 and nodes.most == 4:
            if row.counted_sent and flat.counted_sent:
                of_flat = _moved(row) / _moved(flat)
                yield Goal(f"{what}: bytes on link / alltoall's", row.size, of_flat, "<= 0.75")


def _beside(votes: list[Any], nodes: Nodes, earlier: Earlier) -> Iterator[Goal]:
    """From 4 nodes of a rank to 8."""
    before = earlier.nodes
    if nodes.rate != before.rate or nodes.rate is None:
        return
    if (before.count, len(before.of), nodes.count, len(nodes.of)) != (4, 4, 8, 8):
        return
    for row in votes:
        then = earlier.median(row)
        if row.method == "vote alltoall" and then:
            what = f"{row.method} over {row.via}: time / that of 4 nodes"
            yield Goal(what, row.size, row.time.median / then, "<= 1.2")


def _moved(row: Any) -> float:
    """Bytes both ways: those on the link where they are counted."""
    if row.counted_sent is not None and row.counted_received is not None:
        return float(row.counted_sent + row.counted_received)
    return (row.sent or 0.0) + (row.received or 0.0)
