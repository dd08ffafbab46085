"""StagedTransport over MPI at several ranks, the device played by tests/late_device.py."""

from __future__ import annotations

import numpy as np
from late_device import LateDevice, on_device
from mpi4py import MPI

from mpisign.stats import stats
from mpisign.transports.mpi import MPITransport
from mpisign.transports.staged import StagedTransport

wire = MPITransport(MPI.COMM_WORLD.Dup())
device = LateDevice()
staged = StagedTransport(wire, device)
rank, size = staged.rank, staged.size
assert (staged.device, staged.ordered, staged.name) == ("cuda", False, "mpi, staged")


def content(source, to, tag, turn, length):
    return np.random.default_rng([source, to, tag, turn]).integers(0, 256, length, dtype=np.uint8)


def length(source, to, tag, turn):
    most = [0, 1, 300, 4097, 100_000, 3_000_000]
    return int(np.random.default_rng([7, source, to, tag, turn]).integers(most[turn % 6] + 1))


def exchanges_in_flight():
    """Twelve turns of four tags each, which are waited for out of order, two turns at once."""
    order = np.random.default_rng(rank)
    flying = []
    for turn in range(12):
        device.queue = device.queues[turn % 2]
        for tag in range(4):
            sends, recvs = [], []
            for peer in staged.others:
                n = length(rank, peer, tag, turn)
                sends.append((peer, on_device(content(rank, peer, tag, turn, n))))
                recvs.append((peer, on_device(np.zeros(length(peer, rank, tag, turn), np.uint8))))
            flying.append((tag, turn, recvs, staged.start_exchange(sends, recvs, tag)))
            for _, part in sends:
                part[:] = 0  # it left: the copy to host memory is over when start returns
        while len(flying) > 4 or (turn == 11 and flying):
            tag, at, recvs, pending = flying.pop(int(order.integers(len(flying))))
            if order.integers(2):
                while not pending.done():
                    pass
                assert pending.missing() == []
            assert pending.wait(60) and pending.wait() and pending.done()
            flying_checks.append((tag, at, recvs))
    device.synchronize()
    for tag, at, recvs in flying_checks:
        for peer, part in recvs:
            assert np.array_equal(part, content(peer, rank, tag, at, part.size)), (peer, tag, at)


flying_checks = []
exchanges_in_flight()
allocations = len(device.allocated)
assert 2 <= allocations < 20 or size == 1, device.allocated
flying_checks.clear()
exchanges_in_flight()
assert len(device.allocated) == allocations, "pinned memory is used again"

# The own row stays on the device; NumPy parts are not staged at all.
before = stats().as_dict()["exchange"]["sent"]
rows = [on_device(np.zeros(1000 + r, np.uint8)) for r in range(size)]
staged.start_allgather(on_device(np.full(1000 + rank, rank, np.uint8)), rows, 5).wait()
device.synchronize()
assert all((row == r).all() for r, row in enumerate(rows))
assert stats().as_dict()["exchange"]["sent"] - before == (1000 + rank) * (size - 1)
rows = [np.zeros(8, np.uint8) for r in range(size)]
copies = len(device.queue.copies)
staged.start_allgather(np.full(8, rank, np.uint8), rows, 5).wait()
assert all((row == r).all() for r, row in enumerate(rows))
assert len(device.queue.copies) == copies

for dtype in (np.float32, np.float64):
    values = on_device(np.arange(1001, dtype=dtype) + rank)
    pending = staged.start_allreduce(values, 6)
    assert pending.wait(60)
    device.synchronize()
    assert np.array_equal(values, size * np.arange(1001) + sum(range(size)))

# A rank that never sends is reported, not waited for; the wire's notices go through.
if size > 1:
    right, left = (rank + 1) % size, (rank - 1) % size
    part = on_device(np.zeros(5, np.uint8))
    pending = staged.start_exchange([], [(left, part)], 7)
    assert not pending.wait(0.05) and pending.missing() == [left]
    MPI.COMM_WORLD.Barrier()
    staged.post(b"gone")
    heard = []
    while len(heard) < size - 1:
        heard += staged.notices()
    assert sorted(heard) == [(r, b"gone") for r in range(size) if r != rank]
    staged.start_exchange([(right, on_device(np.full(5, rank, np.uint8)))], [], 7).wait(60)
    assert pending.wait(60)
    device.synchronize()
    assert (part == left).all()
MPI.COMM_WORLD.Barrier()
staged.free()
assert wire.comm == MPI.COMM_NULL
if rank == 0:
    print(f"staged: all well at {size} ranks")
