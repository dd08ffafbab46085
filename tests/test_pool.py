"""The memory that staged bytes lie in: mpisign.transports.pool."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpisign.transports.pool import Pool


def place(x):
    return x.__array_interface__["data"][0]


steps = st.lists(
    st.one_of(
        st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 3 << 20)), max_size=5),
        st.integers(0, 100),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_no_two_live_slices_overlap(steps):
    blocks, live = [], []
    pool = Pool(lambda n: blocks.append(np.empty(n, np.uint8)) or blocks[-1])
    for step in steps:
        if isinstance(step, list):
            lease = pool.take(step)
            assert [s.nbytes for s in lease.slices] == step
            live.append(lease)
        elif live:
            live.pop(step % len(live)).give_back()
        ranges = sorted(
            (place(s), place(s) + s.nbytes) for held in live for s in held.slices if s.size
        )
        assert all(past <= first for (_, past), (first, _) in zip(ranges, ranges[1:], strict=False))
        inside = [(place(b), place(b) + b.nbytes) for b in blocks]
        assert all(any(a <= f and p <= b for a, b in inside) for f, p in ranges)
    assert pool.nbytes == sum(b.nbytes for b in blocks)
    while live:
        live.pop().give_back()
    # All given back and all gaps joined: the largest block is whole again, and nothing grows.
    if blocks:
        count = len(blocks)
        whole = pool.take([max(b.nbytes for b in blocks)])
        assert len(blocks) == count
        whole.give_back()


def test_the_same_exchanges_again_take_no_more_memory():
    grown = []
    pool = Pool(lambda n: grown.append(n) or np.empty(n, np.uint8))
    for _ in range(100):
        leases = [pool.take([n, 0, 7]) for n in (5000, 3 << 20, 1)]
        for lease in leases:
            lease.give_back()
            lease.give_back()  # once is enough, twice does no harm
    assert len(grown) <= 3
    # Needs that grow by a little each time: a logarithmic number of allocations.
    pool.take([50 << 20])
    for i in range(1000):
        pool.take([(1 << 16) * (i % 7)])
    assert len(grown) < 12


def test_what_allocation_raises_leaves_the_pool_as_it_was():
    left = [1 << 21]

    def allocate(n):
        if n > left[0]:
            raise MemoryError(f"{n} bytes of pinned memory")
        return np.empty(n, np.uint8)

    pool = Pool(allocate)
    first = pool.take([1 << 20])
    with pytest.raises(MemoryError, match="pinned"):
        pool.take([1 << 22])
    first.give_back()
    assert pool.take([1 << 20]).slices[0].base is not None
    assert pool.nbytes == 1 << 20


def test_memory_goes_with_the_pool():
    gone = []

    class Block(np.ndarray):
        pass

    def allocate(n):
        block = np.empty(n, np.uint8).view(Block)
        weakref.finalize(block, gone.append, n)
        return block

    pool = Pool(allocate)
    lease = pool.take([100])
    kept = lease.slices[0]
    del pool, lease
    assert not gone  # the wire may still write there
    del kept
    assert gone == [1 << 20]
