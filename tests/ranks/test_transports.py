"""One suite for every wire: what ``transports/base.py`` promises, at whatever number of ranks.

MPISIGN_TEST_WIRE=mpi|torch|horovod: each process is a rank, started by tests/test_wires.py.
Else: ranks that are threads of this process. MPISIGN_TEST_DIR: a folder that all ranks share.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mpisign.errors import WireError
from mpisign.stats import stats

WIRE = os.environ.get("MPISIGN_TEST_WIRE", "threads")
SHARED = os.environ.get("MPISIGN_TEST_DIR")
LONG = 60  # seconds that no exchange takes unless a rank is lost


class Launched:
    """This process is one rank. Tests run on one transport; ``fresh``: on one of their own."""

    def __init__(self):
        self._made = 0
        self._transport = self._make()
        self.size = self._transport.size
        self.here = [self._transport.rank]

    def _make(self):
        self._made += 1
        if WIRE == "mpi":
            from mpi4py import MPI

            from mpisign.transports.mpi import MPITransport

            return MPITransport(MPI.COMM_WORLD.Dup())
        if WIRE == "torch":
            import torch.distributed as dist

            from mpisign.transports.torch import TorchTransport

            if not dist.is_initialized():
                dist.init_process_group("gloo")
            return TorchTransport()
        import horovod.torch as hvd

        from mpisign.transports.horovod import HorovodTransport

        if not hvd.is_initialized():
            hvd.init()
        return HorovodTransport(f"test{self._made}")

    def some(self, members):
        """A transport between some ranks; None on the others."""
        if WIRE == "mpi":
            from mpi4py import MPI

            from mpisign.transports.mpi import MPITransport

            comm = MPI.COMM_WORLD.Split(0 if self.here[0] in members else MPI.UNDEFINED)
            return None if comm == MPI.COMM_NULL else MPITransport(comm)
        if WIRE == "torch":
            import torch.distributed as dist

            from mpisign.transports.torch import TorchTransport

            group = dist.new_group(members)
            if self.here[0] in members:
                return TorchTransport(group)
            with pytest.raises(ValueError, match="this rank is not in the process group"):
                TorchTransport(group)
            return None
        import horovod.torch as hvd

        from mpisign.transports.horovod import HorovodTransport

        process_set = hvd.add_process_set(members)
        return HorovodTransport("some", process_set) if process_set.included() else None

    def __call__(self, body, fresh=False):
        wire = self._make() if fresh else self._transport
        body(wire)
        meet(wire)


class Threads:
    """``size`` ranks in this process."""

    def __init__(self, size):
        self.size = size
        self.here = list(range(size))

    def __call__(self, body, fresh=False):
        from mpisign.transports.threads import ThreadTransport, World

        world, errors = World(self.size), []

        def work(rank):
            try:
                body(ThreadTransport(world, rank))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.01 if errors else LONG)
        if errors:
            raise errors[0]
        assert not any(thread.is_alive() for thread in threads)


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 5] if WIRE == "threads" else [WIRE])
def ranks(request):
    """Runs ``body(transport)`` on all ranks that this process is."""
    return Threads(request.param) if WIRE == "threads" else Launched()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Path(SHARED) if SHARED else tmp_path_factory.mktemp("shared")


@pytest.fixture
def flags(ranks, shared, request):
    """``flags.put(x)`` on one rank is seen by ``flags.wait(x)`` on another, over no wire."""

    class Flags:
        def path(self, x):
            return shared / f"{request.node.name}.{x}"

        def put(self, x):
            self.path(x).touch()

        def wait(self, *xs):
            end = time.monotonic() + LONG
            while not all(self.path(x).exists() for x in xs):
                assert time.monotonic() < end, f"not all of {xs} came"
                time.sleep(0.005)

    return Flags()


def content(length, *seed):
    """What one rank sends another: known to both, and different for every pair."""
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def blank(length):
    return np.full(length, 0xAA, dtype=np.uint8)


def meet(wire):
    """Nobody leaves before all have come."""
    every = np.zeros((wire.size, 1), dtype=np.uint8)
    assert wire.start_allgather(np.ones(1, dtype=np.uint8), every, 63).wait(LONG)
    assert every.all()


class Swap:
    """All to all, ``lengths(from, to)`` bytes in a list of parts; ``check`` looks at what came."""

    def __init__(self, wire, lengths, tag, key=0):
        def parts(make, pairs):
            return [
                (other, make(n, source, to, i, tag, key))
                for other, source, to in pairs
                for i, n in enumerate(lengths(source, to))
            ]

        others = wire.others
        self.sends = parts(content, [(r, wire.rank, r) for r in others])
        self.recvs = parts(lambda n, *_: blank(n), [(r, r, wire.rank) for r in others])
        self.due = parts(content, [(r, r, wire.rank) for r in others])
        self.pending = wire.start_exchange(self.sends, self.recvs, tag)

    def came(self):
        return all(
            np.array_equal(got, due)
            for (_, got), (_, due) in zip(self.recvs, self.due, strict=True)
        )

    def check(self):
        assert self.pending.wait(LONG)
        assert self.came()
        assert self.pending.done() and self.pending.wait() and not self.pending.missing()


@pytest.mark.parametrize("length", [0, 1, 7, 255, 4097, 100_003, 1_000_000])
def test_parts_of_all_sizes_arrive(ranks, length):
    """Of another size for each pair, as long as the other way or not, and empty ones."""
    ranks(lambda wire: Swap(wire, lambda a, b: [length + (3 * a + b) * (length > 1)], 0).check())


@pytest.mark.parametrize("tag", [0, 63])
def test_several_parts_between_two_ranks_keep_their_order(ranks, tag):
    def body(wire):
        Swap(wire, lambda a, b: [5, 0, 1000 + a, 3], tag).check()
        Swap(wire, lambda a, b: [1] * (a + b), tag).check()

    ranks(body)


def test_some_ranks_take_part(ranks):
    """One to one other, a ring one way, and none at all."""

    def body(wire):
        last = wire.size - 1
        Swap(wire, lambda a, b: [1000] * (a == 0 and b == last), 1).check()
        Swap(wire, lambda a, b: [70_000] * (b == (a + 1) % wire.size), 1).check()
        Swap(wire, lambda a, b: [10] * (a == last), 1).check()
        Swap(wire, lambda a, b: [], 1).check()

    ranks(body)


def test_exchanges_with_one_tag_match_in_order(ranks):
    def body(wire):
        swaps = [Swap(wire, lambda a, b, i=i: [10**i + a, i], 2, key=i) for i in range(6)]
        for swap in swaps:
            swap.check()

    ranks(body)


def test_tags_do_not_mix(ranks):
    """Started in another order on each rank, and waited for in yet another, where a wire can."""

    def body(wire):
        shift = 0 if wire.ordered else wire.rank
        tags = np.roll(np.arange(10, 15), shift).tolist()
        swaps = {t: Swap(wire, lambda a, b, t=t: [3 * t + a, 100_000], t) for t in tags}
        for t in np.roll(tags, shift)[::-1]:
            swaps[t].check()

    ranks(body)


def test_a_caller_may_use_what_it_sent_again(ranks):
    """Once the exchange is over."""

    def body(wire):
        for i in range(3):
            swap = Swap(wire, lambda a, b: [300_000], 4, key=i)
            assert swap.pending.wait(LONG)
            for _, part in swap.sends:
                part[...] = 0xEE
            assert swap.came()

    ranks(body)


@pytest.mark.parametrize("length", [0, 1, 255, 100_003])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_allgather(ranks, length, extra, inside):
    """Rows of one length and of different ones; the own row in its place before, or not."""

    def body(wire):
        sizes = [length + extra * r for r in range(wire.size)]
        rows = [blank(n) for n in sizes] if extra else np.zeros((wire.size, length), dtype=np.uint8)
        send = content(sizes[wire.rank], wire.rank)
        if inside:
            rows[wire.rank][...] = send
            send = rows[wire.rank]
        assert wire.start_allgather(send, rows, 5).wait(LONG)
        for r, row in enumerate(rows):
            assert np.array_equal(row, content(sizes[r], r))

    ranks(body)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 10_001])
def test_allreduce_sums_in_place(ranks, dtype, length):
    def body(wire):
        values = np.arange(length, dtype=dtype) + wire.rank
        assert wire.start_allreduce(values, 6).wait(LONG)
        expected = np.arange(length) * wire.size + sum(range(wire.size))
        assert values.dtype == dtype and np.array_equal(values, expected)

    ranks(body)


def test_exchanges_end_by_polling_alone(ranks):
    def body(wire):
        swap = Swap(wire, lambda a, b: [200_000], 7)
        end = time.monotonic() + LONG
        while not swap.pending.done():
            assert time.monotonic() < end
            time.sleep(0.0005)
        assert swap.came()

    ranks(body)


def test_waiting_for_a_rank_that_comes_late(ranks, flags):
    """done() and wait(seconds) say so and come back; the exchange goes on and ends well."""

    def body(wire):
        late = wire.size - 1
        early = [r for r in range(wire.size) if r != late]
        if wire.rank == late:
            flags.wait(*early)
        swap = Swap(wire, lambda a, b: [50_000], 8)
        if wire.rank != late:
            assert not swap.pending.done()
            for seconds in (0.0, 0.0004, 0.3):
                start = time.perf_counter()
                assert not swap.pending.wait(seconds)
                assert seconds <= time.perf_counter() - start < seconds + 5
            missing = swap.pending.missing()
            assert missing is None or late in missing
            assert not swap.pending.done()
            flags.put(wire.rank)
        swap.check()

    ranks(body)


def rank_0_is_named(ranks, sent, begin, by):
    """What ``begin(wire)`` starts is an error where ``by(rank)``, and done elsewhere."""
    if ranks.size == 1:
        pytest.skip("needs two ranks")
    if WIRE == "torch" and sent > 20:
        pytest.skip("Gloo ends the process that is sent more than it waits for")

    def body(wire):
        pending = begin(wire)
        if not by(wire.rank):
            # MPI has nowhere to put a long message that is refused.
            assert pending.wait(LONG if sent < 4000 else 0) or sent > 4000
            return
        with pytest.raises(WireError, match="rank 0 sent") as raised:
            pending.wait(LONG)
        for again in (pending.done, pending.wait, pending.done):  # it keeps its error
            with pytest.raises(WireError) as error:
                again()
            assert str(error.value) == str(raised.value)

    ranks(body, fresh=True)


@pytest.mark.parametrize("sent", [0, 1, 13, 19, 21, 3000, 100_000])
def test_a_message_of_another_size_is_an_error_that_names_its_rank(ranks, sent):
    """Rank 0 sends 20 bytes to all but rank 1, which waits for as many; none go beyond its part."""
    behind = []

    def begin(wire):
        lengths = {(0, 1): sent}
        sends = [(r, np.full(lengths.get((wire.rank, r), 20), 7, np.uint8)) for r in wire.others]
        memory = [blank(20 + sent) for _ in wire.others]
        behind.extend(room[20:] for room in memory)
        recvs = [(r, room[:20]) for r, room in zip(wire.others, memory, strict=True)]
        return wire.start_exchange(sends, recvs, 9)

    rank_0_is_named(ranks, sent, begin, lambda rank: rank == 1)
    assert all((room == 0xAA).all() for room in behind)


@pytest.mark.parametrize("sent", [1, 19, 30])
def test_a_row_of_another_size_is_an_error_that_names_its_rank(ranks, sent):
    def begin(wire):
        rows = [blank(sent if wire.rank == r == 0 else 20) for r in range(wire.size)]
        return wire.start_allgather(rows[wire.rank], rows, 9)

    rank_0_is_named(ranks, sent, begin, lambda rank: rank > 0)  # for itself it is right


def test_notices_reach_all_others_once(ranks):
    def body(wire):
        texts = [b"rank %d", b"", bytes(range(256)) * 2, b"%d again"]

        def posted(rank):
            return [text.replace(b"%d", b"%d" % rank) for text in texts]

        assert wire.notices() == []
        meet(wire)
        for notice in posted(wire.rank):
            wire.post(notice)
        came, end = [], time.monotonic() + 20
        while len(came) < len(texts) * (wire.size - 1):
            came += wire.notices()
            assert time.monotonic() < end, f"after 20 s only {came}"
            time.sleep(0.01)
        for rank in wire.others:
            assert [notice for source, notice in came if source == rank] == posted(rank)
        time.sleep(0.3)
        assert wire.notices() == []

    ranks(body, fresh=True)


def test_some_ranks_on_a_wire_of_their_own(ranks):
    """Numbered from 0, beside a wire between all, which those outside use meanwhile."""
    if WIRE == "threads" or ranks.size == 1:
        pytest.skip("needs a launcher and two ranks")
    members = list(range(1, ranks.size))
    wire = ranks.some(members)

    def body(everyone):
        if wire is not None:
            assert (wire.rank, wire.size) == (members.index(everyone.rank), len(members))
            meet(wire)
            Swap(wire, lambda a, b: [500 + a], 3, key=1).check()
            wire.post(b"from %d" % wire.rank)
            came, end = [], time.monotonic() + 20
            while len(came) < wire.size - 1:
                came += wire.notices()
                assert time.monotonic() < end
                time.sleep(0.01)
            assert sorted(came) == [(r, b"from %d" % r) for r in sorted(wire.others)]
            meet(wire)
        Swap(everyone, lambda a, b: [700 + a], 3, key=2).check()
        assert everyone.notices() == []

    ranks(body)


def test_bytes_are_booked(ranks):
    def body(wire):
        swap = Swap(wire, lambda a, b: [1000 * a + 10 * b, 7], 3)
        assert swap.pending.wait(LONG)
        rows = [blank(100 + r) for r in range(wire.size)]
        assert wire.start_allgather(rows[wire.rank], rows, 3).wait(LONG)
        assert wire.start_allreduce(np.zeros(300, dtype=np.float32), 3).wait(LONG)

    before = {k: dict(v) for k, v in stats().as_dict().items()}
    ranks(body)
    after = stats().as_dict()["exchange"]
    sent = received = 0
    p = ranks.size
    for rank in ranks.here:
        others = [r for r in range(p) if r != rank]
        sent += sum(1000 * rank + 10 * r + 7 + 100 + rank for r in others)
        received += sum(1000 * r + 10 * rank + 7 + 100 + r for r in others)
        for_meeting = 0 if WIRE == "threads" else p - 1
        sent, received = sent + for_meeting, received + for_meeting
        if WIRE != "threads":  # whose allreduce is an allgather
            sent, received = (n + 2 * 1200 * (p - 1) // p for n in (sent, received))
        else:
            sent, received = (n + 1200 * (p - 1) for n in (sent, received))
    assert after["sent"] - before["exchange"]["sent"] == sent
    assert after["received"] - before["exchange"]["received"] == received
