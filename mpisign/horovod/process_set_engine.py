"""The engine between the ranks of a Horovod process set, which may change in elastic training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import numpy as np

from mpisign import forks
from mpisign.communicator import Communicator
from mpisign.engine.agreement import name_ranks
from mpisign.engine.engine import Engine
from mpisign.engine.progress import ProgressEngine
from mpisign.errors import CollectiveError
from mpisign.transports.base import TAGS, Pending, Steps
from mpisign.transports.horovod import HorovodTransport
from mpisign.transports.tagged import TaggedTransport


def elastic() -> bool:
    """Whether ranks may join and leave."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def ranks_of(process_set: hvd.ProcessSet) -> list[int]:
    """Global ranks of a process set."""
    return process_set.ranks or list(range(process_set.size()))


class ProcessSetEngine:
    """A engine over the present ranks of ``process_set``.

    ``prefix`` names its exchanges for Horovod and must differ from that of every other engine in
    use. The queue is new in every step, because a rank that has just joined has counted no steps.
    """

    def __init__(
        self, process_set: hvd.ProcessSet, prefix: str, engine: Engine | None = None
    ) -> None:
        self.process_set = process_set
        self._prefix = prefix
        self._engine = engine

    @property
    def broken(self) -> bool:
        """Whether the connection between the ranks broke."""
        return self._engine is not None and self._engine.progress.broken is not None

    def forget(self) -> None:
        """Makes the next step use another engine."""
        self._engine = None

    def engine(self) -> Engine:
        """The engine of the present ranks; a new one after elastic training changed them."""
        forks.check(self._prefix, "horovod")
        group, kept = self.process_set, self._engine
        ranks = (group.rank(), group.size())
        if kept is None or (kept.transport.rank, kept.transport.size) != ranks:
            # A rank that has just joined has no digest of the last result.
            every = 0 if elastic() else None
            kept = self._engine = Engine(HorovodTransport(self._prefix, group), every=every)
        return kept

    def restarted(self, topic: str) -> Engine:
        """The engine, its queue and its names of exchanges begun anew under ``topic``."""
        engine = self.engine()
        assert isinstance(engine.transport, HorovodTransport)
        # The same few names in every step: Horovod remembers 1,024.
        engine.transport.restart(topic)
        old, stop = engine.progress, engine.stop.carried
        engine.progress = ProgressEngine(engine.transport, old.timeout, stop, old.owner.pid)
        return engine


class OptimizerEngine(ProcessSetEngine):
    """The engine of one optimizer, which checks in every step that no rank has left.

    Made by all ranks of the process set together. In elastic jobs a rank that joins later makes it
    alone: there exchanges are named after ``names``, the optimizer's parameters, which must differ
    from another optimizer's, as Horovod's own names must.

    Uses Horovod's own operations even where it runs over MPI and mpi4py is installed. MPI would be
    faster for small buckets, but Horovod finalizes MPI in its background thread as soon as any rank
    leaves, and a rank that waits for that one inside MPI then crashes instead of raising.
    """

    def __init__(self, process_set: hvd.ProcessSet, names: Sequence[str]) -> None:
        digest = hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
        engine = None if elastic() else Communicator(process_set).engine
        super().__init__(process_set, f"mpisign.optimizer.{digest}", engine)
        self._asked: Pending | None = None
        self._present: Any = np.zeros(0)  # 1 for each rank that has begun this step
        self.newcomers = True  # ranks may have counted different numbers of steps

    def begin(self) -> Engine:
        """Begins a step unless it has begun: asks which ranks take part, without waiting.

        By an allreduce, the one operation that Horovod completes with zeros for ranks that have
        called ``hvd.join``; an allgather or alltoall without them crashes.
        """
        if elastic() and self.broken:
            self.forget()
        engine = self.engine()
        if self._asked is None and engine.progress.broken is None:
            transport = self.restarted("").transport
            assert isinstance(transport, HorovodTransport)
            self._present = np.zeros(transport.size)
            self._present[transport.rank] = 1
            self._asked = transport.start_allreduce(self._present, TAGS)  # the tag after the last
        return engine

    def check_present(self, wire: TaggedTransport) -> Steps[None]:
        """Waits for the allreduce; CollectiveError, the same on every rank, if some have joined."""
        assert self._asked is not None
        yield self._asked
        ranks = ranks_of(self.process_set)
        joined = [ranks[r] for r in np.flatnonzero(self._present == 0)]
        if joined:
            raise CollectiveError(
                f"step: {name_ranks(joined)} called hvd.join, which Horovod's alltoall cannot do "
                "without. Use hvd.DistributedOptimizer with compression=Compression.sign (without "
                "named_parameters), whose votes allow for joined ranks"
            )

    def end(self, exchanged: bool) -> None:
        """Ends a step. After an exchange all ranks have the same count, until others join."""
        self._asked = None
        if exchanged:
            self.newcomers = elastic()
