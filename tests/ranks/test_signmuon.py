"""SignMuon against its equations in NumPy, on threads or on the ranks of a launcher."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import reference as ref
import samples
import torch
from worlds import SIZE, WORLD

import mpisign
from mpisign import compressors as c
from mpisign import simulation

WORLDS = ["mpi"] if SIZE > 1 else [1, 2, 3, 4]
SEED, LR = 5, 0.1
WEYL = 0x9E3779B97F4A7C15  # between the seeds of two buckets
MATRICES = {"blocks.0.w": (3, 7), "conv": (4, 2, 3, 3), "blocks.1.out.weight": (9, 5)}
OTHERS = {"embed": (6, 3), "thin": (8, 1), "bias": (11,), "scale": (), "lm_head.weight": (5, 4)}
SHAPES = MATRICES | OTHERS
CASES = [
    c.Muon(),
    c.Muon(nesterov=True, zeros="abstain", ties="zero", nan="abstain"),
    c.Muon(polar=True, ties="zero", steps=3, coefficients=(1.5, -0.5, 0)),
    c.Muon(polar=True, others=c.Lion(beta2=0.9)),
    c.Muon(momentum=0.5, others="signum", eps=1e-3),
    c.MuonAvg(),
]


def gradients(p, step, with_nan):
    """[rank][name]: float32 tensors, with rows of zeros and -0.0, some missing, NaN if asked."""
    made = []
    for r in range(p):
        rng = np.random.default_rng([r, step, 3])
        made.append({n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()})
        for name in ("blocks.0.w", "embed"):
            made[r][name][1] = 0.0 if r else -0.0
        if with_nan and step == 3:
            made[r]["conv"][0, 0, 1, 2] = np.nan
            made[r]["conv"][1, 0, 0, r % 3] = np.inf
    if step == 1:
        made[0]["conv"] = None
    if step == 2:
        for grads in made:
            grads["blocks.0.w"] = grads["bias"] = None
    return made


def expected_of(compressor, p, steps):
    """Of every step: what each parameter's gradient becomes, by the equations."""
    parts = []
    for number, (kind, shapes) in enumerate(((compressor, MATRICES), (compressor.others, OTHERS))):
        (name,) = [n for n, k in c.COMPRESSORS.items() if k is type(kind)]
        options = dataclasses.asdict(kind) | {"shapes": list(shapes.values())}
        lengths = [int(np.prod(s)) for s in shapes.values()]
        seed = (SEED + number * WEYL) % (1 << 64)
        parts.append((ref.Ranks(name, p, lengths, seed, **options), shapes))
    found = []
    for step in range(steps):
        grads, results = gradients(p, step, compressor.nan == "abstain"), {}
        for ranks, shapes in parts:
            given = [[of[n] for n in shapes] for of in grads]
            results |= zip(shapes, ranks.step(given, step, [LR] * len(shapes)), strict=True)
        found.append(results)
    return found


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("compressor", CASES, ids=range(len(CASES)))
def test_every_step_is_its_equation(world, compressor):
    p, steps = SIZE if world == "mpi" else world, 5
    expected = expected_of(compressor, p, steps)

    def started(comm, params):
        optimizer = torch.optim.SGD(params.values(), lr=LR, weight_decay=0.01)
        mpisign.DistributedOptimizer(
            optimizer,
            params.items(),
            comm=comm,
            compression=compressor,
            seed=SEED,
            skip=None,
        )
        return optimizer

    def train(comm):
        params = {n: torch.nn.Parameter(torch.full(s, 0.5)) for n, s in SHAPES.items()}
        optimizer = started(comm, params)
        for step in range(steps):
            if step == 2:  # killed, and resumed from a checkpoint
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                params = {n: torch.nn.Parameter(x.detach().clone()) for n, x in params.items()}
                optimizer = started(comm, params)
                saved = io.BytesIO(file.getvalue())
                optimizer.load_state_dict(torch.load(saved, weights_only=True))
            own = gradients(p, step, compressor.nan == "abstain")[comm.rank]
            for n, x in params.items():
                x.grad = None if own[n] is None else torch.from_numpy(own[n])
            optimizer.step()
            for n, x in params.items():
                if expected[step][n] is None:
                    assert x.grad is None
                    continue
                wanted = torch.from_numpy(np.asarray(expected[step][n], np.float32))
                assert torch.equal(x.grad, wanted.view(x.shape)), (step, n)
        return [x.detach().numpy() for x in params.values()]

    if world == "mpi":
        replicas = WORLD.allgather(train(mpisign.Communicator(WORLD.Dup())))
    else:
        replicas = simulation.run(world, train, timeout=20)
    assert all(samples.same_lists(replicas[0], rest) for rest in replicas)
    assert all(np.isfinite(x).all() and (x != 0.5).any() for x in replicas[0])
