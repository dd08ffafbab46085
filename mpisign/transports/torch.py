"""torch.distributed's process groups, for votes without MPI or Horovod: Gloo, NCCL, MPI."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy.typing as npt

from mpisign.errors import TORCH, CollectiveTimeout
from mpisign.stats import count_ring, stage
from mpisign.transports import leaving
from mpisign.transports.base import (
    LEFT,
    Bytes,
    Completed,
    FirstRound,
    LostRankError,
    Part,
    Pending,
    Polled,
    Transport,
    poll,
)
from mpisign.transports.framed import Framed, by_rank, host_pool, lengths
from mpisign.transports.mailbox import Mailbox

try:
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d
except ImportError as error:
    raise ImportError(f"votes over torch.distributed need torch: {TORCH}") from error

from mpisign.transports.torch_device import TorchDeviceTransport, nccl_group
from mpisign.transports.torch_store import TorchStore

_GLOO = timedelta(minutes=30)  # for connecting and for an exchange: torch's default
_FRAME = 4 << 10  # bytes: as fast as a few
_TWO_WAYS = 16  # ranks up to which each has two connections to each
_SLICE = 0.2  # seconds between checks for Ctrl-C in a sleeping wait


class TorchTransport(Transport):
    """Host buffers over a process group, by default all of ``init_process_group``.

    All ranks of ``group`` make it together; ranks are numbered as in the group. Messages go over
    Gloo, by connections of this transport's own, so that the application's collectives never match
    these. So they do where the group has no backend for host memory (NCCL alone). Other backends
    for host memory are shared: the application may run no collective on that group during a vote.

    An exchange is one all_to_all with one message a rank: 8 bytes with the length of what follows,
    little-endian, then the parts. It copies both ways, which is cheap compared with a socket, and
    one can give up waiting for it without breaking the group, unlike Gloo's send and receive. A
    message of another length is a WireError, except that Gloo ends a process that receives more
    than it expects. WireError with torch's text too if a rank died, or after torch's timeouts (30
    minutes).

    Raises ValueError before ``init_process_group`` and on ranks outside the group;
    CollectiveTimeout, naming them, if ranks do not make theirs within ``seconds``.
    """

    name = "torch"
    threaded = True
    message = 256 << 10  # an exchange costs about a millisecond, whatever its size
    ordered = True

    def __init__(
        self, group: dist.ProcessGroup | None = None, seconds: float = _GLOO.total_seconds()
    ) -> None:
        if not dist.is_initialized():
            raise ValueError("call torch.distributed.init_process_group first")
        if group == dist.GroupMember.NON_GROUP_MEMBER or dist.get_rank(group) < 0:
            raise ValueError("this rank is not in the process group")
        group = group or dist.group.WORLD
        assert group is not None
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.backend = _host_backend(group)
        self.sleeps = self.backend == "gloo"
        self.first_message = max(_FRAME, 4 * _FRAME // max(1, self.size - 1))
        # Gloo bears messages that are shorter than due, others none of another length.
        self.framed = self.backend != "gloo"
        self.room = 0 if self.framed else self.first_message
        store = None if self.backend == "mpi" else TorchStore(group)
        self._group: Any = group
        if store is not None:
            store.meet(self.rank, self.size, seconds)
        #: A second connection to each rank: see ``_both_ways``.
        self._back: Any = None
        if self.backend == "gloo" and store is not None:
            self._group = _connections(store, "", self.rank, self.size, seconds)
            if 1 < self.size <= _TWO_WAYS:
                self._back = _connections(store, "back", self.rank, self.size, seconds)
        self._pool = host_pool()
        self._works: list[dist.Work | _Works] = []  # may be in flight
        # A process that ends would wait for exchanges in flight. Not earlier, in ``abort``: the
        # notice explains the failure better to a rank that is late.
        groups = [self._group] + [self._back] * (self._back is not None)
        weakref.finalize(self, _give_up, groups, self.backend, self._works)
        self._store = store
        self._members = dist.get_process_group_ranks(group)
        self._mail = Mailbox(store, self.rank, self.size) if store else None
        leaving.at_exit(self)

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        incoming = by_rank(recvs, self.size)
        bulk, self.bulk = self.bulk, False
        return self._alltoall(sends, incoming, lambda into: into.unpack(incoming), bulk)

    def _first_round(
        self, sends: Sequence[Part], recvs: Sequence[Part], rooms: Sequence[Bytes], tag: int
    ) -> FirstRound:
        if self.framed:
            return super()._first_round(sends, recvs, rooms, tag)
        whole = [(rank, room) for (rank, _), room in zip(recvs, rooms, strict=True)]
        due = lengths(by_rank(recvs, self.size))
        incoming = by_rank(whole, self.size)
        return FirstRound(
            self._alltoall(sends, incoming, lambda into: into.unpack_first(incoming, due))
        )

    def _alltoall(
        self,
        sends: Sequence[Part],
        incoming: Sequence[Sequence[Bytes]],
        unpack: Callable[[Framed], None],
        bulk: bool = False,
    ) -> Pending:
        """``unpack`` takes what arrived, at most the lengths of ``incoming``."""
        if self.size == 1:
            return Completed()
        outgoing = by_rank(sends, self.size)
        out = Framed(lengths(outgoing), self._pool)
        into = Framed(lengths(incoming), self._pool)
        out.pack(outgoing)
        sent, memory = torch.from_numpy(out.memory), torch.from_numpy(into.memory)
        work: Any
        if self._back is not None and bulk:
            work = self._both_ways(memory, sent, into.counts, out.counts)
        else:
            work = self._group.alltoall_base(
                memory, sent, into.counts, out.counts, dist.AllToAllOptions()
            )

        def finish() -> None:
            out.free()
            try:
                unpack(into)
            finally:
                into.free()

        return self._pending(work, finish)

    def _both_ways(
        self, received: torch.Tensor, sent: torch.Tensor, into: list[int], out: list[int]
    ) -> _Works:
        """To higher ranks by one connection, to lower ranks by the other, at the same time.

        Gloo sends after it has heard that the other side receives. By one connection that word
        waits behind what this side sends, and data goes one way, then the other.
        """
        rank, works = self.rank, []
        for group, to, of in (
            (self._group, range(rank + 1, self.size), range(rank)),
            (self._back, range(rank), range(rank + 1, self.size)),
        ):
            counts = [[c if r in way else 0 for r, c in enumerate(every)]
                      for every, way in ((into, of), (out, to))]  # fmt: skip
            here = received[sum(into[: of.start]) :][: sum(counts[0])]
            there = sent[sum(out[: to.start]) :][: sum(counts[1])]
            works.append(group.alltoall_base(here, there, *counts, dist.AllToAllOptions()))
        own = received[sum(into[:rank]) :][: into[rank]]
        own.copy_(sent[sum(out[:rank]) :][: out[rank]])
        return _Works(works)

    def start_allreduce(self, values: npt.NDArray[Any], tag: int) -> Pending:
        count_ring(values.nbytes, self.size)
        if self.size == 1:
            return Completed()
        work = self._group.allreduce([torch.from_numpy(values)], dist.AllreduceOptions())  # a sum
        return self._pending(work, lambda: None)

    def _pending(self, work: dist.Work | _Works, finish: Callable[[], Any]) -> _Work:
        self._works[:] = [w for w in self._works if not w.is_completed()]
        self._works.append(work)
        return _Work(work, finish, sleeps=self.sleeps)

    def post(self, notice: bytes) -> None:
        if self._mail:
            self._mail.post(notice)

    def notices(self) -> list[tuple[int, bytes]]:
        return self._mail.notices() if self._mail else []

    @property
    def connects_devices(self) -> bool:
        """Whether ``between_devices`` can: this torch has NCCL."""
        return self._store is not None and dist.is_nccl_available()

    def between_devices(self, timeout: float) -> TorchDeviceTransport:
        """The transport for CUDA memory over a group of its own, which owns this one from now on.

        That group is none of the program's: it is made of the store alone, by the members.
        """
        store = self._store
        if store is None or not dist.is_nccl_available():
            raise ValueError("torch has no NCCL here")
        keys = dist.PrefixStore("device", store.store)

        def connect() -> Any:
            return nccl_group(keys, self.rank, self.size, self._members, timeout)

        return TorchDeviceTransport(self, connect, timeout=timeout)

    def leave(self) -> None:
        """At the end of the program."""
        self.post(LEFT)
        if self._store is not None:
            self._store.part(self.rank, self.size)


class _Works:
    """Several as one."""

    def __init__(self, works: list[dist.Work]) -> None:
        self._works = works

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def wait(self, *limit: timedelta) -> None:
        for work in self._works:
            work.wait(*limit)


class _Work(Polled):
    """A torch Work, and what to do when it has completed."""

    def __init__(self, work: dist.Work | _Works, finish: Callable[[], Any], sleeps: bool) -> None:
        self._work = work
        self._finish: Callable[[], Any] | None = finish
        self._sleeps = sleeps

    def _advance(self) -> bool:
        if not self._work.is_completed():
            return False
        finish, self._finish = self._finish, None
        try:
            self._work.wait()
        except RuntimeError as error:
            raise LostRankError(f"torch.distributed could not exchange: {error}") from error
        if finish is not None:
            finish()
        return True

    def wait(self, seconds: float | None = None) -> bool:
        if not self._sleeps or self._finish is None:
            return super().wait(seconds)
        with stage("exchange"):
            return self._sleep(seconds) and self.done()

    def _sleep(self, seconds: float | None) -> bool:
        # Giving up the wait for a Gloo collective leaves it intact, unlike Gloo's receive and NCCL.
        # The wait counts in milliseconds, and 0 means no limit.
        end = None if seconds is None else time.perf_counter() + seconds
        while not self._work.is_completed():
            left = _SLICE if end is None else min(_SLICE, end - time.perf_counter())
            if left < 1e-3:
                return poll(self, max(left, 0.0))
            with contextlib.suppress(RuntimeError):  # time is up; ``done`` raises failures
                self._work.wait(timedelta(seconds=left))
        return True

    def missing(self) -> list[int] | None:
        return [] if self.over else None


def _host_backend(group: dist.ProcessGroup) -> str:
    """The group's backend for CPU tensors; Gloo, whose connections are ours, if it has none."""
    config = c10d.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    backend = dict(pair.split(":") for pair in config.split(",")).get("cpu", "gloo")
    if backend == "gloo" and not dist.is_gloo_available():
        raise ValueError(
            f"votes over torch.distributed need Gloo for headers: this torch has none, and the "
            f"process group has {config}"
        )
    return backend


def _connections(store: TorchStore, name: str, rank: int, size: int, seconds: float) -> Any:
    """Gloo's, once all ranks are here.

    Not dist.new_group: it needs all ranks of the job, or equal numbers of groups so far.
    """
    limit = min(timedelta(seconds=max(seconds, 1.0)), _GLOO)
    try:
        keys = dist.PrefixStore(name, store.store) if name else store.store
        group = dist.ProcessGroupGloo(keys, rank, size, limit)
    except RuntimeError as error:  # one of them ended or stopped since
        text = f"Communicator: Gloo could not connect the ranks in {seconds:.1f} s: {error}"
        raise CollectiveTimeout(text) from error
    group._set_default_timeout(_GLOO)
    return group


def _give_up(groups: list[Any], backend: str, works: list[dist.Work | _Works]) -> None:
    """Ends exchanges in flight, so that the process can exit."""
    if backend == "gloo" and not all(work.is_completed() for work in works):
        # Gloo's abort() does nothing, but a receive that times out closes all connections.
        for group in groups:
            with contextlib.suppress(RuntimeError):
                never = torch.zeros(1, dtype=torch.uint8)
                peer = (group.rank() + 1) % group.size()
                group.recv([never], peer, 0).wait(timedelta(milliseconds=1))
