"""The wires for device memory, at several ranks that share one GPU: ``gpu_wires.py WIRE TEST ...``.

WIRE: nccl, staged, cuda-mpi; nccl-played and staged-played do the same on a machine without a
device (tests/nccl_on_host.py, tests/late_device.py), so that what is asked here was tried.
TEST: exchanges, votes, front_end, optimizer, path. Four ranks on one device: correctness only.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time

import numpy as np
import reference as ref
import samples
from mpi4py import MPI

from mpisign import planes
from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.vote_task import VoteTask
from mpisign.transports.mpi import MPITransport
from mpisign.transports.tagged import TaggedTransport

WIRE, *TESTS = sys.argv[1:]
WORLD = MPI.COMM_WORLD
rank, size = WORLD.rank, WORLD.size
PLAYED = WIRE.endswith("-played")
LOG = f"{tempfile.gettempdir()}/mpisign-nccl-{os.getpid()}.log"


def say(*text):
    if rank == 0:
        print(*text, flush=True)


class Memory:
    """Where parts lie: CuPy's device or torch's, or NumPy in the place of it."""

    def __init__(self, torch=False):
        if PLAYED:
            from late_device import on_device

            self.of_host, self.to_host = on_device, np.asarray
            self.settle = lambda: None
        elif torch:
            import torch

            self.of_host = lambda x: torch.from_numpy(np.array(x)).cuda()
            self.to_host = lambda x: x.cpu().numpy()
            self.settle = lambda: torch.cuda.current_stream().synchronize()
        else:
            import cupy

            self.of_host, self.to_host = cupy.asarray, cupy.asnumpy
            self.settle = lambda: cupy.cuda.get_current_stream().synchronize()

    def empty(self, *shape):
        return self.of_host(np.zeros(shape, np.uint8))


memory = Memory()


class DeviceLine(TaggedTransport):
    def empty(self, *shape):
        return memory.empty(*shape)


def emulate_many_gpus():
    """NCCL refuses two ranks on one device, unless it is set otherwise; before its first call."""
    os.environ.update(NCCL_NET="Socket", NCCL_IB_DISABLE="1", NCCL_NVLS_ENABLE="0")
    os.environ.update(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT")
    os.environ["NCCL_DEBUG_FILE"] = LOG
    from mpisign.transports import nccl_start

    version = nccl_start.load().get_version()
    if version >= 23000:
        os.environ["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
    else:
        os.environ["NCCL_HOSTID"] = f"mpisign-{rank}"
    say(f"NCCL {version}, {size} ranks on {count_devices()} device(s)")


def count_devices():
    import cupy

    return cupy.cuda.runtime.getDeviceCount()


def check_emulation():
    """The test would pass on nothing if NCCL had not seen all ranks."""
    with open(LOG) as log:
        text = log.read()
    os.unlink(LOG)
    found = re.findall(r"nRanks (\d+) nNodes (\d+) localRanks (\d+)", text)
    assert found, f"NCCL's log names no communicator: {text[-2000:]}"
    ranks, nodes, local = map(int, found[0])
    many = os.environ.get("NCCL_HOSTID") is not None
    assert ranks == size and (nodes == size if many else nodes * local == size), found
    say(f"NCCL saw {ranks} ranks, {nodes} node(s), {local} rank(s) on each")


def make_wire(comm=WORLD):
    control = MPITransport(comm.Dup())
    if WIRE == "staged-played":
        from late_device import PromptDevice

        from mpisign.transports.staged import StagedTransport

        return StagedTransport(control, PromptDevice())
    if WIRE == "nccl-played":
        import nccl_on_host

        from mpisign.transports.nccl import NCCLTransport

        return NCCLTransport(control, nccl=nccl_on_host, device=nccl_on_host.HostDevice())
    if WIRE == "staged":
        from mpisign.transports.staged import StagedTransport

        return StagedTransport(control)
    if WIRE == "cuda-mpi":
        from mpisign.transports import cuda_mpi

        found = cuda_mpi.together(control)
        say(f"CUDA-aware: {found}, {MPI.Get_library_version().split(',')[0]}")
        assert found.aware, found.why
        return cuda_mpi.CudaMPITransport(comm.Dup())
    from mpisign.transports.nccl import NCCLTransport

    emulate_many_gpus()
    return NCCLTransport(control, timeout=60)


def drive(steps):
    try:
        pending = next(steps)
        while True:
            assert pending.wait(60), f"an exchange took over 60 s, missing: {pending.missing()}"
            pending = steps.send(None)
    except StopIteration as end:
        return end.value


def exchanges():
    """Of CuPy arrays, then of torch tensors on a stream of their own."""
    wire = make_wire()
    exchange(wire, memory)
    if not PLAYED:
        import torch

        with torch.cuda.stream(torch.cuda.Stream()):
            exchange(wire, Memory(torch=True))
    if WIRE.startswith("nccl") and size > 1:
        part = wire.split(rank % 2, -rank)
        values = memory.of_host(np.full(3, rank, np.float32))
        assert part.start_allreduce(values, 0).wait(60)
        assert (memory.to_host(values) == sum(r for r in range(size) if r % 2 == rank % 2)).all()
        part.free()
    if WIRE == "nccl":
        check_emulation()


def exchange(wire, memory):
    for turn, most in enumerate((1, 0, 4097, 3, 1_000_000, 20_000_000)):
        n = lambda a, b, most=most, turn=turn: int(  # noqa: E731
            np.random.default_rng([a, b, turn]).integers(most + 1)
        )
        fill = lambda a, b, turn=turn: (40 * a + 7 * b + turn) % 256  # noqa: E731
        sends = [
            (r, memory.of_host(np.full(n(rank, r), fill(rank, r), np.uint8))) for r in wire.others
        ]
        recvs = [(r, memory.empty(n(r, rank))) for r in wire.others]
        assert wire.start_exchange(sends, recvs, 0).wait(60)
        assert all((memory.to_host(part) == fill(r, rank)).all() for r, part in recvs)
    rows = [memory.empty(1000 + r) for r in range(size)]
    own = memory.of_host(np.full(1000 + rank, rank, np.uint8))
    assert wire.start_allgather(own, rows, 0).wait(60)
    assert all((memory.to_host(row) == r).all() for r, row in enumerate(rows))
    rows = [np.zeros(4, np.uint8) for r in range(size)]  # host memory goes by any of them
    assert wire.start_allgather(np.full(4, rank, np.uint8), rows, 0).wait(60)
    assert all((row == r).all() for r, row in enumerate(rows))
    for dtype in (np.float32, np.float64):
        values = memory.of_host(np.arange(1001, dtype=dtype) + rank)
        assert wire.start_allreduce(values, 0).wait(60)
        assert (memory.to_host(values) == size * np.arange(1001) + sum(range(size))).all()


def votes():
    """Pack, exchange, vote and unpack, all of it on the device."""
    wire = DeviceLine(make_wire(), 0)
    for length in (1, 33, 4097, 1_000_003, 3_000_001 if PLAYED else 9_000_001):
        xs = [samples.awkward(length, 100 + r) for r in range(size)]
        for zeros, ties in (("positive", "positive"), ("random", "random"), ("abstain", "zero")):
            if length > 4097 and zeros == "positive":
                continue
            wanted = ref.majority_vote(xs, zeros, ties, seed=9, step=4)
            x, out = memory.of_host(xs[rank]), memory.of_host(np.zeros(length, np.float32))
            how = {"zeros": zeros, "seed": 9, "step": 4, "rank": rank}

            def pack(a, b, to, x=x, how=how):
                planes.pack_census(
                    x[8 * a : 8 * b], **how, offset=8 * a, out=to if len(to) == 2 else to[0]
                )

            def unpack(a, b, result, out=out):
                planes.unpack(result if len(result) == 2 else result[0], out=out[8 * a : 8 * b])

            k = 2 if zeros == "abstain" else 1
            task = VoteTask(length, k, ties, seed=9, step=4)
            task.read, task.write = pack, unpack
            for algorithm in (allgather_vote, alltoall_vote):
                out[...] = 7
                drive(algorithm(wire, task))
                got = memory.to_host(out)
                assert np.array_equal(got, wanted), (algorithm.__name__, length, zeros, ties)
    if WIRE == "nccl":
        check_emulation()


def front_end():
    """mpisign.majority_vote of CUDA tensors, over this wire."""
    import torch

    import mpisign

    comm = mpisign.Communicator(make_wire(), timeout=60)
    for length in (1, 33, 4097, 1_000_003, 9_000_001):
        xs = [samples.awkward(length, 100 + r) for r in range(size)]
        wanted = ref.vote(xs).astype(np.float32)
        for where in (memory, Memory(torch=True)):
            # The gradient comes late, on a stream of its own: a vote on another would miss it.
            with torch.cuda.stream(torch.cuda.Stream()):
                x = where.of_host(np.zeros_like(xs[rank]))
                torch.cuda._sleep(20_000_000)
                x[...] = where.of_host(xs[rank])
                result = mpisign.majority_vote(
                    x, comm, zeros="abstain", ties="zero", seed=9, step=4
                )
                assert np.array_equal(where.to_host(result), wanted), (length, type(x))


def optimizer():
    """mpisign.DistributedOptimizer on CUDA parameters: one step by hand, then equal replicas."""
    import torch

    import mpisign

    device = "cpu" if PLAYED else "cuda"
    comm = mpisign.Communicator(WORLD if PLAYED else make_wire(), timeout=60)
    lengths, names = (7, 10_001, 4096), ("sign", "signum", "lion_avg", "ef_sign", "onebit")
    for name in (*names, "sparsign", "terngrad", "noisy_sign", "ef_sparsign"):
        for overlap in (False, True):
            ps = [torch.nn.Parameter(torch.zeros(n, device=device)) for n in lengths]
            sgd = torch.optim.SGD(ps, lr=0.5)
            mpisign.DistributedOptimizer(
                sgd, comm=comm, compression=name, overlap=overlap, bucket_size=10_000
            )
            for step in range(3):
                rng = np.random.default_rng(step)
                xs = [
                    [rng.standard_normal(n).astype(np.float32) for n in lengths]
                    for _ in range(size)
                ]
                sgd.zero_grad()
                own = [torch.from_numpy(x).to(device) for x in xs[rank]]
                sum((p * x).sum() for p, x in zip(ps, own, strict=True)).backward()
                sgd.step()
                if name == "sign" and step == 0:
                    for i, p in enumerate(ps):
                        total = sum(np.sign(x[i]) for x in xs)
                        got = p.grad.cpu().numpy()
                        assert np.array_equal(got[total != 0], np.sign(total)[total != 0])
            flat = torch.cat([p.detach() for p in ps]).cpu().numpy()
            everyones = np.empty((size, flat.size), dtype=np.float32)
            WORLD.Allgather(flat, everyones)
            assert (everyones == everyones[0]).all() and np.isfinite(flat).all(), (name, overlap)


def path():
    """One rank's whole vote, pieces and sum, beside a copy on the device."""
    if rank:
        return
    ranks = 8
    for length in (1 << 20, 25_600_000, 1 << 28) if not PLAYED else (1 << 16,):
        nbytes = length // 8
        x = memory.of_host(np.tile(samples.awkward(1 << 16, 1), -(-length // (1 << 16)))[:length])
        out = memory.of_host(np.zeros(length, np.float32))
        sent, stack = memory.empty(nbytes), memory.empty(ranks, nbytes // ranks)
        shard = memory.empty(nbytes // ranks)
        owners, result = memory.empty(nbytes), memory.empty(nbytes)
        copy = memory.of_host(np.zeros(length, np.float32))
        received = stack.reshape(-1)
        loop = make_self_wire()

        def over_wire(send, into, loop=loop):
            if loop is None:
                into[...] = send
            else:
                assert loop.start_exchange([(0, send)], [(0, into)], 0).wait(60)

        steps = {
            "copy of x (the limit)": (lambda: copy.__setitem__(..., x), 8 * length),  # noqa: B023
            "pack": (lambda: planes.pack_census(x, out=sent), 4 * length + nbytes),  # noqa: B023
            "self exchange, up": (lambda: over_wire(sent, received), 2 * nbytes),  # noqa: B023
            "vote of 8 rows": (
                lambda: planes.majority(stack, out=shard),  # noqa: B023
                nbytes + nbytes // ranks,
            ),
            "self exchange, down": (
                lambda: over_wire(owners, result),  # noqa: B023
                2 * nbytes,
            ),
            "unpack": (
                lambda: planes.unpack(result, out=out),  # noqa: B023
                4 * length + nbytes,
            ),
        }
        table(length, steps)


def make_self_wire():
    """The wire from this rank to itself; None for NCCL, for which a copy on the device stands."""
    return None if WIRE.startswith("nccl") else make_wire(MPI.COMM_SELF)


def table(length, steps):
    seconds = {}
    for name, (step, _) in steps.items():
        step()
        memory.settle()
        times = []
        for _ in range(11):
            start = time.perf_counter()
            step()
            memory.settle()
            times.append(time.perf_counter() - start)
        seconds[name] = sorted(times)[5]
    limit_name, *parts = steps
    limit = steps[limit_name][1] / seconds[limit_name]
    print(f"\n{WIRE}: one rank of 8, {length} coordinates, fp32")
    print(f"{'step':<24}{'time us':>12}{'moved B':>14}{'GB/s':>10}{'of copy':>10}")
    rows = [(name, seconds[name], steps[name][1]) for name in steps]
    rows.append(("whole", sum(seconds[p] for p in parts), sum(steps[p][1] for p in parts)))
    for name, t, moved in rows:
        speed = moved / t
        print(f"{name:<24}{1e6 * t:>12.1f}{moved:>14}{speed / 1e9:>10.1f}{speed / limit:>10.2f}")


kinds = {
    "exchanges": exchanges,
    "votes": votes,
    "front_end": front_end,
    "optimizer": optimizer,
    "path": path,
}
for test in TESTS:
    kinds[test]()
    WORLD.Barrier()
    say(f"{WIRE}: {test}: all well at {size} ranks")
