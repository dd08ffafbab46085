"""How many Python functions of mpisign one call passes through, on rank 0 in the steady state.

    mpirun -n 2 python -m mpi4py tests/walk.py [--json FILE]

What is counted, with sys.setprofile, on the thread that makes the call:
  calls      "call" events of Python code in mpisign/. A generator counts each time it is
             resumed, a comprehension as the function that Python 3.11 makes of it; not C functions
  functions  distinct code objects among these
  files      distinct files among these
  changes    how often two calls in a row lie in different files
  views      how often a View of an array is made
Every case runs a few times first, so that plans, communicators and caches exist. Waiting ranks
poll: of ``REPEATS`` runs, the one with the fewest calls is reported.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mpi4py import MPI

import mpisign
import mpisign.ddp

PACKAGE = str(Path(mpisign.__file__).parent) + "/"
WARM, REPEATS = 5, 30
COLUMNS = ("calls", "functions", "files", "changes", "views")


class Walk:
    """Counts while ``with Walk() as walk`` is open."""

    def __init__(self) -> None:
        self.codes: list[Any] = []
        self.views = 0

    def __enter__(self) -> Walk:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: Any, event: str, arg: object) -> None:
        if event == "call":
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                self.codes.append(code)
            if code.co_name in ("__init__", "__new__"):
                first = next(iter(frame.f_locals.values()), None)
                kind = first if isinstance(first, type) else type(first)
                self.views += kind.__name__ == "View" and kind.__module__.startswith("mpisign")

    def row(self) -> dict[str, int]:
        files = [c.co_filename for c in self.codes]
        changes = sum(a != b for a, b in zip(files, files[1:], strict=False))
        counts = (len(files), len(set(self.codes)), len(set(files)), changes, self.views)
        return dict(zip(COLUMNS, counts, strict=True))

    def by_file(self) -> dict[str, int]:
        return dict(Counter(c.co_filename.removeprefix(PACKAGE) for c in self.codes).most_common())


def least(call: Callable[[], Any], between: Callable[[], Any] = lambda: None) -> Walk:
    """The walk of ``call()`` with the fewest calls. ``between`` prepares each, uncounted."""
    best: Walk | None = None
    for i in range(WARM + REPEATS):
        between()
        MPI.COMM_WORLD.Barrier()
        with Walk() as walk:
            call()
        if i >= WARM and (best is None or len(walk.codes) < len(best.codes)):
            best = walk
    assert best is not None
    return best


def vote(length: int) -> Walk:
    x = np.random.default_rng(MPI.COMM_WORLD.rank).standard_normal(length).astype(np.float32)
    return least(lambda: mpisign.majority_vote(x, MPI.COMM_WORLD))


def net() -> torch.nn.Module:
    """Two layers: four tensors."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))


def loss(model: torch.nn.Module) -> torch.Tensor:
    x = torch.randn(8, 100, generator=torch.Generator().manual_seed(MPI.COMM_WORLD.rank))
    return model(x).square().mean()


def optimizer_step() -> Walk:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mpisign.DistributedOptimizer(optimizer, comm=MPI.COMM_WORLD, compression="signum", skip=None)
    return least(optimizer.step, lambda: (optimizer.zero_grad(), loss(model).backward()))


def ddp_hook() -> Walk:
    world = MPI.COMM_WORLD
    folder = world.bcast(tempfile.mkdtemp() if world.rank == 0 else None)
    store = dist.FileStore(f"{folder}/store", world.size)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
    model = net()
    state = mpisign.ddp.MajorityVoteState(None, "signum", skip=None)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    wrapped.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    losses: list[torch.Tensor] = []

    def forward() -> None:
        wrapped.zero_grad()
        losses[:] = [loss(wrapped)]

    walk = least(lambda: losses[0].backward(), forward)
    dist.destroy_process_group()
    return walk


CASES = {
    "majority_vote, 1,000 coordinates": lambda: vote(1000),
    "majority_vote, 1,000,000": lambda: vote(1_000_000),
    "step(), DistributedOptimizer, signum, 4 tensors": optimizer_step,
    "backward(), DDP hook, signum, 4 tensors": ddp_hook,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", action="store_true", help="calls by file, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    walks = {name: case() for name, case in CASES.items()}
    if MPI.COMM_WORLD.rank:
        return
    print(f"{'':50}" + "".join(f"{c:>10}" for c in COLUMNS))
    for name, walk in walks.items():
        print(f"{name:50}" + "".join(f"{n:>10}" for n in walk.row().values()))
        for file, count in walk.by_file().items() if args.files else ():
            print(f"    {count:>5} {file}")
    if args.json:
        rows = {name: walk.row() | {"by_file": walk.by_file()} for name, walk in walks.items()}
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
