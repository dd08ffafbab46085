"""The bare vote over MPI: how fast a vote can be where nothing is checked.

Persistent requests with fixed buffers, made once for each size. There are no headers, no checks, no
timeouts; zeros and ties are positive. The kernels are mpisign's. What a vote takes beyond this is
what its guarantees cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

import mpisign
from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.method import (
    CollectiveMethod,
    Gradient,
    Running,
    check_votes,
    sign_sums,
)

_UP, _DOWN = 1, 2  # tags


def methods(comm: MPI.Comm) -> Iterator[CollectiveMethod]:
    """Both forms; the faster one at a size is the bare way there."""
    notes = (
        "bare: persistent MPI requests, fixed buffers and mpisign's kernels, without headers, "
        "checks and timeouts."
    )
    forms = {
        "allgather": (traffic.of_allgather, _allgather),
        "alltoall": (traffic.of_alltoall, _alltoall),
    }
    for algorithm, (must, start) in forms.items():
        yield CollectiveMethod(
            f"bare {algorithm}", "bare", must, partial(start, comm), algorithm, notes=notes
        )


def _allgather(comm: MPI.Comm, gradient: Gradient) -> Running:
    """Every plane to all; every rank tallies all of it."""
    rank, size, length = gradient.rank, gradient.size, gradient.length
    stack = np.zeros((size, traffic.plane(length)), dtype=np.uint8)
    result = np.zeros(stack.shape[1], dtype=np.uint8)
    others = [r for r in range(size) if r != rank]
    exchange = _persistent(
        comm, _UP, [(r, stack[rank]) for r in others], [(r, stack[r]) for r in others]
    )

    def call() -> None:
        mpisign.pack(gradient.values, zeros="positive", out=stack[rank])
        _exchanged(exchange)
        mpisign.majority(stack, length=length, ties="positive", out=result)
        mpisign.unpack(result, out=gradient.out)

    return _running(gradient, call, exchange)


def _alltoall(comm: MPI.Comm, gradient: Gradient) -> Running:
    """Shards of whole bytes to their owners, who tally; results to all."""
    rank, size, length = gradient.rank, gradient.size, gradient.length
    nbytes = traffic.plane(length)
    shards = [slice(nbytes * r // size, nbytes * (r + 1) // size) for r in range(size)]
    mine = shards[rank]
    coordinates = min(8 * mine.stop, length) - 8 * mine.start
    own, result = (np.zeros(nbytes, dtype=np.uint8) for _ in range(2))
    stack = np.zeros((size, mine.stop - mine.start), dtype=np.uint8)
    others = [r for r in range(size) if r != rank]
    up = _persistent(
        comm, _UP, [(r, own[shards[r]]) for r in others], [(r, stack[r]) for r in others]
    )
    down = _persistent(
        comm, _DOWN, [(r, result[mine]) for r in others], [(r, result[shards[r]]) for r in others]
    )

    def call() -> None:
        mpisign.pack(gradient.values, zeros="positive", out=own)
        stack[rank] = own[mine]
        _exchanged(up)
        mpisign.majority(stack, length=coordinates, ties="positive", out=result[mine])
        _exchanged(down)
        mpisign.unpack(result, out=gradient.out)

    return _running(gradient, call, [*up, *down])


def _persistent(
    comm: MPI.Comm, tag: int, sends: Iterable[Any], recvs: Iterable[Any]
) -> list[MPI.Prequest]:
    requests = [comm.Recv_init([part, MPI.BYTE], rank, tag) for rank, part in recvs]
    return requests + [comm.Send_init([part, MPI.BYTE], rank, tag) for rank, part in sends]


def _exchanged(requests: list[MPI.Prequest]) -> None:
    MPI.Prequest.Startall(requests)
    MPI.Request.Waitall(requests)


def _running(gradient: Gradient, call: Any, requests: list[MPI.Prequest]) -> Running:
    def check() -> None:
        check_votes(gradient.out, sign_sums(gradient.all_ranks), "positive")

    def end() -> None:
        for request in requests:
            request.Free()

    return Running(call, check, result=lambda: gradient.out, end=end)
