"""Hostile ranks: real participants that deviate in what they compute or in what they send."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict

import numpy as np

from mpisign import Communicator
from mpisign.collectives import replicated_vote as replicated
from mpisign.collectives.accusations import accuse
from mpisign.engine.echo import digest
from mpisign.transports.base import FIRST, FirstRound, Transport
from mpisign.transports.threads import ThreadTransport, _Exchange, _Rank

#: The exchanges of a vote under byzantine_f, in their order.
STEPS = [
    "headers",
    "echo of headers",
    "commitments",
    "ballots",
    "echo of commitments",
    "digests",
    "results",
    "requests",
    "responses",
]


class Wire(ThreadTransport):
    """Threads whose allgathers go from rank to rank, so that a rank can tell each its own."""

    start_allgather = Transport.start_allgather


class Tampering:
    """Mixed into a transport: sends ``tamper(step, dest, part)`` instead of each part.

    ``tamper`` returns the bytes to send, or None to send nothing. ``step``: one of ``STEPS``.
    ``silent``: posts no notices. ``first``: the tag from which on there is tampering; below it is
    the survey of a communicator.
    """

    tamper = None
    silent = False
    first = 1

    def _exchange(self, sends, recvs, tag):
        if not hasattr(self, "_count"):
            apart = self.first_tag(0) == FIRST  # headers, the first step, have a tag of their own
            self._count = defaultdict(lambda: int(apart))
        count = 0 if tag == FIRST else self._count[tag]
        step = STEPS[count] if count < len(STEPS) else "more"
        self._count[tag] += 1
        if self.tamper is not None and tag >= self.first:
            changed = [(dest, self.tamper(step, dest, part.copy())) for dest, part in sends]
            sends = [(dest, part) for dest, part in changed if part is not None]
        return super()._exchange(sends, recvs, tag)

    def _first_round(self, sends, recvs, rooms, tag):
        return FirstRound(self._exchange(sends, recvs, tag))

    def post(self, notice):
        if not self.silent:
            super().post(notice)


class TamperingWire(Tampering, Wire):
    pass


def at(step, change, dests=None):
    """``change(part)`` at one step, to all or to some ranks; the rest as it is."""

    def tamper(s, dest, part):
        return change(part) if s == step and (dests is None or dest in dests) else part

    return tamper


def both(*tampers):
    def tamper(step, dest, part):
        for t in tampers:
            part = t(step, dest, part)
        return part

    return tamper


def flipped(part):
    return part ^ 0x55


class LyingOwner(replicated.ReplicatedVote):
    """Tallies the opposite, and sends digests that fit: all of its kind tell one lie."""

    shards_lied_about = None

    def tally(self):
        super().tally()
        for i, s in enumerate(self.mine):
            if self.shards_lied_about is None or s in self.shards_lied_about:
                self.tallies[i] ^= 0x01
                self.said[self.wire.rank, i] = digest(*self.tallies[i])


class LyingHelper(LyingOwner):
    """Lies about the shards of others alone: its own digest is good."""

    def tally(self):
        self.shards_lied_about = set(self.mine[1:])
        super().tally()


class Accuser(replicated.ReplicatedVote):
    """Accuses honest ranks of everything, and has no tally of anything."""

    reason, ranks = 1, (0, 1)

    def tally(self):
        super().tally()
        for i, _ in enumerate(self.mine):
            self.tallies[i][...] = 0xAA
            self.said[self.wire.rank, i] = accuse(self.reason, self.ranks)


class Babbler(Accuser):
    """Accusations that make no sense: reasons and ranks that there are not."""

    reason, ranks = 77, (1 << 30, 5000)


def deviate(comm, kind):
    """Has a rank's engine run ``kind``, a ReplicatedVote, instead of the real one."""
    comm.engine.adversary = lambda task, f: lambda wire, task: kind(wire, task, f).steps()


def lie_in_tallies(comm):
    """Has a rank tally the opposite of everything, in whichever algorithm it is in."""

    def opposite(stack, first, out):
        out ^= 0xFF

    comm.engine.adversary = lambda task, f: setattr(task, "lie", opposite)


def soil_padding(comm):
    """Has a rank vote, consistently, with bits beyond the task's length."""

    def change(task, f):
        honest = task.pack

        def pack(a, b, out):
            honest(a, b, out)
            out[..., -1] |= 0x80

        task.pack = pack

    comm.engine.adversary = change


def play(transports, function, timeout=20.0, seconds=30.0):
    """``function(communicator, transport)`` on every transport, a thread each.

    What each returned or raised; AssertionError if one still runs after ``seconds``.
    """
    outcomes = [None] * len(transports)

    def work(i):
        try:
            outcomes[i] = function(Communicator(transports[i], timeout=timeout), transports[i])
        except BaseException as error:
            outcomes[i] = error

    threads = [
        threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(transports))
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    hung = [t.rank for t, thread in zip(transports, threads, strict=True) if thread.is_alive()]
    assert not hung, f"ranks {hung} hang"
    return outcomes


def named(error):
    """The ranks that an error's text names."""
    ranks = set()
    for listed in re.findall(r"\branks? (\d+(?:(?:-|, )\d+)*)", str(error)):
        for run in listed.split(", "):
            first, _, last = run.partition("-")
            ranks |= set(range(int(first), int(last or first) + 1))
    return ranks


class _Both:
    """The mailbox of a two-faced rank: both its faces read all that comes."""

    def __init__(self, faces):
        self.faces = faces
        self.notices = self

    def deliver(self, key, message):
        for face in self.faces:
            face.deliver(key, message)

    def append(self, notice):
        for face in self.faces:
            face.notices.append(notice)


class Face(Wire):
    """One of two faces of a rank: an honest participant in the eyes of ``audience`` alone.

    Faces of colluding ranks with one ``side`` talk to each other. ``mailboxes[rank][side]``.
    """

    def __init__(self, world, rank, side, audience, mailboxes):
        super().__init__(world, rank)
        self.side, self._audience, self._mailboxes = side, audience, mailboxes

    def _exchange(self, sends, recvs, tag):
        for dest, part in sends:
            if dest in self._mailboxes:
                self._mailboxes[dest][self.side].deliver((self.rank, tag), part)
            elif dest in self._audience:
                self._world.ranks[dest].deliver((self.rank, tag), part)
        return _Exchange(self._mailboxes[self.rank][self.side], recvs, tag)

    def post(self, notice):
        pass

    def notices(self):
        queue, came = self._mailboxes[self.rank][self.side].notices, []
        while queue:
            came.append(queue.popleft())
        return came


def two_faced(world, hostile, audiences):
    """The faces of ``hostile`` ranks, to be played with the honest ranks' transports."""
    mailboxes = {r: [_Rank(), _Rank()] for r in hostile}
    for r in hostile:
        world.ranks[r] = _Both(mailboxes[r])
    return [Face(world, r, side, audiences[side], mailboxes) for r in hostile for side in (0, 1)]


def same(a, b):
    return isinstance(a, np.ndarray) and np.array_equal(a, b)
