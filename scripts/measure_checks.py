"""What checks cost, as a table: mpirun -n 2 python -m mpi4py measure_checks.py votes|steps

With and without them, turn by turn in one run; in brackets how much longer all of them take.
Probes: receives begin once a matched probe has told the length (Open MPI). Digests: of all results
(MPISIGN_CHECK_EVERY). Undo: the copy of the compressor's state before an exchange that no optimizer
may step on. Microseconds, medians of the slowest rank's turns.
"""

from __future__ import annotations

import functools
import os
import sys
import time

import numpy as np
import torch
from mpi4py import MPI

import mpisign

WORLD = MPI.COMM_WORLD
SIZES = (1_000, 10_000, 100_000, 1_000_000, 6_500_000)
TURNS, COORDINATES = 15, 4_000_000  # a turn makes some calls, of about so many in all


def compared(ways, length):
    """{way: microseconds a call}: all ways take turns."""
    calls = max(2, min(200, COORDINATES // length))
    for call in ways.values():
        for _ in range(20 if length < 1_000_000 else 3):
            call()
    taken = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, call in ways.items():
            WORLD.Barrier()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            taken[way].append(WORLD.allreduce((time.perf_counter() - start) / calls, MPI.MAX))
    return {way: 1e6 * float(np.median(times)) for way, times in taken.items()}


def communicator(probes, digests):
    os.environ["MPISIGN_CHECK_EVERY"] = "16" if digests else "0"
    comm = mpisign.Communicator(WORLD)
    transport = comm.engine.transport
    transport.probes = transport.probes and probes
    return comm


def votes(algorithm, length):
    x = np.random.default_rng(WORLD.rank).standard_normal(length).astype(np.float32)
    out = np.empty_like(x)
    kinds = {"all": (1, 1), "no probes": (0, 1), "no digests": (1, 0), "neither": (0, 0)}
    ways = {
        name: functools.partial(communicator(*kind).majority_vote, x, out=out, algorithm=algorithm)
        for name, kind in kinds.items()
    }
    return compared(ways, length)


def step(length, undo):
    """A step on given gradients, with overlap, which keeps what it may have to undo."""
    p = torch.nn.Parameter(torch.zeros(length))
    sgd = torch.optim.SGD([p], lr=1e-3)
    mpisign.DistributedOptimizer(
        sgd, [("p", p)], comm=communicator(1, 1), compression="signum", overlap=True
    )
    sgd.mpisign.exchange._ahead = undo
    gradient = torch.randn(length)

    def call():
        sgd.zero_grad()
        p.backward(gradient)
        sgd.step()

    return call


def of_votes():
    yield "| vote, coordinates | all | no probes | no digests | neither |\n|---|---|---|---|---|"
    for algorithm in ("alltoall", "allgather"):
        for length in SIZES:
            found = votes(algorithm, length)
            cells = [f"{found['all']:.1f}"]
            cells += [f"{found[w]:.1f} ({found['all'] / found[w] - 1:+.0%})" for w in found][1:]
            yield f"| {algorithm}, {length:,} | {' | '.join(cells)} |"


def of_steps():
    yield "| step with overlap, signum | with undo | without |\n|---|---|---|"
    for length in SIZES[2:]:
        found = compared({True: step(length, True), False: step(length, False)}, length)
        more = found[True] / found[False] - 1
        yield f"| {length:,} | {found[True]:.0f} | {found[False]:.0f} ({more:+.0%}) |"


torch.set_num_threads(1)
for line in {"votes": of_votes, "steps": of_steps}[sys.argv[1]]():
    if WORLD.rank == 0:
        print(line, flush=True)
