"""NCCL's rules played by MPI on host memory, for mpisign.transports.nccl on machines without a GPU.

The names and signatures are those of cupy.cuda.nccl (test_gpu_wires.py compares them where CuPy is
installed). What a stream is given runs in order, and only as far as somebody asks for it. A send
outside a group, a split with work under way, or an id that is not the one of rank 0 is an error.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
from late_device import OnDevice, on_device
from mpi4py import MPI

NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 1, 7, 8, 0
_TYPES = {NCCL_UINT8: MPI.BYTE, NCCL_FLOAT32: MPI.FLOAT, NCCL_FLOAT64: MPI.DOUBLE}
_SIZES = {NCCL_UINT8: 1, NCCL_FLOAT32: 4, NCCL_FLOAT64: 8}


class NcclError(RuntimeError):
    pass


class Stream:
    def __init__(self, pointer, device=0):
        self.pointer, self.device, self.work, self.ran = pointer, device, [], 0

    def record(self):
        place = len(self.work)
        return SimpleNamespace(done=lambda: self.passed(place))

    def follow(self, other):
        event = other.record()
        self.work.append(SimpleNamespace(communicator=None, over=event.done))

    def passed(self, place):
        while self.ran < place and self.work[self.ran].over():
            self.ran += 1
        return self.ran >= place


STREAMS = {pointer: Stream(pointer) for pointer in (0, 1)}
current = [STREAMS[0]]


class HostDevice:
    def on_device(self, array):
        return isinstance(array, OnDevice)

    def of(self, array):
        assert isinstance(array, OnDevice)
        return current[0]

    def own(self, device):
        pointer = len(STREAMS)
        STREAMS[pointer] = Stream(pointer, device)
        return STREAMS[pointer]

    def current(self):
        return 0

    @contextlib.contextmanager
    def chosen(self, device):
        before = current[0]
        if before.device != device:
            current[0] = next(s for s in STREAMS.values() if s.device == device)
        yield
        current[0] = before

    def empty(self, nbytes):
        return on_device(np.zeros(nbytes, np.uint8))


class Work:
    """A kernel: started when the stream gets there, and ended by an abort."""

    def __init__(self, communicator, calls):
        self.communicator, self.calls, self.requests = communicator, calls, None

    def over(self):
        if self.communicator.dead:
            return True
        if self.requests is None:
            self.requests = [call() for call in self.calls]
        return MPI.Request.Testall(self.requests)


_group = []
_depth = [0]


def groupStart():
    _depth[0] += 1


def groupEnd():
    _depth[0] -= 1
    assert _depth[0] == 0
    calls = _group.copy()
    _group.clear()
    assert len({(id(c), stream) for c, stream, _ in calls}) <= 1
    if calls:
        communicator, stream, _ = calls[0]
        STREAMS[stream].work.append(Work(communicator, [call for _, _, call in calls]))


def get_unique_id():
    return bytes(range(128, 256))


class NcclCommunicator:
    def __init__(self, ndev, commId, rank):
        if not isinstance(commId, bytes):
            raise TypeError("Argument 'commId' has incorrect type (expected bytes)")
        self.comm, self.dead, self.error = MPI.COMM_WORLD.Dup(), False, None
        assert (ndev, rank) == (self.comm.size, self.comm.rank)
        assert self.comm.allgather(commId) == [get_unique_id()] * ndev

    def _call(self, start, buffer, count, datatype, peer, stream):
        assert _depth[0] == 1, "a send or receive by itself waits for the other side for ever"
        assert 0 <= peer < self.comm.size and peer != self.comm.rank and count > 0
        memory = MPI.buffer.fromaddress(buffer, count * _SIZES[datatype])
        _group.append((self, stream, lambda: start([memory, _TYPES[datatype]], peer)))

    def send(self, sendbuf, count, datatype, peer, stream):
        self._call(self.comm.Isend, sendbuf, count, datatype, peer, stream)

    def recv(self, recvbuf, count, datatype, peer, stream):
        self._call(self.comm.Irecv, recvbuf, count, datatype, peer, stream)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert sendbuf == recvbuf and op == NCCL_SUM and _depth[0] == 0
        memory = [MPI.buffer.fromaddress(recvbuf, count * _SIZES[datatype]), _TYPES[datatype]]
        call = lambda: self.comm.Iallreduce(MPI.IN_PLACE, memory, MPI.SUM)  # noqa: E731
        STREAMS[stream].work.append(Work(self, [call]))

    def commSplit(self, color, key, config=None):
        for stream in STREAMS.values():
            assert all(work.communicator is not self for work in stream.work[stream.ran :])
        comm = self.comm.Split(MPI.UNDEFINED if color == -1 else color, key)
        if comm == MPI.COMM_NULL:
            return None
        made = NcclCommunicator.__new__(NcclCommunicator)
        made.comm, made.dead, made.error = comm, False, None
        return made

    def check_async_error(self):
        if self.error is not None:
            raise self.error

    def abort(self):
        self.dead = True

    def destroy(self):
        assert not self.dead
        self.dead = True
