"""mpisign.optim: the equations bit for bit, replicas, masks, checkpoints, errors on all ranks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from reference import onebit_optimizers as reference

import mpisign
from mpisign import optim, simulation
from mpisign.errors import CollectiveError, DisagreementError, NaNError
from mpisign.transports.threads import ThreadTransport, World

LENGTHS = (13, 700, 1, 300)
COMMON = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
CASES = {
    "OneBitAdam": {"freeze_step": 4},
    "ZeroOneAdam": {
        "var_freeze_step": 9,
        "var_update_scaler": 3,
        "local_step_scaler": 3,
        "local_step_clipper": 4,
    },
    "OneBitLamb": {
        "freeze_step": 4,
        "max_coeff": 10.0,
        "min_coeff": 0.01,
        "coeff_beta": 0.9,
        "factor_max": 4.0,
        "factor_min": 0.5,
        "factor_threshold": 0.1,
    },
}
STEPS = 24  # the last is a synchronisation of 0/1 Adam


def gradient(rank, step):
    """Zeros, -0.0, ties between ranks, and a tensor that is always zero in part."""
    rng = np.random.default_rng([rank, step])
    grads = [rng.standard_normal(n).astype(np.float32) for n in LENGTHS]
    grads[0][3] = -0.0
    grads[1][:100] = 0.0
    grads[3][::7] = 1.0 if rank % 2 else -1.0
    return grads


def started():
    rng = np.random.default_rng(5)
    return [rng.standard_normal(n).astype(np.float32) for n in LENGTHS]


def made(comm, name, **options):
    ps = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in started()]
    how = {"comm": comm, "skip": None, "block": 256, **COMMON, **CASES[name], **options}
    return ps, getattr(optim, name)(ps, **how)


def stepped(ps, optimizer, rank, steps):
    history = []
    for t in steps:
        for p, g in zip(ps, gradient(rank, t), strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        history.append(np.concatenate([p.detach().numpy() for p in ps]))
    return history


def check_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.int32), np.asarray(b).view(np.int32))


@pytest.mark.parametrize("name", CASES)
def test_equations(name):
    def train(comm):
        ps, optimizer = made(comm, name, weight_decay=0.05)
        return stepped(ps, optimizer, comm.rank, range(STEPS))

    for p in (1, 2, 3, 4):
        options = {**COMMON, **CASES[name], "wd": 0.05}
        expected = getattr(reference, name)(started(), p, 256, **options)
        found = simulation.run(p, train)
        for t in range(STEPS):
            rows = expected.step([gradient(r, t) for r in range(p)])
            for mine, row in zip(found, rows, strict=True):
                check_bits(mine[t], row)


@pytest.mark.parametrize("name", CASES)
def test_resumed_runs_continue_bit_for_bit(name):
    """Each rank from a file of its own, in the middle of a round of local steps too."""
    middle = 17

    def train(comm):
        ps, optimizer = made(comm, name)
        whole = stepped(ps, optimizer, comm.rank, range(STEPS))
        ps, optimizer = made(comm, name)
        stepped(ps, optimizer, comm.rank, range(middle))
        file = io.BytesIO()
        torch.save({"x": [p.data for p in ps], "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        ps, optimizer = made(comm, name)
        for p, x in zip(ps, saved["x"], strict=True):
            p.data.copy_(x)
        optimizer.load_state_dict(saved["optimizer"])
        check_bits(whole[middle:], stepped(ps, optimizer, comm.rank, range(middle, STEPS)))
        assert optimizer.steps == STEPS
        return file.getvalue()

    files = simulation.run(3, train)

    def fewer(comm):
        saved = torch.load(io.BytesIO(files[comm.rank]), weights_only=True)
        ps, optimizer = made(comm, name)
        for p, x in zip(ps, saved["x"], strict=True):
            p.data.copy_(x)
        with pytest.warns(UserWarning, match="of size 3, not of size 2"):
            optimizer.load_state_dict(saved["optimizer"])
            own = optimizer.exchange.slots[1].state["residual"].clone()
            assert (
                own.any() and (own == saved["optimizer"]["mpisign"]["state"]["1"]["residual"]).all()
            )
            history = stepped(ps, optimizer, comm.rank, range(middle, STEPS))
        assert optimizer.exchange.slots[0].state["owner_of"][1] == 2
        return history[-1]

    check_bits(*simulation.run(2, fewer))


def test_replicas_masks_and_missing_gradients():
    """Ranks that start apart, a mask, bfloat16, an embedding, a gradient on one rank only."""

    def train(comm, name):
        torch.manual_seed(comm.rank)  # another model on every rank
        model = torch.nn.ModuleDict(
            {
                "embed": torch.nn.Embedding(40, 8),
                "hidden": torch.nn.Linear(8, 300),
                "last": torch.nn.Linear(300, 5).bfloat16(),
                "seldom": torch.nn.Linear(8, 2),
            }
        )
        mask = torch.ones(300, 1)
        mask[200:] = 0
        groups = [
            {"params": [model["hidden"].weight], "exp_avg_mask": mask},
            {"params": [p for p in model.parameters() if p is not model["hidden"].weight]},
        ]
        short = {"var_freeze_step": 6} if name == "ZeroOneAdam" else {"freeze_step": 4}
        optimizer = getattr(optim, name)(groups, lr=0.01, comm=comm, **short)
        rng = torch.Generator().manual_seed(100 + comm.rank)
        digests, before = [], None
        for t in range(10):
            optimizer.zero_grad()
            rows = torch.randint(0, 30, (16,), generator=rng)  # rows 30 to 39: never
            h = model["hidden"](model["embed"](rows))[:, :200].relu()
            h = torch.nn.functional.pad(h, (0, 100))
            loss = model["last"](h.bfloat16()).float().square().mean()
            if t % 2 == 0 and (comm.rank == 0 or t < 2):
                loss = loss + model["seldom"](model["embed"](rows)).square().mean()
            loss.backward()
            optimizer.step()
            if t == 0:
                before = [
                    x.detach().clone() for x in (model["hidden"].weight, model["embed"].weight)
                ]
            digests.append(
                b"".join(p.detach().float().numpy().tobytes() for p in model.parameters())
            )
        assert model["hidden"].weight[200:].equal(before[0][200:])
        assert model["embed"].weight[30:].equal(before[1][30:])
        assert not model["embed"].weight[:30].equal(before[1][:30])
        state = optimizer.state[model["last"].weight]
        assert state["exp_avg"].dtype == torch.float32
        return digests

    for name in CASES:
        first, *others = simulation.run(3, train, name)
        assert all(digests == first for digests in others)
        assert len(set(first)) == len(first)


def test_what_one_rank_holds_stops_all():
    """NaN before and after the freeze, other rates, another count: an error on all, no change."""

    def train(comm):
        for name in CASES:
            ps, optimizer = made(comm, name)
            for t in (0, 12):
                stepped(ps, optimizer, comm.rank, range(t and 1, t))
                saved = optimizer.state_dict()["mpisign"]["state"]
                x = [p.detach().clone() for p in ps]
                for value in (torch.nan, torch.inf):
                    with pytest.raises(NaNError, match="gradients must be finite, .*: 1 on rank 1"):
                        for p in ps:
                            p.grad = torch.ones_like(p)
                        if comm.rank == 1:
                            ps[1].grad[5] = value
                        for _ in range(4):  # until 0/1 Adam synchronises
                            optimizer.step()
                after = optimizer.state_dict()["mpisign"]["state"]
                if name == "ZeroOneAdam" and t:
                    break  # this rank's local steps were taken
                assert all(p.equal(y) for p, y in zip(ps, x, strict=True))
                assert all(
                    saved[n][k].equal(after[n][k])
                    for n in saved
                    for k in saved[n]
                    if isinstance(saved[n][k], torch.Tensor)
                )
            else:
                stepped(ps, optimizer, comm.rank, [12])
        ps, optimizer = made(comm, "OneBitAdam", lr=0.1 + comm.rank)
        with pytest.raises(DisagreementError, match="learning rates"):
            stepped(ps, optimizer, comm.rank, [0])
        ps, optimizer = made(comm, "OneBitAdam", freeze_step=1)
        ps[2].grad = None
        for p, g in zip(ps[:2] + ps[3:], gradient(0, 0)[:2] + gradient(0, 0)[3:], strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
        with pytest.raises(CollectiveError, match="first gradient after v was frozen"):
            stepped(ps, optimizer, comm.rank, [1])
        optimizer.grad_scale = torch.ones(())
        with pytest.raises(CollectiveError, match="GradScaler"):
            optimizer.step()

    simulation.run(2, train)


@pytest.mark.parametrize(
    "name, options, error",
    [
        ("OneBitAdam", {"lr": -1.0}, "OneBitAdam: lr must be a number from 0, got -1.0"),
        ("OneBitAdam", {"betas": (0.9, 1.0)}, "betas must be two numbers in"),
        ("OneBitAdam", {"freeze_step": 0}, "freeze_step must be an integer from 1, got 0"),
        ("OneBitAdam", {"eps": "1"}, "eps must be a number"),
        ("OneBitAdam", {"block": 100}, "block must be"),
        ("OneBitAdam", {"seed": -1}, "seed must be in"),
        ("ZeroOneAdam", {"var_update_scaler": 1.5}, "var_update_scaler must be an integer from 1"),
        ("ZeroOneAdam", {"local_step_clipper": 0}, "local_step_clipper must be an integer"),
        ("OneBitLamb", {"coeff_beta": 1.0}, "coeff_beta must be in"),
        ("OneBitLamb", {"factor_min": 5.0}, "factor_min must be at most factor_max, 4.0, got 5.0"),
    ],
)
def test_arguments(name, options, error):
    with pytest.raises(ValueError, match=error):
        getattr(optim, name)([torch.nn.Parameter(torch.zeros(2))], **options)


def alone() -> mpisign.Communicator:
    """One rank without MPI, which another test of this process may have kept from starting."""
    return mpisign.Communicator(ThreadTransport(World(1), 0))


def test_groups_and_ddp():
    x = torch.nn.Parameter(torch.zeros(4, 2))
    with pytest.raises(
        ValueError, match=r"exp_avg_mask must have the shape .*\(4, 2\), got \(3,\)"
    ):
        optim.OneBitAdam([{"params": [x], "exp_avg_mask": torch.ones(3)}])
    with pytest.raises(ValueError, match="freeze_step must be 100000 in all groups, got 5"):
        optim.OneBitAdam([{"params": [x], "freeze_step": 5}])
    optimizer = optim.OneBitAdam([x], comm=alone())
    with pytest.raises(RuntimeError, match="all parameters to the constructor"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})


def test_ddp_that_has_averaged_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.Linear(3, 2)
        ddp = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = optim.OneBitAdam(model.parameters(), comm=alone())
        with ddp.no_sync():
            ddp(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        ddp(torch.ones(2, 3)).sum().backward()
        with pytest.raises(CollectiveError, match="DistributedDataParallel has averaged"):
            optimizer.step()
        del ddp
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", [optim.OneBitAdam, optim.ZeroOneAdam, optim.OneBitLamb])
def test_scalars_and_empty_tensors_from_different_starts(kind):
    """Rank 0's start is everyone's, also of a parameter of no dimension and of one of no size."""
    freeze = "var_freeze_step" if kind is optim.ZeroOneAdam else "freeze_step"

    def train(comm):
        ps = [
            torch.nn.Parameter(torch.full(shape, float(comm.rank)))
            for shape in ((), (0, 3), (40, 50))
        ]
        optimizer = kind(ps, lr=0.01, comm=comm, **{freeze: 2})
        for step in range(4):
            for p in ps:
                p.grad = torch.full(p.shape, float(comm.rank + step))
            optimizer.step()
        return ps

    first, *others = simulation.run(3, train, timeout=30)
    assert all(p.isfinite().all() for p in first)
    assert all(torch.equal(p, q) for ps in others for p, q in zip(first, ps, strict=True))


def test_zero_one_adam_with_a_rate_of_zero_stays_finite():
    def train(comm):
        ps, optimizer = made(comm, "ZeroOneAdam", lr=0.0)
        stepped(ps, optimizer, comm.rank, range(STEPS))
        return all(bool(optimizer.state[p]["exp_avg"].isfinite().all()) for p in ps)

    assert simulation.run(1, train) == [True]
