"""Device memory between ranks of a torch process group: torch's collectives, a group of ours."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mpisign.errors import CollectiveError, WireError
from mpisign.stats import count_bytes, count_ring
from mpisign.transports import nccl_start, torch_messages
from mpisign.transports.base import (
    NOTICE,
    Bytes,
    Completed,
    LayeredTransport,
    LostRankError,
    Part,
    Pending,
    Polled,
    Transport,
)
from mpisign.transports.framed import by_rank, lengths
from mpisign.transports.torch_streams import CudaStreams, Streams

_LATER = 60.0  # seconds

#: Makes this rank's end of a group between devices, torch's Backend; waits for no other rank.
Connect = Callable[[], Any]


class TorchDeviceTransport(LayeredTransport):
    """An exchange is one all_to_all of uint8 tensors, an allgather one all_gather_into_tensor.

    ``wire``: a transport for host memory between the same ranks, which this one owns from now on.
    It carries parts that are NumPy arrays, and notices. Parts on a device are torch or CuPy uint8
    arrays; an exchange without parts is one of device memory. ``connect`` makes a group that nobody
    else uses; it is called once, in the first exchange. No other group carries anything of this
    transport.

    Collectives run on the group's own stream, behind what the stream of the parts has by then. An
    exchange is over once the device has run it, or, where ``streams.waits``, once that stream waits
    for it: then the host does not. A rank that is lost is
    found by ``wire``, or by an exchange that begins ``timeout`` seconds after one that has not
    ended: ``abort`` then ends the kernels that wait for it.

    The first exchange on a device starts the group. It raises CollectiveError, the same on all
    ranks, if a rank cannot make its end, WireError if one is missing after ``timeout`` seconds. Any
    error of the group ends the transport: this call and all later ones raise WireError.
    """

    name = "torch-nccl"
    message = 4 << 20
    ordered = True
    device = "cuda"

    def __init__(
        self,
        wire: Transport,
        connect: Connect,
        *,
        timeout: float = 600.0,
        streams: Streams | None = None,
    ) -> None:
        super().__init__(wire)
        self._connect, self._timeout = connect, timeout
        self.streams: Streams = CudaStreams() if streams is None else streams
        self._group: Any = None
        self._given_up = ""
        self._live: list[tuple[dist.Work, float]] = []  # and when it began
        self._like: torch.Tensor | None = None  # empty, on the device of the last exchange

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        parts = [part for _, part in (*sends, *recvs)]
        on_host = [isinstance(part, np.ndarray) for part in parts]
        if parts and all(on_host):
            return self.wire._exchange(sends, recvs, tag)
        if any(on_host):
            raise TypeError(
                "torch: parts of one exchange must be NumPy arrays, all or none of them"
            )
        tensor: Any = self.streams.tensor
        out: Any = by_rank([(rank, tensor(part)) for rank, part in sends], self.size)
        into: Any = by_rank([(rank, tensor(part)) for rank, part in recvs], self.size)
        sent, received = lengths(out), lengths(into)
        like = self._start([t for each in (*out, *into) for t in each], tag)
        if self.size == 1:
            return Completed()
        stream = self.streams.of(parts[0] if parts else like)
        with self.streams.on(stream):
            room = torch_messages.room([t for each in into for t in each], like)
            message = torch_messages.joined([t for each in out for t in each], like)
            options = dist.AllToAllOptions()
            call = lambda: self._group.alltoall_base(  # noqa: E731
                room.memory, message, received, sent, options
            )
            return self._queue(call, stream, room, message)

    def start_allgather(self, send: Bytes, rows: Sequence[Bytes], tag: int) -> Pending:
        if isinstance(send, np.ndarray):
            return self.wire.start_allgather(send, rows, tag)
        if rows[self.rank] is not send:
            rows[self.rank][...] = send
        tensors = [self.streams.tensor(row) for row in rows]
        due = [row.nbytes for row in tensors]
        count_bytes((self.size - 1) * due[self.rank], sum(due) - due[self.rank])
        like = self._start(tensors, tag)
        if self.size == 1:
            return Completed()
        stream, longest, own = self.streams.of(send), max(due), tensors[self.rank]
        with self.streams.on(stream):
            if min(due) == longest:
                room = torch_messages.room(tensors, like)
            else:  # torch's rows have one length
                room = torch_messages.padded_room(tensors, longest, like)
                own = torch_messages.padded(own, longest)
            call = lambda: self._group._allgather_base(room.memory, own)  # noqa: E731
            return self._queue(call, stream, room, own)

    def start_allreduce(self, values: Any, tag: int) -> Pending:
        if isinstance(values, np.ndarray):
            return self.wire.start_allreduce(values, tag)
        count_ring(values.nbytes, self.size)
        summed = self.streams.tensor(values)
        self._start([summed], tag)
        if self.size == 1:
            return Completed()
        stream = self.streams.of(values)
        with self.streams.on(stream):
            call = lambda: self._group.allreduce([summed], dist.AllreduceOptions())  # noqa: E731
            return self._queue(call, stream, torch_messages.Room(summed), summed)

    def settle(self, part: Any) -> None:
        self.streams.settle(part)

    def abort(self) -> None:
        self._give_up("it was aborted")
        self.wire.abort()

    def free(self) -> None:
        """Ends the group once what is in flight has run, and frees ``wire``; collective."""
        until = time.monotonic() + self._timeout
        while not self._given_up and self._alive() and time.monotonic() < until:
            time.sleep(1e-3)
        given_up = self._given_up
        self._give_up("it was freed")
        if not given_up:
            self.wire.free()

    def _start(self, tensors: Sequence[torch.Tensor], tag: int) -> torch.Tensor:
        """An empty tensor on their device, where the group has started; collective."""
        self.check()
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"torch: parts of one exchange must be on one device, got {names}")
        if self._like is None or (devices and self._like.device not in devices):
            device = devices.pop() if devices else self.streams.current()
            self._like = torch.empty(0, dtype=torch.uint8, device=device)
        if self._group is None and self.size > 1:
            self._group = self._made(tag)
            try:
                nccl_start.within(self._timeout, "start", self._first)
            except WireError as error:
                self._give_up(str(error))
                raise
        return self._like

    def _made(self, tag: int) -> Any:
        """This rank's end of the group, once every rank has one.

        Wire: an allgather of 512 bytes a rank: UTF-8 of why it has none, zeros if it has one.
        """
        row, group = np.zeros(NOTICE, dtype=np.uint8), None
        try:
            group = self._connect()
        except Exception as error:
            text = f"{type(error).__name__}: {error}".encode()[:NOTICE]
            row[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        rows = np.empty((self.size, NOTICE), dtype=np.uint8)
        nccl_start.wait(self.wire.start_allgather(row, list(rows), tag), "start", self._timeout)
        for rank in np.flatnonzero(rows[:, 0]).tolist():
            why = rows[rank].tobytes().rstrip(b"\0").decode(errors="replace")
            self._given_up = f"rank {rank}: {why}"
            raise CollectiveError(f"torch cannot connect the devices: rank {rank}: {why}")
        return group

    def _first(self) -> None:
        """One collective of each kind: the first ones wait for ranks, and for connections."""
        assert self._like is not None
        self.streams.enter(self._like.device)
        sent = torch.zeros(self.size, dtype=torch.uint8, device=self._like.device)
        into, ones = torch.empty_like(sent), [1] * self.size
        works = [self._group._allgather_base(into, sent[:1])]
        works += [self._group.alltoall_base(into, sent, ones, ones, dist.AllToAllOptions())]
        while not all(work.is_completed() for work in works):
            time.sleep(1e-3)
        for work in works:
            work.wait()

    def _queue(
        self, call: Callable[[], Any], stream: Any, room: torch_messages.Room, keep: Any
    ) -> Pending:
        try:
            work = call()
        except RuntimeError as error:
            raise self.failed(error) from error
        self._alive()
        self._live.append((work, time.monotonic()))
        return _Queued(self, work, stream, room, keep)

    def _alive(self) -> bool:
        """Whether the device has still to run something."""
        self._live = [(work, began) for work, began in self._live if not work.is_completed()]
        return bool(self._live)

    def check(self) -> None:
        """WireError if the group has ended, or an exchange does not end."""
        if self._given_up:
            raise WireError(f"torch's group between the devices has ended: {self._given_up}")
        late = time.monotonic() - self._timeout
        if self._live and self._live[0][1] < late and self._alive() and self._live[0][1] < late:
            self._give_up(f"an exchange took over {self._timeout:g} s")
            raise LostRankError(f"torch: between the devices {self._given_up}")

    def failed(self, error: Exception) -> WireError:
        """The error of an exchange that torch could not do, which ends the group."""
        self._give_up(str(error))
        return LostRankError(f"torch.distributed could not exchange: {error}")

    def _give_up(self, why: str) -> None:
        self._given_up = self._given_up or why
        group, self._group = self._group, None
        # Kernels that wait for other ranks end, and their stream goes on. By torch's version:
        end = getattr(group, "abort", None) or getattr(group, "_abort", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):
                end()


def nccl_group(store: dist.Store, rank: int, size: int, members: list[int], seconds: float) -> Any:
    """This rank's end of a group of torch's NCCL that torch.distributed does not list.

    Not dist.new_group: it needs all ranks of the job. ``members``: their ranks there.
    """
    options = dist.ProcessGroupNCCL.Options()
    # At its own timeout torch ends the process. The errors of this transport come first.
    options._timeout = timedelta(seconds=seconds + _LATER)
    for name, value in (("global_ranks_in_group", members), ("group_name", "mpisign")):
        if hasattr(options, name):  # newer torch
            setattr(options, name, value)
    return dist.ProcessGroupNCCL(store, rank, size, options)


class _Queued(Polled):
    """A collective on the group's stream; over once the stream of its parts waits for it."""

    def __init__(
        self,
        transport: TorchDeviceTransport,
        work: dist.Work,
        stream: Any,
        room: torch_messages.Room,
        keep: Any,
    ) -> None:
        self._transport, self._work, self._stream = transport, work, stream
        self._room, self._keep = room, keep

    def _advance(self) -> bool:
        streams = self._transport.streams
        if not streams.waits and not self._work.is_completed():
            return False
        self._transport.check()  # an aborted collective ends too, with half of the bytes
        try:
            with streams.on(self._stream):
                self._work.wait()
                self._room.hand_out()
        except RuntimeError as error:
            raise self._transport.failed(error) from error
        streams.follow(self._stream)
        self._keep = None
        return True
