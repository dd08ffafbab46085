"""NCCL through CuPy: parts in CUDA memory, queued on their current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


class NCCLTransport(LayeredTransport):
    """Sends and receives of one exchange as one NCCL group, on the current stream.

    ``wire``: a transport for host memory between the same ranks, which this one owns from now on.
    It carries NCCL's unique id, parts that are NumPy arrays, and notices. Parts on a device are
    CuPy or torch uint8 arrays, those of one exchange on one stream. Only ``Pending.wait`` waits for
    the device, and only for its own exchange.

    The first exchange on a device starts NCCL there, also one without parts: all ranks take part.
    It raises CollectiveError, the same on all ranks, if NCCL is missing somewhere, WireError if a
    rank is missing after ``timeout`` seconds. Any error of NCCL ends the transport: this call and
    all later ones raise WireError.
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
        self._index = 0
        self._communicator: Any = None
        self._given_up = ""
        self._live: list[_Queued] = []

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        on_device = [self._device.on_device(part) for _, part in (*sends, *recvs)]
        if on_device and not any(on_device):
            return self.wire._exchange(sends, recvs, tag)
        if not all(on_device):
            raise TypeError("NCCL: parts of one exchange must be NumPy arrays, all or none of them")
        sends = [(r, part) for r, part in sends if part.nbytes]
        recvs = [(r, part) for r, part in recvs if part.nbytes]
        stream = self._stream([part for _, part in (*sends, *recvs)])
        self._start(None if stream is None else stream.device, tag)
        if stream is None or self.size == 1:
            return Completed()
        return self._queue(lambda: self._group(sends, recvs, stream), stream, (sends, recvs))

    def _group(self, sends: Sequence[Part], recvs: Sequence[Part], stream: Any) -> None:
        nccl, communicator, address = self._nccl, self._communicator, arrays.address
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
        stream = self._device.of(values)
        self._start(stream.device, tag)
        if self.size == 1:
            return Completed()
        nccl, communicator, at = self._nccl, self._communicator, arrays.address(values)
        kind, size = nccl.NCCL_FLOAT32, 4
        if "float64" in str(values.dtype):
            kind, size = nccl.NCCL_FLOAT64, 8
        count = values.nbytes // size
        return self._queue(
            lambda: communicator.allReduce(at, at, count, kind, nccl.NCCL_SUM, stream.pointer),
            stream,
            values,
        )

    def split(self, color: int, key: int, wire: Transport | None = None) -> NCCLTransport | None:
        """The transport of the ranks with the same ``color`` >= 0, in the order of ``key``.

        None where ``color`` is -1. Collective; waits for exchanges in flight. ``wire``: between the
        new group's ranks, in that order. By default they share this transport's: then no tag may be
        in use on both at a time.
        """
        if color < -1:
            raise ValueError(f"split: color must be -1 or more, got {color}")
        self._start(None, 0)
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
            part._index = self._index
        if self.size > 1:

            def split() -> None:
                with self._device.chosen(self._index):
                    made = self._communicator.commSplit(color, key)
                    if part is not None and part.size > 1:
                        part._communicator = made
                        part._connect()

            self._within("split", split)
        return part

    def abort(self) -> None:
        self._give_up("it was aborted")
        self.wire.abort()

    def free(self) -> None:
        """Ends NCCL, with exchanges in flight, and frees ``wire``; collective."""
        if self._communicator is not None and all(queued.done() for queued in self._live):
            communicator, self._communicator = self._communicator, None
            communicator.destroy()
        if not self._given_up:
            self.wire.free()
        self._give_up("it was freed")

    def _start(self, index: int | None, tag: int) -> None:
        """Starts NCCL on device ``index`` (None: the current one), unless it has; collective."""
        if self._given_up:
            raise self._useless()
        if self._communicator is not None or self.size == 1:
            return

        def prepare() -> Any:
            self._index = self._device.current() if index is None else index
            return self._nccl or nccl_start.load()

        nccl, unique_id = nccl_start.agree(self.wire, prepare, tag, self._timeout)
        self._nccl = nccl

        def start() -> None:
            with self._device.chosen(self._index):
                made = nccl_start.communicator(nccl, self.size, unique_id, self.rank)
                self._communicator = made
                self._connect()

        self._within("start", start)

    def _connect(self) -> None:
        """Sends a byte to every rank and sums: NCCL waits for ranks at the first use of each."""
        room = self._device.empty(8 * (self.size + 1))
        stream, at = self._device.of(room), arrays.address(room)
        nccl, communicator = self._nccl, self._communicator
        nccl.groupStart()
        for r in self.others:
            communicator.send(at, 1, nccl.NCCL_UINT8, r, stream.pointer)
            communicator.recv(at + 8 * (r + 1), 1, nccl.NCCL_UINT8, r, stream.pointer)
        nccl.groupEnd()
        communicator.allReduce(at, at, 1, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, stream.pointer)
        self._live = [_Queued(self, stream.record(), room)]

    def _within(self, what: str, action: Callable[[], None]) -> None:
        try:
            nccl_start.within(self._timeout, what, action)
        except WireError as error:
            self._give_up(str(error))
            raise

    def _stream(self, parts: Sequence[Any]) -> Any:
        streams = list(dict.fromkeys(map(self._device.of, parts)))
        if len(streams) > 1:
            raise ValueError(f"NCCL: parts of one exchange must be on one stream, got {streams}")
        return streams[0] if streams else None

    def _queue(self, call: Callable[[], None], stream: Any, keep: Any) -> Pending:
        try:
            call()
        except Exception as error:
            raise self._failed(error) from error
        queued = _Queued(self, stream.record(), keep)
        self._live = [q for q in self._live if q.keep is not None]
        self._live.append(queued)
        return queued

    def _check(self) -> None:
        """WireError if NCCL has had an error since the last check, or has ended."""
        if self._given_up:
            raise self._useless()
        try:
            self._communicator.check_async_error()
        except Exception as error:  # CuPy's NcclError, KeyError for a code that it does not know
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> WireError:
        self._give_up(f"{type(error).__name__}: {error}")
        return WireError(f"NCCL: {self._given_up} (NCCL_DEBUG=WARN tells more)")

    def _useless(self) -> WireError:
        return WireError(f"NCCL is of no use any more: {self._given_up}")

    def _give_up(self, why: str) -> None:
        self._given_up = self._given_up or why
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            communicator.abort()  # ends kernels that wait for other ranks; their stream goes on


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
