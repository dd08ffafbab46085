"""mpisign.robust_aggregate and its round: the local rule's result, the same bits on every rank."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hostile import STEPS, TamperingWire, at, named, play

import mpisign
from mpisign import robust, simulation
from mpisign.collectives import robust_shards
from mpisign.compressors.robust import Robust
from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError
from mpisign.transports.threads import World

SIZES = [1, 2, 3, 4, 5, 9]
#: Exchanges of a call: headers, how many coordinates are not finite, one piece up, then others.
COUNTS, UP, NEXT = STEPS[1:4]


def rules_for(size):
    f = (size - 1) // 2
    some = (
        [
            robust.Mean(),
            robust.Median(),
            robust.TrMean(f),
            robust.Meamed(f),
            robust.GeometricMedian(),
            robust.CenteredClipping(tau=0.5, L=2),
            robust.Krum(f),
            robust.MultiKrum(f),
            robust.Bulyan((size - 3) // 4),
            robust.Pipeline(robust.NNM(f), robust.Median()),
            robust.Pipeline(robust.Clipping(1.0), robust.Mean()),
            robust.Pipeline(robust.Bucketing(2), robust.Median()),
        ]
        if size > 2
        else [robust.Mean(), robust.Median(), robust.CenteredClipping(tau=0.5)]
    )

    def fits(rule):
        try:
            rule.check(size)
        except ValueError:
            return False
        return True

    return [rule for rule in some if fits(rule)]


def rows(size, d, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, size, d]).normal(size=(size, d)).astype(dtype)


def locally(rule, x, step=0):
    return rule(x, rng=np.random.default_rng([0, step]))


def all_of(results):
    """The one result of all ranks."""
    assert all(np.array_equal(results[0], r) for r in results)
    assert np.isfinite(results[0]).all()
    return results[0]


def liars(size, function, tampers, **options):
    """``play`` on ``size`` ranks, those of ``tampers`` (rank to tamper) dishonest."""
    world = World(size)
    wires = [TamperingWire(world, r) for r in range(size)]
    for rank, tamper in tampers.items():
        wires[rank].tamper = tamper
    return play(wires, function, **options)


@pytest.mark.parametrize("size", SIZES)
def test_the_local_rule_s_result_on_every_rank(size, monkeypatch):
    monkeypatch.setattr(robust_shards, "_PIECE", 8)  # so that shards have pieces
    rules = rules_for(size)

    def run(comm, d):
        return [
            mpisign.robust_aggregate(rows(size, d)[comm.rank], comm, rule=r, step=7) for r in rules
        ]

    for d in (1, 3, 17, 403):
        ranks = simulation.run(size, run, d)
        for i, rule in enumerate(rules):
            result = all_of([r[i] for r in ranks])
            np.testing.assert_allclose(result, locally(rule, rows(size, d), 7), 1e-5, 1e-6)


@pytest.mark.parametrize("size", [45, pytest.param(64, marks=pytest.mark.many)])
def test_many_ranks(size):
    x = rows(size, 2000)
    x[:5] = 50.0
    rules = [robust.Median(), robust.Pipeline(robust.NNM(5), robust.MultiKrum(5))]

    def run(comm):
        return [mpisign.robust_aggregate(x[comm.rank], comm, rule=r) for r in rules]

    ranks = simulation.run(size, run)
    for i, rule in enumerate(rules):
        np.testing.assert_allclose(all_of([r[i] for r in ranks]), rule(x), 1e-5, 1e-6)


@pytest.mark.parametrize("kind", ["float64", "float16", "torch.float32", "torch.bfloat16"])
def test_the_array_s_own_framework_dtype_and_shape(kind):
    x = rows(3, 24).astype("float64").reshape(3, 2, 3, 4)
    name = kind.removeprefix("torch.")

    def run(comm):
        mine = x[comm.rank]
        if kind.startswith("torch."):
            mine = torch.from_numpy(mine).to(getattr(torch, name)).transpose(0, 2)
            assert not mine.is_contiguous()
        else:
            mine = mine.astype(name).transpose(2, 1, 0)
        result = mpisign.robust_aggregate(mine, comm, rule="median")
        assert type(result) is type(mine) and result.dtype == mine.dtype
        assert result.shape == mine.shape
        out = mine.contiguous() if kind.startswith("torch.") else np.ascontiguousarray(mine)
        assert mpisign.robust_aggregate(out, comm, rule="median", out=out) is out
        assert (out == result).all()
        return np.asarray(result.float() if kind.startswith("torch.") else result)

    expected = np.median(x, axis=0).transpose(2, 1, 0)
    tolerance = {"float64": 1e-15, "float32": 1e-6}.get(name, 1e-2)
    np.testing.assert_allclose(all_of(simulation.run(3, run)), expected, tolerance)


def test_nothing_has_an_aggregate_too():
    assert all(
        r.shape == (0, 4)
        for r in simulation.run(
            3, lambda c: mpisign.robust_aggregate(np.zeros((0, 4)), c, rule="krum")
        )
    )


@pytest.mark.parametrize("rule", [robust.TrMean(1), robust.Krum(1), robust.GeometricMedian()])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_left_out(rule, value):
    x = rows(5, 23)
    x[2, 20] = value
    result = all_of(simulation.run(5, lambda c: mpisign.robust_aggregate(x[c.rank], c, rule=rule)))
    np.testing.assert_allclose(result, rule(x), 1e-5, 1e-6)
    np.testing.assert_allclose(result, rule(x[[0, 1, 3, 4]]), 1e-5, 1e-6)


def test_no_finite_row_at_all_is_the_same_error_on_every_rank():
    def run(comm):
        with pytest.raises(NaNError, match="none of 3 rows is left: not one is finite") as error:
            mpisign.robust_aggregate(np.full(9, np.nan, np.float32), comm, rule="median")
        assert (mpisign.robust_aggregate(np.ones(9, np.float32), comm, rule="median") == 1).all()
        return str(error.value)

    assert len(set(simulation.run(3, run))) == 1


@pytest.mark.parametrize("rule", [robust.TrMean(1), robust.Krum(1)])
def test_a_rank_that_hides_its_nans_is_left_out_by_those_who_find_them(rule):
    x = rows(4, 23)
    x[1] = np.nan
    says_zero = {1: at(COUNTS, lambda part: part * 0)}

    def run(comm, _):
        return mpisign.robust_aggregate(x[comm.rank], comm, rule=rule)

    with pytest.warns(RuntimeWarning) if not rule.needs_distances else nullcontext():
        results = liars(4, run, says_zero)
    honest = [results[r] for r in (0, 2, 3)]
    # Its own shard is its to decide, and it honestly left itself out of it.
    np.testing.assert_allclose(all_of(honest), rule(x), 1e-5, 1e-6)


def test_an_owner_that_lies_in_its_shard_of_a_rule_by_coordinate_decides_no_other():
    x = rows(4, 40)
    lies = {2: at(NEXT, lambda part: part * 0 + 0x42)}
    results = liars(4, lambda c, _: mpisign.robust_aggregate(x[c.rank], c, rule="median"), lies)
    expected = robust.Median()(x)
    for r in (0, 1, 3):
        assert np.allclose(results[r][:20], expected[:20])
        assert np.allclose(results[r][30:], expected[30:])
        assert not np.allclose(results[r][20:30], expected[20:30])


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_impossible_distances_name_their_rank(value):
    def forged(part):
        values = part.copy().view("<f8")
        values[0] = value
        return values.view(np.uint8)

    x = rows(4, 40)
    results = liars(
        4, lambda c, _: mpisign.robust_aggregate(x[c.rank], c, rule="krum"), {2: at(NEXT, forged)}
    )
    for r in (0, 1, 3):
        assert isinstance(results[r], CollectiveError) and 2 in named(results[r])
    assert any(isinstance(results[r], WireError) for r in (0, 1, 3))


def origin_is_infinite(size, of):
    """What an owner sends that says of rows ``of`` that they are not finite."""
    i, j = np.triu_indices(size + 1, 1)

    def forged(part):
        table = part.copy().view("<f8")
        table[(j == size) & np.isin(i, of)] = np.inf
        return table.view(np.uint8)

    return forged


@pytest.mark.parametrize("rule", ["multi_krum", "nnm+trimmed_mean"])
def test_one_owner_s_word_takes_rows_away_but_lowers_no_f(rule):
    """It is hostile, sends 1e30 itself, and says that an honest row is not finite."""
    x = rows(5, 40)
    x[4] = 1e30
    lie = {4: at(NEXT, origin_is_infinite(5, [0]))}
    made = robust.by_name(rule, 1)
    with pytest.warns(RuntimeWarning, match="by the word of rank 4, who may lie, rank 0 sent"):
        found = liars(5, lambda c, _: mpisign.robust_aggregate(x[c.rank], c, rule=made), lie)
    assert all(np.array_equal(found[0], r) for r in found[1:4]) and np.abs(found[0]).max() < 5


def test_too_many_rows_taken_away_by_one_s_word_name_it_to_all():
    """Told to rank 1 alone: it raises, and the others hear why, none of them being blamed."""
    x = rows(5, 40)
    lie = {3: at(NEXT, origin_is_infinite(5, [0, 1, 2]), dests=[1])}
    with pytest.warns(RuntimeWarning, match="by the word of rank 3"):
        found = liars(
            5,
            lambda c, _: mpisign.robust_aggregate(x[c.rank], c, rule=robust.Krum(1)),
            lie,
            timeout=20.0,
        )
    assert isinstance(found[1], WireError) and "3 of 5 rows were left out" in str(found[1])
    others = [found[r] for r in (0, 2, 4) if isinstance(found[r], Exception)]
    assert all("rank 1 broke off" in str(e) for e in others)


def test_replicas_that_were_told_different_results_are_found_out(monkeypatch):
    monkeypatch.setenv("MPISIGN_CHECK_EVERY", "1")
    x = rows(3, 40)
    two_things = {1: at(NEXT, lambda part: part ^ 1, dests=[0])}

    def run(comm, _):
        mpisign.robust_aggregate(x[comm.rank], comm, rule="median")
        comm.engine.transport.tamper = None
        mpisign.robust_aggregate(x[comm.rank], comm, rule="median")

    for error in liars(3, run, two_things):
        assert isinstance(error, CollectiveError) and "replicas differ" in str(error)


def test_ranks_with_other_rules_disagree():
    def run(comm, rule_of, text):
        with pytest.raises(DisagreementError, match=text) as error:
            mpisign.robust_aggregate(np.ones(9), comm, rule=rule_of(comm.rank))
        return str(error.value)

    texts = simulation.run(
        3, run, lambda r: robust.TrMean(int(r == 1)), "the rules .ranks 0, 2 against rank 1"
    )
    assert len(set(texts)) == 1
    simulation.run(2, run, lambda r: robust.CenteredClipping(m=np.full(9, float(r))), "the rules")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (robust.Krum(2), "2 f must be below n|must be"),
        ("medan", "did you mean 'median'"),
        (robust.NNM(0), "rule must be a rule of mpisign.robust"),
        (3, "rule must be a rule of mpisign.robust"),
        (robust.CenteredClipping(m=np.zeros(3)), r"m must be a vector \(9,\)"),
    ],
)
def test_bad_arguments_of_one_rank_are_refused_on_all(rule, text):
    def run(comm):
        with pytest.raises(CollectiveError, match=text) as error:
            mpisign.robust_aggregate(np.ones(9), comm, rule=rule if comm.rank == 1 else "median")
        return str(error.value)

    texts = simulation.run(3, run)
    assert len(set(texts)) == 1 and "rank 1" in texts[0]


@pytest.mark.parametrize(("rule", "table"), [("median", 0), ("krum", 10), ("centered_clipping", 4)])
def test_the_bytes_that_are_promised(rule, table):
    mpisign.stats().reset()
    simulation.run(4, lambda c: mpisign.robust_aggregate(rows(4, 400)[c.rank], c, rule=rule))
    sent = mpisign.stats().as_dict()["exchange"]["sent"] / 4
    assert sent == 3 * (512 + 8 + 8 * table) + 2 * 4 * 300


# Through the optimizer.


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 3))


def loss_of(net, step, rank):
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1000 * step + rank))
    return (net(x) - x[:, :3]).square().mean()


def gradients(net, step, size):
    found = []
    for rank in range(size):
        net.zero_grad()
        loss_of(net, step, rank).backward()
        found.append(torch.cat([p.grad.reshape(-1) for p in net.parameters()]))
    return torch.stack(found)


def by_hand(compressor, size, steps):
    """Training with the local rule on all gradients, stacked."""
    net, momenta, rule = model(), 0.0, compressor.resolved
    for step in range(steps):
        momenta = compressor.momentum * momenta + (1 - compressor.momentum) * gradients(
            net, step, size
        )
        if compressor.momentum == 0:
            momenta = gradients(net, step, size)
        result = rule(momenta, rng=np.random.default_rng([0, step]))
        rule = rule.after(result)
        with torch.no_grad():
            at = 0
            for p in net.parameters():
                p -= 0.1 * result[at : at + p.numel()].view_as(p)
                at += p.numel()
    return list(net.parameters())


def trained(comm, compressor, steps, spoil=None):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mpisign.DistributedOptimizer(
        optimizer, net.named_parameters(), comm=comm, compression=compressor, bucket_size=50
    )
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(net, step, comm.rank).backward()
        if spoil is not None:
            spoil(net, comm.rank, step)
        optimizer.step()
    return net, optimizer


COMPRESSORS = [
    Robust(),
    Robust("nnm+trimmed_mean", f=1, momentum=0.9),
    Robust(robust.GeometricMedian(), momentum=0.5),
    Robust(robust.CenteredClipping(tau=0.3)),
    Robust("bucketing+median"),
]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_training_is_that_with_the_local_rule(compressor):
    def run(comm):
        return list(trained(comm, compressor, 4)[0].parameters())

    first, *others = simulation.run(5, run)
    assert all(torch.equal(p, q) for other in others for p, q in zip(first, other, strict=True))
    for p, q in zip(first, by_hand(compressor, 5, 4), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_a_nan_costs_its_rank_a_step_and_never_stays_in_its_momentum():
    def spoil(net, rank, step):
        if rank == 1 and step == 1:
            net[0].weight.grad[0, 0] = torch.nan

    def run(comm):
        net, optimizer = trained(comm, Robust(momentum=0.9), 2, spoil)
        momenta = [
            tensor
            for state in optimizer.state_dict()["mpisign"]["state"].values()
            for key, tensor in state.items()
            if key == "momentum"
        ]
        assert len(momenta) == 4 and all(m.isfinite().all() and m.any() for m in momenta)
        return [p.detach() for p in net.parameters()]

    first, *others = simulation.run(3, run)
    assert all(p.isfinite().all() for p in first)
    assert all(torch.equal(p, q) for other in others for p, q in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "compressor", [Robust(momentum=0.9), Robust("centered_clipping", momentum=0.5)], ids=repr
)
def test_a_checkpoint_goes_on_where_it_was(compressor):
    def run(comm):
        whole = list(trained(comm, compressor, 4)[0].parameters())
        net, optimizer = trained(comm, compressor, 2)
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
        again, resumed = trained(comm, compressor, 0)
        again.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        for step in (2, 3):
            resumed.zero_grad()
            loss_of(again, step, comm.rank).backward()
            resumed.step()
        return all(torch.equal(p, q) for p, q in zip(whole, again.parameters(), strict=True))

    assert all(simulation.run(3, run))


def test_nan_raise_stops_all_ranks():
    def spoil(net, rank, step):
        if rank == 1:
            net[0].weight.grad[0, 0] = torch.nan

    def run(comm):
        with pytest.raises(NaNError, match="1 on rank 1"):
            trained(comm, Robust(nan="raise"), 1, spoil)

    simulation.run(3, run)


def test_missing_gradients_count_as_zeros_and_halves_are_converted():
    def run(comm):
        half = torch.nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
        wide = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        idle = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([half, wide, idle], lr=1.0)
        mpisign.DistributedOptimizer(optimizer, comm=comm, compression=Robust("mean"))
        half.grad = torch.full_like(half, comm.rank)
        if comm.rank == 2:
            wide.grad = torch.full_like(wide, 3.0)
        optimizer.step()
        assert (half == -1).all() and (wide == -1).all() and idle.grad is None

    simulation.run(3, run)


def test_too_many_hostile_ranks_for_the_rule_are_refused_on_all():
    def run(comm):
        with pytest.raises(CollectiveError, match="2 f must be below n") as error:
            trained(comm, Robust("trimmed_mean", f=2), 1)
        return str(error.value)

    assert len(set(simulation.run(3, run))) == 1


def test_what_a_robust_compressor_may_not_be():
    for wrong, text in [
        ({"rule": "medan"}, "did you mean"),
        ({"rule": robust.Krum(1), "f": 1}, "f goes with a rule's name"),
        ({"f": -1}, "f must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"tolerance": -0.1}, "tolerance must be"),
        ({"rule": robust.CenteredClipping(m=np.zeros(3))}, "must start from the origin"),
    ]:
        with pytest.raises(ValueError, match=text):
            Robust(**wrong)
    with pytest.raises(TypeError, match="rule must be"):
        Robust(rule=3)
    assert replace(Robust("krum", f=2), f=1).resolved == robust.Krum(1)
    assert copy.deepcopy(Robust("krum", f=2)) == Robust("krum", f=2)
