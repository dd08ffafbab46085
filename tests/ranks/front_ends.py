"""One small interface over every front end, and ranks that check promises together.

Imports Horovod and MPI only where a job uses them, so that tests/test_promises.py may import this.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from dataclasses import dataclass
from typing import Any

import torch

#: In this order in tables. "ddp_bare": the hook's state without ``optimizer=``.
TORCH = ("plain", "overlap", "ddp", "ddp_bare", "fsdp1", "fsdp2")
HOROVOD = ("horovod", "hvd_named", "hvd_counters")
FRONTS = (*TORCH, *HOROVOD)
HOOKS = ("ddp", "ddp_bare")
SHARDED = ("fsdp1", "fsdp2")
REPLICATED = tuple(f for f in FRONTS if f not in SHARDED)
#: What each launcher starts: over Gloo and over MPI.
JOBS = {"torchrun": TORCH, "mpirun": ("plain", "overlap", *HOROVOD)}
#: Needs no random bits, so that a line of torch knows the result.
EXACT = {"zeros": "abstain", "ties": "zero"}


class Ended(AssertionError):
    """Another rank ended a promise while this one still asked for what that rank holds."""


@dataclass
class World:
    """This rank among all of a job. ``group``: what front ends connect by, None for the default."""

    rank: int
    size: int
    allgather: Any
    end: Any  # called once, by all ranks
    horovod: bool = False
    group: Any = None

    def gather(self, x: Any, end: bool = False) -> list[Any]:
        """Every rank's ``x``. Ranks that have come to the end of a promise end the others'."""
        rows = self.allgather((end, x))
        if not end and any(ended for ended, _ in rows):
            raise Ended(f"other ranks ended: {[r for r, (ended, _) in enumerate(rows) if ended]}")
        return [x for _, x in rows]

    def finish(self, x: Any) -> list[Any]:
        """Every rank's ``x`` at the end of a promise, once all ranks have come there."""
        while True:
            rows = self.allgather((True, x))
            if all(ended for ended, _ in rows):
                return [x for _, x in rows]

    def renew(self) -> None:
        """Connects the ranks anew, after something broke."""
        import mpisign

        base = None
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            base = "mpi"
        self.group = mpisign.Communicator(base)


def begin(launcher: str) -> World:
    """Starts what connects this job's ranks."""
    torch.set_num_threads(1)
    if launcher == "torchrun":
        import torch.distributed as dist

        dist.init_process_group("gloo")

        def allgather(x):
            rows = [None] * dist.get_world_size()
            dist.all_gather_object(rows, x)
            return rows

        return World(dist.get_rank(), dist.get_world_size(), allgather, dist.destroy_process_group)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    try:
        import horovod.torch as hvd
    except ImportError:
        return World(comm.rank, comm.size, comm.allgather, comm.Barrier)
    hvd.init()
    return World(comm.rank, comm.size, comm.allgather, hvd.shutdown, horovod=True)


def promise(*fronts):
    """Marks what a step promises on these front ends: a function of the world and a front end."""

    def mark(function):
        function.fronts = tuple(f for f in FRONTS if f in fronts)
        return function

    return mark


class Net(torch.nn.Module):
    """Odd sizes; ``extra`` is used where ``forward`` is told to, ``never`` never."""

    def __init__(self, seed=0, extra=False):
        super().__init__()
        torch.manual_seed(seed)
        self.last = torch.nn.Linear(13, 3)
        self.first = torch.nn.Linear(7, 13)
        self.middle = torch.nn.Linear(13, 13, bias=False)
        if extra:
            self.extra = torch.nn.Linear(13, 13, bias=False)
            self.never = torch.nn.Linear(2, 1, bias=False)

    def forward(self, x, extra=False):
        x = self.middle(self.first(x).tanh()).tanh()
        return self.last(self.extra(x) if extra else x)


def batch(step, rank):
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(1000 * step + rank))


def loss(model, step, rank, **options):
    """Another one on every rank and in every step."""
    x = batch(step, rank)
    return (model(x, **options) - x[:, :3]).square().mean()


@dataclass
class Wrapped:
    """A model on one rank, wrapped. ``votes``: what holds the compressor's state and the steps."""

    front: str
    net: torch.nn.Module
    model: Any
    optimizer: torch.optim.Optimizer
    votes: Any

    @property
    def steps(self) -> int:
        """Steps that the compressor has counted."""
        if self.front in HOOKS:
            return self.votes.steps
        if self.front in ("hvd_named", "hvd_counters"):
            return self.votes.state_dict()["mpisign"]["step"]
        return self.votes.state_dict()["mpisign"]["steps"]

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The compressor's state on this rank by parameter."""
        state = self.votes.state_dict()
        if self.front in HOOKS:
            return state["state"]
        if self.front in ("hvd_named", "hvd_counters"):
            return {k: v for k, v in state.items() if k != "mpisign"}
        return state["mpisign"]["state"]

    def train(self, *losses):
        """One step on a loss of each function, as most loops take it."""
        self.optimizer.zero_grad()
        for function in losses:
            function(self.model).backward()
        self.optimizer.step()

    def discard(self):
        """Throws computed gradients away: under Horovod by its own recipe."""
        if self.front in HOROVOD:
            self.optimizer.synchronize()
        self.optimizer.zero_grad()

    def forget(self):
        """After an error: the gradients of that step go, and what Horovod's own optimizer kept."""
        if self.front in ("hvd_named", "hvd_counters"):
            self.optimizer._handles.clear()
        self.optimizer.zero_grad()

    def save(self) -> bytes:
        """This rank's checkpoint."""
        file = io.BytesIO()
        saved = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.votes is not self.optimizer:
            saved["votes"] = self.votes.state_dict()
        torch.save(saved, file)
        return file.getvalue()

    def load(self, checkpoint: bytes):
        saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.votes is not self.optimizer:
            self.votes.load_state_dict(saved["votes"])

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of the whole parameters by name."""
        if self.front == "fsdp1":
            from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

            with FSDP.summon_full_params(self.model, writeback=False):
                return {
                    n.replace("_fsdp_wrapped_module.", ""): p.detach().clone()
                    for n, p in self.model.named_parameters()
                }
        if self.front == "fsdp2":
            return {n: p.full_tensor().detach() for n, p in self.net.named_parameters()}
        return {n: p.detach().clone() for n, p in self.net.named_parameters()}


def settings_of(compression: Any) -> tuple[str, dict[str, Any]]:
    """(name, settings) of "signum" or ("signum", {...})."""
    return (compression, {}) if isinstance(compression, str) else compression


def make(
    world: World,
    front: str,
    net: torch.nn.Module | None = None,
    compression: Any = ("signum", EXACT),
    *,
    lr: float = 0.125,
    inner: Any = None,
    parameters: Any = None,
    prefix: str = "",
    ddp: dict[str, Any] | None = None,
    **options: Any,
) -> Wrapped:
    """``net`` wrapped by a front end.

    ``compression``: a name, or a name with settings. ``inner``: makes the optimizer, default SGD.
    ``parameters``: the optimizer's, default all. ``prefix``: of names, for a second model.
    ``options``: the front end's.
    """
    import mpisign

    net = Net() if net is None else net
    inner = functools.partial(torch.optim.SGD, lr=lr) if inner is None else inner
    name, settings = settings_of(compression)
    if front in SHARDED:
        return _sharded(world, front, net, name, settings, inner, options)
    optimizer = inner(list(net.parameters()) if parameters is None else parameters)
    named = [(prefix + n, p) for n, p in net.named_parameters()]
    compressor = getattr(mpisign.Compression, name)(**settings)
    if front in ("plain", "overlap"):
        mpisign.DistributedOptimizer(
            optimizer,
            named,
            comm=world.group,
            compression=compressor,
            overlap=front == "overlap",
            **options,
        )
        return Wrapped(front, net, net, optimizer, optimizer)
    if front in HOOKS:
        return _hooked(world, front, net, optimizer, named, compressor, ddp, options)
    import horovod.torch as hvd

    import mpisign.horovod

    if front == "horovod":
        made = mpisign.horovod.DistributedOptimizer(
            optimizer, named_parameters=named, compression=compressor, **options
        )
        return Wrapped(front, net, net, made, made)
    kept = {k: options.pop(k) for k in ("seed", "skip", "warmup_steps") if k in options}
    given = [named] if front == "hvd_named" else []
    votes = getattr(mpisign.horovod.Compression, name)(*given, **settings, **kept)
    made = hvd.DistributedOptimizer(optimizer, named_parameters=named, compression=votes, **options)
    return Wrapped(front, net, net, made, votes)


def _hooked(world, front, net, optimizer, named, compressor, ddp, options):
    import mpisign.ddp

    state = mpisign.ddp.MajorityVoteState(
        world.group,
        compressor,
        named_parameters=named,
        **{} if front == "ddp_bare" else {"optimizer": optimizer},
        **options,
    )
    model = torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.0005, **(ddp or {}))
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return Wrapped(front, net, model, optimizer, state)


def _sharded(world, front, net, name, settings, inner, options):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    import mpisign.fsdp

    # The promises ask for signum; what has no state is what these hooks take.
    compressor = getattr(mpisign.Compression, "sign" if name == "signum" else name)(**settings)
    state = mpisign.fsdp.MajorityVoteState(world.group, compressor, **options)
    if front == "fsdp1":
        net = FullyShardedDataParallel(
            net,
            device_id=torch.device("cpu"),
            auto_wrap_policy=lambda module, recurse, nonwrapped_numel: (
                recurse or isinstance(module, torch.nn.Linear)
            ),
            use_orig_params=True,
        )
        net.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)
    else:
        for layer in net.children():
            fully_shard(layer)
        fully_shard(net)
        mpisign.fsdp.register_comm_hook(net, state)
    return Wrapped(front, net, net, inner(list(net.parameters())), state)


class Expected:
    """What a model must become: the majority of all ranks' signs, or of their momenta's.

    Plays the ranks by torch alone. ``beta``: of Signum's momentum, 0 for Sign.
    """

    def __init__(self, world, net, beta=0.0, lr=0.125):
        import copy

        self.world, self.net, self.beta, self.lr = world, copy.deepcopy(net), beta, lr
        self.momenta = [{} for _ in range(world.size)]

    def gradients(self, *losses):
        """Every rank's own gradients of the sum of its losses, by name; zeros where it has none."""
        self.net.zero_grad()
        for function in losses:
            function(self.net).backward()
        mine = {n: p.grad for n, p in self.net.named_parameters()}
        return self.world.gather(mine)

    def train(self, *losses, skip=()):
        every = self.gradients(*losses)
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                if name in skip or all(g[name] is None for g in every):
                    continue
                total = torch.zeros_like(p)
                for g, momenta in zip(every, self.momenta, strict=True):
                    grad = torch.zeros_like(p) if g[name] is None else g[name]
                    m = momenta.setdefault(name, torch.zeros_like(p))
                    m.mul_(self.beta).add_(grad, alpha=1 - self.beta)
                    total += m.sign()
                p.sub_(self.lr * total.sign())

    def check(self, wrapped, what=""):
        """The parameters are these, bit for bit."""
        got = wrapped.parameters()
        for name, p in self.net.named_parameters():
            same = torch.equal(got[name], p.detach())
            off = int((got[name] != p.detach()).sum())
            assert same, f"{what}: {off} of {p.numel()} coordinates of {name} are wrong"


def digest(tensors) -> str:
    """All bits of some tensors."""
    state = hashlib.blake2b(digest_size=8)
    for t in tensors:
        x = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
        state.update(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def same_replicas(world, wrapped, what=""):
    """All ranks hold the same parameters."""
    digests = world.gather(digest(wrapped.parameters().values()))
    assert len(set(digests)) == 1, f"{what}: replicas differ: {digests}"


def attempt(world, function) -> str:
    """The error that all ranks raise, the same; "" if none of them does."""
    try:
        function()
        mine = ""
    except Exception as error:
        mine = f"{type(error).__name__}: {error}"
    every = world.gather(mine)
    assert len(set(every)) == 1, f"ranks raised {every}"
    return mine


def same_error(world, function, *texts) -> str:
    """``function`` raises the same error on every rank, which holds every one of ``texts``."""
    raised = attempt(world, function)
    assert raised, "nothing was raised"
    for text in texts:
        assert text in raised, f"no {text!r} in {raised!r}"
    return raised
