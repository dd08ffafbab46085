"""What a kept plan must not change: ranks as threads, each case once went wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpisign
from mpisign import Compression, simulation
from mpisign.engine.plan_cache import PlanCache
from mpisign.errors import CollectiveError, DisagreementError, NaNError
from mpisign.exchange.flat_vote import flat_vote
from mpisign.transports.threads import ThreadTransport

ONES = np.ones(1000, np.float32)


def alike(results):
    """The result that all ranks have."""
    assert all(r == results[0] for r in results)
    return results[0]


@pytest.mark.parametrize("order", ["GH", "HG", "-G", "G-", "GGH-"])
def test_flat_votes_by_other_groups(order):
    placements = {"G": ((0, 1, 2), (3, 4, 5), (6, 7, 8)), "H": ((0, 1, 3), (4, 5, 6), (2, 7, 8))}
    expected = {"G": 1.0, "H": -1.0, "-": -1.0}  # ranks 0, 1, 3 and 4 vote +

    def votes(comm):
        found = []
        for step, name in enumerate(order):
            c = Compression.sign()
            if name != "-":
                c = Compression.detox(redundancy=3, inner="sign", placement=placements[name])
            grad = torch.full((16,), 1.0 if comm.rank in (0, 1, 3, 4) else -1.0)
            flat_vote("test", comm.engine, c, grad, None, seed=0, step=step, algorithm="allgather")
            found.append(grad.tolist())
        return found

    found = alike(simulation.run(9, votes, timeout=20.0))
    assert found == [[expected[name]] * 16 for name in order]


@pytest.mark.parametrize("early", [False, True])
def test_unequal_parameters_are_found_beside_votes_in_flight(early):
    def job(comm):
        p = torch.nn.Parameter(torch.full((1000,), float(comm.rank)))
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD([p], lr=0.1), comm=comm, compression="sign", skip=None
        )
        if comm.rank == 0:
            comm.engine.transport.sleep(0.2)
        handle = comm.majority_vote_async(ONES)
        if comm.rank == 0 or not early:
            handle.wait()
        p.grad = torch.ones(1000)
        with pytest.raises(CollectiveError, match="replicas differ in the parameters"):
            optimizer.step()
        handle.wait()

    simulation.run(2, job, timeout=15.0)


@pytest.mark.parametrize("ordered", [False, True])
def test_an_asynchronous_vote_is_on_what_x_was(ordered, monkeypatch):
    monkeypatch.setattr(ThreadTransport, "ordered", ordered)

    def job(comm):
        found = []
        for weight in (1, 1, 3, 1):  # of rank 1: the others' plans do not fit
            if comm.rank:
                comm.engine.transport.sleep(0.02)
            first = comm.majority_vote_async(np.ones(3_000_000, np.float32))
            x = ONES.copy()
            handle = comm.majority_vote_async(x, weight=weight if comm.rank == 1 else 1)
            x[:] = -1
            first.wait()
            found.append(float(handle.wait()[0]))
        return found

    assert alike(simulation.run(3, job, timeout=30.0)) == [1.0] * 4


def test_byzantine_f_on_one_rank_is_a_disagreement():
    def job(comm):
        for _ in range(2):
            comm.majority_vote(ONES)
        with pytest.raises(DisagreementError, match="byzantine_f"):
            comm.majority_vote(ONES, byzantine_f=int(comm.rank == 0))
        return comm.majority_vote(ONES).tolist()

    assert set(alike(simulation.run(4, job, timeout=20.0))) == {1.0}


@pytest.mark.parametrize("algorithm", ["auto", "hierarchical"])
def test_a_nan_leaves_gradients_alone(algorithm):
    def job(comm):
        p = torch.nn.Parameter(torch.zeros(300_001))
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD([p], lr=0.1),
            comm=comm,
            compression="signum",
            algorithm=algorithm,
            skip=None,
        )
        for step in range(4):
            p.grad = torch.full_like(p, 2.0)
            if step == 2:
                p.grad[-1] = float("nan") if comm.rank == 1 else 2.0
                with pytest.raises(NaNError):
                    optimizer.step()
                assert (p.grad[:-1] == 2.0).all()
            else:
                optimizer.step()
        return p.detach().numpy().tobytes()

    alike(simulation.run(4, job, nodes=[0, 0, 1, 1], timeout=30.0))


@pytest.mark.parametrize("function", ["tally", "mean_of_signs"])
def test_counts_into_memory_that_overlaps_x(function):
    n, shift = 2_000_000, 1_100_000
    values = np.random.default_rng(0).standard_normal(n + shift).astype(np.float32)

    def job(comm):
        buffer = values.copy()
        x, out = buffer[:n], buffer[shift : shift + n]
        expected = np.sign(x)
        if function == "tally":
            pair = out.view(np.int32), np.empty(n, np.int32)
            negative, positive = comm.tally(x, out=pair, algorithm="alltoall")
            return bool((np.sign(positive - negative) == expected).all())
        return bool((comm.mean_of_signs(x, out=out, algorithm="alltoall") == expected).all())

    assert alike(simulation.run(2, job, timeout=30.0))


def test_plans_of_one_kind_are_one():
    def job(comm):
        for _ in range(20):
            comm.plan_majority_vote((1000, "float32"))
        kept = comm.engine.plans.nbytes
        comm.plan_majority_vote((1000, "float32")).free()
        return kept < 1 << 20, comm.engine.plans.nbytes

    assert alike(simulation.run(2, job, timeout=20.0)) == (True, 0)


def test_memory_of_plans_is_bounded():
    class Kept:
        busy, nbytes = True, 100 << 20

        def free(self):
            freed.append(self)

    freed, plans = [], PlanCache()
    for key in range(5):
        plans.give_back(key, None, Kept())
    assert plans.nbytes <= 256 << 20 and len(freed) == 3
    assert plans.take(0) is None and plans.take(4) is not None
