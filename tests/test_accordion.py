"""Accordion: what each parameter sends in which epoch, on ranks that are threads."""

from __future__ import annotations

import io

import numpy as np
import pytest
import reference as ref
import samples
import torch

import mpisign
from mpisign import simulation
from mpisign.compressors import Accordion, EFSign, OneBit, Signum
from mpisign.errors import CollectiveError, DisagreementError, NaNError
from mpisign.exchange.regimes import fixed_sum

EXACT = {"zeros": "abstain", "ties": "zero"}
SHAPES = [(3, 7), (65,), (4, 150), (1,)]
LENGTHS = [int(np.prod(s)) for s in SHAPES]
EPOCH, STEPS = 2, 20


def gradients(p, step):
    """[rank][tensor]: zeros, -0.0, ties, missing ones; of the last but one the size leaps."""
    made = []
    for r in range(p):
        rows = [samples.awkward(n, [r, i, step], np.float32) for i, n in enumerate(LENGTHS)]
        rows = [np.where(np.isfinite(x), x, 2).astype(np.float32) for x in rows]
        rows[0] = np.round(rows[0])
        leap = np.float32(1 + 9 * (step // 4 % 2))
        rows[2] = (rows[2] + np.float32(0.5)) * leap
        made.append([x.reshape(s) for x, s in zip(rows, SHAPES, strict=True)])
    if step == 9:
        made[0][1] = None  # on one rank
    if step == 11:
        for rows in made:
            rows[3] = None  # on all
    return made


def rate_of(step):
    return 0.5 if step < 14 else 0.05


def wrapped(comm, compression, ps=None, optimizer=None, **options):
    ps = ps or [torch.nn.Parameter(torch.zeros(s)) for s in SHAPES]
    optimizer = optimizer or torch.optim.SGD(ps, lr=0.5)
    named = [(f"p{i}", p) for i, p in enumerate(ps)]
    options = {"skip": None, "seed": 3, **options}
    mpisign.DistributedOptimizer(optimizer, named, comm=comm, compression=compression, **options)
    return ps, optimizer


def take(ps, optimizer, grads, rate=0.5):
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = rate
    loss = sum(
        (p * torch.from_numpy(g)).sum() for p, g in zip(ps, grads, strict=True) if g is not None
    )
    loss.backward()
    optimizer.step()
    return [None if p.grad is None else p.grad.numpy().copy().reshape(-1) for p in ps]


def chosen(optimizer):
    return optimizer.__dict__["mpisign"].exchange.regimes.high


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("high", [EFSign(**EXACT), Signum(**EXACT)], ids=["ef_sign", "signum"])
def test_every_step_is_its_equation(size, high):
    """Also resumed in the middle of an epoch that is added up; replicas and decisions agree."""
    all_grads = [gradients(size, step) for step in range(STEPS)]
    name = "ef_sign" if isinstance(high, EFSign) else "signum"
    reference = ref.AccordionRanks(size, LENGTHS, name, 0.5, 2, EPOCH)
    wanted, choices = [], []
    for step, grads in enumerate(all_grads):
        wanted.append(reference.step(grads, step, rate_of(step)))
        choices.append(list(reference.high))
    kinds = {tuple(c) for c in choices}
    assert len(kinds) > 1 and any(any(k) and not all(k) for k in kinds)  # they differ by layer

    def train(comm, overlap):
        compression = Accordion(high=high, every=2, steps_per_epoch=EPOCH)
        ps, optimizer = wrapped(comm, compression, overlap=overlap)
        for step, grads in enumerate(all_grads):
            if step in (5, 13):
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                ps = [torch.nn.Parameter(p.detach().clone()) for p in ps]
                ps, optimizer = wrapped(comm, compression, ps, overlap=overlap)
                saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
                optimizer.load_state_dict(saved)
            got = take(ps, optimizer, grads[comm.rank], rate_of(step))
            assert list(chosen(optimizer).values())[:: -1 if overlap else 1] == choices[step], step
            for g, w in zip(got, wanted[step], strict=True):
                assert (g is None) == (w is None)
                assert g is None or np.array_equal(g, w), step
        return [p.detach().numpy() for p in ps]

    for overlap in (False, True) if size == 3 else (size == 4,):
        first, *others = simulation.run(size, lambda c, o=overlap: train(c, o), timeout=60)
        assert all(samples.same_lists(first, x) for x in others)


@pytest.mark.parametrize(
    "high, low",
    [("onebit", "16bit"), ("onebit", "none"), ("lion", "16bit"), ("lion_avg", "none")]
    + [("sparsign", "16bit"), ("qsgd", "none"), ("noisy_sign", "16bit")],
)
def test_a_run_goes_on_bit_for_bit(high, low):
    """With any high compression, in many buckets, through unwrap too; every result is compared."""

    options = {"bucket_size": 100, "skip": lambda name, p: "16bit" if p.dim() < 2 else None}

    def train(comm, interrupted):
        compression = Accordion(high=high, low=low, every=1, threshold=4.0)
        ps, optimizer = wrapped(comm, compression, **options)
        seen = []
        for step in range(9):
            if step == 5 and interrupted:
                saved = optimizer.state_dict()
                ps, optimizer = wrapped(comm, compression, ps, **options)
                optimizer.load_state_dict(saved)
            if step == 7 and interrupted:
                ps, optimizer = wrapped(comm, compression, ps, mpisign.unwrap(optimizer), **options)
            take(ps, optimizer, gradients(comm.size, step)[comm.rank])
            if step % 2:
                seen.append(mpisign.next_epoch(optimizer))
                assert mpisign.next_epoch(optimizer) == seen[-1]  # an epoch without steps is none
        assert seen[0] == {"p0": "low", "p2": "low"} and "high" in seen[-1].values()
        return [p.detach().numpy() for p in ps]

    runs = [simulation.run(3, lambda c, s=s: train(c, s), timeout=60) for s in (False, True)]
    for rows in zip(*runs, strict=True):
        assert all(samples.same_lists(runs[0][0], x) for x in rows)


def test_what_is_owed_is_paid_in_the_first_mean():
    """Sums of updates are those of the gradients, once a layer is averaged again."""

    def run(comm):
        compression = Accordion(high=EFSign(**EXACT), low="none", every=1, threshold=9.0)
        ps, optimizer = wrapped(comm, compression)
        total = 0.0
        for step in range(7):
            rate = 0.5 if step < 6 else 0.05
            got = take(ps, optimizer, gradients(2, step)[comm.rank], rate)
            total = total + rate * got[2].astype(np.float64)
            optimizer.param_groups[0]["lr"] = 0.5 if step < 5 else 0.05
            state = optimizer.__dict__["mpisign"].exchange.slots[2].state
            assert ("residual" in state) == (step in (2, 3, 4, 5)), step
            mpisign.next_epoch(optimizer)
        return total

    wanted = sum(
        (0.5 if step < 6 else 0.05) * np.mean([gradients(2, step)[r][2] for r in range(2)], axis=0)
        for step in range(7)
    )
    for total in simulation.run(2, run, timeout=30):
        assert np.allclose(total, wanted.reshape(-1), rtol=0, atol=1e-5)


def test_ranks_that_differ_are_told():
    """One rank alone ends its epoch; its gradients differ; NaN leaves no trace."""

    def forgets(comm):
        ps, optimizer = wrapped(comm, Accordion(every=1, threshold=9.0))
        for step in range(2):
            take(ps, optimizer, gradients(3, step)[comm.rank])
            mpisign.next_epoch(optimizer)
        take(ps, optimizer, gradients(3, 2)[comm.rank])
        if comm.rank != 1:
            mpisign.next_epoch(optimizer)
        with pytest.raises(DisagreementError, match="Accordion decided .*rank 1") as error:
            take(ps, optimizer, gradients(3, 3)[comm.rank])
        return str(error.value)

    def flips(comm):
        ps, optimizer = wrapped(comm, Accordion(every=1), bucket_size=50)
        take(ps, optimizer, gradients(3, 0)[comm.rank])
        if comm.rank == 2:  # as if its memory had failed: other buckets than the others'
            state = optimizer.__dict__["mpisign"].exchange.slots[0].state
            state["accordion"] = {**state["accordion"], "high": True}
        with pytest.raises(CollectiveError) as error:
            take(ps, optimizer, gradients(3, 1)[comm.rank])
        return str(error.value)

    def nan(comm):
        ps, optimizer = wrapped(comm, Accordion(every=1, low="none"))
        take(ps, optimizer, gradients(3, 0)[comm.rank])
        before = optimizer.state_dict()["mpisign"]["state"]
        grads = gradients(3, 1)[comm.rank]
        grads[2][0, 3] = np.nan if comm.rank == 1 else 1
        with pytest.raises(NaNError, match="1 on rank 1"):
            take(ps, optimizer, grads)
        after = optimizer.state_dict()["mpisign"]["state"]
        for name, state in before.items():
            assert state.keys() == after[name].keys()
            assert torch.equal(state["accordion_sum"], after[name]["accordion_sum"])
        return ""

    for act in (forgets, flips, nan):
        assert len(set(simulation.run(3, act, timeout=40))) == 1


def test_votes_are_of_the_size_given():
    def run(comm):
        compression = Accordion(high=Signum(**EXACT), every=1, threshold=9.0, vote_scale=0.25)
        ps, optimizer = wrapped(comm, compression, warmup_steps=3)
        sizes = []
        for step in range(6):
            sizes.append(
                {float(x) for x in np.abs(take(ps, optimizer, gradients(2, step)[comm.rank])[2])}
            )
            mpisign.next_epoch(optimizer)
        return sizes

    for sizes in simulation.run(2, run, timeout=30):  # no decision before the warm-up is over
        assert all(len(s) > 3 for s in sizes[:3]) and sizes[4] <= {0.0, 0.25}, sizes


def test_sums_in_one_order():
    for n in (1, 2, 7, 65536, 65537, 200_001):
        x = torch.randn(n, generator=torch.Generator().manual_seed(n))
        assert fixed_sum(x, squares=True) == pytest.approx(
            float((x.double() ** 2).sum()), rel=1e-12
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(3 if threads != 3 else 2)
        again = fixed_sum(x, squares=True)
        torch.set_num_threads(threads)
        assert again == fixed_sum(x, squares=True)
    assert fixed_sum(torch.zeros(0)) == 0.0


def test_batch_sizes():
    """The same on all ranks, bit for bit after a resume; ranks that differ are told."""

    def run(comm, resumed):
        w = torch.nn.Parameter(torch.zeros(8))
        optimizer = torch.optim.SGD([w], lr=0.1)
        mpisign.DistributedOptimizer(optimizer, [("w", w)], comm=comm, compression="none")
        batch = mpisign.AccordionBatch(optimizer, small=1, large=4, every=1)
        passes = []
        for epoch in range(6):
            optimizer.param_groups[0]["lr"] = 0.1 if epoch < 4 else 0.01
            batch.next_epoch()
            passes.append(batch.passes)
            for i in range(8):
                if resumed and (epoch, i) == (3, 6):
                    saved, old = batch.state_dict(), optimizer.state_dict()
                    grad = w.grad.clone()
                    mpisign.unwrap(optimizer)
                    w = torch.nn.Parameter(w.detach().clone())
                    w.grad = grad
                    optimizer = torch.optim.SGD([w], lr=0.1)
                    mpisign.DistributedOptimizer(
                        optimizer, [("w", w)], comm=comm, compression="none"
                    )
                    optimizer.load_state_dict(old)
                    batch = mpisign.AccordionBatch(optimizer, small=1, large=4, every=1)
                    file = io.BytesIO()
                    torch.save(saved, file)
                    batch.load_state_dict(
                        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
                    )
                size = 10.0 if epoch == 0 else 1.0  # what changes, then is steady
                (w * size * (1 + comm.rank)).sum().div(batch.passes).backward()
                if batch.is_due():
                    optimizer.step()
                    optimizer.zero_grad()
        return passes, w.detach().numpy()

    def differs(comm):
        w = torch.nn.Parameter(torch.zeros(8))
        optimizer = torch.optim.SGD([w], lr=0.1)
        mpisign.DistributedOptimizer(optimizer, [("w", w)], comm=comm)
        mpisign.AccordionBatch(optimizer, small=1 + comm.rank, large=4)
        w.sum().backward()
        with pytest.raises(DisagreementError, match="optimizer settings"):
            optimizer.step()

    for resumed in (False, True):
        for passes, w in simulation.run(2, lambda c, r=resumed: run(c, r), timeout=30):
            assert passes == [1, 1, 1, 4, 1, 1], passes
            steps = 8 * 1.5 * np.array([10, 1, 1, 0, 0.1, 0.1]).sum() + 1.5 * 2
            assert np.allclose(w, -0.1 * steps, atol=1e-5)
    simulation.run(2, differs, timeout=30)


def test_settings():
    for kind, bad, text in (
        (Accordion, {"high": "none"}, "high must be a compressor that votes.* got 'none'"),
        (Accordion, {"high": "robust"}, "high must be"),
        (Accordion, {"high": "ef_sparsign"}, "high must be"),
        (Accordion, {"high": "zip"}, "high must be .* got 'zip'"),
        (Accordion, {"low": "8bit"}, "low must be '16bit' or 'none', got '8bit'"),
        (Accordion, {"every": 0}, "every must be a number of epochs from 1, got 0"),
        (Accordion, {"steps_per_epoch": 0}, "steps_per_epoch must be"),
        (Accordion, {"threshold": -1}, "threshold must be a number from 0, got -1"),
        (Accordion, {"vote_scale": 0.0}, "vote_scale must be a positive number, got 0.0"),
        (Accordion, {"fall": float("nan")}, "fall must be a number from 0, got nan"),
    ):
        with pytest.raises(ValueError, match=f"Accordion: {text}"):
            kind(**bad)
    assert Accordion(high=OneBit(nan="abstain")).nan == "abstain"
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(TypeError, match="next_epoch: votes must be"):
        mpisign.next_epoch(sgd)
    with pytest.raises(TypeError, match="AccordionBatch: optimizer must be"):
        mpisign.AccordionBatch(None)
    for bad in ({"small": 0}, {"small": 9, "large": 2}, {"every": 1.5}, {"threshold": -1}):
        with pytest.raises(ValueError, match="AccordionBatch: "):
            mpisign.AccordionBatch(sgd, **bad)
    mpisign.DistributedOptimizer(sgd, compression="signum")
    assert mpisign.next_epoch(sgd) == {}
    mpisign.unwrap(sgd)
    mpisign.DistributedOptimizer(sgd, compression=Accordion(steps_per_epoch=3))
    with pytest.raises(ValueError, match="epochs end by steps_per_epoch=3"):
        mpisign.next_epoch(sgd)
