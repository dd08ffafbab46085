"""Coded planes from every rank to every rank: of unequal lengths, and from ranks that lie."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hostile import TamperingWire, Wire, play
from reference import golomb

from mpisign import planes, simulation
from mpisign.collectives.gather_planes import decode_rows, gather_planes
from mpisign.engine import progress
from mpisign.errors import CollectiveError, WireError
from mpisign.transports import threads


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    """Simulated ranks look for notices twice a second, for the sake of a thousand of them."""
    monkeypatch.setattr(progress, "_SLICES", (0.05, 0.05))


SHARES = [0.01, 0.3, 0.0, 1.0, 0.6]  # of the ranks: no two messages are of one length


def drawn(length, rank):
    bits = np.random.default_rng([length, rank]).random((2, length))
    mask = bits[1] < SHARES[rank]
    return (bits[0] < 0.5) & mask, mask


def stacked(sign, mask):
    return np.stack([np.packbits(bits, bitorder="little") for bits in (sign, mask)])


def gathered(comm, message, limit):
    engine = comm.engine
    return engine.submit("gather", lambda line: gather_planes(line, message, limit)).wait()


def everyone(comm, length):
    """Codes, gathers and decodes: (rows (p, 2, B), a digest of the messages)."""
    message = planes.encode(stacked(*drawn(length, comm.rank)), length=length)
    messages = gathered(comm, message, planes.coded_bytes_bound(length))
    digest = hashlib.blake2b(b"".join(m.tobytes() for m in messages))
    return decode_rows(messages, length), digest.digest()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 65, 4097])
def test_every_rank_decodes_what_every_rank_coded(size, length):
    results = simulation.run(size, everyone, length, timeout=20.0)
    expected = np.stack([stacked(*drawn(length, r)) for r in range(size)])
    sent = b"".join(golomb.encode(*drawn(length, r)) for r in range(size))
    for rows, digest in results:
        assert np.array_equal(rows, expected)
        assert digest == hashlib.blake2b(sent).digest()


@pytest.mark.parametrize("message", [1, 100, 1 << 14])
def test_long_messages_travel_in_pieces(message, monkeypatch):
    monkeypatch.setattr(threads.ThreadTransport, "message", message)
    length, starts = 40_000, []
    start = threads.ThreadTransport.start_allgather

    def counted(self, send, rows, tag):
        starts.append(len(send))
        return start(self, send, rows, tag)

    monkeypatch.setattr(threads.ThreadTransport, "start_allgather", counted)
    results = simulation.run(3, everyone, length, timeout=20.0)
    expected = np.stack([stacked(*drawn(length, r)) for r in range(3)])
    assert all(np.array_equal(rows, expected) for rows, _ in results)
    longest = max(len(golomb.encode(*drawn(length, r))) for r in range(3))
    assert max(starts) <= max(8, 2 * message) and longest > 4000
    pieces = {1: 1024, 100: longest // 100, 1 << 14: 1}[message]
    assert len(starts) == 3 * (1 + pieces)  # the lengths, the pieces


def test_messages_go_from_rank_to_rank_too():
    """As over wires that have no allgather of their own, parts of no bytes among them."""
    world = threads.World(3)
    wires = [Wire(world, rank) for rank in range(3)]
    for rows, _ in play(wires, lambda comm, _: everyone(comm, 129)):
        assert np.array_equal(rows, np.stack([stacked(*drawn(129, r)) for r in range(3)]))


@pytest.mark.parametrize("announced", [26 + 9 + 1, 1 << 40, (1 << 64) - 1])
def test_a_length_beyond_the_limit_is_an_error_on_all_that_names_its_rank(announced):
    """Before memory is made for it."""
    length = 101
    limit = planes.coded_bytes_bound(length)
    assert limit == 26 + 9

    def tamper(step, dest, part):
        if part.size != 8:
            return part
        return np.array([announced], dtype="<u8").view(np.uint8)

    world = threads.World(3)
    wires = [TamperingWire(world, rank) for rank in range(3)]
    wires[1].tamper = tamper

    def run(comm, _):
        message = planes.encode(stacked(*drawn(length, comm.rank)), length=length)
        return gathered(comm, message, limit)

    outcomes = play(wires, run)
    text = f"gather: rank 1 has a message of {announced} bytes where {limit} is the most"
    for rank in (0, 2):
        assert isinstance(outcomes[rank], WireError) and text in str(outcomes[rank])
    assert isinstance(outcomes[1], CollectiveError)  # it gets the error


def test_a_rank_whose_own_message_is_too_long_raises_as_all_do():
    def run(comm):
        with pytest.raises(CollectiveError, match="rank 0 has a message of 9 bytes where 8"):
            gathered(comm, np.zeros(9 - comm.rank, np.uint8), 8)

    simulation.run(2, run, timeout=20.0)


HOSTILE = [
    (b"", "a message of 0 bytes that ends before its last coordinate"),
    (b"\xff" * 30, "a message of 30 bytes with a block of unknown kind"),
    (b"\x01" + b"\xff" * 29, "a message of 30 bytes with a position beyond its block"),
    (b"\x00" * 35, "a message of 35 bytes that goes on behind its last coordinate"),
    (b"\x21" + b"\xff" * 13, "a message of 14 bytes with padding not 0"),
]


@pytest.mark.parametrize("message, wrong", HOSTILE)
def test_a_hostile_message_names_its_rank_everywhere(message, wrong):
    def run(comm):
        own = planes.encode(stacked(*drawn(101, comm.rank)), length=101)
        if comm.rank == 2:
            own = np.frombuffer(message, np.uint8)
        messages = gathered(comm, own, planes.coded_bytes_bound(101))
        with pytest.raises(WireError) as error:
            decode_rows(messages, 101)
        return str(error.value)

    assert simulation.run(3, run, timeout=20.0) == [f"rank 2 sent {wrong}"] * 3
