"""alltoall-vote with 2 f + 1 owners a shard: survives f ranks that lie about votes and tallies."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import numpy as np

from mpisign.collectives.accusations import (
    COMMITTED,
    PADDING,
    TOLD,
    accuse,
    is_accusation,
    summary,
)
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.agreement import name_ranks
from mpisign.engine.echo import DIGEST, digest, echo
from mpisign.errors import WireError
from mpisign.transports.base import Bytes, Pending, Steps
from mpisign.transports.tagged import TaggedTransport


def replicated_vote(wire: TaggedTransport, task: VoteTask, f: int) -> Steps[None]:
    """The result of ``alltoall_vote``, or WireError that names ranks, where f of p >= 2 f + 1 lie.

    Shard s of p, bytes [B s // p, B (s + 1) // p), is tallied by its owners s, ..., s + 2 f mod p.
    Wire, 6 exchanges: to all, the 32-byte digests of this rank's p shards, to which it commits;
    to each owner its 2 f + 1 shards, planes one after the other, latest first (owner, owner - 1,
    ...); the echo of all commitments (``echo``); to all, the result of shard ``rank`` and the
    digests of all 2 f + 1 tallies (``accusations``); to each owner, a byte for each of its shards
    that is asked for; those. A result is taken if f + 1 owners sent its digest. Receives, without
    liars, k (2 f + 1) B (1 - 1/p) + kd B (1 - 1/p) + (p - 1) (64 p + 33 (2 f + 1)) bytes.

    No result that is taken is wrong, and no two honest ranks take different ones: of f + 1 owners
    one is honest; it tallied what a quorum saw committed to, and gives an accusation where it could
    not. f + 1 honest owners without one decide, whatever the others say; else ranks raise, perhaps
    not all in this call, and are told. RuntimeWarning names ranks whose lies did no harm. No
    liveness: a rank that sends nothing, or the wrong length, ends the vote, and is named. All this
    against ranks that lie (T1), not against one that tampers inside MPI (T2).
    Source: after Blanchard et al. 2017, section 2 (replicated server); Castro and Liskov 1999.
    """
    yield from ReplicatedVote(wire, task, f).steps()


class ReplicatedVote:
    """One rank's part, step by step. Rows of (p, n) arrays: an owner and a place among its shards.

    Owner o's shard at place i is (o - i) mod p; shard s lies at place i of owner (s + i) mod p.
    """

    def __init__(self, wire: TaggedTransport, task: VoteTask, f: int) -> None:
        p, n = wire.size, 2 * f + 1
        self.wire, self.task, self.f, self.n = wire, task, f, n
        self.shards = [slice(*s) for s in pairwise(task.nbytes * r // p for r in range(p + 1))]
        self.owned = [[(o - i) % p for i in range(n)] for o in range(p)]
        self.mine = self.owned[wire.rank]
        self.stacks = [self._empty(s, p, task.k) for s in self.mine]
        self.commitments = np.zeros((p, p, DIGEST), dtype=np.uint8)  # by sender and shard
        self.tallies = [self._empty(s, task.kd) for s in self.mine]
        self.said = np.zeros((p, n, DIGEST), dtype=np.uint8)
        self.result = wire.empty(task.kd, task.nbytes)
        self.asked = np.zeros((p, n), dtype=np.uint8)
        self.decided: dict[int, bytes] = {}  # the digest of a shard's result
        self.unmet: set[int] = set()  # decided, but the result is not there
        self.liars: set[int] = set()
        self.suspects: list[int] | None = None

    def steps(self) -> Steps[None]:
        """The whole vote."""
        yield from self.collect()
        self.tally()
        yield from self.spread()
        self.decide()
        yield from self.fetch()
        self.check()
        self.task.unpack(0, self.task.nbytes, self.result)

    def collect(self) -> Steps[None]:
        """Commitments, their echo, and the ballots of this rank's shards."""
        wire, task, rank, others = self.wire, self.task, self.wire.rank, self.wire.others
        planes = wire.empty(task.k, task.nbytes)
        task.pack(0, task.nbytes, planes)
        for s, stack in zip(self.mine, self.stacks, strict=True):
            stack[rank] = planes[:, self.shards[s]]
        for s, shard in enumerate(self.shards):
            self.commitments[rank, s] = digest(*planes[:, shard])
        committed = self._tell(self.commitments)
        came = wire.exchange(
            [(o, plane[self.shards[s]]) for o in others for s in self.owned[o] for plane in planes],
            [(r, plane) for r in others for stack in self.stacks for plane in stack[r]],
        )
        yield committed
        told = yield from echo(wire, self.commitments.reshape(wire.size, -1), self.f)
        self.suspects = None if all(told.trusted) else told.suspects
        yield came

    def tally(self) -> None:
        """This rank's word on each of its shards: the digest of its tally, or an accusation."""
        for i, s in enumerate(self.mine):
            stack, out, first = self.stacks[i], self.tallies[i], self.shards[s].start
            said = self._accusation(stack, first, self.commitments[:, s])
            if said is None:
                self.task.tally(self.task.by_rows(stack), first, out)
                said = digest(*out)
            else:
                out[...] = 0  # a hostile rank may ask for it
            self.said[self.wire.rank, i] = said

    def _accusation(self, stack: Any, first: int, commitments: Bytes) -> Bytes | None:
        if self.suspects is not None:
            return accuse(TOLD, self.suspects)
        other = [r for r, planes in enumerate(stack) if (digest(*planes) != commitments[r]).any()]
        if other:
            return accuse(COMMITTED, other)
        bad = []
        for r in range(len(stack)):
            try:
                self.task.check_padding(stack[r : r + 1], first)
            except WireError:
                bad.append(r)
        return accuse(PADDING, bad) if bad else None

    def spread(self) -> Steps[None]:
        """What all owners say, and the results of the first ones."""
        self.result[:, self.shards[self.wire.rank]] = self.tallies[0]
        said = self._tell(self.said)
        others = self.wire.others
        came = self.wire.exchange(
            [(r, plane) for r in others for plane in self.tallies[0]],
            [(r, plane[self.shards[r]]) for r in others for plane in self.result],
        )
        yield said
        yield came

    def decide(self) -> None:
        """Which digest f + 1 owners of each shard sent, and whom to ask for what has it."""
        for s, shard in enumerate(self.shards):
            owners, records = self._owners(s), self._records(s)
            counts = Counter(r for r in records if not is_accusation(r))
            best, votes = counts.most_common(1)[0] if counts else (b"", 0)
            if votes <= self.f:
                continue
            self.decided[s] = best
            self.liars |= {
                o
                for o, r in zip(owners, records, strict=True)
                if r != best and not is_accusation(r)
            }
            if digest(*self.result[:, shard]).tobytes() == best:
                continue
            if records[0] == best:
                self.liars.add(owners[0])
            if s in self.mine and records[self.mine.index(s)] == best:
                self.result[:, shard] = self.tallies[self.mine.index(s)]
                continue
            self.unmet.add(s)
            # Of f + 1 that sent it one is honest, and of f beside a first owner that lied.
            for i in [i for i in range(1, self.n) if records[i] == best][: self.f + 1]:
                self.asked[owners[i], i] = 1

    def fetch(self) -> Steps[None]:
        """Asks for results that first owners did not send, and sends what others ask for."""
        wire, others = self.wire, self.wire.others
        wanted = np.zeros_like(self.asked)  # by who asks, and place among this rank's shards
        yield wire.exchange([(o, self.asked[o]) for o in others], [(r, wanted[r]) for r in others])
        again = {
            (int(o), self.owned[o][i]): self._empty(self.owned[o][i], self.task.kd)
            for o, i in np.argwhere(self.asked)
        }
        yield wire.exchange(
            [
                (r, plane)
                for r in others
                for i in np.flatnonzero(wanted[r])
                for plane in self.tallies[i]
            ],
            [(o, plane) for (o, _), planes in again.items() for plane in planes],
        )
        for (owner, s), planes in again.items():
            if digest(*planes).tobytes() == self.decided[s]:
                self.result[:, self.shards[s]] = planes
                self.unmet.discard(s)
            else:
                self.liars.add(owner)

    def check(self) -> None:
        """WireError unless the result is whole; RuntimeWarning if somebody lied in vain."""
        p = self.wire.size
        said = [(o, record.tobytes()) for o, row in enumerate(self.said) for record in row]
        accused = summary(said, p)
        lied = f"{name_ranks(sorted(self.liars))} sent false tallies" if self.liars else ""
        undecided = sorted(self.unmet | (set(range(p)) - set(self.decided)))
        if not undecided:
            if lied or accused:
                text = "; ".join(filter(None, [lied, accused]))
                warnings.warn(f"the vote's result is right, but {text}", RuntimeWarning, 2)
            return
        s, sides = undecided[0], defaultdict(list)
        for o, record in zip(self._owners(s), self._records(s), strict=True):
            if not is_accusation(record):
                sides[record].append(o)
        against = " against ".join(name_ranks(sorted(owners)) for owners in sides.values())
        differ = f"their tallies differ: {against}" if len(sides) > 1 else ""
        text = "; ".join(filter(None, [accused, differ, lied]))
        raise WireError(
            f"byzantine_f={self.f}: no {self.f + 1} of {self.n} owners agree on shard {s}: {text}"
        )

    def _empty(self, shard: int, *rows: int) -> Any:
        return self.wire.empty(*rows, self.shards[shard].stop - self.shards[shard].start)

    def _others(self) -> list[int]:
        return self.wire.others

    def _owners(self, shard: int) -> list[int]:
        return [(shard + i) % self.wire.size for i in range(self.n)]

    def _records(self, shard: int) -> list[bytes]:
        return [self.said[o, i].tobytes() for i, o in enumerate(self._owners(shard))]

    def _tell(self, table: Bytes) -> Pending:
        """This rank's row of ``table`` to all, theirs into it."""
        return self.wire.allgather(
            table[self.wire.rank].reshape(-1), table.reshape(self.wire.size, -1)
        )
