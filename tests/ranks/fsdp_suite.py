"""FSDP's communication hooks, version 1 and 2, on every rank: started by tests/test_ddp.py."""

from __future__ import annotations

import pickle

import ddp_worlds as worlds
import torch
from ddp_worlds import (
    ABSTAINING,
    Net,
    batch,
    everyone,
    gathered,
    local_gradients,
    loss_of,
    raised,
    votes_without_ties,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard

import mpisign.fsdp
from mpisign.compressors import StochasticSign
from mpisign.errors import CollectiveError, NaNError


def each_layer(module, recurse, nonwrapped_numel):
    return recurse or isinstance(module, torch.nn.Linear)


def sharded(net, state, strategy, **options):
    model = FullyShardedDataParallel(
        net,
        sharding_strategy=strategy,
        device_id=torch.device("cpu"),
        auto_wrap_policy=each_layer,
        use_orig_params=True,
        **options,
    )
    model.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)
    return model


def whole(model, strategy):
    """{name: the whole gradient}."""
    if strategy == ShardingStrategy.NO_SHARD:
        found = dict(model.named_parameters())
        return {clean(n): p.grad.clone() for n, p in found.items()}
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        return {clean(n): p.grad.clone() for n, p in model.named_parameters()}


def clean(name):
    return name.replace("_fsdp_wrapped_module.", "")


def expected(net, step):
    return votes_without_ties(everyone(local_gradients(net, step)), None, step)


def check_fsdp1_votes():
    for strategy in (
        ShardingStrategy.FULL_SHARD,
        ShardingStrategy.SHARD_GRAD_OP,
        ShardingStrategy.NO_SHARD,
    ):
        state = mpisign.fsdp.MajorityVoteState(None, ABSTAINING)
        model = sharded(Net(), state, strategy)
        for step in range(4):
            want = expected(Net(), step)
            model.zero_grad()
            if step == 1:  # raised on all, and the next step is as good as any
                loss = loss_of(model, step, nan=worlds.RANK == 1)
                error = raised(NaNError, loss.backward)
                assert "on rank 1" in error and len(set(gathered(error))) == 1, error
                continue
            if step == 3:
                state = pickle.loads(pickle.dumps(state))
                assert state.calls == 9
            loss_of(model, step).backward()
            got = whole(model, strategy)
            for name, grad in want.items():
                assert torch.equal(got[name].view_as(grad), grad), (strategy, step, name)


def check_fsdp2_votes():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        state = mpisign.fsdp.MajorityVoteState(None, ABSTAINING)
        model = Net().to(dtype)
        for layer in model.children():
            fully_shard(layer)
        fully_shard(model)
        mpisign.fsdp.register_comm_hook(model, state)
        for step in range(3):
            want = expected(Net().to(dtype), step)
            model.zero_grad()
            if step == 1:
                loss = loss_of(model, step, nan=worlds.RANK == 1)
                error = raised(NaNError, loss.backward)
                assert "on rank 1" in error and len(set(gathered(error))) == 1, error
                continue
            loss_of(model, step).backward()
            for name, p in model.named_parameters():
                assert torch.equal(p.grad.full_tensor(), want[name]), (dtype, step, name)


def check_averages_before_votes():
    """In as many backward passes as are asked for, whatever the number of units."""

    def mean(net, step):
        all_ranks = everyone(local_gradients(net, step))
        return {n: sum(g[n] for g in all_ranks) / len(all_ranks) for n in all_ranks[0]}

    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD, None):
        state = mpisign.fsdp.MajorityVoteState(None, ABSTAINING, warmup_steps=2)
        net = Net()
        if strategy is None:
            for layer in net.children():
                fully_shard(layer)
            model = fully_shard(net)
            mpisign.fsdp.register_comm_hook(model, state)
        else:
            model = sharded(net, state, strategy)
        for step in range(4):
            want = (mean if step < 2 else expected)(Net(), step)
            model.zero_grad()
            if step == 1:
                state.load_state_dict(state.state_dict())
            loss_of(model, step).backward()
            if strategy is None:
                got = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
            else:
                got = whole(model, strategy)
            for name, grad in want.items():
                same = torch.allclose(got[name].view_as(grad), grad, rtol=0, atol=1e-6 * (step < 2))
                assert same, (strategy, step, name)
        assert state.state_dict()["passes"] == 2


def check_two_optimizers_and_rates_that_part_in_warm_up():
    """What averages are stepped on with is compared as for votes, of all optimizers."""
    net = Net()
    state = mpisign.fsdp.MajorityVoteState(compression="sign", warmup_steps=9)
    model = sharded(net, state, ShardingStrategy.FULL_SHARD)
    held = list(model.parameters())
    optimizers = [torch.optim.SGD(held[:2], lr=0.1), torch.optim.SGD(held[2:], lr=0.2)]

    def step(i):
        model.zero_grad()
        loss_of(model, i).backward()
        for optimizer in optimizers:
            optimizer.step()

    for i in range(3):
        step(i)
    optimizers[1].param_groups[0]["lr"] += 0.1 * (worlds.RANK == 1)
    error = raised(CollectiveError, lambda: step(3))
    assert "learning rates" in error, error


def check_complex_parameters():
    class Phases(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = torch.nn.Parameter(torch.ones(8, dtype=torch.cfloat))

        def forward(self, x):
            return (x * self.turn).abs().sum()

    model = fully_shard(Phases())  # FSDP1 refuses them itself
    mpisign.fsdp.register_comm_hook(model, mpisign.fsdp.MajorityVoteState(None, "sign"))
    error = raised(CollectiveError, lambda: model(torch.ones(8)).backward())
    assert "must have dtype float32" in error and len(set(gathered(error))) == 1, error


def check_hybrid_sharding_is_refused():
    mesh = init_device_mesh("cpu", (1, worlds.SIZE), mesh_dim_names=("replicate", "shard"))
    model = fully_shard(Net(), mesh=mesh)
    state = mpisign.fsdp.MajorityVoteState()
    error = raised(ValueError, lambda: mpisign.fsdp.register_comm_hook(model, state))
    assert "got hybrid sharding" in error, error


def check_random_bits_go_on_after_a_checkpoint():
    compressor = StochasticSign(bound=1.0)
    strategy = ShardingStrategy.FULL_SHARD

    def after(steps, state):
        model = sharded(Net(), state, strategy)
        for _ in range(steps):
            model.zero_grad()
            (model(batch(7)) ** 2).mean().backward()
        return whole(model, strategy)

    state = mpisign.fsdp.MajorityVoteState(None, compressor, seed=3)
    after(2, state)
    kept = state.state_dict()
    third = after(1, state)
    again = mpisign.fsdp.MajorityVoteState(None, compressor, seed=3)
    again.load_state_dict(kept)
    same = after(1, again)
    other = after(1, again)
    assert all(torch.equal(third[n], same[n]) for n in third)
    assert not all(torch.equal(third[n], other[n]) for n in third)
