"""In scripts/netlab: bytes that cross each node's link, beside those that vote_traffic says.

Started by tests/test_netlab.py, or by hand:

    scripts/netlab run --nodes 16 --ranks-per-node 2 --rate 100mbit -- \
        mpirun python -m mpi4py tests/ranks/netlab_traffic.py
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
from mpi4py import MPI

import mpisign
from mpisign.bench.collectives.nodes import counted

WORLD = MPI.COMM_WORLD
LENGTHS, VOTES = (200_000, 2_000_000), 3
PACKETS = 1.12  # TCP, IP and Ethernet add 66 bytes to each 1,448, and so much to acknowledge it
MESSAGE = 250  # bytes at most: a message's first packet, MPI's header, acknowledgements


def settled() -> tuple[int, int]:
    """The counters once all ranks are idle and what they sent has arrived."""
    WORLD.Barrier()
    time.sleep(0.3)
    found = counted(os.environ["NETLAB_INTERFACE"])
    WORLD.Barrier()
    return found


def vote(comm: mpisign.Communicator, x: np.ndarray, out: np.ndarray, algorithm: str) -> None:
    comm.majority_vote(x, algorithm=algorithm, out=out)


here = int(os.environ["NETLAB_NODE"])
nodes = WORLD.allgather(here)
count = max(nodes) + 1
racks = [node // 4 for node in nodes]
levels = {"alltoall": [nodes], "hierarchical": [nodes], "hierarchical, racks": [nodes, racks]}
comms = {name: mpisign.Communicator("mpi", nodes=of) for name, of in levels.items()}
for length in LENGTHS:
    x = np.random.default_rng(WORLD.rank).standard_normal(length).astype(np.float32)
    results = []
    for name, comm in comms.items():
        algorithm = name.partition(",")[0]
        out = np.empty_like(x)
        vote(comm, x, out, algorithm)  # connections
        before = settled()
        for _ in range(VOTES):
            vote(comm, x, out, algorithm)
        after = settled()
        results.append(out.copy())
        said = mpisign.vote_traffic(
            length, WORLD.size, algorithm=algorithm, nodes=levels[name], rank=WORLD.rank
        )
        others = sum(node != here for node in nodes)  # agreement goes to them and to mates
        each = said.agreement_sends // (WORLD.size - 1) * others
        more = said.agreement_sent // (WORLD.size - 1) * others
        outside = said.sent_outside + more, said.received_outside + more
        of_node = WORLD.allgather((here, *outside, said.sends_outside + each))
        for way in (0, 1):
            crossed = (after[way] - before[way]) / VOTES
            wanted = sum(of[1 + way] for of in of_node if of[0] == here)
            messages = sum(of[3] for of in of_node if of[0] == here)
            apart = WORLD.allgather(crossed / wanted)
            most = PACKETS * wanted + MESSAGE * messages
            assert wanted <= crossed <= most, (name, way, crossed, wanted, messages)
            if WORLD.rank == 0:
                way_ = ("sent", "received")[way]
                print(
                    f"{name}, {length} coordinates, {way_}: predicted {wanted:,} bytes and "
                    f"{messages} messages of a node, counted "
                    f"{crossed:,.0f}: {min(apart):.3f} to {max(apart):.3f} times"
                )
    assert all(np.array_equal(r, results[0]) for r in results)
sys.stdout.write(f"rank {WORLD.rank} agrees\n")
