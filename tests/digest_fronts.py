"""The cases of tests/digests.py that need torch.distributed or Horovod: their front ends."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import torch
from digest_cases import NAMES, SETTINGS, Cases, Net, loss_of
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import mpisign.ddp
import mpisign.fsdp
from mpisign import compressors as c

STATELESS = {
    "sign": "sign",
    "sign abstain": c.Sign(zeros="abstain", ties="zero"),
    "noisy_sign": "noisy_sign",
    "stochastic_sign": c.StochasticSign(bound=1.0),
}


def torch_cases(size: int) -> Cases:
    """DDP's hook and FSDP's, over the default process group."""

    def ddp(name: str, compression: Any, **how: Any) -> Any:
        wrap = {k: how.pop(k) for k in ("gradient_as_bucket_view",) if k in how}

        def case(w: Any) -> Any:
            net = Net()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
            state = mpisign.ddp.MajorityVoteState(
                None,
                compression,
                seed=3,
                optimizer=optimizer,
                named_parameters=net.named_parameters(),
                **how,
            )
            model = DistributedDataParallel(net, **wrap)
            model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
            grads = []
            for step in range(3):
                optimizer.zero_grad()
                loss_of(model, step, w.rank).backward()
                grads.append([p.grad.clone() for p in net.parameters()])
                optimizer.step()
            saved = pickle.loads(pickle.dumps(state)).state_dict()
            return net.state_dict(), grads, state.state_dict(), saved

        return f"ddp/{name}", case

    for name in NAMES:
        if name == "detox" and size < 3:
            continue
        yield ddp(name, name)
        yield ddp(f"{name} small buckets", name, bucket_size=500, gradient_as_bucket_view=True)
    for name, compressor in SETTINGS.items():
        if "local" not in name:
            yield ddp(name, compressor, skip=None)
    yield ddp("signum alltoall", "signum", algorithm="alltoall")

    def fsdp1(name: str, compression: Any, strategy: Any) -> Any:
        def case(w: Any) -> Any:
            state = mpisign.fsdp.MajorityVoteState(None, compression, seed=3)
            model = FullyShardedDataParallel(
                Net(),
                sharding_strategy=strategy,
                use_orig_params=True,
                device_id=torch.device("cpu"),
            )
            model.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)
            found = []
            for step in range(3):
                model.zero_grad()
                loss_of(model, step, w.rank).backward()
                whole = contextlib.nullcontext()
                if strategy != ShardingStrategy.NO_SHARD and w.size > 1:
                    whole = FullyShardedDataParallel.summon_full_params(model, with_grads=True)
                with whole:
                    found.append([p.grad.clone() for p in model.parameters()])
            return found, state.state_dict()

        return f"fsdp1 {strategy.name}/{name}", case

    def fsdp2(name: str, compression: Any, dtype: Any = torch.float32) -> Any:
        def case(w: Any) -> Any:
            state = mpisign.fsdp.MajorityVoteState(None, compression, seed=3)
            model = Net(dtype)
            for layer in model.children():
                fully_shard(layer)
            fully_shard(model)
            mpisign.fsdp.register_comm_hook(model, state)
            found = []
            for step in range(3):
                model.zero_grad()
                loss_of(model, step, w.rank).backward()
                found.append([p.grad.full_tensor().clone() for p in model.parameters()])
            return found, state.state_dict()

        return f"fsdp2/{name} {dtype}", case

    for name, compression in STATELESS.items():
        for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD):
            yield fsdp1(name, compression, strategy)
        yield fsdp2(name, compression)
    yield fsdp2("sign", "sign", torch.bfloat16)


def horovod_cases(size: int) -> Cases:
    """Horovod's optimizer with compressions of ours, and ours."""
    try:
        import horovod.torch as hvd
    except ImportError:
        return
    import mpisign.horovod

    def train(name: str, make: Any, passes: int = 1) -> Any:
        def case(w: Any) -> Any:
            if not hvd.is_initialized():
                hvd.init()
            net = Net()
            optimizer, state = make(net, torch.optim.SGD(net.parameters(), lr=0.02))
            for step in range(3):
                optimizer.zero_grad()
                for i in range(passes):
                    loss_of(net, passes * step + i, w.rank).backward()
                optimizer.step()
            return net.state_dict(), state(optimizer)

        return f"horovod/{name}", case

    def ours(compression: Any, **how: Any) -> Any:
        def make(net: Any, inner: Any) -> Any:
            optimizer = mpisign.horovod.DistributedOptimizer(
                inner, net.named_parameters(), compression=compression, **how
            )
            return optimizer, lambda o: o.state_dict().get("mpisign")

        return make

    def theirs(name: str, named: bool) -> Any:
        def make(net: Any, inner: Any) -> Any:
            compression = getattr(mpisign.horovod.Compression, name)
            compression = compression(net.named_parameters()) if named else compression(seed=2)
            optimizer = hvd.DistributedOptimizer(
                inner, net.named_parameters(), compression=compression
            )
            return optimizer, lambda o: getattr(compression, "state_dict", dict)()

        return make

    for name in NAMES:
        if name == "none" or (name == "detox" and size < 3):
            continue
        yield train(f"ours/{name}", ours(name))
        yield train(f"ours/{name} buckets", ours(name, bucket_size=500))
        yield train(f"hvd named/{name}", theirs(name, True))
        yield train(f"hvd/{name}", theirs(name, False))
    yield train("ours/signum twice", ours("signum", backward_passes_per_step=2), 2)
