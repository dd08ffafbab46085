"""Rank 0 gives up an exchange that rank 1 never comes to, and its process ends all the same.

Rank 1 sees it end, or fails after 30 seconds; then votes, and hears that rank 0 has ended.
Argument: torch or horovod; then a shared folder.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

import mpisign
from mpisign.errors import CollectiveTimeout

kind, shared = sys.argv[1:]
pid = Path(shared) / "pid"

if kind == "torch":
    import torch.distributed as dist

    dist.init_process_group("gloo")
else:
    import horovod.torch as hvd

    hvd.init()
comm = mpisign.Communicator(kind, timeout=60.0)
wire = comm.engine.transport


def ended(process):
    """Nothing of it is left, or only what its parent has not asked for."""
    try:
        return (Path("/proc") / process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


rows = np.zeros((wire.size, 10), dtype=np.uint8)
assert wire.start_allgather(rows[wire.rank], rows, 0).wait(30)
if wire.rank == 0:
    pid.with_suffix(".new").write_text(str(os.getpid()))
    pid.with_suffix(".new").rename(pid)
    assert not wire.start_allgather(rows[0], rows, 0).wait(0.5)
    wire.abort()
    print("rank 0 gives up", flush=True)
else:
    end = time.monotonic() + 30
    while not pid.exists() or not ended(pid.read_text()):
        if time.monotonic() > end:
            sys.exit("rank 0 gave up, but its process did not end")
        time.sleep(0.05)
    try:
        comm.majority_vote(np.ones(100), step=3)
    except CollectiveTimeout as error:
        text = "majority_vote: step 3: rank 0 did not come in "
        assert str(error).startswith(text) and error.ranks == (0,), error
        assert str(error).endswith("s (the program of rank 0 has ended)"), error
    else:
        sys.exit("rank 1 voted alone")
    if kind == "torch":  # whose wires are made anew
        began = time.monotonic()
        try:
            mpisign.Communicator(dist.group.WORLD, timeout=0.5)
        except CollectiveTimeout as error:
            assert "rank 0 did not come in 0.5 s" in str(error) and error.ranks == (0,), error
        else:
            sys.exit("rank 1 made a communicator alone")
        assert time.monotonic() - began < 10
    print("rank 0 has ended", flush=True)
