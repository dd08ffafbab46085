"""Horovod's own collectives on host buffers, for votes that run inside a Horovod job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.errors import WireError
from mpisign.stats import stage, stats
from mpisign.transports.base import Bytes, Over

try:
    import horovod.torch as hvd
    import torch
except ImportError as error:
    raise ImportError(
        "votes over Horovod need torch and horovod 0.28.1: scripts/setup builds both, or "
        'pip install "mpisign[horovod]"'
    ) from error


class _Exchange:
    """A Horovod handle and what its result must look like."""

    def __init__(self, what: str, handle: int, counts: Sequence[int] | None) -> None:
        self._what = what
        self._handle = handle
        self._counts = counts

    def done(self) -> bool:
        return bool(hvd.poll(self._handle))

    def wait(self) -> Any:
        with stage("exchange"):
            received = hvd.synchronize(self._handle)
        if self._counts is None:
            return received.numpy()
        expected: Any = list(self._counts)
        if isinstance(received, tuple):
            received, splits = received
            got: Any = splits.tolist()
        else:
            expected, got = sum(expected), received.numel()
        if got != expected or received.dtype != torch.uint8:
            raise WireError(
                f"{self._what}: expected {expected} bytes, got {got} of {received.dtype}"
            )
        return received.numpy()


class HorovodTransport:
    """alltoall, allgather and allreduce of a process set, on uint8 tensors that share memory.

    Horovod matches operations by name, and remembers 1,024 of them: exchanges are numbered from the
    last ``restart``, so that every vote uses the same few names. Raises WireError if sizes differ
    from the counts, HorovodInternalError (for elastic training) if an exchange failed.
    """

    name = "horovod"

    def __init__(
        self, prefix: str = "mpisign", process_set: hvd.ProcessSet = hvd.global_process_set
    ) -> None:
        self._process_set = process_set
        self._prefix = f"{prefix}.{process_set.process_set_id}"
        self._topic = ""
        self._started = 0
        self.rank: int = process_set.rank()
        self.size: int = process_set.size()

    def restart(self, topic: str) -> None:
        """Numbers exchanges on ``topic`` from 0; on every rank between the same two exchanges."""
        self._topic = topic
        self._started = 0

    def start_allgatherv(self, send: Bytes, counts: Sequence[int]) -> _Exchange | Over:
        own = counts[self.rank]
        stats().add("exchange", calls=0, sent=own * (self.size - 1), received=sum(counts) - own)
        if self.size == 1 or sum(counts) == 0:
            return Over(send)
        name = self._next("allgather")
        handle = hvd.allgather_async(_tensor(send), name=name, process_set=self._process_set)
        return _Exchange(name, handle, counts)

    def start_alltoallv(
        self, send: Bytes, sendcounts: Sequence[int], recvcounts: Sequence[int]
    ) -> _Exchange | Over:
        stats().add(
            "exchange",
            calls=0,
            sent=sum(sendcounts) - sendcounts[self.rank],
            received=sum(recvcounts) - recvcounts[self.rank],
        )
        if self.size == 1:
            return Over(send)
        name = self._next("alltoall")
        splits = torch.tensor(list(sendcounts), dtype=torch.int32)
        handle = hvd.alltoall_async(
            _tensor(send), splits=splits, name=name, process_set=self._process_set
        )
        return _Exchange(name, handle, recvcounts)

    def start_allreduce(self, values: np.ndarray[Any, Any]) -> _Exchange | Over:
        ring = 2 * values.nbytes * (self.size - 1) // self.size
        stats().add("exchange", calls=0, sent=ring, received=ring)
        if self.size == 1:
            return Over(values)
        name = self._next("allreduce")
        handle = hvd.allreduce_async(
            _tensor(values), name=name, op=hvd.Sum, process_set=self._process_set
        )
        return _Exchange(name, handle, None)

    def _next(self, what: str) -> str:
        self._started += 1
        return f"{self._prefix}.{self._topic}.{what}.{self._started - 1}"


def _tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """The same memory as a tensor; a copy of what must not be written to."""
    if not values.flags.writeable:
        values = values.copy()
    return torch.from_numpy(np.ascontiguousarray(values))
