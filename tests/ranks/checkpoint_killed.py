"""A job whose rank 1 is killed in the middle of writing its file; a second one resumes.

Run by tests/test_checkpoint.py.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from mpi4py import MPI
from test_checkpoint import Run

import mpisign
from mpisign import checkpoint

FOLDER, TODO = sys.argv[1:]
comm = mpisign.Communicator("mpi")
whole = torch.save


def dies(content, file):
    """Writes a part, and is killed as by a node that fails."""
    whole(content, file)
    file.truncate(1000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


run = Run(comm)
taken = checkpoint.load(FOLDER, run.state, comm=comm)
for step in (2, 5, 8):
    if step > taken:
        run.train(*range(taken if step == 2 else step - 3, step))
        if TODO == "kill" and step == 8 and comm.rank == 1:
            torch.save = dies
        checkpoint.save(FOLDER, step, run.state, comm=comm)
straight = Run(comm)
straight.train(*range(8))
same = MPI.COMM_WORLD.allgather(straight.bits() == run.bits())
if comm.rank == 0:
    print(f"resumed at {taken}, bits {'equal' if all(same) else same} on {comm.size} ranks")
