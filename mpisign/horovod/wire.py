"""What carries the gradients of one of our optimizers, step after step."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from typing import Any

import horovod.torch as hvd
import torch

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
    later makes it alone: there exchanges are named by ``names``, the optimizer's parameters, and
    the queue begins anew in every step, for such a rank has counted none.
    """

    def __init__(self, process_set: hvd.ProcessSet, names: Sequence[str]) -> None:
        self._process_set = process_set
        self._elastic = elastic()
        self._prefix = _own_prefix(self, names)
        self._channel: Channel | None = None
        self.newcomers = True  # in this step: ranks may have counted different numbers of steps
        if not self._elastic:
            self._channel = _made(process_set)

    def begin(self) -> Channel:
        """The channel of the step that begins; nothing of this optimizer may be under way."""
        channel = self._channel
        if self._elastic:
            channel = self._of_these_ranks()
        assert channel is not None
        transport = channel.transport
        if isinstance(transport, HorovodTransport):
            # The same few names in every step: Horovod remembers 1,024.
            transport.restart("")
            if channel.queue.broken is None:
                channel.queue = Queue(transport, channel.queue.timeout)
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


_LIVE: weakref.WeakKeyDictionary[Wire, str] = weakref.WeakKeyDictionary()


def _own_prefix(wire: Wire, names: Sequence[str]) -> str:
    """Alike on all ranks whose scripts make the same optimizers, and no other live wire's."""
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
    n = 0
    while (prefix := f"mpisign.optimizer.{digest}.{n}") in _LIVE.values():
        n += 1
    _LIVE[wire] = prefix
    return prefix


def _made(process_set: hvd.ProcessSet) -> Channel:
    comm = _mpi(process_set)
    if comm is None:
        return Communicator(process_set).channel
    made = Communicator(comm)
    comm.Free()  # what was made of it is a clone
    return made.channel


def _mpi(process_set: hvd.ProcessSet) -> Any:
    """MPI's communicator of the same ranks where all of them may call MPI beside Horovod."""
    usable = torch.tensor([int(_mpi_usable())])
    everywhere = hvd.allreduce(usable, name="mpisign.mpi", op=hvd.Min, process_set=process_set)
    if not int(everywhere):
        return None
    from mpi4py import MPI

    world = MPI.COMM_WORLD.Get_group()
    group = world.Incl(process_set.ranks)
    try:
        return MPI.COMM_WORLD.Create_group(group, process_set.process_set_id or 0)
    finally:
        group.Free()
        world.Free()


def _mpi_usable() -> bool:
    if not (hvd.mpi_enabled() and hvd.mpi_threads_supported()):
        return False
    try:
        from mpi4py import MPI
    except ImportError:
        return False
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        return False
    # hvd.init may have been given a part of the world.
    world = MPI.COMM_WORLD
    return (world.Get_rank(), world.Get_size()) == (hvd.rank(), hvd.size())
