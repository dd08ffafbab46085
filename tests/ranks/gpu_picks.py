"""What mpisign.transports.on_device picks: a line for each setting of argv, by rank 0."""

from __future__ import annotations

import os
import sys

from mpi4py import MPI

from mpisign.transports import on_device
from mpisign.transports.mpi import MPITransport
from mpisign.transports.subgroup import SubgroupTransport

WORLD = MPI.COMM_WORLD
for setting in sys.argv[1:]:  # of each rank in turn, by commas; "other" first: over another wire
    values = setting.removeprefix("other ").split(",")
    os.environ[on_device.VARIABLE] = values[WORLD.rank % len(values)]
    control = MPITransport(WORLD.Dup())
    if setting.startswith("other"):
        control = SubgroupTransport(control, range(WORLD.size))
    try:
        wire, why = on_device.over(control, timeout=30)
        line = f"{wire.name} of {wire.size} for {wire.device}: {why}"
    except ValueError as error:
        line = f"ValueError: {error}"
    assert len(set(WORLD.allgather(line))) == 1
    if WORLD.rank == 0:
        print(f"picked: {line}")
