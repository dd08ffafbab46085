"""A strict player of devices and NCCL: all ranks in one thread, in an order that a seed decides.

A stream is FIFO. A kernel of NCCL holds its stream from its begin until every other side of it has
begun too. Bytes move then, not before. Where nothing can go on, ``Hang`` names what waits.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np
from late_device import OnDevice, on_device

from mpisign.transports.base import Transport


class Hang(AssertionError):
    pass


class Stream:
    def __init__(self, device, name):
        self.rank_device, self.name = device, name
        self.device, self.pointer = device.index, len(device.world.streams)
        self.work, self.ran = [], 0
        device.world.streams.append(self)

    def run(self, call):
        """Queues a kernel of the program's."""
        self.work.append(SimpleNamespace(can=lambda: True, go=lambda: call() or True))

    def record(self):
        place = len(self.work)
        return SimpleNamespace(done=lambda: self.ran >= place)

    def follow(self, other):
        self.work.append(SimpleNamespace(can=other.record().done, go=lambda: True))

    def ready(self):
        return self.ran < len(self.work) and self.work[self.ran].can()

    def go(self):
        self.ran += bool(self.work[self.ran].go())


class Device:
    """One rank's. What ``mpisign.backend.cuda.streams`` is to NCCLTransport."""

    def __init__(self, world, index=0):
        self.world, self.index = world, index
        self.compute = Stream(self, "compute")

    def on_device(self, array):
        return isinstance(array, OnDevice)

    def of(self, array):
        return self.compute

    def own(self, index):
        return Stream(self, "of NCCL")

    def current(self):
        return self.index

    def chosen(self, index):
        return contextlib.nullcontext()

    def empty(self, nbytes):
        return on_device(np.zeros(nbytes, np.uint8))


class Group:
    """What the ranks of a communicator share: sends and receives that have begun."""

    def __init__(self, size):
        self.size, self.posted, self.sums = size, {}, {}


class Kernel:
    def __init__(self, communicator, calls):
        self.communicator, self.calls, self.open = communicator, calls, None

    def can(self):
        if self.communicator.dead or self.open is None:
            return True
        return not any(self.open)

    def go(self):
        if self.communicator.dead:
            return True
        if self.open is None:
            self.open = [[1] for _ in self.calls]
            for call, left in zip(self.calls, self.open, strict=True):
                call(left)
            self.open = _Left(self.open)
            return False
        return True


class _Left(list):
    """Calls of a kernel; each is false once its other side has come."""

    def __iter__(self):
        return (bool(left) for left in super().__iter__())


class Communicator:
    """cupy.cuda.nccl.NcclCommunicator of one rank, and the module's functions for it."""

    NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 1, 7, 8, 0

    def __init__(self, group, rank, world):
        self.group, self.rank, self.world = group, rank, world
        self.dead, self._calls, self._sums = False, None, 0

    def groupStart(self):
        self._calls = []

    def groupEnd(self):
        calls, self._calls = self._calls, None
        if calls:
            assert len({stream for stream, _ in calls}) == 1
            stream = self.world.streams[calls[0][0]]
            stream.work.append(Kernel(self, [call for _, call in calls]))

    def _post(self, pair, sends, mine):
        """A side of a pair; the other one, if it has begun, moves the bytes."""
        queue = self.group.posted.setdefault(pair, ([], []))
        queue[sends].append(mine)
        while queue[0] and queue[1]:
            (to, n, done), (source, m, sent) = queue[0].pop(0), queue[1].pop(0)
            assert n == m, f"a message of {m} bytes for a part of {n}"
            ctypes.memmove(to, source, n)
            done.clear()
            sent.clear()

    def send(self, at, count, kind, peer, stream):
        pair = (self.rank, peer)
        self._calls.append((stream, lambda left: self._post(pair, 1, (at, count, left))))

    def recv(self, at, count, kind, peer, stream):
        pair = (peer, self.rank)
        self._calls.append((stream, lambda left: self._post(pair, 0, (at, count, left))))

    def allReduce(self, source, to, count, kind, op, stream):
        number, self._sums = self._sums, self._sums + 1
        values = np.ctypeslib.as_array(ctypes.cast(to, ctypes.POINTER(ctypes.c_float)), (count,))

        def begin(left):
            come = self.group.sums.setdefault(number, [])
            come.append((values, left))
            if len(come) == self.group.size:
                total = np.sum([v for v, _ in come], axis=0)
                for v, waits in come:
                    v[:] = total
                    waits.clear()

        self.world.streams[stream].work.append(Kernel(self, [begin]))

    def check_async_error(self):
        pass

    def abort(self):
        self.dead = True

    destroy = abort


class Control(Transport):
    """Host memory is not exchanged here: headers are the schedule's."""

    name = "played"

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def _exchange(self, sends, recvs, tag):
        raise AssertionError("no exchange of host memory is due")

    start_allreduce = _exchange


class World:
    """``hosts``: one generator a rank, which yields what it waits for: a callable, or None."""

    def __init__(self, seed):
        self.rng, self.streams, self.hosts = np.random.default_rng(seed), [], {}

    def play(self, steps=10**6):
        """Runs until every host has ended and every stream is empty, at most ``steps`` steps."""
        waits = dict.fromkeys(self.hosts)
        draws: list[float] = []
        for _ in range(steps):
            draws = draws or self.rng.random(256).tolist()
            all_ = [*self.streams, *waits]
            first = int(draws.pop() * len(all_))
            for chosen in all_[first:] + all_[:first]:
                if isinstance(chosen, Stream):
                    if chosen.ready():
                        break
                elif (wait := waits[chosen]) is None or wait():
                    break
            else:
                break
            if isinstance(chosen, Stream):
                chosen.go()
                continue
            try:
                waits[chosen] = next(self.hosts[chosen])
            except StopIteration:
                del waits[chosen], self.hosts[chosen]
        else:
            return
        stuck = [s.name for s in self.streams if s.ran < len(s.work)]
        if waits or stuck:
            raise Hang(f"ranks {sorted(waits)} wait, and streams {stuck}")

    def kill(self, device, rank):
        """A process ends: its kernels vanish, and what others have of it never comes."""
        self.hosts.pop(rank, None)
        for stream in self.streams:
            if stream.rank_device is device:
                stream.ran = len(stream.work)
