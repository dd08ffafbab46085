"""What users pass and set that once gave raw or wrong answers: one clear answer on all ranks."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import mpisign
from mpisign import policies, robust, simulation
from mpisign.attacks import base as attacks
from mpisign.compressors import Detox, EFSign, Robust
from mpisign.detox import Groups
from mpisign.engine.replicas import check_every
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.partition import assign
from mpisign.transports.threads import ThreadTransport, World


def errors_of(size, function):
    """What each of ``size`` ranks raises."""
    world, errors = World(size), [""] * size

    def work(rank):
        try:
            function(ThreadTransport(world, rank))
        except CollectiveError as error:
            errors[rank] = f"{type(error).__name__}: {error}"

    jobs = [threading.Thread(target=work, args=(r,)) for r in range(size)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    return errors


def same_error(size, function):
    errors = errors_of(size, function)
    assert len(set(errors)) == 1 and errors[0], errors
    return errors[0]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MPISIGN_COSTS", "/tmp/costs.json", "rank 1: set"),
        ("MPISIGN_CHECK_EVERY", "4", "rank 1: '4'"),
        ("MPISIGN_SPARSE_BLOCK", "64", "rank 1: '64'"),
    ],
)
def test_a_variable_of_one_rank_alone_is_named(name, value, said, monkeypatch):
    import os

    from mpisign.collectives import environment

    class Environ(dict):
        def get(self, key, default=None):
            here = getattr(local, "rank", 0) == 1 and key == name
            return value if here else os.environ.get(key, default)

    local = threading.local()
    monkeypatch.setattr(environment, "os", type("os", (), {"environ": Environ()}))

    def make(transport):
        local.rank = transport.rank
        mpisign.Communicator(transport, timeout=5.0)

    error = same_error(3, make)
    assert error.startswith("DisagreementError: Communicator: ranks disagree on the environment")
    assert f"{name} (ranks 0, 2: not set; {said})" in error


@pytest.mark.parametrize("text", ["²", "٣", "-1", "x", ""])
def test_check_every_is_a_number(text, monkeypatch):
    monkeypatch.setenv("MPISIGN_CHECK_EVERY", text)
    with pytest.raises(ValueError, match="MPISIGN_CHECK_EVERY must be a number from 0, got"):
        check_every()


def test_integers_of_any_library_are_integers():
    for three in (np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)):
        assert assign(9, three) == assign(9, 3)
        assert repr(Detox(redundancy=three)) == repr(Detox(redundancy=3))
        assert repr(Robust("krum", f=three)) == repr(Robust("krum", f=3))
        assert repr(robust.TrMean(f=three)) == repr(robust.TrMean(f=3))
        assert type(policies.whole(three)) is int
        groups = Groups.of(9, 0, three, reshuffle_every=three, seed=three)
        groups.set_epoch(three)
        assert groups.draw == 1 and groups.seed == 3
    assert repr(EFSign(block=np.int64(256))) == repr(EFSign(block=256))
    for wrong in (3.0, True, "3", None, -1):
        assert policies.whole(wrong) is None
    simulation.run(1, lambda c: c.plan_majority_vote((np.int64(5), "float32"))(np.ones(5, "f")))


@pytest.mark.parametrize("call", ["majority_vote", "tally", "mean_of_signs", "robust_aggregate"])
def test_a_matrix_is_refused_and_the_communicator_goes_on(call):
    more = {"rule": "median"} if call == "robust_aggregate" else {}

    def body(comm):
        with pytest.raises(CollectiveError, match="x must not be a np.matrix"):
            getattr(comm, call)(np.matrix([[1.0, -1.0]]), **more)
        return comm.majority_vote(np.ones(3)).tolist()

    assert simulation.run(2, body) == [[1.0, 1.0, 1.0]] * 2


def test_ranks_that_call_different_functions_raise_one_text():
    def body(transport):
        comm = mpisign.Communicator(transport, timeout=5.0)
        calls = (comm.majority_vote, comm.tally, comm.mean_of_signs)
        calls[transport.rank](np.ones(10))

    error = same_error(3, body)
    assert error.startswith(
        f"{DisagreementError.__name__}: majority_vote and tally and mean_of_signs: ranks disagree"
    )


def test_parameters_go_with_tensors():
    x, parameter = torch.zeros(3), torch.nn.Parameter(torch.ones(3))
    assert robust.Median()([parameter, x, x]).tolist() == [0.0] * 3
    assert attacks.stacked("test", [parameter, x]).shape == (2, 3)


def test_a_rule_keeps_a_copy_of_m():
    for m in (np.ones(3, np.float32), torch.ones(3)):
        rule = robust.CenteredClipping(tau=1.0).after(m)
        m *= 0.1
        assert (rule.m == 1).all()


def test_a_center_that_overflows_float32():
    most = np.finfo(np.float32).max
    x = np.full((3, 4), most, np.float32)
    rule = robust.CenteredClipping(m=-x[0], L=2, tau=1e38)
    here = rule(x)
    assert np.allclose(here, -most + 1e38)
    there = rule.after(torch.from_numpy(-x[0]))(torch.from_numpy(x))
    assert there.dtype == torch.float32 and (there.numpy() == here).all()
    ranks = simulation.run(3, lambda comm: comm.robust_aggregate(x[comm.rank], rule=rule))
    assert all((r == here).all() for r in ranks)


@pytest.mark.parametrize("exponent", [-170, -300])
@pytest.mark.parametrize("name", ["krum", "multi_krum", "nnm+trimmed_mean", "bulyan"])
def test_rows_whose_squares_underflow(name, exponent):
    """The hostile first row is chosen by no rule that compares distances."""
    x = np.random.default_rng(0).normal(size=(7, 40))
    x[0] = 1e3
    rule = robust.by_name(name, f=1)
    assert np.allclose(rule(x * 10.0**exponent) / 10.0**exponent, rule(x), rtol=1e-9)
    small = x * 10.0**exponent
    ranks = simulation.run(7, lambda comm: comm.robust_aggregate(small[comm.rank], rule=rule))
    assert all((r == rule(small)).all() for r in ranks)


def test_a_pipe_that_is_closed_ends_the_command_quietly():
    program = f"{sys.executable} -m mpisign.cli study list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.splitlines()[-1] in ("0", "141"), done


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("import mpi4py; mpi4py.rc.initialize = False", "MPI is not initialized"),
        ("from mpi4py import MPI; MPI.Finalize()", "MPI.Finalize() was called"),
    ],
)
def test_outside_of_mpi(when, said):
    """MPI would end the process with a text of its own."""
    program = (
        f"{when}\nfrom mpi4py import MPI\nimport mpisign\nmpisign.Communicator(MPI.COMM_WORLD)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"LauncherError: mpisign: {said}" in done.stderr, done
