"""Allreduce of MPI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from mpisign.bench.wire import traffic
from mpisign.bench.wire.gradient import Gradient
from mpisign.bench.wire.via_mpi import MPIVia
from mpisign.bench.wire.way import Running, Way, check_sum


def ways(via: MPIVia) -> Iterator[Way]:
    """fp32 as MPI offers it, fp16 by an operation of our own: no MPI so far sums fp16."""
    yield Way("fp32 allreduce", "fp32", None, traffic.of_fp32, lambda g: _fp32(via, g))
    yield Way(
        "fp16 allreduce",
        "fp16",
        None,
        traffic.of_fp16,
        lambda g: _fp16(via, g),
        notes="fp16 over MPI: cast, summed by NumPy in an MPI.Op (MPI itself has no fp16), and "
        "cast back.",
    )


def _fp32(via: MPIVia, gradient: Gradient) -> Running:
    pairs = list(zip(gradient.cut(gradient.values), gradient.cut(gradient.out), strict=True))

    def call() -> None:
        if len(pairs) == 1:
            via.comm.Allreduce(gradient.values, gradient.out)
        else:
            MPI.Request.Waitall([via.comm.Iallreduce(x, out) for x, out in pairs])

    return Running(call, lambda: check_sum(gradient, gradient.out, exact=True))


def _fp16(via: MPIVia, gradient: Gradient) -> Running:
    op = MPI.Op.Create(_sum_fp16, commute=True)
    half, total = (np.empty(gradient.length, dtype=np.float16) for _ in range(2))
    pairs = list(zip(gradient.cut(half), gradient.cut(total), strict=True))

    def call() -> None:
        np.copyto(half, gradient.values, casting="same_kind")
        for x, out in pairs:  # one by one: Python's operation runs in no other call's progress
            via.comm.Allreduce([x, MPI.UINT16_T], [out, MPI.UINT16_T], op)
        np.copyto(gradient.out, total)

    return Running(call, lambda: check_sum(gradient, gradient.out, exact=False))


def _sum_fp16(a: Any, b: Any, datatype: MPI.Datatype) -> None:
    x, y = (np.frombuffer(buffer, dtype=np.float16) for buffer in (a, b))
    np.add(x, y, out=y)
