"""The vote as one writes it with NumPy: packbits, alltoall, a byte a coordinate, allgather."""

from __future__ import annotations

from functools import partial

import numpy as np

from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.gradient import Gradient
from mpisign.bench.collectives.method import CollectiveMethod, Running, check_signs
from mpisign.bench.collectives.via import Via

_BYTE = 255


def method(via: Via) -> CollectiveMethod:
    """Over any library, in its own alltoall and allgather."""
    return CollectiveMethod(
        "packbits, NumPy", "packbits", traffic.of_alltoall, partial(_start, via), "alltoall"
    )


def _start(via: Via, gradient: Gradient) -> Running:
    p = via.size
    shard = -(-traffic.plane(gradient.length) // p)
    counter = np.uint8 if p <= _BYTE else np.uint16
    send = np.zeros(p * shard, dtype=np.uint8)
    rows = np.empty((p, shard), dtype=np.uint8)
    result = np.empty((p, shard), dtype=np.uint8)

    def call() -> None:
        plane = np.packbits(gradient.values < 0, bitorder="little")
        send[: len(plane)] = plane
        via.alltoall(send.reshape(p, shard), rows)
        count = np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0, dtype=counter)
        via.allgather(np.packbits(count > p // 2, bitorder="little"), result)
        bits = np.unpackbits(result.reshape(-1), count=gradient.length, bitorder="little")
        np.multiply(bits, np.float32(-2), out=gradient.out)
        np.add(gradient.out, 1, out=gradient.out)

    return Running(call, lambda: check_signs(gradient, gradient.out), result=lambda: gradient.out)
