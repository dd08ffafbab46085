"""The ranks of one job: they check promises together, in step whatever one of them does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch


class Ended(AssertionError):
    """Another rank ended a promise while this one still asked for what that rank holds."""


@dataclass
class World:
    """This rank among all of a job. ``group``: what front ends connect by, None for the default."""

    rank: int
    size: int
    allgather: Any
    end: Any  # called once, by all ranks
    horovod: bool = False
    group: Any = None

    def gather(self, x: Any, end: bool = False) -> list[Any]:
        """Every rank's ``x``. Ranks that have come to the end of a promise end the others'."""
        rows = self.allgather((end, x))
        if not end and any(ended for ended, _ in rows):
            raise Ended(f"other ranks ended: {[r for r, (ended, _) in enumerate(rows) if ended]}")
        return [x for _, x in rows]

    def finish(self, x: Any) -> list[Any]:
        """Every rank's ``x`` at the end of a promise, once all ranks have come there."""
        while True:
            rows = self.allgather((True, x))
            if all(ended for ended, _ in rows):
                return [x for _, x in rows]

    def renew(self) -> None:
        """Connects the ranks anew, after something broke."""
        import mpisign

        self.group = mpisign.Communicator("mpi" if self.horovod else None)
        if self.horovod:
            import horovod.torch as hvd

            hvd.shutdown()
            hvd.init()


def begin(launcher: str) -> World:
    """Starts what connects this job's ranks."""
    torch.set_num_threads(1)
    if launcher == "torchrun":
        import torch.distributed as dist

        dist.init_process_group("gloo")

        def allgather(x):
            rows = [None] * dist.get_world_size()
            dist.all_gather_object(rows, x)
            return rows

        return World(dist.get_rank(), dist.get_world_size(), allgather, dist.destroy_process_group)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    try:
        import horovod.torch as hvd
    except ImportError:
        return World(comm.rank, comm.size, comm.allgather, comm.Barrier)
    hvd.init()
    return World(comm.rank, comm.size, comm.allgather, hvd.shutdown, horovod=True)


def digest(tensors) -> str:
    """All bits of some tensors."""
    state = hashlib.blake2b(digest_size=8)
    for t in tensors:
        x = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
        state.update(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def same_replicas(world, wrapped, what=""):
    """All ranks hold the same parameters."""
    digests = world.gather(digest(wrapped.parameters().values()))
    assert len(set(digests)) == 1, f"{what}: replicas differ: {digests}"


def attempt(world, function) -> str:
    """The error that all ranks raise, the same; "" if none of them does."""
    try:
        function()
        mine = ""
    except Exception as error:
        mine = f"{type(error).__name__}: {error}"
    every = world.gather(mine)
    assert len(set(every)) == 1, f"ranks raised {every}"
    return mine


def same_error(world, function, *texts) -> str:
    """``function`` raises the same error on every rank, which holds every one of ``texts``."""
    raised = attempt(world, function)
    assert raised, "nothing was raised"
    for text in texts:
        assert text in raised, f"no {text!r} in {raised!r}"
    return raised
