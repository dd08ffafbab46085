"""Votes in groups, then across: every algorithm and front end against a few lines of NumPy."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import reference as ref
import samples
import torch

import mpisign
from mpisign import simulation
from mpisign.compressors import Compression, Detox, PackContext, Sign, Signum
from mpisign.detox import Groups, assign
from mpisign.errors import CollectiveError, DisagreementError

EXACT = {"zeros": "abstain", "ties": "zero"}


def ballots(size, length):
    """Awkward arrays: NaN-free, with zeros, -0.0, ties and subnormals."""
    rows = np.stack([samples.awkward(length, 7 + r, np.float32) for r in range(size)])
    return np.nan_to_num(rows, nan=0.0)


def placements(size):
    """A redundancy, and partitions of equal and unequal, odd and even groups."""
    yield 1
    if size >= 3:
        yield 3
    yield [list(range(size))]
    if size > 2:
        yield [[size - 1, 0], list(range(1, size - 1))]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("algorithm", ["auto", "alltoall", "allgather"])
def test_votes_in_groups(size, algorithm):
    lengths = [1, 37, 4097] if size < 9 else [3000]

    def run(comm):
        return [
            comm.majority_vote(ballots(size, n)[comm.rank], groups=g, algorithm=algorithm, **EXACT)
            for n in lengths
            for g in placements(size)
        ]

    expected = [
        ref.grouped_vote(np.sign(ballots(size, n)), assign(size, g) if isinstance(g, int) else g)
        for n in lengths
        for g in placements(size)
    ]
    for results in simulation.run(size, run):
        for got, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_random_bits_are_alike_in_a_group_and_on_all_ranks():
    """Members with equal gradients vote the same also where they are exactly zero."""
    mpisign.stats().reset()

    def run(comm):
        return comm.majority_vote(np.zeros(5000, np.float32), groups=3, algorithm="alltoall")

    results = simulation.run(9, run)
    assert all(r.tobytes() == results[0].tobytes() for r in results)
    assert 2000 < (results[0] > 0).sum() < 3000
    assert {d.differing for d in mpisign.stats().suspects.values()} == {0}


def test_byzantine_f_counts_groups_too():
    def run(comm):
        x = ballots(9, 500)[comm.rank]
        return comm.majority_vote(x, groups=3, byzantine_f=1, **EXACT)

    expected = ref.grouped_vote(np.sign(ballots(9, 500)), assign(9))
    for got in simulation.run(9, run):
        np.testing.assert_array_equal(got, expected)


def test_what_does_not_go_with_groups():
    def run(comm):
        x = np.ones(99, np.float32)
        with pytest.raises(DisagreementError, match="the groups that vote"):
            comm.majority_vote(x, groups=[[0, 1, 2], [3]] if comm.rank else [[0, 1, 3], [2]])
        with pytest.raises(CollectiveError, match="redundancy must be an odd"):
            comm.majority_vote(x, groups=2)
        with pytest.raises(CollectiveError, match="each of ranks 0 to 3"):
            comm.majority_vote(x, groups=[[0, 1], [1, 2, 3]])
        with pytest.raises(CollectiveError, match="groups vote by algorithm"):
            comm.majority_vote(x, groups=3, algorithm="hierarchical")
        with pytest.raises(CollectiveError, match="weight must be 1"):
            comm.majority_vote(x, groups=3, weight=2.0)
        return True

    assert all(simulation.run(4, run))
    with pytest.raises(ValueError, match="inner must be a compressor that votes"):
        Detox(inner="ef_sign")
    with pytest.raises(ValueError, match="odd number"):
        Detox(redundancy=4)


@pytest.mark.parametrize("length", [300, 40_000])
def test_the_odd_one_out_is_told(length):
    """One rank of nine votes the opposite; one of another group differs in a few coordinates."""
    groups = assign(9)
    liar, sloppy = groups[0][1], groups[1][0]
    mpisign.stats().reset()

    def run(comm):
        mine = next(i for i, g in enumerate(groups) if comm.rank in g)
        x = np.random.default_rng(mine).standard_normal(length).astype(np.float32)
        if comm.rank == liar:
            x = -x
        if comm.rank == sloppy:
            x[: length // 100] *= -1
        return comm.majority_vote(x, groups=3, algorithm="alltoall")

    simulation.run(9, run)
    found = mpisign.stats().suspects
    assert set(found) == set(range(9))
    assert found[liar].share == 1.0 and found[liar].flagged == found[liar].tallies > 0
    assert found[sloppy].differing == length // 100 and found[liar].coordinates == length
    if length > 1000:  # in small shards of 300 coordinates 3 may be more than 5%
        assert found[sloppy].flagged <= 1
    assert all(d.differing == 0 for r, d in found.items() if r not in (liar, sloppy))
    table = mpisign.stats().suspects_table()
    assert f"{liar:<6}" in table and "100.00%" in table
    mpisign.stats().reset()
    assert not mpisign.stats().suspects


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 3))


def train(comm, compression, groups, steps=6, **options):
    """Members of a group get one batch; the rank's final parameters."""
    net = model()
    named = dict(options.pop("named", net.named_parameters()))
    optimizer = mpisign.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.01),
        named.items(),
        comm=comm,
        compression=compression,
        **options,
    )
    for step in range(steps):
        mine = next(i for i, g in enumerate(groups()) if comm.rank in g)
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(100 * step + mine))
        optimizer.zero_grad()
        (net(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


@pytest.mark.parametrize("size", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_optimizer_steps_on_votes_of_groups(size, overlap):
    """Each group is as good as one rank: the same as groups' ranks alone, voting flat."""
    redundancy = 3 if size >= 3 else 1
    groups = assign(size, redundancy)
    inner = Sign(zeros="abstain", ties="zero")
    got = simulation.run(
        size,
        lambda c: train(
            c, Compression.detox(redundancy, inner=inner), lambda: groups, overlap=overlap
        ),
    )
    alone = [(r,) for r in range(len(groups))]
    flat = simulation.run(len(groups), lambda c: train(c, inner, lambda: alone))
    for parameters in got:
        assert torch.equal(parameters, flat[0])


def test_groups_drawn_anew_between_steps():
    """All ranks follow their Groups; one that does not draw stops the job on all."""
    inner = Sign(zeros="abstain", ties="zero")

    def run(comm, forgetful):
        groups = Groups(comm, 3, reshuffle_every=1, seed=5)
        compression = Compression.detox(inner=inner, groups=groups)
        steps = [0]

        def members():
            if not (forgetful and comm.rank == 2 and steps[0] == 3):
                groups.set_epoch(steps[0])
            steps[0] += 1
            return groups.members

        return train(comm, compression, members), groups.members

    results = simulation.run(6, lambda c: run(c, False))
    assert all(torch.equal(p, results[0][0]) for p, _ in results)
    assert len({m for _, m in results}) == 1

    def refused(comm):
        with pytest.raises(DisagreementError, match="optimizer settings.*rank 2"):
            run(comm, True)
        return True

    assert all(simulation.run(6, refused))


@pytest.mark.parametrize("inner", ["signum", "lion"])
def test_momenta_start_again_with_new_groups(inner):
    """Replicas stay equal, and honest members vote alike in every step after a redraw too."""
    mpisign.stats().reset()

    def run(comm):
        groups = Groups(comm, 3, reshuffle_every=1, seed=5)
        calls = [0]

        def members():
            groups.set_epoch(calls[0] // 3)
            calls[0] += 1
            return groups.members

        return train(comm, Compression.detox(inner=inner, groups=groups), members, steps=12)

    results = simulation.run(9, run)
    assert all(torch.equal(p, results[0]) for p in results)
    assert {d.differing for d in mpisign.stats().suspects.values()} == {0}
    mpisign.stats().reset()


def test_a_parameter_frozen_at_first_is_part_of_the_one_vector():
    """Distances are of all parameters, whichever needed a gradient when they were wrapped."""

    def run(comm, frozen):
        a, b = (torch.nn.Parameter(torch.zeros(5)) for _ in range(2))
        b.requires_grad_(not frozen)
        optimizer = torch.optim.SGD([a, b], lr=1.0)
        rule = Compression.robust(rule="krum", f=1)
        mpisign.DistributedOptimizer(optimizer, [("a", a), ("b", b)], comm=comm, compression=rule)
        b.requires_grad_(True)
        rng = np.random.default_rng(comm.rank)
        a.grad, b.grad = (torch.from_numpy(rng.normal(size=5).astype("f4")) for _ in range(2))
        optimizer.step()
        return torch.cat([a.detach(), b.detach()])

    thawed, plain = (simulation.run(5, run, frozen) for frozen in (True, False))
    assert all(torch.equal(p, plain[0]) for p in [*thawed, *plain])


def test_groups_that_contradict_other_arguments():
    groups = Groups.of(9, 0, 3)
    assert Detox(groups=groups).redundancy == 3
    with pytest.raises(ValueError, match="redundancy is that of groups, 3, got 5"):
        Detox(redundancy=5, groups=groups)
    with pytest.raises(ValueError, match="placement is that of groups"):
        Detox(placement="packed", groups=groups)
    with pytest.raises(TypeError, match="groups must be a mpisign.detox.Groups"):
        Detox(groups=[[0, 1, 2]])
    with pytest.raises(ValueError, match="placement must be 'spread'"):
        Detox(placement="bogus")
    with pytest.raises(ValueError, match="Detox: inner must be"):
        Detox(inner="bogus")
    with pytest.raises(ValueError, match="odd number"):
        Detox(redundancy=True)


def test_good_batches_at_first_do_not_hide_wrong_ones_later():
    """The warning looks at the last tallies alone."""
    s = mpisign.stats()
    s.reset()
    members = ((0, 1, 2), (3, 4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2000):
            s.add_distances(members, 1000, [0] * 6)
    with pytest.warns(RuntimeWarning, match="get the same batches"):
        for _ in range(64):
            s.add_distances(members, 1000, [60] * 6)
    s.reset()


def test_other_batches_in_a_group_are_warned_of():
    mpisign.stats().reset()
    groups = [(r,) for r in range(6)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulation.run(6, lambda c: train(c, Compression.detox(inner="sign"), lambda: groups, 40))
    assert sum("get the same batches" in str(w.message) for w in caught) == 1
    mpisign.stats().reset()


def test_state_and_settings_are_the_inner_ones():
    c = Compression.detox(inner=Signum(momentum=0.5, zeros="abstain", ties="zero"))
    assert (c.zeros, c.ties, c.unit, c.aggregate) == ("abstain", "zero", "sign", "vote")
    assert c.abstaining().zeros == "abstain" and copy.copy(c) == c and hash(c) is not None
    assert Compression.detox(placement=[[0, 1, 2], [3, 4, 5]]).placement == ((0, 1, 2), (3, 4, 5))
    assert Compression.detox(5, inner="sign").redundancy == 5
    state = {}
    c.pack(
        [torch.ones(8)],
        [state],
        torch.zeros((2, 1), dtype=torch.uint8),
        [0],
        PackContext(0, 0, 0),
    )
    assert list(state) == ["momentum"]


@pytest.mark.parametrize("size", [3, 9])
def test_byzantine_f_in_the_optimizer(size):
    inner = Sign(zeros="abstain", ties="zero")
    alone = [(r,) for r in range(size)]
    plain = simulation.run(size, lambda c: train(c, inner, lambda: alone))
    robust = simulation.run(size, lambda c: train(c, inner, lambda: alone, byzantine_f=1))
    assert all(torch.equal(p, plain[0]) for p in robust)
    with pytest.raises(ValueError, match="byzantine_f=1 goes with compressors that vote"):
        simulation.run(1, lambda c: train(c, "ef_sign", lambda: alone, byzantine_f=1))


@pytest.mark.parametrize("size", [45, 64])
def test_as_many_ranks_as_a_cluster(size):
    """45 in 15 groups of 3; 64 in 21, one of them of 4."""
    rows = ballots(size, 2001)
    expected = ref.grouped_vote(np.sign(rows), assign(size))

    def run(comm):
        return comm.majority_vote(rows[comm.rank], groups=3, algorithm="alltoall", **EXACT)

    for got in simulation.run(size, run):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [3, 4, 9])
def test_shards_of_fsdp_vote_in_groups(size):
    """The reduce-scatter of a vote: each rank its own shard of the vote of groups."""
    fsdp = pytest.importorskip("mpisign.fsdp")
    inner = Sign(zeros="abstain", ties="zero")
    n = 41
    rows = ballots(size, n * size)
    expected = ref.grouped_vote(np.sign(rows), assign(size))

    def run(comm):
        state = fsdp.MajorityVoteState(comm, Compression.detox(inner=inner))
        out = torch.empty(n)
        fsdp.majority_vote_hook(state, torch.from_numpy(rows[comm.rank].copy()), out)
        return out.numpy()

    for rank, got in enumerate(simulation.run(size, run)):
        np.testing.assert_array_equal(got, expected[n * rank : n * (rank + 1)])
