"""One rank of a job: started by a launcher, as ``launch.command`` says.

Writes what it comes to into FAULTS_FOLDER, a line of JSON for each step and for its end; without
that variable, to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from faults.fronts import FRONTS
from faults.kinds import GLOO, MPI, Kind, known
from faults.plan import Job
from faults.processes import GRACE, TIMEOUT
from faults.steps import Front

#: Seconds that a rank with an error waits for the others' words: launchers end all after the first.
_LINGER = TIMEOUT + GRACE + 6.0


class Fault:
    """What ``Kind.act`` is given, on the rank with the fault (or on all)."""

    def __init__(self, job: Job, rank: int, front: Front, words: Words) -> None:
        self.job, self.rank, self.front, self.words = job, rank, front, words
        self.odd = rank == job.odd
        self.step = job.at
        self.skip = self.taken = False

    def leaves(self) -> None:
        """Says that this rank will have no last word."""
        self.words.say(end="left")


class Words:
    """What a rank says, where the driver and the other ranks find it."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.folder = os.environ.get("FAULTS_FOLDER")

    def say(self, **told: Any) -> None:
        line = json.dumps(told)
        if self.folder is None:
            print(f"rank {self.rank}: {line}", flush=True)
            return
        with (Path(self.folder) / f"rank-{self.rank}").open("a") as file:
            file.write(line + "\n")

    def wait_for_the_others(self) -> None:
        until = time.monotonic() + _LINGER
        while self.folder is not None and time.monotonic() < until:
            paths = [Path(self.folder) / f"rank-{r}" for r in range(self.ranks)]
            if all(p.exists() and '"end"' in p.read_text() for p in paths):
                return
            time.sleep(0.05)


def start(wire: str) -> int:
    """Starts the wire; this process's rank. All have come when it returns."""
    if wire in MPI:
        from mpi4py import MPI as mpi

        mpi.COMM_WORLD.Barrier()
        return int(mpi.COMM_WORLD.rank)
    if wire in GLOO:
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
        dist.barrier()
        return int(dist.get_rank())
    import horovod.torch as hvd

    hvd.init()
    hvd.barrier()
    return int(hvd.rank())


def train(job: Job, kind: Kind, fault: Fault) -> None:
    """The job's steps, with the fault."""
    front, words = fault.front, fault.words
    acts = fault.odd or kind.everyone
    if acts and kind.when == "start":
        kind.act(fault)
    front.begin()
    if acts and kind.when == "made":
        kind.act(fault)
    for step in range(job.steps):
        here = acts and step == job.at
        between = (lambda: kind.act(fault)) if here and kind.when == "between" else None
        if here and kind.when == "step":
            kind.act(fault)
        if here and fault.skip:
            continue
        if not (here and fault.taken):
            front.step(step, between)
        words.say(call=step, digest=front.digest(), right=front.right(step))


def main() -> None:
    job = Job.read(sys.argv[1:])
    kind = known()[job.kind]
    if job.front != "functions":
        import torch  # noqa: F401  # takes seconds, not the same on all ranks
    rank = start(job.wire)
    words = Words(rank, job.ranks)
    fault = Fault(job, rank, FRONTS[job.front](job, rank), words)
    words.say(ready=True)
    began = time.monotonic()
    try:
        train(job, kind, fault)
    except (Exception, KeyboardInterrupt) as error:
        text = f"{type(error).__name__}: {error}"
        words.say(end="error", text=text, seconds=round(time.monotonic() - began, 1))
        words.wait_for_the_others()
        raise
    words.say(end="done")
    if job.wire in GLOO:
        import torch.distributed as dist

        if dist.is_initialized():
            words.wait_for_the_others()
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
