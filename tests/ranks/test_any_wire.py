"""Votes over whatever connects the ranks: MPISIGN_TEST_WIRE=mpi|torch|horovod, else threads.

Started at several ranks by tests/test_wires.py; under plain pytest the ranks are threads.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import reference as ref
import samples
import torch
from messages import small_messages

import mpisign
from mpisign import simulation
from mpisign.compressors import Signum
from mpisign.errors import CollectiveError, DisagreementError, NaNError
from mpisign.transports import threads

WIRE = os.environ.get("MPISIGN_TEST_WIRE", "threads")
ALGORITHMS = ["auto", "allgather", "alltoall", "hierarchical"]


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 5] if WIRE == "threads" else [WIRE])
def on_all(request):
    """Runs ``body(comm)`` on all ranks that this process is; asserts that what they return is the
    same on all ranks of the job, and returns it."""
    if WIRE == "threads":

        def simulated(body):
            results = simulation.run(request.param, body)
            assert len({same(r) for r in results}) == 1
            return results[0]

        return simulated
    comm = mpisign.Communicator(WIRE)

    def launched(body):
        result = body(comm)
        own = np.frombuffer(same(result), dtype=np.uint8)
        rows = np.empty((comm.size, len(own)), dtype=np.uint8)
        engine = comm.engine
        engine.submit("same", lambda line: exchanged(line, own, rows)).wait()
        assert (rows == own).all()
        return result

    return launched


def exchanged(line, own, rows):
    yield line.allgather(own, rows)


def test_a_wire_by_its_name(on_all):
    if WIRE == "threads":
        pytest.skip("has no name")
    from mpisign.functions import engine_of

    on_all(lambda comm: mpisign.majority_vote(np.ones(3), WIRE))
    assert engine_of("test", WIRE).transport.name == WIRE


def same(result):
    import hashlib

    parts = result if isinstance(result, tuple) else (result,)
    data = b"".join(b"" if p is None else np.ascontiguousarray(p).tobytes() for p in parts)
    return hashlib.sha256(data).digest()


def ballots(comm, length, dtype=np.float32):
    return [samples.awkward(length, 100 + r, dtype) for r in range(comm.size)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "zeros, ties", [("positive", "positive"), ("random", "random"), ("abstain", "zero")]
)
def test_votes_match_the_reference(on_all, algorithm, zeros, ties):
    def body(comm):
        results = []
        for length in (0, 1, 8, 33, 4097, 70_001):
            xs = ballots(comm, length)
            expected = ref.majority_vote(xs, zeros, ties, seed=9, step=4)
            result = comm.majority_vote(
                xs[comm.rank], algorithm=algorithm, zeros=zeros, ties=ties, seed=9, step=4
            )
            assert np.array_equal(result, expected)
            results.append(result)
        return tuple(results)

    on_all(body)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_many_chunks_in_place(on_all, algorithm, monkeypatch):
    small_messages(monkeypatch, 256)

    def body(comm):
        x = ballots(comm, 140_001)
        expected = ref.vote(x)
        mine = x[comm.rank]
        out = comm.majority_vote(mine, algorithm=algorithm, zeros="abstain", ties="zero", out=mine)
        assert out is mine and np.array_equal(out, expected)
        return out

    on_all(body)


def test_votes_in_flight_end_in_any_order(on_all, monkeypatch):
    small_messages(monkeypatch, 256)

    def body(comm):
        lengths = (1000, 1, 50_000, 33, 140_001, 8)
        tensors = [ballots(comm, n) for n in lengths]
        handles = [
            comm.majority_vote_async(
                xs[comm.rank], zeros="abstain", ties="zero", algorithm=ALGORITHMS[1 + i % 3]
            )
            for i, xs in enumerate(tensors)
        ]
        between = comm.majority_vote(np.ones(5), ties="zero")
        for i in np.random.default_rng(comm.rank).permutation(len(handles)):
            if comm.rank % 2:
                while not handles[i].done():
                    pass
            assert np.array_equal(handles[i].wait(), ref.vote(tensors[i]))
        return between

    assert (on_all(body) == 1).all()


def test_a_turn_comes_when_all_earlier_votes_are_over(on_all):
    """What wires for device memory wait for before they start."""

    def body(comm):
        engine, earlier = comm.engine, []

        def steps(line):
            yield engine.progress.turn(line.tag)
            assert all(handle.over for handle in earlier)
            rows = np.empty((comm.size, 1), dtype=np.uint8)
            yield line.allgather(np.full(1, comm.rank, dtype=np.uint8), rows)
            return rows

        x = np.ones(70_000, dtype=np.float32)
        earlier += [comm.majority_vote_async(x) for _ in range(3)]
        handle = engine.submit("turn", steps)
        later = comm.majority_vote(-x)
        assert (handle.wait()[:, 0] == range(comm.size)).all()
        return later

    on_all(body)


def test_unlike_weights(on_all):
    def body(comm):
        xs = ballots(comm, 999)
        expected = np.sign(sum((r + 1) * np.sign(x) for r, x in enumerate(xs)))
        for algorithm in ALGORITHMS:
            result = comm.majority_vote(
                xs[comm.rank],
                algorithm=algorithm,
                weight=comm.rank + 1,
                zeros="abstain",
                ties="zero",
            )
            assert np.array_equal(result, expected)
        return result

    on_all(body)


def test_byzantine_owners_change_nothing_among_honest_ranks(on_all):
    def body(comm):
        xs = ballots(comm, 4097)
        f = (comm.size - 1) // 2
        return comm.majority_vote(
            xs[comm.rank], byzantine_f=min(f, 1), zeros="abstain", ties="zero"
        )

    def plain(comm):
        return ref.vote(ballots(comm, 4097))

    assert np.array_equal(on_all(body), on_all(plain))


def test_counts(on_all):
    def body(comm):
        xs = ballots(comm, 999)
        negative, positive = mpisign.tally(xs[comm.rank], comm, zeros="abstain")
        assert np.array_equal(negative, sum((x < 0).astype(int) for x in xs))
        assert np.array_equal(positive, sum((x > 0).astype(int) for x in xs))
        return negative, positive

    on_all(body)


def test_errors_are_the_same_on_all_ranks_and_votes_go_on(on_all, monkeypatch):
    small_messages(monkeypatch, 256)

    def body(comm):
        x = np.ones(100, dtype=np.float32)
        if comm.rank == comm.size - 1:
            x[3] = np.nan
        with pytest.raises(NaNError, match=f"1 on rank {comm.size - 1}"):
            comm.majority_vote(x)
        large = np.full(70_000, 1.0, dtype=np.float32)  # NaN is found on the way
        if comm.rank == 0:
            large[-1] = np.nan
        with pytest.raises(NaNError, match="1 on rank 0"):
            comm.majority_vote(large)
        if comm.size > 1:
            with pytest.raises(DisagreementError, match="length"):
                comm.majority_vote(np.ones(9 + (comm.rank == 0)))
            with pytest.raises(CollectiveError, match="rank 0: ties must be one of"):
                comm.majority_vote(np.ones(9), ties="no" if comm.rank == 0 else "zero")
        return comm.majority_vote(np.ones(3))

    assert (on_all(body) == 1).all()


def test_an_optimizer_steps_alike_everywhere(on_all, monkeypatch):
    def body(comm):
        seeded = torch.Generator().manual_seed(0)
        shapes = [(7, 3), (1,), (3000, 5), (0,), (33,), (40, 9)]
        parameters = [torch.nn.Parameter(torch.randn(s, generator=seeded)) for s in shapes]
        optimizer = torch.optim.SGD(parameters, lr=0.01, weight_decay=0.1)
        mpisign.DistributedOptimizer(optimizer, comm=comm, compression=Signum(momentum=0.9), seed=5)
        rng = np.random.default_rng(comm.rank)
        for step in range(4):
            for i, p in enumerate(parameters):
                p.grad = torch.from_numpy(rng.standard_normal(shapes[i]).astype(np.float32))
            if step == 2 and comm.rank == 0:
                parameters[1].grad = None
            optimizer.step()
        return tuple(p.detach().numpy() for p in parameters)

    whole = on_all(body)
    small_messages(monkeypatch, 64)  # members that begin and end in the midst of chunks
    for a, b in zip(whole, on_all(body), strict=True):
        assert np.array_equal(a, b)


def test_two_communicators_and_waits_in_unlike_orders(on_all):
    def body(comm):
        if WIRE == "threads":
            other = mpisign.Communicator(threads.ThreadTransport(second[comm.size], comm.rank))
        else:
            other = mpisign.Communicator(WIRE)
        x = np.ones(300_000, dtype=np.float32)
        handles = [c.majority_vote_async(x, algorithm="alltoall") for c in (comm, other)]
        third = None
        if WIRE != "threads" and comm.rank == 0:
            third = mpisign.Communicator(WIRE)  # while the others still wait for a vote
        results = [h.wait() for h in (handles if comm.rank % 2 else handles[::-1])]
        if WIRE != "threads":
            third = third or mpisign.Communicator(WIRE)
            results.append(third.majority_vote(x))
        return sum(results)

    second = {size: threads.World(size) for size in range(1, 6)}
    assert (on_all(body) > 0).all()


@pytest.mark.parametrize("algorithm", ["allgather", "alltoall"])
@pytest.mark.parametrize("shift", [-7001, 1, 7001])
def test_out_that_overlaps_x(on_all, algorithm, shift, monkeypatch):
    small_messages(monkeypatch, 256)

    def body(comm):
        xs = ballots(comm, 70_000)
        memory = np.zeros(90_000, dtype=np.float32)
        x, out = memory[8000:78_000], memory[8000 + shift : 78_000 + shift]
        x[:] = xs[comm.rank]
        comm.majority_vote(x, algorithm=algorithm, zeros="abstain", ties="zero", out=out)
        assert np.array_equal(out, ref.vote(xs))
        return out

    on_all(body)


@pytest.mark.skipif(WIRE == "threads", reason="no processes")
def test_a_forked_child_is_no_rank(on_all):
    """It would cast its parent's ballot; the parent's votes go on."""

    def body(comm):
        handle = comm.majority_vote_async(np.ones(20_000, np.float32))
        if comm.rank == comm.size - 1 and comm.size > 1:
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                refused = [
                    lambda: comm.majority_vote(-np.ones(20_000)),
                    lambda: comm.majority_vote_async(-np.ones(20_000)).wait(),
                    lambda: mpisign.Communicator(WIRE),
                    lambda: mpisign.mean_of_signs(np.ones(3), WIRE),
                    handle.wait,
                    comm.free,
                ]
                os.write(write, "".join(map(verdict, refused)).encode())
                os._exit(0)
            os.waitpid(child, 0)
            assert os.read(read, 1000) == b"r" * 6
            os.close(read), os.close(write)
        assert (handle.wait() == 1).all()
        return comm.majority_vote(np.ones(20_000))

    assert (on_all(body) == 1).all()


def verdict(call):
    try:
        call()
    except CollectiveError as error:
        return "r" if "is a forked child of the rank that" in str(error) else repr(error)
    return "voted"


@pytest.mark.skipif(WIRE == "threads", reason="ranks that are threads take turns")
def test_handles_change_threads(on_all):
    """Started in one, waited for in another: the next calls of both do not wait for ever."""

    def body(comm):
        found = []

        def start_and_wait(handle):
            found.append(handle.wait())
            found.append(comm.majority_vote_async(x))

        x = np.arange(-300, 90_000, dtype=np.float32)
        thread = threading.Thread(target=start_and_wait, args=(comm.majority_vote_async(x),))
        thread.start()
        thread.join()
        found[1] = found[1].wait()
        other = mpisign.Communicator(WIRE)  # waits for what is in flight in this thread
        found += [other.majority_vote(x), comm.majority_vote(x)]
        other.free()
        with pytest.raises(CollectiveError, match="cannot be used any more: it was freed"):
            other.majority_vote(x)
        other.free()
        return tuple(found)

    on_all(body)


def test_bulk_arrives_as_anything_else(on_all):
    """Parts of lengths that differ by pair, some of none; then rows, and a vote behind them."""

    def length(of, to):
        return (0, 1, 300_001)[(of + 2 * to) % 3]

    def steps(wire):
        own = wire.rank
        sends = [(r, np.full(length(own, r), own + 1, np.uint8)) for r in wire.others]
        recvs = [(r, np.zeros(length(r, own), np.uint8)) for r in wire.others]
        yield wire.exchange(sends, recvs, bulk=True)
        assert all((part == r + 1).all() for r, part in recvs)
        rows = [np.zeros(1000 * r + 70_001, np.uint8) for r in range(wire.size)]
        yield wire.allgather(np.full(rows[own].size, own + 1, np.uint8), rows, bulk=True)
        assert all((row == r + 1).all() for r, row in enumerate(rows))
        return np.concatenate(rows)

    def body(comm):
        gathered = comm.engine.submit("bulk", steps).wait()
        return gathered, comm.majority_vote(np.ones(5), ties="zero")

    on_all(body)
