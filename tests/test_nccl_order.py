"""NCCLTransport under random schedules: no order of hosts and streams hangs it or changes a byte.

Two communicators vote while SyncBatchNorm's sums run between; tests/nccl_player.py plays NCCL.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from late_device import on_device
from nccl_player import Communicator, Control, Device, Group, Hang, Stream, World

from mpisign.errors import WireError
from mpisign.transports.nccl import NCCLTransport

LENGTH = 4
VOTES, SUMS = 3, 2


class Differs(AssertionError):
    pass


class Rank:
    """A training step: votes that start when headers have come, sums of the program between."""

    def __init__(self, world, rank, size, groups, headers):
        self.world, self.rank, self.size, self.headers = world, rank, size, headers
        self.device = Device(world)
        self.torch = Communicator(groups[-1], rank, world)
        self.torch_stream = Stream(self.device, "of torch")
        self.wires = []
        for group in groups[:-1]:
            made = Communicator(group, rank, world)
            wire = NCCLTransport(Control(rank, size), nccl=made, device=self.device)
            wire._connect(0, made)
            self.wires.append(wire)
        self.pendings, self.results = [], []
        self.turns = [deque() for _ in self.wires]  # ``ordered``: of each, one vote at a time
        self.sums = []

    def vote(self, number):
        """up, tally, down, as alltoall_vote; yields what it waits for."""
        self.headers[number] += 1
        while self.headers[number] < self.size or self.world.rng.random() < 0.3:
            yield lambda: self.headers[number] == self.size
        wire, p, stream = self.wires[number % 2], self.size, self.device.compute
        sent, shard = (on_device(np.zeros((p, LENGTH), np.uint8)) for _ in range(2))
        result = on_device(np.zeros((p, LENGTH), np.uint8))

        def pack():
            sent[:] = 10 * self.rank + number
            shard[self.rank] = sent[self.rank]

        def tally():
            result[self.rank] = shard.sum(axis=0) + self.rank

        stream.run(pack)
        parts = [(r, sent[r]) for r in wire.others], [(r, shard[r]) for r in wire.others]
        yield self.ended(wire, *parts)
        stream.run(tally)
        parts = [(r, result[self.rank]) for r in wire.others], [(r, result[r]) for r in wire.others]
        yield self.ended(wire, *parts)
        final = np.zeros_like(result)
        stream.run(lambda: final.__setitem__(..., result))
        stream.run(lambda: sent.fill(255))  # the next step's gradients
        self.results.append((number, final))

    def ended(self, wire, sends, recvs):
        pending = wire.start_exchange(sends, recvs, 0)
        self.pendings.append(pending)
        return lambda: wire._given_up or pending._event.done()

    def advance(self):
        """Moves the first vote of each communicator on; what they wait for."""
        waits = []
        for turn in self.turns:
            while turn:
                steps, wait = turn[0]
                if wait is not None and not wait():
                    waits.append(wait)
                    break
                try:
                    turn[0] = steps, next(steps)
                except StopIteration:
                    turn.popleft()
        return waits

    def sum(self):
        """SyncBatchNorm: on torch's stream behind ours, and ours behind it."""
        values, stream = on_device(np.zeros(1, np.float32)), self.device.compute
        stream.run(lambda: values.fill(self.rank + 1))
        self.torch_stream.follow(stream)
        at = values.ctypes.data
        self.torch.allReduce(at, at, 1, 7, 0, self.torch_stream.pointer)
        stream.follow(self.torch_stream)
        self.sums.append(values)

    def program(self):
        for number in range(max(VOTES, SUMS)):
            if number < VOTES:
                self.turns[number % 2].append((self.vote(number), None))
            yield
            if self.world.rng.random() < 0.7:
                self.advance()
            if number < SUMS:
                self.sum()
            yield
        while waits := self.advance():
            yield lambda waits=waits: any(wait() for wait in waits)


def ranks_of(seed, size):
    world = World(seed)
    groups, headers = [Group(size) for _ in range(3)], [0] * VOTES
    ranks = [Rank(world, r, size, groups, headers) for r in range(size)]
    for rank in ranks:
        world.hosts[rank.rank] = rank.program()
    return world, ranks


def check(seed, size=2):
    world, ranks = ranks_of(seed, size)
    world.play()
    for rank in ranks:
        assert all(pending.done() for pending in rank.pendings)
        assert sorted(number for number, _ in rank.results) == list(range(VOTES))
        for number, final in rank.results:
            total = sum(10 * r + number for r in range(size))
            if (final != total + np.arange(size)[:, None]).any():
                raise Differs(f"seed {seed}, rank {rank.rank}, vote {number}: {final.tolist()}")
        assert all(values == size * (size + 1) / 2 for values in rank.sums)


def test_a_thousand_schedules_neither_hang_nor_differ():
    for seed in range(1000):
        check(seed, 2 + seed % 2)


def test_on_the_programs_stream_it_would_hang(monkeypatch):
    """As before: an exchange on the compute stream, which SyncBatchNorm's sums wait for."""
    monkeypatch.setattr(Device, "own", lambda self, index: self.compute)
    with pytest.raises(Hang, match="compute.*of torch|of torch.*compute"):
        for seed in range(200):
            check(seed)


def test_if_the_programs_stream_waited_for_it_it_would_hang(monkeypatch):
    """Chained by streams alone: why the host waits for an exchange, and no stream does."""
    plain = NCCLTransport._queue

    def chained(self, call, on, streams, keep):
        pending = plain(self, call, on, streams, keep)
        for stream in streams:
            stream.follow(on.stream)
        return pending

    monkeypatch.setattr(NCCLTransport, "_queue", chained)
    with pytest.raises(Hang):
        for seed in range(200):
            check(seed)


def test_without_an_event_before_it_bytes_differ(monkeypatch):
    """NCCL's stream that does not wait for the kernels that pack."""
    plain = Stream.follow
    skips = lambda self, other: self.name == "of NCCL" or plain(self, other)  # noqa: E731
    monkeypatch.setattr(Stream, "follow", skips)
    with pytest.raises(Differs):
        for seed in range(200):
            check(seed)


def killed(seed):
    """Rank 0 dies somewhere; the others end their wires at their timeout. Whether any waited."""
    world, ranks = ranks_of(seed, 3)
    world.play(int(world.rng.integers(10, 200)))
    world.kill(ranks[0].device, 0)
    try:
        world.play()
    except Hang:
        pass
    else:
        return False
    world.hosts.clear()
    for rank in ranks[1:]:
        for wire in rank.wires:
            wire.abort()
        rank.torch.abort()  # torch's watchdog
    world.play()  # every stream goes on to its end
    for rank in ranks[1:]:
        for pending in rank.pendings:
            if not pending.over:
                with pytest.raises(WireError, match="it was aborted"):
                    pending.done()
    return True


def test_after_an_abort_every_stream_goes_on_whoever_died():
    assert sum(map(killed, range(100))) > 50


def test_without_an_abort_a_kernel_waits_for_ever(monkeypatch):
    monkeypatch.setattr(NCCLTransport, "abort", lambda self: None)
    with pytest.raises(Hang, match="of NCCL"):
        for seed in range(100):
            killed(seed)
