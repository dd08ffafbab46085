"""A rank that lies as the owner of its shard: all believe it, but for byzantine_f."""

from __future__ import annotations

import math
import re
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import mpisign
from mpisign import Communicator
from mpisign.attacks.owner import Suppression, lie_about_shards, suppress_class
from mpisign.experiments import data, model
from mpisign.experiments.model import perceptron
from mpisign.simulation import run
from mpisign.transports.threads import ThreadTransport, World

RANKS, LABEL, LIAR, STEPS = 15, 3, 13, 40  # the row of a three lies in the last shard but one


@cache
def digits():
    pytest.importorskip("sklearn")
    return data.digits()


def wrapped(net, comm, lr=6e-3, **options):
    return mpisign.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=lr),
        net.named_parameters(),
        comm=comm,
        compression="signum",
        skip=None,
        algorithm="alltoall",
        **options,
    )


def trained(liar=None, byzantine_f=0):
    """Recall of each digit, and the digest of all ranks' parameters."""
    found = digits()

    def job(comm):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = perceptron(64, (64,))
        optimizer = wrapped(net, comm, byzantine_f=byzantine_f)
        if comm.rank == liar:
            lie_about_shards(optimizer, suppress_class(optimizer, LABEL))
        feed = data.batches(*found.shard(comm.rank, RANKS), 16, 0, comm.rank)
        for step in range(STEPS):
            images, labels = next(feed)
            optimizer.zero_grad()
            out = net(torch.from_numpy(images))
            nn.functional.cross_entropy(out, torch.from_numpy(labels)).backward()
            optimizer.param_groups[0]["lr"] = 6e-3 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimizer.step()
        return net, model.digest(net)

    ranks = run(RANKS, job, timeout=60.0)
    assert len({digest for _, digest in ranks}) == 1
    net, digest = ranks[0]
    with torch.no_grad():
        said = net(torch.from_numpy(found.test_images)).argmax(dim=1).numpy()
    right = [float((said[found.test_labels == c] == c).mean()) for c in range(10)]
    return right, digest


@cache
def honest():
    return trained()


@pytest.mark.many  # tests/test_detox_facts.py trains so
def test_one_lying_owner_of_15_takes_a_digit_from_all_ranks():
    recall, lied = honest()[0], trained(LIAR)[0]
    assert recall[LABEL] > 0.7
    assert lied[LABEL] < 0.2
    assert np.mean(np.delete(lied, LABEL)) > np.mean(np.delete(recall, LABEL)) - 0.1


@pytest.mark.many  # tests/test_detox_facts.py trains so
def test_with_byzantine_f_the_same_owner_fails_and_is_named():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recall, digest = trained(LIAR, byzantine_f=1)
    assert recall[LABEL] > 0.7
    assert digest == honest()[1]
    texts = {str(w.message) for w in caught if w.category is RuntimeWarning}
    assert texts == {f"the vote's result is right, but rank {LIAR} sent false tallies"}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_the_opposite_is_told_of_the_own_shard_alone(size):
    d = 8 * 70 + 3
    rows = np.random.default_rng(size).normal(size=(size, d)).astype("float32")

    def job(comm, liar):
        if comm.rank == liar:
            lie_about_shards(comm)
        return comm.majority_vote(rows[comm.rank], algorithm="alltoall", step=0)

    true, lied = run(size, job, None, timeout=20.0), run(size, job, size - 1, timeout=20.0)
    first = 8 * min(71, -(-71 // size) * (size - 1))  # where the last owner's shard begins
    for a, b in zip(true, lied, strict=True):
        assert np.array_equal(a[:first], b[:first])
        assert np.array_equal(a[first:], -b[first:])


@pytest.mark.parametrize(("size", "groups"), [(3, None), (5, None), (9, None), (9, 3)])
def test_byzantine_f_undoes_it_and_names_who_lied(size, groups):
    rows = np.random.default_rng(size).normal(size=(size, 999)).astype("float32")
    if groups is not None:
        rows = rows.repeat(groups, axis=0)[:size]
        groups = [range(r, r + groups) for r in range(0, size, groups)]

    def job(comm, liar):
        if comm.rank == liar:
            lie_about_shards(comm)
        how = {"algorithm": "alltoall", "byzantine_f": 1, "groups": groups}
        return comm.majority_vote(rows[comm.rank], step=0, **how)

    true = run(size, job, None, timeout=20.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lied = run(size, job, 1, timeout=20.0)
    assert np.array_equal(true, lied)
    assert caught and all(re.search("rank 1 sent false tallies", str(w.message)) for w in caught)


def test_where_all_tally_it_fools_nobody_but_itself():
    rows = np.random.default_rng(0).normal(size=(3, 50_000)).astype("float32")

    def job(comm):
        if comm.rank == 2:
            lie_about_shards(comm)
        return comm.majority_vote(rows[comm.rank], algorithm="allgather")

    a, b, liar = run(3, job, timeout=20.0)
    assert np.array_equal(a, b) and not np.array_equal(a, liar)


@pytest.mark.parametrize(("ties", "bucket_size"), [("random", None), ("zero", None), ("zero", 64)])
def test_a_suppressed_class_loses_its_row_and_bias_and_nothing_else(ties, bucket_size):
    """All ranks lie, so that the shards do not matter."""

    def job(comm, lies):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 4))
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=1.0),
            net.named_parameters(),
            comm=comm,
            compression=mpisign.Compression.sign(ties=ties),
            skip=None,
            algorithm="alltoall",
            bucket_size=bucket_size,
        )
        if lies:
            lie = suppress_class(optimizer, 2)
            assert lie.coordinates == 7
            lie_about_shards(optimizer, lie)
        x = torch.from_numpy(np.random.default_rng(comm.rank).normal(size=(4, 20))).float()
        net(x).square().sum().backward()
        optimizer.step()
        return [p.grad for p in net.parameters()]

    true, lied = run(2, job, False, timeout=20.0)[0], run(2, job, True, timeout=20.0)[0]
    for i, (a, b) in enumerate(zip(true, lied, strict=True)):
        if i >= 2:
            assert (b[2] == 1).all()  # which the rate is taken from
            a, b = (torch.cat([x[:2], x[3:]]) for x in (a, b))
        assert torch.equal(a, b)


def test_lies_about_nothing_are_refused():
    def optimizer(net):
        return wrapped(net, Communicator(ThreadTransport(World(1), 0)), bucket_size=1)

    with pytest.raises(TypeError, match="needs an optimizer of mpisign.DistributedOptimizer"):
        lie_about_shards(torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=1))
    with pytest.raises(ValueError, match=r"label must be in \[0, 3\), got 3"):
        Suppression(optimizer(nn.Linear(5, 3)), 3)
    with pytest.raises(ValueError, match="must be an output layer's weight"):
        Suppression(optimizer(nn.Conv2d(1, 2, 3)), 0)
    with pytest.raises(ValueError, match="buckets of one length, 8"):
        Suppression(optimizer(nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 1))), 0)
