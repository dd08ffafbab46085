"""Replicas that part are noticed, in whichever vote: rank 1 tells ranks 0 and 2 different ballots.

Ranks are threads. Rank 1 changes one byte of all it sends to rank 0 in one call, and its headers,
preambles and digests say nothing of it.
"""

from __future__ import annotations

import threading

import hostile
import numpy as np
import pytest
import torch

import mpisign
from mpisign import _kernels
from mpisign.compressors import OneBit
from mpisign.compressors.uncompressed import BF16Mean
from mpisign.engine.replicas import ReplicaRecord
from mpisign.errors import CollectiveError
from mpisign.transports.threads import World

EVERY, LENGTH = 4, 2000
LIE = 5  # the call: in the midst of a window, and none whose result is hashed by BLAKE2b


class Equivocating(hostile.Wire):
    """Lies in the exchanges of the call that ``call`` counts to ``LIE``."""

    call = 0

    def _exchange(self, sends, recvs, tag):
        if self.rank == 1 and self.call == LIE:
            sends = [(dest, changed(part) if dest == 0 else part) for dest, part in sends]
        return super()._exchange(sends, recvs, tag)


def changed(part):
    part, start = part.copy(), 0
    if part[:4].tobytes() in (b"MPSG", b"MPSP"):
        start = 512 if part[:4].tobytes() == b"MPSG" else 64
    if len(part) > start + 8:  # no count of NaNs
        part[start + (len(part) - start) // 2] ^= 0x55
    return part


def arrays(call):
    return lambda comm: (
        lambda i: call(comm, np.random.default_rng((i, comm.rank)).normal(size=LENGTH))
    )


def in_flight(comm):
    """Two votes at a time: one starts before the one before it is waited for."""
    handles = []

    def call(i):
        x = np.random.default_rng((i, comm.rank)).normal(size=LENGTH)
        handles.append(comm.majority_vote_async(x))
        return handles.pop(0).wait() if len(handles) > 1 else None

    return call


def optimizer(compression, **options):
    def front(comm):
        p = torch.nn.Parameter(torch.zeros(LENGTH))
        stepped = mpisign.DistributedOptimizer(
            torch.optim.SGD([p], lr=0.1), comm=comm, compression=compression, skip=None, **options
        )

        def call(i):
            p.grad = torch.from_numpy(
                np.random.default_rng((i, comm.rank)).normal(size=LENGTH)
            ).float()
            stepped.step()
            return p.grad.numpy()

        return call

    return front


FRONTS = {
    "allgather": arrays(lambda c, x: c.majority_vote(x, algorithm="allgather")),
    "alltoall": arrays(lambda c, x: c.majority_vote(x, algorithm="alltoall", ties="zero")),
    "in flight": in_flight,
    "tally": arrays(lambda c, x: np.stack(c.tally(x, algorithm="alltoall"))),
    "mean_of_signs": arrays(lambda c, x: c.mean_of_signs(x)),
    "robust": arrays(lambda c, x: c.robust_aggregate(x, rule="median")),
    "signum": optimizer("signum", algorithm="allgather"),
    "in buckets": optimizer("sign", bucket_size=600),
    "lion_avg": optimizer("lion_avg"),
    "terngrad": optimizer("terngrad"),
    "onebit": optimizer(OneBit(block=256)),
    "bf16": optimizer(BF16Mean()),
    "median": optimizer(mpisign.Compression.robust("median")),
}


@pytest.mark.parametrize("front", FRONTS)
def test_an_equivocation_in_any_vote_is_noticed(front, monkeypatch):
    monkeypatch.setenv("MPISIGN_CHECK_EVERY", str(EVERY))
    world, results, errors = World(3), [[], [], []], ["", "", ""]

    def work(rank):
        transport = Equivocating(world, rank)
        comm = mpisign.Communicator(transport, timeout=5.0)
        call = FRONTS[front](comm)
        for i in range(20):
            transport.call = i
            try:
                result = call(i)
            except CollectiveError as error:
                errors[rank] = str(error)
                return
            results[rank].append(None if result is None else result.tobytes())

    threads = [threading.Thread(target=work, args=(r,)) for r in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    differ = [i for i, (a, b) in enumerate(zip(results[0], results[2], strict=True)) if a != b]
    assert differ and min(differ) >= LIE, (differ, errors)
    assert len(set(errors)) == 1 and "replicas differ in an earlier vote's result" in errors[0], (
        errors
    )
    assert len(results[0]) <= LIE + EVERY + 2


def test_hashes_are_xxh64():
    """Its published values; pieces are chained."""
    text = np.frombuffer(b"Nobody inspects the spammish repetition", np.uint8)
    at = _kernels.address(text)
    assert _kernels.hash_bytes(at, 0, 0) == 0xEF46DB3751D8E999
    assert _kernels.hash_bytes(at, len(text), 0) == 0xFBCEA83C8A378BF1
    table = np.array([(at, 3), (at + 3, 36)])
    chained = _kernels.hash_bytes(at + 3, 36, _kernels.hash_bytes(at, 3, 7))
    assert _kernels.hash_pieces(_kernels.address(table), 2, 7) == chained


def test_digests_do_not_depend_on_the_order_in_which_calls_end():
    rows = [np.arange(10, dtype=np.uint8) + i for i in range(9)]

    def field(order):
        record = ReplicaRecord(4)
        for i in order:
            record.add(i, rows[i])
        return [record.field(settled) for settled in (0, 3, 4, 8, 9)]

    fields = field(range(9))
    assert fields == field([2, 0, 1, 3, 8, 6, 5, 7, 4])
    assert fields[:2] == [bytes(32)] * 2 and fields[3] == fields[4]
    assert len({*fields}) == 3
    assert field([0, 1, 2, 4, 5, 6, 7, 8])[-1] != fields[-1]  # one has not ended well
