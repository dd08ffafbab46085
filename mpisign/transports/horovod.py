"""Horovod's own collectives on host buffers, for votes that run inside a Horovod job."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mpisign.errors import CollectiveError, CollectiveTimeout
from mpisign.stats import count_bytes, count_ring
from mpisign.transports import framed, horovod_exit, leaving
from mpisign.transports.base import (
    LEFT,
    TAGS,
    Bytes,
    Completed,
    Failed,
    FirstRound,
    Part,
    Pending,
    Polled,
    Transport,
    poll,
)
from mpisign.transports.framed import Framed, by_rank, lengths, starts
from mpisign.transports.http_store import HTTPStore
from mpisign.transports.mailbox import Mailbox

if TYPE_CHECKING:
    from mpisign.transports.mpi_notices import MPINotices

try:
    import horovod.torch as hvd
    import torch
    from horovod.common.exceptions import HorovodInternalError
except ImportError as error:
    raise ImportError(
        "votes over Horovod need torch and horovod 0.28.1: scripts/setup builds both, or "
        'pip install "mpisign[horovod]"'
    ) from error

#: Exchanges with one tag that may be in flight, and names for them. A hierarchical vote in many
#: chunks has up to 15.
WINDOW = 16


class HorovodTransport(Transport):
    """Host buffers over Horovod's alltoall, allgather and allreduce of a process set.

    Horovod matches operations by name and caches 1,024 names, the application's included
    (HOROVOD_CACHE_CAPACITY; others take longer): names are ``prefix.set.topic.bucket.what.n``, say
    ``mpisign.0.0.bucket3.ballots.1``, used again and again. The bucket is the tag ("call3" where a
    program's own calls are counted), n counts a tag's exchanges modulo ``WINDOW``, and what is
    "first" (preambles or headers), "ballots", "results", "counts", "gather", "sum" or "exchange".
    Two transports of one process set need different prefixes, the same on all ranks.

    Copies parts both ways. A message of another length than its part is a WireError that names the
    rank: an alltoall returns received lengths, rows of an allgather carry theirs in 8 bytes.
    HorovodInternalError (for elastic training) if an exchange failed. Notices use the launcher's
    key-value store, or MPI where Horovod runs over it and mpi4py is installed. Elastic jobs have
    none, since new ranks would read those of ranks that left.
    """

    name = "horovod"
    threaded = True
    message = 256 << 10  # an exchange costs about a millisecond, whatever its size
    first_message = message
    gathers = True  # an alltoall takes Horovod twice as long, and all ranks must call the same

    def __init__(
        self, prefix: str = "mpisign", process_set: hvd.ProcessSet = hvd.global_process_set
    ) -> None:
        self._process_set = process_set
        self._prefix = f"{prefix}.{process_set.process_set_id}"
        self._pool = framed.host_pool()
        self._topic, self._kind = "", "call"
        self._started: dict[int, int] = defaultdict(int)
        self._in_flight: dict[str, _Handle] = {}
        self.rank: int = process_set.rank()
        self.size: int = process_set.size()
        self._mail = self._mailbox()
        self._broke_off = False
        if self.size > 1 and not _elastic():
            leaving.at_exit(self)

    def restart(self, topic: str) -> None:
        """Numbers exchanges on ``topic`` from 0. Collective; none may be in flight, but failed."""
        self._topic, self._kind = f"{topic}." if topic else "", "bucket"
        self._started.clear()
        self._in_flight.clear()

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        if self.size == 1:
            return Completed()
        outgoing, incoming = by_rank(sends, self.size), by_rank(recvs, self.size)
        counts, due = lengths(outgoing), lengths(incoming)
        lease = self._pool.take([sum(counts)])
        memory = lease.slices[0]
        framed.gather(outgoing, memory, starts(counts))

        def finish(result: Any) -> None:
            lease.give_back()
            received, splits = result
            framed.check_lengths(splits.tolist(), due)
            framed.scatter(received.numpy(), starts(due), incoming)

        # Taken once: a stale one would differ from rank to rank.
        what, self.what = self.what or "exchange", ""
        return self._start(
            tag,
            what,
            finish,
            hvd.alltoall_async,
            torch.from_numpy(memory),
            splits=torch.tensor(counts, dtype=torch.int32),
        )

    def start_allgather(self, send: Bytes, rows: Sequence[Bytes], tag: int) -> Pending:
        every = [row.nbytes for row in rows]
        own = every[self.rank]
        count_bytes(own * (self.size - 1), sum(every) - own)
        if self.size == 1:
            rows[0][...] = send
            return Completed()
        return self._gather(send, rows, tag, "gather")

    def _first_round(
        self, sends: Sequence[Part], recvs: Sequence[Part], rooms: Sequence[Bytes], tag: int
    ) -> FirstRound:
        if self.size == 1:
            return FirstRound(Completed())
        self._started[tag] = 0  # the same few names in every call: Horovod's cache knows them
        send = sends[0][1]
        rows = [send] * self.size
        for rank, part in recvs:
            rows[rank] = part
        return FirstRound(self._gather(send, rows, tag, "first"))

    def _gather(self, send: Bytes, rows: Sequence[Bytes], tag: int, what: str) -> Pending:
        every = [row.nbytes for row in rows]
        row = Framed([send.nbytes], self._pool)
        row.pack([[send]])

        def finish(received: Any) -> None:
            row.free()
            own = self.rank  # whose row may be what was sent, and is there
            parts = [
                [part] if rank != own or part is not send else [] for rank, part in enumerate(rows)
            ]
            framed.unpack(received.numpy(), every, parts)

        return self._start(tag, what, finish, hvd.allgather_async, torch.from_numpy(row.memory))

    def start_allreduce(self, values: npt.NDArray[Any], tag: int) -> Pending:
        count_ring(values.nbytes, self.size)
        if self.size == 1:
            return Completed()
        return self._start(
            tag, "sum", lambda _: None, hvd.allreduce_async_, torch.from_numpy(values), op=hvd.Sum
        )

    def post(self, notice: bytes) -> None:
        if self._mail is not None:
            self._mail.post(notice)

    def notices(self) -> list[tuple[int, bytes]]:
        return [] if self._mail is None else self._mail.notices()

    def lost(self, error: Exception) -> bool:
        # Elastic training goes by Horovod's own error.
        return isinstance(error, HorovodInternalError) and not _elastic()

    def abort(self) -> None:
        if self.size > 1 and not _elastic():
            self._broke_off = True
            horovod_exit.expect()

    def leave(self) -> None:
        """At the end of the program, before Horovod's."""
        up = hvd.is_initialized()
        if up or isinstance(self._mail, Mailbox):  # the launcher's store outlives hvd.shutdown()
            self.post(LEFT)
        if up and self._broke_off:
            horovod_exit.shut_down(hvd, hvd.rank())

    def _start(
        self,
        tag: int,
        what: str,
        finish: Callable[[Any], None],
        operation: Callable[..., int],
        tensor: torch.Tensor,
        **options: Any,
    ) -> _Handle | Failed:
        of = "ranks" if tag == TAGS else f"{self._kind}{tag}"
        name = f"{self._prefix}.{self._topic}{of}.{what}.{self._started[tag] % WINDOW}"
        earlier = self._in_flight.get(name)
        if earlier is not None and not earlier.arrived():
            raise CollectiveError(f"more than {WINDOW} exchanges with tag {tag} are under way")
        self._started[tag] += 1
        try:
            handle = operation(tensor, name=name, process_set=self._process_set, **options)
        except HorovodInternalError as error:  # a rank has ended: who waits can say which
            return Failed(error)
        exchange = self._in_flight[name] = _Handle(handle, finish)
        return exchange

    def _mailbox(self) -> Mailbox | MPINotices | None:
        if self.size == 1 or _elastic():
            return None
        store = HTTPStore.of_launcher(f"{self._prefix}.notices")
        if store is not None:
            return Mailbox(store, self.rank, self.size, interval=0.25)
        if not (hvd.mpi_enabled() and hvd.mpi_threads_supported()):
            return None
        try:
            from mpi4py import MPI

            from mpisign.transports.mpi_notices import MPINotices
        except ImportError:
            return None
        if MPI.COMM_WORLD.Get_size() != hvd.size():  # hvd.init got a part of the world
            return None
        return MPINotices(MPI.COMM_WORLD, self._process_set.ranks)


def _elastic() -> bool:
    return os.environ.get("HOROVOD_ELASTIC") == "1"


_MADE: dict[int, int] = {}  # transports made by process set


def made(process_set: hvd.ProcessSet | None, seconds: float) -> HorovodTransport:
    """A transport with a prefix of its own. Collective among the ranks of the process set.

    Ranks that joined an elastic job have made none yet: all take the largest count.
    CollectiveTimeout if a rank is missing after ``seconds``.
    """
    group = hvd.global_process_set if process_set is None else process_set
    key = group.process_set_id
    if key is None or not group.included():
        raise ValueError(f"Communicator: this rank is in no registered process set {group}")
    count = torch.tensor([_MADE.get(key, 0)])
    handle = hvd.allgather_async(count, name=f"mpisign.{key}.made", process_set=group)
    counts: list[torch.Tensor] = []
    if not poll(_Handle(handle, counts.append), seconds):
        raise CollectiveTimeout(
            f"Communicator: ranks did not come in {seconds:.1f} s (Horovod's log on rank 0 names "
            "them): all ranks of a process set must make a Communicator of it, or call their first "
            "collective on it"
        )
    number = int(counts[0].max())
    _MADE[key] = number + 1
    return HorovodTransport(f"mpisign.{number}", group)


class _Handle(Polled):
    """A Horovod handle, and what to do with its result."""

    def __init__(self, handle: int, finish: Callable[[Any], None]) -> None:
        self._handle: int | None = handle
        self._finish: Callable[[Any], None] | None = finish

    def arrived(self) -> bool:
        """True once Horovod has released the name."""
        return self._handle is None or bool(hvd.poll(self._handle))

    def _advance(self) -> bool:
        if self._handle is None or self._finish is None or not self.arrived():
            return False
        handle, self._handle = self._handle, None
        finish, self._finish = self._finish, None
        finish(hvd.synchronize(handle))
        return True

    def missing(self) -> list[int] | None:
        return [] if self.over else None
