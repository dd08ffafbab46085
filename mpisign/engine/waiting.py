"""Whether the ranks of this machine have a core each, which says how they wait.

A rank with a core of its own polls a blocking vote without a pause at first: nothing else can use
the core. Ranks that share cores yield between two polls, and those of large models sleep at once.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from pathlib import Path

import numpy as np

from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_NAME, _CORES = 16, 1024


def find_sharing(wire: TaggedTransport) -> Steps[bool]:
    """Whether more ranks run on this machine than it has cores for them.

    Wire, to all: 16 bytes of BLAKE2b over the machine's identity, then a bit for each of 1,024
    cores on which the rank may run.
    """
    row = np.zeros(_NAME + _CORES // 8, dtype=np.uint8)
    row[:_NAME] = np.frombuffer(_machine(), dtype=np.uint8)
    cores = np.zeros(_CORES, dtype=np.uint8)
    cores[[core for core in os.sched_getaffinity(0) if core < _CORES]] = 1
    row[_NAME:] = np.packbits(cores)
    rows = np.empty((wire.size, row.size), dtype=np.uint8)
    yield wire.allgather(row, rows)
    here = rows[(rows[:, :_NAME] == row[:_NAME]).all(axis=1), _NAME:]
    together = int(np.unpackbits(np.bitwise_or.reduce(here)).sum())
    if os.environ.get("MPISIGN_DEBUG") == "1" and wire.rank == 0:
        what = "yield their cores" if len(here) > together else "poll on cores of their own"
        print(
            f"mpisign: ranks that wait {what}: {len(here)} on {together} cores here",
            file=sys.stderr,
            flush=True,
        )
    return len(here) > together


def _machine() -> bytes:
    """Containers of one machine share its cores, whatever they are called."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        name = socket.gethostname()
    return hashlib.blake2b(name.encode(), digest_size=_NAME).digest()
