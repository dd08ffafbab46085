"""Jobs of three ranks that can only end badly, and must end: rank 2 does what the argument says.

A second argument is the kind of the communicator.
Started by tests/test_timeouts.py. A job whose ranks do not all come to their end is aborted 20
seconds after; here after one. Prints "rank r is process n" first.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
from mpi4py import MPI

import mpisign
from mpisign.transports import mpi

mpi._LAST_SECONDS = 1.0
if "horovod" in sys.argv:
    from mpisign.transports import horovod_exit

    horovod_exit._LAST_SECONDS = 1.0
RANK = MPI.COMM_WORLD.rank
print(f"rank {RANK} is process {os.getpid()}", flush=True)
what = sys.argv[1]
LAST = RANK == 2

MPI.COMM_WORLD.Barrier()  # on a busy machine ranks start seconds apart
if what == "makes no communicator" and LAST:
    time.sleep(60)
comm = mpisign.Communicator(*sys.argv[2:], timeout=2.0)
comm.majority_vote(np.ones(100))
if LAST:
    if what == "never comes":
        time.sleep(60)
    if what == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "dies":
        os._exit(7)
    if what == "dies quietly":
        os._exit(0)
    if what == "raises":
        raise RuntimeError("of its own")
    if what == "votes less often":
        sys.exit()
comm.majority_vote(np.ones(100), step=5)
