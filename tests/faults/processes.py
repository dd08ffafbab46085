"""Ranks that end, stop, come late, or do something with their process that they should not."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from faults.kinds import FRONTS, GLOO, HOROVOD, MPI, OURS, kind

#: Seconds that ranks wait for each other. Its own variable: one of the faults is another timeout.
TIMEOUT = float(os.environ.get("FAULTS_TIMEOUT", "4"))
GRACE = 2.0  # and then for an answer


def _stop(seconds: float | None) -> None:
    """This process stands still; another one lets it go on."""
    if seconds is not None:
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


@kind("leaves")
def raises(fault: Any) -> None:
    """An exception of its own."""
    fault.leaves()
    raise ZeroDivisionError(f"a bug on rank {fault.rank}")


@kind("named", fronts=OURS)
def ends(fault: Any) -> None:
    """Its program ends early, with status 0."""
    fault.leaves()
    sys.exit(0)


@kind("leaves", fronts=OURS)
def exits_with_0(fault: Any) -> None:
    """os._exit(0): nothing is said goodbye to."""
    fault.leaves()
    os._exit(0)


@kind("leaves")
def exits_with_3(fault: Any) -> None:
    """os._exit(3)."""
    fault.leaves()
    os._exit(3)


@kind("leaves")
def killed(fault: Any) -> None:
    """SIGKILL, as by the kernel that runs out of memory."""
    fault.leaves()
    os.kill(os.getpid(), signal.SIGKILL)


@kind("leaves")
def crashes(fault: Any) -> None:
    """A segmentation fault."""
    fault.leaves()
    ctypes.string_at(0)


@kind("named", fronts=OURS)
def stopped(fault: Any) -> None:
    """SIGSTOP for ever."""
    fault.leaves()
    _stop(None)


@kind("right")
def paused(fault: Any) -> None:
    """SIGSTOP for less than the timeout."""
    _stop(1.5)


@kind("named", fronts=OURS)
def paused_into_the_grace(fault: Any) -> None:
    """SIGSTOP for a second more than the timeout: it wakes while the others decide."""
    _stop(TIMEOUT + 1.0)


@kind("named", fronts=("functions",), everyone=True, settings={"length": 1000})
def paused_in_a_vote(fault: Any) -> None:
    """SIGSTOP in mid-collective, for a second more than the timeout."""
    if fault.odd:
        threading.Timer(0.1, _stop, (TIMEOUT + 1.0,)).start()
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        fault.front.comm.majority_vote(fault.front.values(0))


@kind("right")
def late(fault: Any) -> None:
    """Comes later than the others, by less than the timeout."""
    time.sleep(1.5)


@kind("named", fronts=OURS)
def too_late(fault: Any) -> None:
    """Comes after the others gave up."""
    time.sleep(TIMEOUT + GRACE + 1.5)


# MPI itself makes the communicator, and does not say who did not come.
@kind("named", fronts=("functions", "plain"), wires=(*GLOO, *HOROVOD), when="start")
def late_at_the_start(fault: Any) -> None:
    """Is away while the others make their communicator."""
    time.sleep(TIMEOUT + GRACE + 1.5)


@kind("leaves", fronts=OURS, everyone=True)
def interrupted(fault: Any) -> None:
    """Ctrl-C on one rank, while it waits for the others."""
    if fault.odd:
        fault.leaves()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        time.sleep(1.0)


@kind("right", fronts=OURS)
def a_forked_child_votes(fault: Any) -> None:
    """Forks a child, a worker or a pool, that calls what its parent calls."""
    child = os.fork()
    if child == 0:
        status = 1  # it must not get a result
        try:
            fault.front.step(fault.step)
        except BaseException:
            status = 0
        os._exit(status)
    until = time.monotonic() + TIMEOUT - 1.0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"the child of rank {fault.rank} hung")
        time.sleep(0.01)
    if status:
        raise RuntimeError(f"the child of rank {fault.rank} voted: status {status}")


@kind("right", fronts=("functions",))
def another_thread_waits(fault: Any) -> None:
    """Starts a vote in one thread and waits for it in another."""
    made: list[Any] = []
    front = fault.front
    thread = threading.Thread(target=lambda: made.append(front.start(fault.step)))
    thread.start()
    thread.join()
    front.take(made[0].wait())
    fault.taken = True


@kind("either", fronts=("functions",), wires=MPI, everyone=True)
def own_messages_between(fault: Any) -> None:
    """A barrier of its own while a vote is in flight, which the others call after it."""
    from mpi4py import MPI as mpi

    handle = fault.front.start(fault.step)
    if fault.odd:
        mpi.COMM_WORLD.Barrier()
    fault.front.take(handle.wait())
    if not fault.odd:
        mpi.COMM_WORLD.Barrier()
    fault.taken = True


@kind("right", fronts=("functions",), everyone=True)
def frees_twice(fault: Any) -> None:
    """Frees a second communicator twice, where the others free it once."""
    fault.front.other.free()
    if fault.odd:
        fault.front.other.free()


@kind("named", fronts=("functions",))
def frees_early(fault: Any) -> None:
    """Frees the communicator that the others still use, and stays."""
    fault.leaves()
    fault.front.comm.free()
    time.sleep(TIMEOUT + GRACE + 3.0)
    sys.exit(0)


@kind("leaves", fronts=tuple(f for f in FRONTS if f != "fsdp"))
def shuts_the_wire_down(fault: Any) -> None:
    """MPI_Finalize, destroy_process_group or hvd.shutdown, and the end of its program."""
    fault.leaves()
    if fault.job.wire in MPI:
        from mpi4py import MPI as mpi

        mpi.Finalize()
    elif fault.job.wire in GLOO:
        import torch.distributed as dist

        dist.destroy_process_group()
    else:
        import horovod.torch as hvd

        hvd.shutdown()
    sys.exit(0)
