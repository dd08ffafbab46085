"""Variables of the environment that must be the same on all ranks."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from mpisign.engine.agreement import name_ranks
from mpisign.engine.dissemination import all_same
from mpisign.engine.header import SHORT_ABOVE
from mpisign.errors import DisagreementError
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

#: By name: their values, or whether they are set at all, must be the same.
_VALUES = ("MPISIGN_CHECK_EVERY", "MPISIGN_DEVICE_WIRE", "MPISIGN_CUDA_MPI", "MPISIGN_SPARSE_BLOCK")
_SET = ("MPISIGN_COSTS",)
_SHOWN = 24  # bytes of a value


def check_environment(wire: TaggedTransport) -> Steps[None]:
    """DisagreementError on all ranks if variables differ that ``mpirun -x`` has to pass on.

    Wire, to all: of each variable 8 bytes of BLAKE2b and 24 of its value; many ranks first ask
    whether all are the same.
    """
    names = (*_VALUES, *_SET)
    own = np.zeros((len(names), 8 + _SHOWN), dtype=np.uint8)
    for row, name in zip(own, names, strict=True):
        text = os.environ.get(name, "").encode(errors="replace")
        text = b"set" if text and name in _SET else text
        row[:8] = np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), dtype=np.uint8)
        row[8 : 8 + len(text)] = np.frombuffer(text[:_SHOWN], dtype=np.uint8)
    flat = np.concatenate([np.zeros(1, dtype=np.uint8), own.reshape(-1)])
    if wire.size > SHORT_ABOVE and (yield from all_same(wire, flat)):
        return
    rows = np.empty((wire.size, flat.size), dtype=np.uint8)
    yield wire.allgather(flat, rows)
    values = rows[:, 1:].reshape(wire.size, len(names), 8 + _SHOWN)
    for i, name in enumerate(names):
        ranks: dict[bytes, list[int]] = {}
        for rank, value in enumerate(values[:, i]):
            ranks.setdefault(value.tobytes(), []).append(rank)
        if len(ranks) > 1:
            held = "; ".join(f"{name_ranks(r)}: {_shown(name, v[8:])}" for v, r in ranks.items())
            raise DisagreementError(
                f"Communicator: ranks disagree on the environment variable {name} ({held}). Set it "
                f"on all ranks or on none, as mpirun -x {name} does"
            )


def _shown(name: str, value: bytes) -> str:
    text = value.rstrip(b"\0").decode(errors="replace")
    if not text:
        return "not set"
    return "set" if name in _SET else repr("".join(c if c.isprintable() else "?" for c in text))
