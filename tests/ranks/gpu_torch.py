"""Planes of devices over a torch group of our own, with Gloo in the place of NCCL: torchrun ranks.

Started by tests/test_gpu_torch.py. The last check ends rank 1 in the middle of a vote.
"""

from __future__ import annotations

import os
import sys
import time

import ddp_worlds as worlds
import numpy as np
import reference as ref
import samples
import torch
import torch.distributed as dist
import torch_on_host
from ddp_worlds import Net, loss_of
from torch.nn.parallel import DistributedDataParallel

import mpisign
import mpisign.ddp
from mpisign import planes
from mpisign.backend import arrays
from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.vote_task import VoteTask
from mpisign.compressors import Signum
from mpisign.errors import CollectiveError, WireError
from mpisign.stats import stats
from mpisign.transports.tagged import TaggedTransport
from mpisign.transports.torch import TorchTransport
from mpisign.transports.torch_device import TorchDeviceTransport


def count(group=None):
    """How many collectives a group of torch.distributed's has carried."""
    return (group or dist.group.WORLD)._get_sequence_number_for_group()


def booked():
    """Bytes sent and received, as ``mpisign.stats`` has them."""
    exchange = stats().as_dict()["exchange"]
    return exchange["sent"], exchange["received"]


def make_wire():
    control = TorchTransport(seconds=30)
    connect = lambda: torch_on_host.gloo_group(  # noqa: E731
        dist.PrefixStore("device", control._store.store), control.rank, control.size,
        list(range(control.size)), 30,
    )  # fmt: skip
    streams = torch_on_host.HostStreams()
    return TorchDeviceTransport(control, connect, timeout=30, streams=streams)


def blank(length):
    return torch.full((length,), 0xA5, dtype=torch.uint8)


def content(length, *seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(256, size=length, dtype=np.uint8))


def check_exchanges():
    wire = make_wire()
    rank, size = wire.rank, wire.size
    before, made = count(), len(torch_on_host.GROUPS)
    assert wire.start_exchange([], [], 0).wait(30)  # starts the group
    for turn, most in enumerate((1, 0, 4097, 100_003)):
        n = lambda a, b, i, m=most, t=turn: (a * 31 + b * 17 + i * 7 + t) % (m + 1)  # noqa: E731
        whole = content(3 * most + 9, rank, turn)
        sends = [(r, whole[3 + i :][: n(rank, r, i)]) for r in wire.others for i in range(2)]
        recvs = [(r, blank(n(r, rank, i))) for r in wire.others for i in range(2)]
        sent, received = booked()
        pending = wire.start_exchange(sends, recvs, 3)
        assert pending.wait(30) and pending.done()
        now = booked()
        assert now[0] - sent == sum(part.nbytes for _, part in sends)
        assert now[1] - received == sum(part.nbytes for _, part in recvs)
        parts = iter(recvs)
        for r in wire.others:
            for i in range(2):
                want = content(3 * most + 9, r, turn)[3 + i :][: n(r, rank, i)]
                assert torch.equal(next(parts)[1], want), (most, r, i)
    # Into one array, some ranks with nothing; a copy is needed neither here nor there.
    stack = torch.full((size, 5), 7, dtype=torch.uint8)
    own = torch.full((5,), rank, dtype=torch.uint8)
    to = [(0, own)] if rank else []
    of = [(r, stack[r]) for r in range(1, size)] if rank == 0 else []
    assert wire.start_exchange(to, of, 0).wait(30)
    want = [[7 if r == 0 or rank else r] * 5 for r in range(size)]
    assert stack.tolist() == want
    assert len(torch_on_host.GROUPS) == made + 1 and count() == before
    assert torch_on_host.GROUPS[-1]._get_sequence_number_for_group() > 5


def check_allgathers_and_sums():
    wire = make_wire()
    rank, size = wire.rank, wire.size
    assert wire.start_exchange([], [], 0).wait(30)
    for length, extra in ((1, 0), (1000, 0), (1000, 3), (0, 2), (0, 0)):
        rows = torch.full((size, length + size * extra), 9, dtype=torch.uint8)
        rows = [rows[r][: length + r * extra] for r in range(size)]
        own = content(length + rank * extra, rank)
        sent = booked()[0]
        assert wire.start_allgather(own, rows, 0).wait(30)
        assert booked()[0] - sent == (size - 1) * own.nbytes
        assert all(torch.equal(row, content(row.nbytes, r)) for r, row in enumerate(rows))
    host = [np.zeros(4, np.uint8) for _ in range(size)]  # goes by the control group
    ours = torch_on_host.GROUPS[-1]._get_sequence_number_for_group()
    assert wire.start_allgather(np.full(4, rank, np.uint8), host, 0).wait(30)
    assert all((row == r).all() for r, row in enumerate(host))
    assert torch_on_host.GROUPS[-1]._get_sequence_number_for_group() == ours
    for dtype in (torch.float32, torch.float64):
        values = torch.arange(1001, dtype=dtype) + rank
        assert wire.start_allreduce(values, 0).wait(30)
        assert torch.equal(values, size * torch.arange(1001, dtype=dtype) + sum(range(size)))


def check_votes_are_those_of_numpy():
    wire = make_wire()
    rank, size = wire.rank, wire.size
    for length in (1, 33, 4097, 100_003):
        xs = [samples.awkward(length, 100 + r) for r in range(size)]
        for zeros, ties in (("positive", "positive"), ("random", "random"), ("abstain", "zero")):
            want = ref.majority_vote(xs, zeros, ties, seed=9, step=4).astype(np.float32)
            x, out = torch.from_numpy(xs[rank].copy()), torch.empty(length)

            def pack(a, b, to, x=x, zeros=zeros):
                how = {"zeros": zeros, "seed": 9, "step": 4, "rank": rank, "offset": 8 * a}
                planes.pack_census(x[8 * a : 8 * b], **how, out=to if len(to) == 2 else to[0])

            def unpack(a, b, result, out=out):
                planes.unpack(result if len(result) == 2 else result[0], out=out[8 * a : 8 * b])

            like = arrays.view("vote", "x", x)
            task = VoteTask(length, 1 + (zeros == "abstain"), ties, seed=9, step=4, like=like)
            task.read, task.write = pack, unpack
            for algorithm in (allgather_vote, alltoall_vote):
                out.fill_(7)
                for pending in algorithm(TaggedTransport(wire, 1, like), task):
                    assert pending.wait(30)
                assert samples.same(out.numpy(), want), (algorithm.__name__, length, zeros)


def check_a_group_without_host_memory():
    """The application's own group, say NCCL alone: headers and votes of arrays take another."""
    group = dist.new_group(backend="cuda:gloo")
    comm = mpisign.Communicator(group, timeout=30)
    before = count(group), count()
    xs = [samples.awkward(1001, r) for r in range(comm.size)]
    vote = comm.majority_vote(xs[comm.rank], seed=3)
    want = ref.majority_vote(xs, "random", "random", seed=3, step=0)
    assert samples.same(vote, want.astype(np.float32))
    assert (count(group), count()) == before
    comm.free()


def trained(steps=5):
    """Gradients and parameters of a model under DDP, after each step."""
    model = DistributedDataParallel(Net(), bucket_cap_mb=0.0005)
    state = mpisign.ddp.MajorityVoteState(None, Signum(momentum=0.9), seed=5)
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found, carried = [], []
    for step in range(steps):
        optimizer.zero_grad()
        before = count()
        loss_of(model, step).backward()
        carried.append(count() - before)
        optimizer.step()
        for p in model.parameters():
            found += [p.grad.clone(), p.detach().clone()]
    return found, carried


def check_ddp_sends_nothing_of_ours_by_its_own_group():
    mpisign.majority_vote(np.ones(3, np.float32), comm=dist.group.WORLD)  # makes connections
    plain, by_host = trained()
    torch_on_host.install()
    made = len(torch_on_host.GROUPS)
    on_device, by_device = trained()
    assert all(map(torch.equal, plain, on_device)) and len(plain) == len(on_device)
    # DDP itself tells ranks of its new buckets, once.
    assert by_device == by_host and by_device[2:] == [0, 0, 0], (by_device, by_host)
    own = torch_on_host.GROUPS[-1]._get_sequence_number_for_group()
    assert len(torch_on_host.GROUPS) == made + 1 and own >= 2 + 5, own
    again, _ = trained()  # another model over the same group of the program's
    assert len(torch_on_host.GROUPS) == made + 1, "made once"
    assert all(map(torch.equal, plain, again))
    more = torch_on_host.GROUPS[-1]._get_sequence_number_for_group() - own
    assert more in (5, 10), more  # one or two exchanges a vote, as costs say


def check_a_rank_that_cannot_make_its_end():
    wire = make_wire()
    # NCCL's constructor waits for no rank, Gloo's does: an object is enough for the others here.
    wire._connect = (lambda: 1 / 0) if wire.rank == wire.size - 1 else object
    for error, text in ((CollectiveError, "division by zero"), (WireError, "has ended")):
        try:
            wire.start_exchange([], [], 0)
        except error as e:
            assert f"rank {wire.size - 1}: ZeroDivisionError" in str(e) and text in str(e), e
        else:
            raise AssertionError("no error")


def check_a_lost_rank():
    """Rank 1 ends before it tallies; the others raise, and none waits for long."""
    model = DistributedDataParallel(Net())
    comm = mpisign.Communicator(dist.group.WORLD, timeout=5)
    state = mpisign.ddp.MajorityVoteState(comm, Signum(momentum=0.9))
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    loss_of(model, 0).backward()
    dist.barrier()
    if worlds.RANK == 1:

        def die(wire, *args):
            sys.stdout.flush()
            os._exit(0)

        TorchDeviceTransport._queue = die
    start = time.monotonic()
    try:
        loss_of(model, 1).backward()
    except (WireError, CollectiveError) as error:
        took = time.monotonic() - start
        assert took < 15, took
        print(f"lost after {took:.1f} s: {type(error).__name__}: {error}", flush=True)
        device = comm.engine.device_transport
        assert device._given_up and device._group is None
    else:
        raise AssertionError("no error")


def main():
    worlds.begin(None)
    checks = [c for name, c in globals().items() if name.startswith("check_")]
    if sys.argv[1:]:  # some of them, then the last
        checks = [c for c in checks if c.__name__ in (*sys.argv[1:], checks[-1].__name__)]
    for check in checks[:-1]:
        check()
    print(f"\nrank {worlds.RANK}: {len(checks) - 1} checks passed\n", flush=True)
    dist.barrier()
    check_a_lost_rank()
    print(f"rank {worlds.RANK}: survived", flush=True)
    os._exit(0)  # torch's own groups would wait for rank 1


if __name__ == "__main__":
    main()
