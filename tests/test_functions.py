"""Collectives as functions: what they accept, and what raises before ranks communicate."""

import inspect

import numpy as np
import pytest

import mpisign
from mpisign import functions, simulation

X = np.array([0.0, -2.0, 3.0, 0.0], np.float32)


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        ((X, None, 3), {}, r"majority_vote\(\) too many positional arguments"),
        ((X, None), {"comm": None}, r"majority_vote\(\) multiple values for argument 'comm'"),
        ((X,), {"tie": "zero"}, r"majority_vote\(\) got an unexpected keyword argument 'tie'"),
        ((), {}, r"majority_vote\(\) missing a required argument: 'x'"),
    ],
)
def test_a_wrong_call_raises_before_a_communicator_is_made(monkeypatch, args, options, text):
    monkeypatch.setattr(functions, "communicator_for", lambda *_: pytest.fail("collective"))
    with pytest.raises(TypeError, match=text):
        mpisign.majority_vote(*args, **options)


def test_signatures_are_those_of_the_methods_with_comm():
    own = inspect.signature(mpisign.Communicator.majority_vote)
    for function in (mpisign.majority_vote, mpisign.majority_vote_async):
        names = list(inspect.signature(function).parameters)
        assert names == ["x", "comm", *list(own.parameters)[2:]]


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_seed_and_step_may_be_numpy_integers(kind):
    def vote(comm, seed, step):
        return mpisign.majority_vote(X, comm, seed=seed, step=step, algorithm="alltoall").tolist()

    assert simulation.run(3, vote, kind(5), kind(7)) == simulation.run(3, vote, 5, 7)


def test_a_parameter_that_is_listed_twice_has_one_slot():
    import torch

    p, q = (torch.nn.Parameter(torch.ones(9)) for _ in range(2))
    with pytest.warns(UserWarning, match="duplicate"):
        sgd = torch.optim.SGD([p, q, p], lr=0.1)
    optimizer = mpisign.DistributedOptimizer(sgd, comm=mpisign.Communicator())
    assert [s.parameter is x for s, x in zip(optimizer.mpisign.exchange.slots, (p, q), strict=True)]


def test_a_negated_view_is_refused():
    import torch

    p = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = mpisign.DistributedOptimizer(
        torch.optim.SGD([p], lr=0.1), comm=mpisign.Communicator()
    )
    p.grad = torch._neg_view(torch.ones(4, 6))
    with pytest.raises(Exception, match="negated view"):
        optimizer.step()
