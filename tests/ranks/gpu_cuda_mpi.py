"""CudaMPITransport over real MPI, with memory that it knows by address only.

The addresses are of this machine's memory and the stream is played: it writes what is sent when it
is waited for. The rest is what runs on a device: the same calls of MPI.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from mpisign.backend.cuda import streams
from mpisign.transports.cuda_mpi import CudaMPITransport


class Raw:
    """As much of a CuPy array as the transport may touch."""

    def __init__(self, values):
        self.values = values
        self.nbytes, self.dtype = values.nbytes, values.dtype
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def __setitem__(self, key, other):
        assert key is ...
        self.values[...] = other.values


class Stream:
    """What is queued runs when somebody waits."""

    queued: list = []

    def synchronize(self):
        for work in Stream.queued:
            work()
        Stream.queued.clear()


the_stream = Stream()
streams.of = lambda array: the_stream if isinstance(array, Raw) else 1 / 0
wire = CudaMPITransport(MPI.COMM_WORLD.Dup())
rank, size = wire.rank, wire.size
assert (wire.device, wire.name) == ("cuda", "cuda-mpi")

for length in (0, 1, 4097, 3_000_000):
    sends, recvs = [], []
    for peer in wire.others:
        mine, theirs = (np.zeros(length + r, np.uint8) for r in (peer, rank))
        Stream.queued.append(lambda m=mine, p=peer: m.fill(10 * rank + p + 1))
        sends.append((peer, Raw(mine)))
        # Work that still reads what will be overwritten must not be overtaken either.
        recvs.append((peer, Raw(theirs)))
    pending = wire.start_exchange(sends, recvs, 3)
    assert not Stream.queued or length == 0
    assert pending.wait(60)
    if length:
        assert all((p.values == 10 * r + rank + 1).all() for r, p in recvs)
    Stream.queued.clear()

target = Raw(np.zeros(8, np.uint8))
before = []
Stream.queued.append(lambda: before.append(1))
wire.start_exchange([], [((rank - 1) % size, target)] if size > 1 else [], 4)
assert bool(before) == (size > 1), "a receiver waits for its stream too"
if size > 1:
    wire.start_exchange([((rank + 1) % size, Raw(np.ones(8, np.uint8)))], [], 4).wait(60)

rows = [Raw(np.zeros(50, np.uint8)) for _ in range(size)]
wire.start_allgather(Raw(np.full(50, rank + 1, np.uint8)), rows, 5).wait(60)
assert all((row.values == r + 1).all() for r, row in enumerate(rows))
rows = [np.zeros(5, np.uint8) for _ in range(size)]
wire.start_allgather(np.full(5, rank + 1, np.uint8), rows, 5).wait(60)
assert all((row == r + 1).all() for r, row in enumerate(rows))
for dtype in (np.float32, np.float64):
    for values in (np.arange(99, dtype=dtype) + rank, Raw(np.arange(99, dtype=dtype) + rank)):
        assert wire.start_allreduce(values, 6).wait(60)
        got = values.values if isinstance(values, Raw) else values
        assert np.array_equal(got, size * np.arange(99) + sum(range(size)))
MPI.COMM_WORLD.Barrier()
if rank == 0:
    print(f"by address: all well at {size} ranks")
