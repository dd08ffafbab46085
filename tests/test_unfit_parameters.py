"""Parameters that cannot be voted on, on one rank or all: the same error before anything moves."""

from __future__ import annotations

import pytest
import torch

import mpisign
from mpisign import simulation
from mpisign.errors import CollectiveError

FIT = torch.ones(4, 4)
DTYPES = "must have dtype float32, float16, bfloat16, float64, got "
UNFIT = {
    "complex": (FIT.to(torch.cfloat), DTYPES + "complex64 (make it a float"),
    "float8": (FIT.to(torch.float8_e4m3fn), DTYPES + "float8_e4m3fn"),
    "meta": (FIT.to("meta"), "must be a dense CPU or CUDA tensor, got layout torch.strided"),
    "sparse": (FIT.to_sparse(), "must be a dense CPU or CUDA tensor, got layout torch.sparse_coo"),
}


def step(comm, unfit, ranks, overlap, compression="signum"):
    """The error of a step in which ``ranks`` have an unfit parameter beside others."""
    data = unfit if comm.rank in ranks else FIT
    last = torch.nn.Parameter(data.clone())
    first, frozen = (torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD([first, frozen, last], lr=1.0)
    named = [("first", first), ("frozen", frozen), ("c", last)]
    mpisign.DistributedOptimizer(
        optimizer, named, comm=comm, compression=compression, overlap=overlap, bucket_size=16
    )
    first.sum().backward()
    last.grad = last.detach().clone()
    with pytest.raises(CollectiveError) as error:
        optimizer.step()
    assert (first == 0).all()
    return str(error.value)


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("overlap", [False, True])
def test_every_rank_names_the_parameter(kind, overlap):
    unfit, text = UNFIT[kind]
    for ranks, named in (((0, 1, 2), "ranks 0-2"), ((1,), "rank 1")):
        for compression in ("signum", "none"):
            errors = simulation.run(3, step, unfit, ranks, overlap, compression, timeout=20)
            assert len(set(errors)) == 1
            assert f"cannot go on because of {named}: parameter 'c' {text}" in errors[0], errors[0]


def test_what_needs_no_gradient_may_be_of_any_kind():
    def run(comm):
        p = torch.nn.Parameter(torch.zeros(3))
        others = [
            torch.nn.Parameter(x, requires_grad=False) for x, _ in UNFIT.values() if not x.is_meta
        ]
        others.append(torch.nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False))
        optimizer = torch.optim.SGD([p, *others], lr=1.0)
        mpisign.DistributedOptimizer(optimizer, comm=comm)
        p.sum().backward()
        optimizer.step()
        assert (p == -1).all()

    simulation.run(2, run, timeout=20)
