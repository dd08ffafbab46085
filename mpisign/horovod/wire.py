"""What carries the gradients of one of our optimizers, step after step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import numpy as np

from mpisign.communicator import Communicator
from mpisign.engine.agreement import name_ranks
from mpisign.engine.engine import Engine
from mpisign.engine.progress import ProgressEngine
from mpisign.errors import CollectiveError
from mpisign.transports.base import TAGS, Pending, Steps
from mpisign.transports.horovod import HorovodTransport
from mpisign.transports.tagged import TaggedTransport


def elastic() -> bool:
    """Whether ranks may come and go."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


class Wire:
    """The engine of one optimizer over a process set; no other shares it.

    All ranks of the process set make it together, but in elastic jobs, where a rank that comes
    later makes it alone: there exchanges are named by ``names``, the optimizer's parameters, which
    must differ from another's, as for Horovod's own. The queue begins anew in every step, for such
    a rank has counted none.

    Horovod's own operations, also where it runs over MPI and mpi4py is installed: MPI would be
    faster for small buckets, but Horovod finalizes it, in a thread of its own, as soon as any rank
    leaves, and whoever waits for that rank inside MPI then crashes instead of raising.
    """

    def __init__(self, process_set: hvd.ProcessSet, names: Sequence[str]) -> None:
        self._process_set = process_set
        self._elastic = elastic()
        digest = hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
        self._prefix = f"mpisign.optimizer.{digest}"
        self._engine: Engine | None = None
        self._asked: Pending | None = None
        self._there: Any = np.zeros(0)  # 1 for each rank that has begun this step
        self.newcomers = True  # in this step: ranks may have counted different numbers of steps
        if not self._elastic:
            self._engine = Communicator(process_set).engine

    def call(self) -> Engine:
        """Begins a step, unless it has begun: asks who is there, and does not wait for answers.

        By an allreduce, the one operation of Horovod's that ranks which have called ``hvd.join``
        answer, with zeros; of an allgather or alltoall without them it crashes.
        """
        engine = self._of_these_ranks() if self._elastic else self._engine
        assert engine is not None
        transport = engine.transport
        assert isinstance(transport, HorovodTransport)
        if self._asked is None and engine.progress.broken is None:
            # The same few names in every step: Horovod remembers 1,024.
            transport.restart("")
            engine.progress = ProgressEngine(transport, engine.progress.timeout)
            self._there = np.zeros(transport.size)
            self._there[transport.rank] = 1
            self._asked = transport.start_allreduce(self._there, TAGS)  # the tag after the last
        return engine

    def roll_call(self, wire: TaggedTransport) -> Steps[None]:
        """Waits for the answers; CollectiveError, the same on every rank, if some have joined."""
        assert self._asked is not None
        yield self._asked
        joined = [self._ranks[r] for r in np.flatnonzero(self._there == 0)]
        if joined:
            raise CollectiveError(
                f"step: {name_ranks(joined)} called hvd.join, which Horovod's alltoall cannot do "
                "without. Use hvd.DistributedOptimizer with compression=Compression.sign (without "
                "named_parameters), whose votes allow for joined ranks"
            )

    def ended(self, well: bool) -> None:
        """A step is over: if well, from now on ranks count alike, unless others may come."""
        self._asked = None
        if well:
            self.newcomers = self._elastic

    @property
    def _ranks(self) -> list[int]:
        """Global ranks of the process set."""
        return self._process_set.ranks or list(range(self._process_set.size()))

    @property
    def broken(self) -> bool:
        """Whether what connected the ranks broke off."""
        return self._engine is not None and self._engine.progress.broken is not None

    def _of_these_ranks(self) -> Engine:
        group = self._process_set
        kept = self._engine
        if kept is not None and not self.broken:
            if (kept.transport.rank, kept.transport.size) == (group.rank(), group.size()):
                return kept
        # No digests of results: a rank that has just come knows none of the last.
        self._engine = Engine(HorovodTransport(self._prefix, group), every=0)
        return self._engine
