"""mpisign.optim beside DeepSpeed 0.19.6's own optimizers, on ranks that are threads.

DeepSpeed's classes are unchanged. Their ranks have a stub of its engine, which says whether
gradients are averaged, and in place of its communication backends, which need a GPU, either our
compressed mean or the arithmetic of its own backend with NumPy's packbits.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from launchers import ROOT

import mpisign
from mpisign import optim, simulation
from mpisign.bench.peers import deepspeed as peer

SHAPES = [(16, 32), (256,), (3, 256)]
BLOCK = 256
FREEZE = 12
STEPS = 24
LAMB = {"max_coeff": 10.0, "min_coeff": 0.01, "coeff_beta": 0.9, "factor_max": 4.0}
LAMB |= {"factor_min": 0.5, "factor_threshold": 0.1}
LOCAL = {"var_update_scaler": 3, "local_step_scaler": 3, "local_step_clipper": 4}
_ONE = threading.Lock()
COMMON = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05}


@pytest.fixture(autouse=True, scope="module")
def deepspeed_of_ci():
    """Where .ci/run puts DeepSpeed, out of sight of what would take it for the whole of it."""
    folder = str(ROOT / ".venv" / "deepspeed")
    sys.path.append(folder)
    yield
    sys.path.remove(folder)
    for name in [n for n in sys.modules if n.split(".")[0] == "deepspeed"]:
        del sys.modules[name]


def theirs_of(name: str) -> tuple[Any, type]:
    """(module, class) of DeepSpeed's optimizer."""
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("DeepSpeed is not installed: pip install deepspeed==0.19.6")
    if version != peer.VERSION:
        pytest.skip(f"DeepSpeed {version} has no 1-bit optimizers, {peer.VERSION} is the last")
    file, kind = {
        "OneBitAdam": ("adam", "OnebitAdam"),
        "ZeroOneAdam": ("zoadam", "ZeroOneAdam"),
        "OneBitLamb": ("lamb", "OnebitLamb"),
    }[name]
    with peer._quiet():
        module = importlib.import_module(f"deepspeed.runtime.fp16.onebit.{file}")
    return module, getattr(module, kind)


class Exchange:
    """``put(rank, x)``: every rank's x, by rank."""

    def __init__(self, p: int) -> None:
        self._barrier, self._rows = threading.Barrier(p), [None] * p

    def put(self, rank: int, x: Any) -> list[Any]:
        self._rows[rank] = x
        self._barrier.wait(60)
        rows = list(self._rows)
        self._barrier.wait(60)
        return rows


class OurBackend:
    """DeepSpeed's interface over ``mpisign.compressed_mean``."""

    def __init__(self, comm: mpisign.Communicator) -> None:
        self.comm, self.size, self.states = comm, comm.size, {}

    def compressed_allreduce(self, x: Any, worker: Any, server: Any, rank: int) -> Any:
        if id(worker) not in self.states:
            state = mpisign.CompressedMeanState(x.numel(), self.size, self.comm.rank, BLOCK)
            self.states[id(worker)] = worker, server, state
        _, _, state = self.states[id(worker)]
        if not worker.any():  # DeepSpeed has reset the errors
            state.residual[:], state.owner_residual[:] = 0, 0
        mean = self.comm.compressed_mean(x.reshape(-1).clone(), state).view(x.shape)
        worker.fill_(1.0)
        return x.copy_(mean)


def their_backend(rank: int, size: int, exchange: Exchange) -> Any:
    """DeepSpeed's CompressedBackend, whose two collectives are of threads."""
    with peer._quiet():
        module = importlib.import_module("deepspeed.runtime.comm.compressed")
    backend = module.CompressedBackend.__new__(module.CompressedBackend)
    backend.rank, backend.size, backend.world_group = rank, size, None
    backend.packer = peer._PACKER
    return backend


def collectives(ranks: threading.local, exchange: Exchange) -> SimpleNamespace:
    def all_to_all_single(received: Any, sent: Any, group: Any) -> None:
        for i, row in enumerate(exchange.put(ranks.rank, sent.clone())):
            received[i] = row[ranks.rank]

    def all_gather(received: Any, sent: Any, group: Any) -> None:
        for to, row in zip(received, exchange.put(ranks.rank, sent.clone()), strict=True):
            to.copy_(row.reshape(to.shape))

    return SimpleNamespace(all_to_all_single=all_to_all_single, all_gather=all_gather)


def start(rank: int) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=g)) for s in SHAPES]


def gradients(rank: int, step: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1000 * rank + step)
    return [torch.randn(s, generator=g) + 0.3 for s in SHAPES]


def options_of(name: str, theirs: bool) -> dict[str, Any]:
    # DeepSpeed's first step moves nothing, but counts; for 0/1 Adam the test takes the count back.
    if name == "ZeroOneAdam":
        return {**COMMON, **LOCAL, "var_freeze_step": FREEZE - theirs}
    return {**COMMON, **(LAMB if name == "OneBitLamb" else {}), "freeze_step": FREEZE + theirs}


def their_run(rank: int, size: int, name: str, backend: Any, average: Any, grads: Any) -> Any:
    """Parameters after each step of DeepSpeed's."""
    module, kind = theirs_of(name)
    engine = SimpleNamespace(mpu=None, local_rank=rank, enable_backward_allreduce=True)
    dist = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
    compressed = importlib.import_module("deepspeed.runtime.comm.compressed")
    with mock.patch.object(module, "dist", dist):
        # One rank at a time: a patch is of the module, which ranks that are threads share.
        with _ONE, mock.patch.object(compressed, "CompressedBackend", lambda mpu: backend):
            ps = start(rank)
            o = kind(ps, engine, comm_backend_name="compressed", **options_of(name, True))
        history = []
        for t in range(STEPS + 1):
            own = grads(rank, max(0, t - 1), ps)
            for i, p in enumerate(ps):
                p.grad = own[i].clone()
                if engine.enable_backward_allreduce:
                    p.grad = average(rank, p.grad)
            o.step()
            if t == 0 and name == "ZeroOneAdam":
                for p in ps:
                    o.state[p]["step"] = 0
                engine.enable_backward_allreduce = True
            history.append([p.detach().clone() for p in ps])
    return history[1:]


def our_run(comm: mpisign.Communicator, name: str, grads: Any) -> Any:
    ps = start(comm.rank)
    sizes = {} if name == "OneBitLamb" else {"bucket_size": 1}
    o = getattr(optim, name)(
        ps, comm=comm, skip=None, block=BLOCK, **sizes, **options_of(name, False)
    )
    history = []
    for t in range(STEPS):
        for p, g in zip(ps, grads(comm.rank, t, ps), strict=True):
            p.grad = g.clone()
        o.step()
        history.append([p.detach().clone() for p in ps])
    return history


def given(rank: int, step: int, ps: Any) -> list[torch.Tensor]:
    return gradients(rank, step)


def differ(a: Any, b: Any) -> float:
    """The largest difference of parameters."""
    return max(float((x - y).detach().abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["OneBitAdam", "ZeroOneAdam", "OneBitLamb"])
def test_trajectory_over_our_compressed_mean(name):
    theirs_of(name)
    for p in (1, 2):

        def theirs(comm, p=p):
            def average(rank, g):
                # A compressed mean would not do: DeepSpeed's engine averages in full.
                return sum(r.reshape(g.shape) for r in gathered(comm, g)) / p

            return their_run(comm.rank, p, name, OurBackend(comm), average, given)

        ours = simulation.run(p, our_run, name, given)
        other = simulation.run(p, theirs)
        for t in range(STEPS):
            for mine, its in zip(ours, other, strict=True):
                if p == 1 and name == "ZeroOneAdam" and t >= 4:
                    continue  # alone its momentum stays where v does
                moved = differ(mine[t], start(0))
                assert differ(mine[t], its[t]) < 1e-5 * max(1, moved), (p, t)


def gathered(comm: mpisign.Communicator, g: torch.Tensor) -> list[torch.Tensor]:
    """All ranks' tensors, by the exchange of threads that the communicator is."""
    from mpisign.transports.tagged import TaggedTransport

    rows = np.empty((comm.size, 4 * g.numel()), dtype=np.uint8)
    own = g.contiguous().view(-1).view(torch.uint8).numpy()

    def steps(wire: TaggedTransport):
        yield wire.allgather(own, rows)

    comm.engine.progress.submit("gathered", steps).wait()
    return [torch.from_numpy(row.copy()).view(torch.float32) for row in rows]


def quadratic(rank: int, step: int, ps: Any) -> list[torch.Tensor]:
    """Of 0.5 x'x, with noise of its own on each rank."""
    noise = gradients(rank, step)
    return [p.detach() + 0.3 * (n - 0.3) for p, n in zip(ps, noise, strict=True)]


@pytest.mark.parametrize("name", ["OneBitAdam", "OneBitLamb"])
def test_trajectory_over_deepspeeds_own_arithmetic(name):
    theirs_of(name)
    p, local, exchange, found = 2, threading.local(), Exchange(2), [None, None]
    with peer._quiet():
        compressed = importlib.import_module("deepspeed.runtime.comm.compressed")

    def average(rank, g):
        return sum(exchange.put(rank, g.clone())) / p

    backends = [their_backend(r, p, exchange) for r in range(p)]  # a run puts others in their place

    def work(rank):
        local.rank = rank
        found[rank] = their_run(rank, p, name, backends[rank], average, quadratic)

    with mock.patch.object(compressed, "dist", collectives(local, exchange)):
        threads = [threading.Thread(target=work, args=(r,)) for r in range(p)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ours = simulation.run(p, our_run, name, quadratic)
    for t in range(FREEZE):
        assert differ(ours[0][t], found[0][t]) < 1e-5
    value = lambda ps: sum(float((x * x).sum()) for x in ps) / 2  # noqa: E731
    first, mine, its = value(start(0)), value(ours[0][-1]), value(found[0][-1])
    assert mine < 0.9 * first and its < 0.9 * first
    assert abs(mine - its) < 0.05 * first
