"""DETOX in full precision: groups decide by digests, one member speaks, a rule goes over groups."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hostile import STEPS, TamperingWire, at, both, flipped, named, play
from launchers import RANKS, on_ranks

import mpisign
from mpisign import robust, simulation
from mpisign.collectives import detox_rows as detox
from mpisign.collectives import robust_shards
from mpisign.collectives.detox_rows import detox_rows
from mpisign.collectives.representatives import Representatives
from mpisign.collectives.sketch import WIDTH, agreement, sketch
from mpisign.compressors import Detox
from mpisign.compressors.robust import Robust
from mpisign.engine.echo import digest
from mpisign.errors import CollectiveError, NaNError, WireError
from mpisign.partition import assign
from mpisign.transports.threads import World

#: Exchanges of a call without headers.
COMMITMENTS, ECHO, DATA, ASKED, ANSWERS, RESULTS = STEPS[:6]
NINE = ((0, 3, 6), (1, 4, 7), (2, 5, 8))


def rows(groups, d, seed=0):
    return np.random.default_rng([seed, groups, d]).normal(size=(groups, d)).astype(np.float32)


def aggregate(comm, x, groups, rule, **options):
    """What ``DetoxAggregator`` runs, without headers."""
    out = np.empty_like(x)

    def steps(line):
        rng = np.random.default_rng([0, 0])
        yield from detox_rows(line, x, groups, rule, rng, out, function="detox", **options)
        return out

    return comm.engine.submit("detox", steps).wait()


def group_of(groups, rank):
    return next(g for g, members in enumerate(groups) if rank in members)


def honest(x, groups, hostile=None):
    """A rank's row: its group's, or what it has in ``hostile``."""
    return lambda rank: (hostile or {}).get(rank, x[group_of(groups, rank)])


def of_all(size, groups, rule, row_of, **options):
    """The one result of all ranks."""
    results = simulation.run(
        size, lambda c: aggregate(c, row_of(c.rank).copy(), groups, rule, **options)
    )
    assert all(np.array_equal(results[0], r) for r in results)
    assert np.isfinite(results[0]).all()
    return results[0]


def among_liars(groups, rule, row_of, tampers, **options):
    """Results and errors by rank; ``tampers``: rank to what it does to what it sends."""
    world = World(sum(map(len, groups)))
    wires = [TamperingWire(world, r) for r in range(world.size)]
    for rank, tamper in tampers.items():
        wires[rank].tamper = tamper
    return play(wires, lambda c, t: aggregate(c, row_of(c.rank).copy(), groups, rule, **options))


def check(result, expected):
    np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_the_rule_over_one_row_of_each_group(size, monkeypatch):
    monkeypatch.setattr(robust_shards, "_PIECE", 8)
    for redundancy in {1, min(size, 3) | 1} if size > 2 else {1}:
        groups = assign(size, redundancy, "spread", seed=size)
        rules = [robust.Median(), robust.GeometricMedian(), robust.Mean()]
        if len(groups) > 2:
            rules += [robust.TrMean(1), robust.Krum(1)]
        for d in (1, 3, 203):
            x = rows(len(groups), d)
            for turn, rule in enumerate(rules):
                check(of_all(size, groups, rule, honest(x, groups), turn=turn), rule(x))


@pytest.mark.parametrize("rule", [robust.Mean(), robust.Krum(1)])
def test_a_minority_in_every_group_changes_nothing(rule):
    x = rows(3, 100)
    lies = {0: x[0] * -9, 4: np.full(100, np.inf, np.float32), 8: x[2] + 1e-3}
    check(of_all(9, NINE, rule, honest(x, NINE, lies)), rule(x))


@pytest.mark.parametrize("rule", [robust.Median(), robust.TrMean(1), robust.Krum(1)])
@pytest.mark.parametrize("lie", [lambda x: x * np.nan, lambda x: x * 7], ids=["nan", "split"])
def test_a_group_without_a_majority_of_finite_values_is_left_out(rule, lie):
    x = rows(3, 100)
    split = {1: lie(x[1]), 4: lie(x[1]) + 1, 7: x[1] if lie(x[1])[0] == lie(x[1])[0] else lie(x[1])}
    check(of_all(9, NINE, rule, honest(x, NINE, split)), rule.left_with(2, 1)(x[[0, 2]]))


def test_no_group_left_is_the_same_error_on_all():
    def run(comm):
        with pytest.raises(NaNError, match="none of 1 rows is left: no group has a majority"):
            aggregate(comm, np.full(9, float(comm.rank), np.float32), ((0, 1, 2),), robust.Mean())
        return aggregate(comm, np.ones(9, np.float32), ((0, 1, 2),), robust.Mean())

    assert all((r == 1).all() for r in simulation.run(3, run))


@pytest.mark.parametrize("rule", [robust.Median(), robust.Krum(1)])
def test_a_representative_that_sends_other_data_is_replaced_by_the_next(rule):
    x = rows(3, 900)
    # On turn 0 rank 3 speaks for its group to ranks 1, 4 and 7.
    with pytest.warns(RuntimeWarning, match="rank 3 sent other data than committed to"):
        results = among_liars(NINE, rule, honest(x, NINE), {3: at(DATA, flipped)})
    assert all(np.array_equal(results[0], r) for r in results)
    check(results[0], rule(x))


def test_of_five_members_two_may_lie_one_after_the_other():
    groups, x = ((0, 1, 2, 3, 4), (5, 6, 7), (8,)), rows(3, 900)
    liar = both(at(DATA, flipped), at(ANSWERS, flipped))
    with pytest.warns(RuntimeWarning, match="sent other data"):
        results = among_liars(groups, robust.Median(), honest(x, groups), {0: liar, 1: liar})
    assert all(np.array_equal(results[0], r) for r in results)
    check(results[0], robust.Median()(x))


@pytest.mark.parametrize("rule", [robust.TrMean(1), robust.Krum(1)])
def test_a_group_of_liars_takes_part_in_no_shard_that_it_lies_about(rule):
    x = rows(3, 900)
    liar = both(at(DATA, flipped), at(ANSWERS, flipped))
    with pytest.warns(RuntimeWarning, match="nobody else of ranks 0, 3, 6 had it: left out"):
        results = among_liars(NINE, rule, honest(x, NINE), dict.fromkeys((0, 3, 6), liar))
    assert all(np.array_equal(results[1], results[r]) for r in (2, 4, 5, 7, 8))
    result, without = results[1], rule.left_with(2, 1)(x[1:])
    for owner in (1, 2, 4, 5, 7, 8):  # shards of others than the liars
        shard = slice(100 * owner, 100 * owner + 100)
        check(result[shard], without[shard])
    if rule.needs_distances:
        check(result, without)


def test_commitments_that_differ_name_their_rank():
    x = rows(3, 100)
    two_things = {4: at(COMMITMENTS, flipped, dests=[2, 3])}
    results = among_liars(NINE, robust.Median(), honest(x, NINE), two_things)
    for rank in {*range(9)} - {4}:
        assert isinstance(results[rank], CollectiveError) and 4 in named(results[rank])
    texts = [str(r) for r in results if isinstance(r, WireError)]
    assert texts and all("told different commitments: " in t for t in texts)


def test_asking_for_what_one_has_costs_bytes_and_nothing_else(monkeypatch):
    # Rank 2 asks all others for data, and gets nothing new: it accepts this and stays as it was.
    class Greedy(Representatives):
        def _ask(self, rows, liars):
            liars = liars if self.wire.rank != 2 else {0: 0, 1: 1}
            kept = rows.copy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield from super()._ask(rows, liars)
            if self.wire.rank == 2:
                rows[...] = kept

    x = rows(3, 900)
    monkeypatch.setattr(detox, "Representatives", Greedy)
    check(of_all(9, NINE, robust.Median(), honest(x, NINE)), robust.Median()(x))


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_the_bytes_that_are_promised(tolerance):
    x, d, p, q = rows(3, 900), 900, 9, 3
    mpisign.stats().reset()
    of_all(p, NINE, robust.Krum(1), honest(x, NINE), tolerance=tolerance)
    received = mpisign.stats().as_dict()["exchange"]["received"] / p
    data = (q - 1) * 4 * d / p  # of its own group an owner has the row
    result = 4 * d * (p - 1) / p
    small = (p - 1) * (64 * p + 8 + 1 + 8 * q * (q + 1) / 2)
    sketches = (p - 1) * 288 * p if tolerance else 0
    assert received == data + result + small + sketches


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_who_is_not_of_its_group_s_majority_is_booked_as_a_suspect(tolerance):
    x = rows(3, 900)
    partly = x[2].copy()
    partly[50] += 3  # in one shard of nine
    lies = {0: -x[0], 8: partly}
    mpisign.stats().reset()
    of_all(9, NINE, robust.Median(), honest(x, NINE, lies), tolerance=tolerance)
    found = mpisign.stats().suspects
    assert {r: d.share for r, d in found.items() if d.differing} == {
        0: 1.0,
        8: 1.0 if tolerance else 1 / 9,
    }
    assert all(d.flagged == (9 if r in (0, 8) else 0) for r, d in found.items())


@pytest.mark.parametrize("size", [45, pytest.param(64, marks=pytest.mark.many)])
def test_many_ranks(size):
    groups = assign(size, 3, "spread", seed=1)
    x = rows(len(groups), 500)
    lies = {groups[g][0]: x[g] * -5 for g in range(len(groups))}
    lies |= {r: x[0] * 1e6 for r in groups[0]}  # a group of its own mind
    rule = robust.MultiKrum(1)
    expected = rule(np.concatenate([x[:1] * 1e6, x[1:]]))
    check(of_all(size, groups, rule, honest(x, groups, lies)), expected)


# With a tolerance.


def noisy(x, groups, relative, hostile=None):
    """Rows of members that are ``relative`` away from their group's."""

    def row(rank):
        g = group_of(groups, rank)
        if hostile and rank in hostile:
            return hostile[rank]
        noise = np.random.default_rng(rank).normal(size=x.shape[1])
        noise *= relative * np.linalg.norm(x[g]) / np.linalg.norm(noise)
        return (x[g] + noise).astype(np.float32)

    return row


@pytest.mark.parametrize("rule", [robust.Median(), robust.Krum(1)])
def test_members_that_are_about_alike_are_a_majority_and_others_are_not(rule):
    x = rows(3, 2000)
    lies = {0: x[0] * 1.05, 4: -x[1], 8: np.full(2000, np.nan, np.float32)}
    row_of = noisy(x, NINE, 1e-5, lies)
    for turn in range(3):
        result = of_all(9, NINE, rule, row_of, tolerance=1e-3, turn=turn)
        np.testing.assert_allclose(result, rule(x), atol=1e-4)
    with pytest.raises(NaNError, match="no group has a majority"):
        of_all(9, NINE, rule, row_of)  # bits differ


def test_a_group_that_is_too_far_apart_is_left_out():
    x = rows(3, 2000)
    lies = {0: x[0] * 1.01, 3: x[0] * 1.1}
    result = of_all(9, NINE, robust.TrMean(1), noisy(x, NINE, 1e-5, lies), tolerance=1e-3)
    np.testing.assert_allclose(result, x[1:].mean(axis=0), atol=1e-4)


class _ClaimsAnotherSketch(Representatives):
    """Commits to other data than it claims the sketch of: looks like a member, and is found out."""

    def compare(self):
        if self.wire.rank != 3:
            yield from super().compare()
            return
        mine, self.flat = self.flat, self.flat / np.float32(2)
        yield from super().compare()
        self.flat = mine


def test_a_sketch_of_other_data_than_one_sends_is_found_out(monkeypatch):
    monkeypatch.setattr(detox, "Representatives", _ClaimsAnotherSketch)
    x = rows(3, 2000)
    row_of = noisy(x, NINE, 1e-5, {3: x[0] * 2})
    with pytest.warns(RuntimeWarning, match="rank 3 sent other data than committed to"):
        result = of_all(9, NINE, robust.Mean(), row_of, tolerance=1e-3)
    mine = slice(2000 * 3 // 9, 2000 * 4 // 9)  # it reduced that shard itself
    for part in (slice(mine.start), slice(mine.stop, None)):
        np.testing.assert_allclose(result[part], x.mean(axis=0)[part], atol=1e-4)


def test_a_sketch_estimates_squared_norms_without_bias():
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    spike = np.zeros_like(x)
    spike[17] = 3.0
    for v in (x, spike):
        true = float((v.astype(np.float64) ** 2).sum())
        found = [
            float((sketch(v, digest(np.array([i], np.uint8)).tobytes(), 0) ** 2).sum()) / true
            for i in range(200)
        ]
        assert abs(np.mean(found) - 1) < 0.05 and np.std(found) < 1.3 * np.sqrt(2 / WIDTH)


def test_a_sketch_has_the_same_bits_everywhere():
    seed = bytes(range(32))
    x = np.arange(-70000, 70000, dtype=np.float32)
    summary = sketch(x, seed, 3)
    assert summary.dtype == np.float32 and summary.shape == (WIDTH,)
    assert digest(summary.view(np.uint8)).tobytes().hex()[:16] == "4b3a267db4064992"
    assert (sketch(x, seed, 4) != summary).any() and (sketch(x, seed[::-1], 3) != summary).any()
    assert not sketch(x[:0], seed, 3).any()


def test_agreement_is_relative_to_the_smaller_norm():
    base = np.zeros((4, 1, WIDTH), np.float32)
    base[:, 0, 0] = [100.0, 100.9, 1.0, np.nan]
    alike = agreement(base, 0.01)
    assert alike.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]


# Through the optimizer.


def trained(comm, compressor, hostile=(), steps=4):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mpisign.DistributedOptimizer(
        optimizer, net.named_parameters(), comm=comm, compression=compressor
    )
    groups = compressor.groups_of(comm.size, None)
    for step in range(steps):
        optimizer.zero_grad()
        batch = comm.rank if groups is None else group_of(groups, comm.rank)
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1000 * step + batch))
        (net(x) - x[:, :3]).square().mean().backward()
        if comm.rank in hostile:
            for p in net.parameters():
                p.grad.mul_(-100)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize(
    "inner", [Robust(momentum=0.9), Robust("centered_clipping"), Robust(tolerance=1e-4)], ids=repr
)
def test_training_goes_as_that_of_one_honest_rank_a_group(inner):
    compressor = Detox(3, inner, placement=NINE)
    first, *others = simulation.run(9, trained, compressor, (0, 4, 8))
    assert all(torch.equal(p, q) for other in others for p, q in zip(first, other, strict=True))
    for p, q in zip(first, simulation.run(3, trained, inner)[0], strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_momenta_start_again_where_groups_are_drawn_anew():
    class Redrawn:
        """What ``Detox`` needs of ``Groups``."""

        redundancy, placement, size = 3, "spread", 9
        members = NINE

        def __repr__(self):
            return f"groups {self.members}"

    def run(comm, groups_of_step):
        groups = Redrawn()
        p = torch.nn.Parameter(torch.zeros(50))
        optimizer = torch.optim.SGD([p], lr=1.0)
        compressor = Detox(inner=Robust("mean", momentum=0.5), groups=groups)
        mpisign.DistributedOptimizer(optimizer, comm=comm, compression=compressor)
        for step, members in enumerate(groups_of_step):
            groups.members = members
            batch = group_of(members, comm.rank)
            p.grad = torch.randn(50, generator=torch.Generator().manual_seed(9 * step + batch))
            optimizer.step()
        return p.detach()

    first, *others = simulation.run(9, run, [NINE, NINE, assign(9, 3, seed=5), NINE])
    assert all(torch.equal(first, other) for other in others)
    g = torch.stack(
        [
            torch.stack(
                [
                    torch.randn(50, generator=torch.Generator().manual_seed(9 * step + batch))
                    for batch in range(3)
                ]
            ).mean(dim=0)
            for step in range(4)
        ]
    )
    momenta = [g[0] / 2, g[0] / 4 + g[1] / 2, g[2] / 2, g[3] / 2]
    torch.testing.assert_close(first, -sum(momenta), atol=1e-6, rtol=1e-5)


def test_a_rule_that_cannot_deal_with_so_few_groups_is_refused_on_all():
    def run(comm):
        with pytest.raises(CollectiveError, match="2 f must be below n|krum|Krum") as error:
            trained(comm, Detox(3, Robust("krum", f=2)))
        return str(error.value)

    assert len(set(simulation.run(9, run))) == 1


@pytest.mark.mpi
def test_real_ranks():
    output = on_ranks(6, RANKS / "robust_rounds.py", timeout=240)
    assert output.count("as it should be") == 6
