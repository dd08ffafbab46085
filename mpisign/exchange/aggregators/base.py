"""The interface between front ends and what becomes of a bucket in one step."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from mpisign.collectives.vote_task import Planes
from mpisign.compressors.base import Compressor
from mpisign.detox.assignment import Partition
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.buckets import Bucket
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class Aggregator(ABC):
    """One bucket's way through one step on one rank: packed, exchanged, written into its members.

    ``bucket``: the layout of ``members``, in their order. ``seed``, ``step`` key the random bits
    and are agreed; ``size``, ``rank``: of the line that ``steps`` will be given; ``groups``: of its
    ranks, which ``compressor.groups_of`` gave, agreed too. What ``begin``
    raises is told to the other ranks as a refusal; ``steps`` raises on all ranks alike.
    """

    operation: ClassVar[str] = "bucket_vote"

    def __init__(
        self,
        bucket: Bucket,
        members: Sequence[ParameterSlot],
        compressor: Compressor,
        *,
        seed: int,
        step: int,
        rank: int,
        size: int,
        groups: Partition | None = None,
    ) -> None:
        self.bucket = bucket
        self.members = members
        self.compressor = compressor
        self.rank, self.size = rank, size
        self.groups = groups
        # Members of a group that compute the same must vote the same where bits are random.
        alike = rank if groups is None else next(i for i, g in enumerate(groups) if rank in g)
        self.keys: dict[str, Any] = {"seed": seed, "step": step, "rank": alike}

    def begin(self, header: Header, message: int) -> tuple[Header, Planes | None]:
        """The header that this rank is to send, and planes that travel in it.

        Packs what the header must tell of, such as NaNs, and counts them in ``nans``, or says
        ``late``. ``message``: the transport's.
        """
        c = self.compressor
        return replace(header, zeros=c.zeros, nan=c.nan, ties=c.ties), None

    @abstractmethod
    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        """The collective after its headers, ``agreed``.

        ``number``: what ``engine.next_step`` gave it. ``anywhere``: uint8 (members,), 1 = some
        rank has a gradient for it; the others are left alone.
        """


def start_momenta_again(members: Sequence[ParameterSlot], groups: Partition) -> None:
    """Where groups were drawn anew, momenta start again from zero, on all ranks.

    Those that a rank brings from another group have seen other batches: members of a group would
    not compute the same for as long as they last. State of each member: "momentum_of", a digest of
    the groups.
    """
    digest = hashlib.blake2b(repr(groups).encode(), digest_size=7)
    of = [int.from_bytes(digest.digest(), "little")]
    for m in members:
        if m.state.get("momentum_of") != of:
            m.state.pop("momentum", None)
            m.state["momentum_of"] = of
