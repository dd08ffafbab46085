"""The hooks of torch's DDP and FSDP, over ranks of real launchers and in one process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import reference as ref
import samples
import torch
from launchers import ONE_THREAD, RANKS, find, mpirun, run

import mpisign.ddp
import mpisign.fsdp
from mpisign import simulation
from mpisign.compressors import Sign
from mpisign.errors import CollectiveError, DisagreementError, NaNError

SUITE = RANKS / "ddp_suite.py"
ENV = {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}


def passed(output, n):
    assert output.count(" checks passed") == n, output


def test_the_suite_over_torchrun(tmp_path):
    many = [find("torchrun"), "--standalone", "--nproc-per-node", 3]
    suite = [
        SUITE,
        tmp_path,
        "ddp_states",
        "ddp_errors",
        "ddp_scaler",
        "ddp_parameters",
        "fsdp_suite",
    ]
    passed(run([*many, *suite], env=ENV).stdout, 3)


def test_the_suite_over_mpirun(tmp_path):
    passed(mpirun(2, sys.executable, SUITE, tmp_path, env=ENV).stdout, 2)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, mpisign; assert not {'torch', 'mpisign.ddp'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def shards(comm, xs, zeros, ties, seed):
    """One rank's shard, twice, against NumPy; then the whole, as with NO_SHARD."""
    p, rank = comm.size, comm.rank
    n = xs[0].size // p
    nbytes = (n + 7) // 8
    state = mpisign.fsdp.MajorityVoteState(comm, Sign(zeros=zeros, ties=ties), seed=seed)
    for step in range(2):
        x = torch.from_numpy(xs[rank].copy())
        out = torch.empty(n, dtype=x.dtype)
        mpisign.fsdp.majority_vote_hook(state, x, out)
        assert samples.same(x.numpy(), xs[rank])
        part = slice(rank * n, (rank + 1) * n)
        keys = {"seed": seed, "step": step, "offset": 8 * nbytes * rank}
        want = ref.majority_vote([x[part] for x in xs], zeros, ties, **keys)
        assert samples.same(out.numpy(), want.astype(out.numpy().dtype))
    state.calls = 0
    mpisign.fsdp.majority_vote_hook(state, x)
    want = ref.majority_vote(xs, zeros, ties, seed=seed)
    assert samples.same(x.numpy(), want.astype(x.numpy().dtype))


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 151, 4097])
def test_shards_are_those_of_numpy(p, n):
    for k, (zeros, ties) in enumerate(
        [("random", "random"), ("abstain", "zero"), ("positive", "positive")]
    ):
        dtype = (np.float32, np.float16, np.float64)[k]
        xs = [samples.awkward(n * p, r, dtype) for r in range(p)]
        simulation.run(p, shards, xs, zeros, ties, 7, timeout=20)


def test_shards_in_many_pieces():
    xs = [np.random.default_rng(r).standard_normal(3 << 20).astype(np.float32) for r in range(3)]
    simulation.run(3, shards, xs, "random", "random", 7, timeout=20)


def test_a_shard_that_does_not_fit_is_told_to_all():
    def hook(comm, kind):
        state = mpisign.fsdp.MajorityVoteState(comm, "sign")
        wrong = comm.rank == 1
        grad = torch.ones(8 * comm.size)
        grad[0] = torch.nan if wrong and kind == "nan" else 1
        out = torch.empty(7 if wrong and kind == "size" else 8)
        state.calls = int(wrong and kind == "step")
        return mpisign.fsdp.majority_vote_hook(state, grad, out)

    for kind, error, text in (
        ("nan", NaNError, "1 on rank 1"),
        ("size", CollectiveError, "rank 1: output must be contiguous and one of 3 equal parts"),
        ("step", DisagreementError, "step"),
    ):
        with pytest.raises(error, match=text):
            simulation.run(3, hook, kind, timeout=20)


@pytest.mark.parametrize("compression", ["signum", "ef_sign", "none", "sparsign"])
def test_fsdp_takes_what_keeps_no_state(compression):
    with pytest.raises(ValueError, match="must keep no state: 'sign'"):
        mpisign.fsdp.MajorityVoteState(None, compression)


def test_states_check_their_arguments():
    for module in (mpisign.ddp, mpisign.fsdp):
        for wrong in ({"seed": -1}, {"algorithm": "fast"}, {"compression": "sgin"}):
            with pytest.raises(ValueError, match=f"MajorityVoteState: {next(iter(wrong))} must be"):
                module.MajorityVoteState(**wrong)
    with pytest.raises(ValueError, match=r"DistributedOptimizer takes local steps"):
        mpisign.ddp.MajorityVoteState(None, mpisign.Compression.ef_sparsign(local_steps=2))
    with pytest.raises(ValueError, match="bucket_size must be"):
        mpisign.ddp.MajorityVoteState(bucket_size=0)
    twice = [("a", torch.ones(1, requires_grad=True)), ("a", torch.ones(1, requires_grad=True))]
    with pytest.raises(ValueError, match="distinct names"):
        mpisign.ddp.MajorityVoteState(named_parameters=twice)
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="a momentum of its own"):
        mpisign.ddp.MajorityVoteState(optimizer=optimizer)
    with pytest.raises(ValueError, match="fully_shard was applied"):
        mpisign.fsdp.register_comm_hook(torch.nn.Linear(1, 1), mpisign.fsdp.MajorityVoteState())
