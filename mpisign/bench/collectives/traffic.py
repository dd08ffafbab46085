"""What each method must move: bytes that a rank receives, bytes that cross a node's link.

d: coordinates; B = ceil(d / 8): one sign plane; p: ranks; n: nodes; L: ranks per node. Everything
here is one direction: each method sends as much as it receives. Headers, verdicts and scales are
left out, so no method can be faster than the limits that follow.

The bandwidths are those of nccl-tests (doc/PERFORMANCE.md there), with the fp32 gradient as the
payload of every method, so that rows can be compared::

    algbw = 4 d / time
    busbw = algbw * (received bytes per rank) / (4 d) = received bytes per rank / time

For an fp32 allreduce, whose ring receives 8 d (p - 1) / p, busbw is algbw * 2 (p - 1) / p. The
wire's limit is (bytes into one node) / (rate of its link), each way at the same time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FP32, _FP16 = 4, 2


@dataclass(frozen=True)
class Traffic:
    """One method's bytes, one direction. ``rank``: of a rank; ``link``: of a node's link."""

    rank: float
    link: float


def plane(length: int) -> int:
    """B, in bytes."""
    return -(-length // 8)


def allreduce(values: int, nbytes: int, size: int, nodes: int) -> Traffic:
    """Of ``values`` numbers of ``nbytes`` each: a ring, which enters each node once."""
    whole = 2.0 * values * nbytes
    return Traffic(whole * (size - 1) / size, whole * (nodes - 1) / nodes)


def of_fp32(length: int, size: int, nodes: int, each: int) -> Traffic:
    return allreduce(length, _FP32, size, nodes)


def of_fp16(length: int, size: int, nodes: int, each: int) -> Traffic:
    return allreduce(length, _FP16, size, nodes)


def of_allgather(length: int, size: int, nodes: int, each: int) -> Traffic:
    """Every rank receives every other plane."""
    b = plane(length)
    return Traffic(float(b * (size - 1)), float(b * each * (size - each)))


def of_alltoall(length: int, size: int, nodes: int, each: int) -> Traffic:
    """Shards to their owners and results back: 2 B (1 - 1/p)."""
    b = plane(length)
    return Traffic(2 * b * (size - 1) / size, 2 * b * each * (size - each) / size)


def of_hierarchical(length: int, size: int, nodes: int, each: int) -> Traffic:
    """ceil(log2(L + 1)) count planes up, one plane down, between nodes only."""
    return _between(math.ceil(math.log2(each + 1)) + 1, length, nodes, each)


def of_vote_of_votes(length: int, size: int, nodes: int, each: int) -> Traffic:
    """A plane up, two where a node of an even number of ranks can tie, and one down."""
    return _between(2 if each % 2 else 3, length, nodes, each)


def _between(planes: int, length: int, nodes: int, each: int) -> Traffic:
    link = planes * plane(length) * (nodes - 1) / nodes
    return Traffic(link / each, link)


def of_auto(length: int, size: int, nodes: int, each: int) -> Traffic:
    """The least of the algorithms that auto may choose."""
    flat = of_allgather, of_alltoall
    methods = (*flat, of_hierarchical) if each > 1 else flat
    return min((method(length, size, nodes, each) for method in methods), key=lambda t: t.link)


VOTES = {
    "auto": of_auto,
    "allgather": of_allgather,
    "alltoall": of_alltoall,
    "hierarchical": of_hierarchical,
    "vote_of_votes": of_vote_of_votes,
}
