"""Parts in CUDA memory over a wire for host memory, through pinned memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np

from mpisign.transports.base import Bytes, LayeredTransport, Part, Pending, Polled, Transport
from mpisign.transports.pool import Lease, Pool


class CopyEvent(Protocol):
    """A place in a stream of copies: ``mpisign.backend.cuda.streams.Event``."""

    def done(self) -> bool: ...

    def wait(self) -> None: ...


class CopyStream(Hashable, Protocol):
    """Copies in order: ``mpisign.backend.cuda.streams.Stream``."""

    def copy_to_host(self, array: Any, host: Bytes) -> None: ...

    def copy_to_device(self, host: Bytes, array: Any) -> None: ...

    def record(self) -> CopyEvent: ...


class Device(Protocol):
    """The device that parts lie on; the module ``mpisign.backend.cuda.streams`` is one."""

    def on_device(self, array: Any, /) -> bool: ...

    def of(self, array: Any, /) -> CopyStream:
        """The stream of work on the array."""

    def pinned(self, nbytes: int, /) -> Bytes:
        """Host memory for copies in both directions."""


#: From host memory, to a part, on a stream.
Copy = tuple[Bytes, Any, CopyStream]


class StagedTransport(LayeredTransport):
    """``wire``, a transport for host memory, for parts that are CuPy or torch uint8 CUDA arrays.

    ``_exchange`` copies what is sent to pinned memory on the current stream, and waits for that.
    What arrives is copied to the device on the stream that was current when the exchange began: an
    exchange has completed when that copy is queued. The pinned memory of each direction grows with
    the need, is reused, and lives as long as the transport. NumPy parts are not copied.
    """

    name = "staged"
    device = "cuda"

    def __init__(self, wire: Transport, device: Device | None = None) -> None:
        if device is None:
            from mpisign.backend.cuda import streams

            device = streams
        super().__init__(wire)
        self._device = device
        self._out, self._in = Pool(device.pinned), Pool(device.pinned)
        self._copied: list[tuple[CopyEvent, Lease]] = []
        self.message = wire.message
        self.name = f"{wire.name}, staged"  # type: ignore[misc]
        self.ordered = wire.ordered  # type: ignore[misc]
        self.measurable = wire.measurable  # type: ignore[misc]

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        out, to_send = self._stage([part for _, part in sends])
        lease, to_fill, copies = self._room([part for _, part in recvs])
        pending = self.wire._exchange(
            [(rank, host) for (rank, _), host in zip(sends, to_send, strict=True)],
            [(rank, host) for (rank, _), host in zip(recvs, to_fill, strict=True)],
            tag,
        )
        return _Staged(pending, self._copied, out, lease, copies)

    def start_allgather(self, send: Bytes, rows: Sequence[Bytes], tag: int) -> Pending:
        # The wire's own may be better than messages. It takes this rank's row in host memory too;
        # the copy of that row on the device stays there.
        if rows[self.rank] is not send:
            rows[self.rank][...] = send
        others = self.others
        out, (sent,) = self._stage([send])
        lease, to_fill, copies = self._room([rows[r] for r in others])
        host = dict(zip(others, to_fill, strict=True)) | {self.rank: sent}
        pending = self.wire.start_allgather(sent, [host[r] for r in range(self.size)], tag)
        return _Staged(pending, self._copied, out, lease, copies)

    def start_allreduce(self, values: Any, tag: int) -> Pending:
        if not self._device.on_device(values):
            return self.wire.start_allreduce(values, tag)
        lease, (host,) = self._stage([values])
        dtype = np.dtype(str(values.dtype).removeprefix("torch."))
        pending = self.wire.start_allreduce(host.view(dtype), tag)
        copies = [(host, values, self._device.of(values))]
        return _Staged(pending, self._copied, None, lease, copies)

    def _stage(self, parts: Sequence[Any]) -> tuple[Lease, list[Any]]:
        """Host copies of parts, complete when it returns; one copy of a part that occurs twice."""
        mine = {id(part): part for part in parts if self._device.on_device(part)}
        lease = self._out.take([part.nbytes for part in mine.values()])
        copies = dict(zip(mine, lease.slices, strict=True))
        queues = []
        for key, host in copies.items():
            if host.nbytes:
                queues.append(self._device.of(mine[key]))
                queues[-1].copy_to_host(mine[key], host)
        for queue in dict.fromkeys(queues):
            queue.record().wait()
        return lease, [copies.get(id(part), part) for part in parts]

    def _room(self, parts: Sequence[Any]) -> tuple[Lease, list[Any], list[Copy]]:
        """Host memory for parts to receive, and the copies from it to the parts."""
        for event, lease in list(self._copied):
            if event.done():
                lease.give_back()
                self._copied.remove((event, lease))
        staged = [self._device.on_device(part) for part in parts]
        lease = self._in.take(
            [part.nbytes * mine for part, mine in zip(parts, staged, strict=True)]
        )
        hosts, copies = [], []
        for part, mine, host in zip(parts, staged, lease.slices, strict=True):
            hosts.append(host if mine else part)
            if host.nbytes:
                copies.append((host, part, self._device.of(part)))
        return lease, hosts, copies


class _Staged(Polled):
    """The wire's exchange, and the copies that follow it."""

    def __init__(
        self, pending: Pending, copied: Any, out: Lease | None, into: Lease, copies: list[Copy]
    ) -> None:
        self._pending, self._copied = pending, copied
        self._out, self._in, self._copies = out, into, copies

    def _advance(self) -> bool:
        if not self._pending.done():
            return False
        self._finish()
        return True

    def wait(self, seconds: float | None = None) -> bool:
        if not self.over and self.error is None:
            try:
                if not self._pending.wait(seconds):
                    return False
            except Exception as error:
                self.error = error
                raise
        return self.done()

    def missing(self) -> list[int] | None:
        return self._pending.missing()

    def _finish(self) -> None:
        # wait() raises what is wrong with a message; done() may not.
        self._pending.wait(0)
        if self._out is not None:
            self._out.give_back()
        for host, part, queue in self._copies:
            queue.copy_to_device(host, part)
        # The copies still read the memory: it is free once the last of them has run.
        queues = dict.fromkeys(queue for _, _, queue in self._copies)
        for queue in list(queues)[:-1]:
            queue.record().wait()
        if queues:
            self._copied.append((list(queues)[-1].record(), self._in))
        else:
            self._in.give_back()
        self._copies = []
