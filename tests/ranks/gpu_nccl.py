"""NCCLTransport at several ranks, NCCL played by nccl_on_host.py. argv: the tests."""

from __future__ import annotations

import sys
import threading
import time
import types

import nccl_on_host as nccl
import numpy as np
import pytest
from late_device import on_device
from mpi4py import MPI

import mpisign
from mpisign.errors import CollectiveError, CollectiveTimeout, WireError
from mpisign.stats import stats
from mpisign.transports import nccl_start
from mpisign.transports import on_device as on_device_wires
from mpisign.transports.mpi import MPITransport
from mpisign.transports.nccl import NCCLTransport

WORLD = MPI.COMM_WORLD
rank, size = WORLD.rank, WORLD.size


def transport(nccl=nccl, **options):
    control = MPITransport(WORLD.Dup())
    return NCCLTransport(control, nccl=nccl, device=nccl_device, **options)


nccl_device = nccl.HostDevice()


def communicator_of(wire):
    """NCCL's, None before its start and after its end."""
    return wire._started[0].communicator if wire._started else None


def check_exchanges(wire, turns=8):
    """Exchanges of any lengths, some empty, up to three of them in flight."""
    flying = []
    for turn in range(turns):
        nccl.current[0] = nccl.STREAMS[turn % 2 if turn > 4 else 0]
        most = [1, 0, 70_000, 3, 400_000][turn % 5]
        n = lambda a, b: int(np.random.default_rng([a, b, turn]).integers(most + 1))  # noqa: B023, E731
        sends, recvs = [], []
        for peer in wire.others:
            if n(wire.rank, peer) or turn % 2:
                fill = np.full(n(wire.rank, peer), 16 * wire.rank + peer + turn, np.uint8)
                sends.append((peer, on_device(fill)))
            if n(peer, wire.rank) or turn % 2:
                recvs.append((peer, on_device(np.zeros(n(peer, wire.rank), np.uint8))))
        flying.append((turn, recvs, wire.start_exchange(sends, recvs, turn % 3)))
        while len(flying) > (3 if turn < turns - 1 else 0):
            at, parts, pending = flying.pop(0)
            assert pending.wait(60) and pending.done() and pending.wait(0)
            assert not pending.missing()
            assert all((p == 16 * r + wire.rank + at).all() for r, p in parts)


def everything():
    wire = transport()
    assert (wire.name, wire.device, wire.ordered) == ("nccl", "cuda", True)
    # Host memory goes by the control wire, and NCCL is not started for it.
    rows = [np.zeros(3, np.uint8) for _ in range(size)]
    assert wire.start_allgather(np.full(3, rank, np.uint8), rows, 0).wait(60)
    assert all((row == r).all() for r, row in enumerate(rows)) and communicator_of(wire) is None
    check_exchanges(wire)
    assert (communicator_of(wire) is None) == (size == 1)
    nccl.current[0] = nccl.STREAMS[0]
    sent = stats().as_dict()["exchange"]["sent"]
    rows = [on_device(np.zeros(50 + r, np.uint8)) for r in range(size)]
    assert wire.start_allgather(on_device(np.full(50 + rank, rank, np.uint8)), rows, 1).wait(60)
    assert all((row == r).all() for r, row in enumerate(rows))
    assert stats().as_dict()["exchange"]["sent"] - sent == (50 + rank) * (size - 1)
    for dtype in (np.float32, np.float64):
        for move in (on_device, np.asarray):
            values = move(np.arange(33, dtype=dtype) + rank)
            assert wire.start_allreduce(values, 2).wait(60)
            assert np.array_equal(values, size * np.arange(33) + sum(range(size)))
    if size > 1:
        mixed = [((rank + 1) % size, np.zeros(1, np.uint8)), ((rank + 1) % size, rows[0])]
        with pytest.raises(TypeError, match="all or none"):
            wire.start_exchange(mixed, [], 0)

    # Groups, in the reverse order, the last rank in none; the whole goes on beside them.
    nccl.current[0] = nccl.STREAMS[1]
    wire.start_allreduce(on_device(np.zeros(9, np.float32)), 0)  # waited for by split
    nccl.current[0] = nccl.STREAMS[0]
    color = -1 if rank == size - 1 and size > 2 else rank % 2
    part = wire.split(color, -rank)
    members = [r for r in reversed(range(size)) if r % 2 == color and (r < size - 1 or size <= 2)]
    if color < 0:
        assert part is None
    else:
        assert (part.size, part.rank) == (len(members), members.index(rank))
        check_exchanges(part, 3)
        values = on_device(np.full(5, rank, np.float32))
        assert part.start_allreduce(values, 0).wait(60) and (values == sum(members)).all()
        values = np.full(5, rank, np.float64)
        assert part.start_allreduce(values, 0).wait(60) and (values == sum(members)).all()
        part.free()
    check_exchanges(wire)
    wire.free()
    assert wire.wire.comm == MPI.COMM_NULL
    with pytest.raises(WireError, match="no use any more: it was freed"):
        wire.start_exchange([], [], 0)


def two_devices():
    """Each device has a communicator and a stream; exchanges alternate between them."""
    wire, second = transport(), nccl_device.own(1)
    for turn in range(4):
        nccl.current[0] = (nccl.STREAMS[0], second)[turn % 2]
        sent, came = (on_device(np.full(9, r + turn, np.uint8)) for r in (rank, 99))
        assert wire.start_exchange([(1 - rank, sent)], [(1 - rank, came)], 0).wait(60)
        assert (came == 1 - rank + turn).all() and sorted(wire._started) == [0, 1][: turn + 1]
    made = [on.communicator for on in wire._started.values()]
    assert len({id(m) for m in made}) == 2
    assert [on.stream.device for on in wire._started.values()] == [0, 1]
    assert all(on.stream not in (nccl.STREAMS[0], second) for on in wire._started.values())
    wire.free()
    assert all(m.dead for m in made)
    nccl.current[0] = nccl.STREAMS[0]


def lacking():
    """One rank without NCCL: all say so, and which."""

    def no_id():
        raise ImportError("CuPy finds no libnccl.so.2: \N{SNOWMAN}")

    load, nccl_start.load = nccl_start.load, no_id
    for broken in range(size):
        lacks = types.SimpleNamespace(**{**vars(nccl), "get_unique_id": no_id})
        if broken == 0:
            wire = transport(lacks if rank == 0 else nccl)
        else:
            wire = transport(None if rank == broken else nccl)
        with pytest.raises(CollectiveError, match=f"cannot start: rank {broken}: ImportError") as e:
            wire.start_exchange([], [], 0)
        assert len(set(WORLD.allgather(str(e.value)))) == 1
    nccl_start.load = load


def channel():
    """A communicator that breaks ends NCCL's kernels, and one that is freed frees NCCL's."""
    found = []

    def over(control, *, timeout):
        found.append(NCCLTransport(control, nccl=nccl, device=nccl_device, timeout=timeout))
        return found[-1], "it is played"

    real, on_device_wires.over = on_device_wires.over, over
    for broken in (False, True):
        comm = mpisign.Communicator(WORLD, timeout=1.0)
        sent, came = (on_device(np.full(9, r, np.uint8)) for r in (rank, 255))

        def steps(line, comm=comm, sent=sent, came=came):
            wire = yield from comm.engine.wire_for(line, sent)
            yield wire.exchange([(1 - rank, sent)], [(1 - rank, came)], "parts")

        comm.engine.submit("vote", steps).wait()
        assert (came == 1 - rank).all()
        made = communicator_of(found[-1])
        assert made is not None and not made.dead
        if not broken:
            comm.free()
            assert made.dead and comm.engine.transport.comm == MPI.COMM_NULL
        elif rank == 0:
            with pytest.raises(CollectiveTimeout, match="rank 1 did not come"):
                comm.engine.submit("vote", steps).wait()
            assert made.dead and communicator_of(found[-1]) is None
        WORLD.Barrier()
    on_device_wires.over = real


def absent():
    """A rank that never comes: the others wait no longer than they may, and say who it was."""
    wire = transport(timeout=0.5)
    if rank == size - 1:
        WORLD.Barrier()
        return
    start = time.monotonic()
    with pytest.raises(WireError, match=rf"start took over 0.5 s: ranks .*{size - 1}.* not come"):
        wire.start_exchange([], [], 0)
    assert time.monotonic() - start < 20
    WORLD.Barrier()


def stuck():
    """NCCL that never returns from its start is left alone."""
    never = threading.Event()

    class Hangs:
        def __init__(self, *args):
            never.wait()

    wire = transport(types.SimpleNamespace(**{**vars(nccl), "NcclCommunicator": Hangs}), timeout=1)
    with pytest.raises(WireError, match="start took over 1 s"):
        wire.start_exchange([], [], 0)
    with pytest.raises(WireError, match="no use any more: .*start took over"):
        wire.start_exchange([], [], 0)


def old_cupy():
    """Before CuPy 14 the id is a tuple of signed numbers."""

    class Old(nccl.NcclCommunicator):
        def __init__(self, ndev, commId, rank):
            if not isinstance(commId, tuple):
                raise TypeError("Argument 'commId' has incorrect type (expected tuple)")
            assert all(-128 <= b < 0 for b in commId)
            super().__init__(ndev, bytes(b & 255 for b in commId), rank)

    changed = {"NcclCommunicator": Old, "get_unique_id": lambda: tuple(range(-128, 0))}
    check_exchanges(transport(types.SimpleNamespace(**{**vars(nccl), **changed})), 3)


def ends():
    """Timeouts, errors of NCCL's, aborts: no bytes that did not come are ever called received."""
    left, right = (rank - 1) % size, (rank + 1) % size
    wire = transport()
    part = on_device(np.zeros(9, np.uint8))
    pending = wire.start_exchange([], [(left, part)], 0)  # nobody sends
    start = time.monotonic()
    assert not pending.wait(0.2) and 0.2 <= time.monotonic() - start < 10 and not pending.done()
    assert pending.missing() is None
    communicator = communicator_of(wire)
    wire._give_up("it was aborted")  # abort() without the control's, which would end the job
    assert communicator.dead
    with pytest.raises(WireError, match="no use any more: it was aborted"):
        pending.wait(1)
    with pytest.raises(WireError, match="no use any more"):
        pending.done()
    with pytest.raises(WireError, match="no use any more"):
        wire.start_exchange([], [], 0)

    wire = transport()
    pending = wire.start_exchange([], [(left, part)], 0)
    communicator_of(wire).error = nccl.NcclError("NCCL_ERROR_REMOTE_ERROR: remote process exited")
    with pytest.raises(WireError, match="remote process exited.*NCCL_DEBUG=WARN"):
        pending.wait(60)
    with pytest.raises(WireError, match="no use any more"):
        wire.start_allreduce(on_device(np.zeros(1, np.float32)), 0)

    wire = transport()
    wire.start_exchange([], [], 0)

    def fails(*args):
        raise nccl.NcclError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")

    communicator_of(wire).send = fails
    with pytest.raises(WireError, match="NcclError: NCCL_ERROR_INVALID_ARGUMENT"):
        wire.start_exchange([(right, part)], [], 0)
    assert nccl._depth[0] == 0, "the group was ended"


def deviceless():
    """The library itself, where there is no device: rank 0 makes an id, and then NCCL is asked."""
    wire = NCCLTransport(MPITransport(WORLD.Dup()), timeout=60)
    with pytest.raises(CollectiveError, match=r"rank 0: CUDARuntimeError") as e:
        wire.start_exchange([], [], 0)
    wire = NCCLTransport(MPITransport(WORLD.Dup()), timeout=60, device=nccl_device)
    with pytest.raises(WireError, match="NCCL: start: NCCL_ERROR_") as e:
        wire.start_exchange([], [], 0)
    print(e.value)


for test in sys.argv[1:]:
    globals()[test]()
    WORLD.Barrier()
    if rank == 0:
        print(f"nccl: {test}: all well at {size} ranks")
