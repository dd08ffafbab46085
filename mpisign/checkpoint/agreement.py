"""Ranks go through a save or a load together: all go on, or all raise the same error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.errors import WireError
from mpisign.transports.base import Bytes, Steps
from mpisign.transports.tagged import TaggedTransport

_MOST = 1 << 28  # bytes of a rank: some 100 are due for each tensor, or for each file
_PATIENCE = 3600.0  # seconds for a file


def share(
    engine: Engine, function: str, action: Callable[[], bytes], step: int = 0, *, files: bool = True
) -> list[bytes]:
    """What ``action()`` returned on each rank. Collective.

    ``files``: it may write or read large ones, for which others wait longer than for votes.

    Wire: headers; then to all 8 bytes, the length of what this rank has, and that.

    Raises CollectiveError on every rank, with each error's text, if ``action`` raised on some, or
    if ranks differ in ``step``; WireError for a length beyond what a checkpoint needs.
    """
    header, own = Header("checkpoint", step=step), b""
    try:
        own = action()
    except Exception as error:
        header = header.refusal(str(error) or type(error).__name__)

    def steps(wire: TaggedTransport) -> Steps[list[bytes]]:
        yield from engine.headers(wire, header, function)
        lengths = np.zeros((wire.size, 8), dtype=np.uint8)
        yield wire.allgather(_bytes(len(own).to_bytes(8, "little")), list(lengths))
        counts = lengths.view("<u8")[:, 0].tolist()
        for rank, n in enumerate(counts):
            if n > _MOST:
                raise WireError(f"{function}: rank {rank} announced {n} bytes, more than {_MOST}")
        rows = [np.empty(n, dtype=np.uint8) for n in counts]
        yield wire.allgather(_bytes(own), rows)
        return [row.tobytes() for row in rows]

    progress, usual = engine.progress, engine.progress.timeout
    if files:
        progress.timeout = max(usual, _PATIENCE)
    try:
        return engine.submit(function, steps).wait()  # type: ignore[no-any-return]
    finally:
        progress.timeout = usual


def _bytes(data: bytes) -> Bytes:
    return np.frombuffer(data, dtype=np.uint8)
