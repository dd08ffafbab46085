"""What carries the gradients of one of our optimizers, step after step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import horovod.torch as hvd

from mpisign.collectives.progress import Queue
from mpisign.collectives.vote import Channel
from mpisign.communicator import Communicator
from mpisign.transports.horovod import HorovodTransport


def elastic() -> bool:
    """Whether ranks may come and go."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


class Wire:
    """The channel of one optimizer over a process set; no other shares it.

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
        self._channel: Channel | None = None
        self.newcomers = True  # in this step: ranks may have counted different numbers of steps
        if not self._elastic:
            self._channel = Communicator(process_set).channel

    def begin(self) -> Channel:
        """The channel of the step that begins; nothing of this optimizer may be under way."""
        channel = self._channel
        if self._elastic:
            channel = self._of_these_ranks()
        assert channel is not None
        assert isinstance(channel.transport, HorovodTransport)
        if channel.queue.broken is None:
            # The same few names in every step: Horovod remembers 1,024.
            channel.transport.restart("")
            channel.queue = Queue(channel.transport, channel.queue.timeout)
        return channel

    def begun(self) -> None:
        """A step is over: from now on ranks count alike, unless others may come."""
        self.newcomers = self._elastic

    @property
    def broken(self) -> bool:
        """Whether what connected the ranks broke off."""
        return self._channel is not None and self._channel.queue.broken is not None

    def _of_these_ranks(self) -> Channel:
        group = self._process_set
        kept = self._channel
        if kept is not None and not self.broken:
            if (kept.transport.rank, kept.transport.size) == (group.rank(), group.size()):
                return kept
        # No digests of results: a rank that has just come knows none of the last.
        self._channel = Channel(HorovodTransport(self._prefix, group), every=0)
        return self._channel
