"""NCCL through CuPy: parts in CUDA memory, sent on a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpisign.backend import arrays
from mpisign.errors import WireError
from mpisign.stats import count_ring
from mpisign.transports import nccl_start
from mpisign.transports.base import (
    Bytes,
    Completed,
    LayeredTransport,
    Part,
    Pending,
    Polled,
    Transport,
)
from mpisign.transports.subgroup import SubgroupTransport


class OnDevice(NamedTuple):
    """NCCL on one device: its communicator, and the stream that nothing else is queued on."""

    communicator: Any
    stream: Any


class NCCLTransport(LayeredTransport):
    """Sends and receives of one exchange as one NCCL group, on a stream of its own.

    ``wire``: a transport for host memory between the same ranks, which this one owns from now on.
    It carries NCCL's unique id, parts that are NumPy arrays, and notices. Parts on a device are
    CuPy or torch uint8 arrays, those of one exchange on one device. Only ``Pending.wait`` waits for
    the device, and only for its own exchange.

    NCCL's stream waits for what the streams of the parts have when the exchange starts. No stream
    of the program ever waits for NCCL's: the host does, in ``Pending.wait``. So nothing that the
    program queues later, a collective of another library's least of all, waits for an exchange that
    other ranks may start behind that collective.

    Each device has a communicator and a stream. The first exchange on a device starts NCCL there:
    all ranks take part, and go on to another device in the same exchange. One without parts belongs
    to the device of the one before. It raises CollectiveError, the same on all ranks, if NCCL is
    missing somewhere, WireError if a rank is missing after ``timeout`` seconds. Any error of NCCL
    ends the transport: this call and all later ones raise WireError.
    """

    name = "nccl"
    message = 4 << 20
    ordered = True
    device = "cuda"

    def __init__(
        self, wire: Transport, *, timeout: float = 600.0, nccl: Any = None, device: Any = None
    ) -> None:
        if device is None:
            from mpisign.backend.cuda import streams

            device = streams
        super().__init__(wire)
        self._timeout = timeout
        self._nccl = nccl
        self._device = device
        self._started: dict[int, OnDevice] = {}
        self._last = -1  # device of the last exchange
        self._given_up = ""
        self._live: list[_Queued] = []

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        on_device = [self._device.on_device(part) for _, part in (*sends, *recvs)]
        if on_device and not any(on_device):
            return self.wire._exchange(sends, recvs, tag)
        if not all(on_device):
            raise TypeError("NCCL: parts of one exchange must be NumPy arrays, all or none of them")
        streams = dict.fromkeys(self._device.of(part) for _, part in (*sends, *recvs))
        sends = [(r, part) for r, part in sends if part.nbytes]
        recvs = [(r, part) for r, part in recvs if part.nbytes]
        on = self._start(streams, tag)
        if on is None or not (sends or recvs):
            return Completed()
        return self._queue(lambda: self._group(sends, recvs, on), on, streams, (sends, recvs))

    def _group(self, sends: Sequence[Part], recvs: Sequence[Part], on: OnDevice) -> None:
        nccl, address = self._nccl, arrays.address
        communicator, stream = on
        nccl.groupStart()
        try:
            for r, part in sends:
                communicator.send(address(part), part.nbytes, nccl.NCCL_UINT8, r, stream.pointer)
            for r, part in recvs:
                communicator.recv(address(part), part.nbytes, nccl.NCCL_UINT8, r, stream.pointer)
        finally:
            nccl.groupEnd()

    def start_allgather(self, send: Bytes, rows: Sequence[Bytes], tag: int) -> Pending:
        if not self._device.on_device(send):
            return self.wire.start_allgather(send, rows, tag)
        return super().start_allgather(send, rows, tag)

    def start_allreduce(self, values: Any, tag: int) -> Pending:
        if not self._device.on_device(values):
            return self.wire.start_allreduce(values, tag)
        count_ring(values.nbytes, self.size)
        streams = [self._device.of(values)]
        on = self._start(streams, tag)
        if on is None:
            return Completed()
        nccl, at = self._nccl, arrays.address(values)
        communicator, stream = on
        kind, size = nccl.NCCL_FLOAT32, 4
        if "float64" in str(values.dtype):
            kind, size = nccl.NCCL_FLOAT64, 8
        count = values.nbytes // size
        return self._queue(
            lambda: communicator.allReduce(at, at, count, kind, nccl.NCCL_SUM, stream.pointer),
            on,
            streams,
            values,
        )

    def split(self, color: int, key: int, wire: Transport | None = None) -> NCCLTransport | None:
        """The transport of the ranks with the same ``color`` >= 0, in the order of ``key``.

        NCCL is split on the device of the last exchange. None where ``color`` is -1. Collective;
        waits for exchanges in flight. ``wire``: between the new group's ranks, in that order. By
        default they share this transport's: then no tag may be in use on both at a time.
        """
        if color < -1:
            raise ValueError(f"split: color must be -1 or more, got {color}")
        on = self._start((), 0)
        for queued in self._live:
            nccl_start.wait(queued, "split", self._timeout)
        mine = np.array([color, key], dtype=np.int64)
        every = np.empty((self.size, 2), dtype=np.int64)
        pending = self.wire.start_allgather(mine.view(np.uint8), list(every.view(np.uint8)), 0)
        nccl_start.wait(pending, "split", self._timeout)
        members = sorted((k, r) for r, (c, k) in enumerate(every.tolist()) if c == color)
        part: NCCLTransport | None = None
        if color >= 0:
            wire = wire or SubgroupTransport(self.wire, [r for _, r in members])
            part = NCCLTransport(wire, timeout=self._timeout, nccl=self._nccl, device=self._device)
        if on is not None:

            def split() -> None:
                with self._device.chosen(self._last):
                    made = on.communicator.commSplit(color, key)
                    if part is not None and part.size > 1:
                        part._connect(self._last, made)

            self._within("split", split)
        return part

    def abort(self) -> None:
        self._give_up("it was aborted")
        self.wire.abort()

    def free(self) -> None:
        """Ends NCCL, with exchanges in flight, and frees ``wire``; collective."""
        if self._started and all(queued.done() for queued in self._live):
            started, self._started = self._started, {}
            for on in started.values():
                on.communicator.destroy()
        if not self._given_up:
            self.wire.free()
        self._give_up("it was freed")

    def _start(self, streams: Iterable[Any], tag: int) -> OnDevice | None:
        """Starts NCCL on the device of ``streams`` unless it has; collective. None for one rank.

        Without streams the device is that of the last exchange, or the current one.
        """
        if self._given_up:
            raise self._useless()
        devices = sorted({stream.device for stream in streams})
        if len(devices) > 1:
            raise ValueError(f"NCCL: parts of one exchange must be on one device, got {devices}")
        if self.size == 1:
            return None
        if not devices and self._last >= 0:
            devices = [self._last]
        if not devices or devices[0] not in self._started:

            def prepare() -> Any:
                self._last = devices[0] if devices else self._device.current()
                return self._nccl or nccl_start.load()

            self._nccl, unique_id = nccl_start.agree(self.wire, prepare, tag, self._timeout)

            def start() -> None:
                with self._device.chosen(self._last):
                    made = nccl_start.communicator(self._nccl, self.size, unique_id, self.rank)
                    self._connect(self._last, made)

            self._within("start", start)
        else:
            self._last = devices[0]
        return self._started[self._last]

    def _connect(self, index: int, communicator: Any) -> None:
        """Sends a byte to every rank and sums: NCCL waits for ranks at the first use of each."""
        on = self._started[index] = OnDevice(communicator, self._device.own(index))
        self._last = index
        room = self._device.empty(8 * (self.size + 1))
        at, stream, nccl = arrays.address(room), on.stream, self._nccl
        stream.follow(self._device.of(room))  # whose memory it may have been
        nccl.groupStart()
        for r in self.others:
            communicator.send(at, 1, nccl.NCCL_UINT8, r, stream.pointer)
            communicator.recv(at + 8 * (r + 1), 1, nccl.NCCL_UINT8, r, stream.pointer)
        nccl.groupEnd()
        communicator.allReduce(at, at, 1, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, stream.pointer)
        self._live.append(_Queued(self, stream.record(), room))

    def _within(self, what: str, action: Callable[[], None]) -> None:
        try:
            nccl_start.within(self._timeout, what, action)
        except WireError as error:
            self._give_up(str(error))
            raise

    def _queue(
        self, call: Callable[[], None], on: OnDevice, streams: Iterable[Any], keep: Any
    ) -> Pending:
        for stream in streams:
            on.stream.follow(stream)
        try:
            call()
        except Exception as error:
            raise self._failed(error) from error
        queued = _Queued(self, on.stream.record(), keep)
        self._live = [q for q in self._live if q.keep is not None]
        self._live.append(queued)
        return queued

    def _check(self) -> None:
        """WireError if NCCL has had an error since the last check, or has ended."""
        if self._given_up:
            raise self._useless()
        try:
            for on in self._started.values():
                on.communicator.check_async_error()
        except Exception as error:  # CuPy's NcclError, KeyError for a code that it does not know
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> WireError:
        self._give_up(f"{type(error).__name__}: {error}")
        return WireError(f"NCCL: {self._given_up} (NCCL_DEBUG=WARN tells more)")

    def _useless(self) -> WireError:
        return WireError(f"NCCL is of no use any more: {self._given_up}")

    def _give_up(self, why: str) -> None:
        self._given_up = self._given_up or why
        started, self._started = self._started, {}
        for on in started.values():
            on.communicator.abort()  # ends kernels that wait for other ranks; their stream goes on


class _Queued(Polled):
    """An NCCL group; it has completed when the device has passed it."""

    def __init__(self, transport: NCCLTransport, event: Any, keep: Any) -> None:
        self._transport = transport
        self._event = event
        self.keep = keep  # the device uses the parts until then

    def _advance(self) -> bool:
        over: bool = self._event.done()
        self._transport._check()  # an aborted group passes too, with half of the bytes
        if over:
            self.keep = None
        return over
