"""The interface between the gradient exchange and what aggregates a bucket in one step."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from mpisign.compressors.base import PackContext
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.buckets import GradientBucket
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.partition import Partition
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class Aggregator(ABC):
    """One bucket on one rank, step after step: packed, exchanged, written into its slots.

    ``rank``, ``size``: of the transport; ``groups``: of its ranks, agreed, or None. In each step
    ``begin`` comes first: what it raises reaches the other ranks as a refusal. ``steps`` raises on
    all ranks alike. ``context`` keys the step's random bits.
    """

    operation: ClassVar[str] = "bucket_vote"

    def __init__(
        self, bucket: GradientBucket, rank: int, size: int, groups: Partition | None
    ) -> None:
        self.bucket = bucket.layout
        self.slots = bucket.slots
        self.compressor = bucket.compressor
        self.masked = bucket.masked
        self.rank, self.size = rank, size
        self.groups = groups
        # Members of a group that compute the same must vote the same where bits are random.
        self._stream = rank
        if groups is not None:
            self._stream = next(i for i, g in enumerate(groups) if rank in g)
        self.context = PackContext(0, 0, self._stream)
        #: The ranks that take part in this step, in order; None: all.
        self.present: list[int] | None = None

    @property
    def voters(self) -> int:
        """How many ranks take part in this step."""
        return self.size if self.present is None else len(self.present)

    @property
    def absent(self) -> bool:
        """Whether this rank does not: it sends nothing that counts, and its states stay."""
        return self.present is not None and self.rank not in self.present

    def begin(self, header: Header, message: int) -> None:
        """Begins a step: completes the header that this rank is to send.

        Packs what the header must report, such as NaNs, and counts them in ``nans``, or sets
        ``nan_count_pending``. ``message``: the transport's.
        """
        c = self.compressor
        self.context = PackContext(header.seed, header.step, self._stream)
        header.zeros, header.nan, header.ties = c.zeros, c.nan, c.ties

    def planned(
        self, engine: Engine, wire: TaggedTransport, header: Header, number: int
    ) -> Steps[bool]:
        """The step by the plan for such headers; False if there is none: ranks exchange headers."""
        return False
        yield

    def free(self) -> None:  # noqa: B027
        """Releases what is kept from step to step."""

    @abstractmethod
    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        """The collective after its headers, ``agreed``.

        ``number``: of the call. ``anywhere``: uint8 (slots,), 1 = some rank has a gradient for it;
        the others are left alone.
        """


def restart_momenta(slots: Sequence[ParameterSlot], groups: Partition) -> None:
    """Where groups were drawn anew, momenta start again from zero, on all ranks.

    Momenta from another group have seen other batches: members of a group would not compute the
    same for as long as they last. State of each slot: "momentum_of", a digest of the groups.
    """
    digest = hashlib.blake2b(repr(groups).encode(), digest_size=7)
    of = [int.from_bytes(digest.digest(), "little")]
    for s in slots:
        if s.state.get("momentum_of") != of:
            s.state.pop("momentum", None)
            s.state["momentum_of"] = of
