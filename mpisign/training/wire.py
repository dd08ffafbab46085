"""Bytes that really crossed the wire, as the kernel counts them, where that can be told."""

from __future__ import annotations

import os
from pathlib import Path

from mpisign.training.world import World, started_by_gloo, started_by_torch

_COUNTERS = Path("/proc/net/dev")


def measurable(world: World) -> bool:
    """Whether all traffic of the ranks is TCP over this machine's loopback device.

    True for Horovod and torch on Gloo, and for Open MPI that was told ``--mca btl tcp,self``, if
    all ranks share the machine: MPI's usual way is shared memory, which no counter sees.
    """
    if not world.one_machine or world.size == 1 or loopback_sent() is None:
        return False
    if started_by_gloo() or started_by_torch():
        return True
    btl = set(os.environ.get("OMPI_MCA_btl", "").split(","))
    return btl == {"tcp", "self"} and os.environ.get("OMPI_MCA_pml", "ob1") == "ob1"


def loopback_sent() -> int | None:
    """Bytes that the whole machine has sent over ``lo``, headers included; None if not told."""
    try:
        lines = _COUNTERS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        device, _, counters = line.partition(":")
        if device.strip() == "lo":
            return int(counters.split()[8])
    return None
