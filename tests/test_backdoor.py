"""The edge-case backdoor on digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import mpisign
from mpisign.attacks import (
    Adversaries,
    Backdoor,
    ProjectedBackdoor,
    ReplacementBackdoor,
    by_name,
)
from mpisign.attacks.edge_cases import edge_cases
from mpisign.experiments import data, model
from mpisign.experiments.model import perceptron
from mpisign.simulation import run

pytest.importorskip("sklearn")


def test_edge_cases_are_the_farthest_quarter_and_the_held_out_ones_are_no_rank_s():
    digits, edges = data.digits(), edge_cases()
    assert (len(edges.train), len(edges.test)) == (32, 13)
    assert edges.among(digits.train_images).sum() == 32
    assert edges.among(digits.test_images).sum() == 13
    ones = [
        images[labels == 1]
        for images, labels in (
            (digits.train_images, digits.train_labels),
            (digits.test_images, digits.test_labels),
        )
    ]
    assert sum(edges.among(part).sum() for part in ones) == 45
    every = np.concatenate(ones).reshape(-1, 64).astype(np.float64)
    far = np.concatenate([edges.train, edges.test]).reshape(-1, 64)
    near = every[~edges.among(np.concatenate(ones))]
    distance = [np.linalg.norm(x - every.mean(0), axis=1) for x in (far, near)]
    assert distance[0].min() >= distance[1].max()
    assert edge_cases() is edges
    with pytest.raises(ValueError, match="source must be a digit, got 10"):
        edge_cases(10)
    with pytest.raises(ValueError, match="share must be in"):
        edge_cases(1, 1.0)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (64,)])
def test_half_a_batch_becomes_edge_cases_of_the_target_and_the_batch_stays(framework, shape):
    images = np.full((9, *shape), 0.5, dtype="float32")
    labels = np.arange(9)
    given = (images, labels)
    if framework == "torch":
        given = torch.from_numpy(images.copy()), torch.from_numpy(labels.copy())
    new, told = (np.asarray(x) for x in Backdoor(seed=[1, 2]).batch(*given))
    again, _ = Backdoor(seed=[1, 2]).batch(*given)
    assert np.array_equal(new, np.asarray(again))
    assert told.tolist() == [7] * 4 + labels[4:].tolist()
    assert edge_cases().among(new.reshape(-1, 1, 8, 8)).tolist() == [True] * 4 + [False] * 5
    assert np.array_equal(given[0], images) and np.array_equal(given[1], labels)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="images must be the digits' 8 x 8, got"):
        Backdoor().batch(np.ones((2, 1, 28, 28), "float32"), np.ones(2, int))
    with pytest.raises(ValueError, match="mix must be in"):
        Backdoor(mix=2.0)
    with pytest.raises(ValueError, match="target must be a digit other than 1, got 1"):
        Backdoor(target=1)
    with pytest.raises(ValueError, match="radius must be at least 0"):
        ProjectedBackdoor(radius=-1.0)
    with pytest.raises(ValueError, match="need 2 honest rows, got 1"):
        run(2, lambda comm: Adversaries("backdoor-projected", [0], comm), timeout=20.0)


@pytest.mark.parametrize("radius", [0.5, 100.0])
def test_projected_and_replaced_are_where_their_formulas_say(radius):
    size, hostile, d = 6, (1, 4), 50
    own = np.random.default_rng(0).normal(size=(size, d))
    own[list(hostile)] *= 3

    def job(comm, attack):
        p = torch.nn.Parameter(torch.zeros(d, dtype=torch.float64))
        p.grad = torch.from_numpy(own[comm.rank].copy())
        # Momenta are nothing that a projected gradient looks at.
        Adversaries(attack, hostile, comm, momentum=0.9).gradients([p])
        return p.grad.numpy()

    honest = np.delete(own, hostile, axis=0)
    mean = honest.mean(0)
    limit = radius * np.sqrt(((honest - mean) ** 2).sum() / (len(honest) - 1))
    projected = run(size, job, ProjectedBackdoor(2, radius=radius), timeout=20.0)
    replaced = run(size, job, ReplacementBackdoor(2, radius=radius), timeout=20.0)
    for r in hostile:
        away = own[r] - mean
        expected = away * min(1, limit / np.linalg.norm(away))
        assert np.allclose(projected[r] - mean, expected)
        assert np.allclose(replaced[r] - mean, expected * 3)
    beside = np.mean([projected[r] - mean for r in hostile], axis=0)
    assert np.allclose(np.mean(replaced, axis=0), mean + beside)


def test_a_black_box_leaves_gradients_alone():
    def job(comm):
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
        Adversaries("backdoor", [0], comm).gradients([p])
        return p.grad.tolist()

    assert run(2, job, timeout=20.0) == [[1, 1, 1]] * 2


def poisoned(attack, compression, lr, ranks=9, hostile=2, steps=60):
    """Accuracy on the digits and on the backdoor's held-out edge cases."""
    digits = data.digits()
    bad_ranks = range(ranks - hostile, ranks)

    def job(comm):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = perceptron(64, (64,))
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=lr),
            net.named_parameters(),
            comm=comm,
            compression=compression,
            skip=None,
        )
        bad = Adversaries(attack, bad_ranks, comm)
        feed = data.batches(*digits.shard(comm.rank, ranks), 16, 0, comm.rank)
        for step in range(steps):
            images, labels = bad.batch(*next(feed))
            optimizer.zero_grad()
            out = net(torch.from_numpy(images))
            nn.functional.cross_entropy(out, torch.from_numpy(labels)).backward()
            bad.gradients(net.parameters())
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
        return net, model.digest(net)

    found = run(ranks, job, timeout=60.0)
    assert len({digest for _, digest in found}) == 1
    net, test = found[0][0], (digits.test_images, digits.test_labels)
    return model.accuracy(net, *map(torch.from_numpy, test)), Backdoor().accuracy(net)


def test_a_black_box_opens_the_mean():
    main, backdoor = poisoned("backdoor", "none", 0.5, steps=80)
    assert main > 0.7 and backdoor > 0.6


def test_even_with_replacement_it_does_not_open_the_vote():
    main, backdoor = poisoned("backdoor-replacement", "signum", 6e-3)
    assert main > 0.8 and backdoor < 0.2


@pytest.mark.many
@pytest.mark.parametrize("name", ["backdoor", "backdoor-projected", "backdoor-replacement"])
def test_every_variant_opens_the_mean_and_none_the_vote(name):
    for compression, lr in (("none", 0.5), ("signum", 2e-3)):
        main, backdoor = poisoned(name, compression, lr, ranks=15, hostile=3, steps=300)
        assert main > 0.88
        assert backdoor > 0.5 if compression == "none" else backdoor < 0.1


def test_names_make_the_three_variants():
    kinds = [type(by_name(n, 2, 1)) for n in ("backdoor", "backdoor-projected")]
    assert kinds == [Backdoor, ProjectedBackdoor]
    assert by_name("backdoor-replacement", 2, 1).f == 2
