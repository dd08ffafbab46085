"""The kernels behind packing: majorities, counts, means, and planes back to floats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.backend import arrays
from mpisign.bench import plain
from mpisign.bench.case import Calls, Case
from mpisign.bench.packing import stock_tensor
from mpisign.bench.stock import Stock, torch_there

_BIT = 1 / 8  # of a byte
_WRITE = 0.80
_FUSED = 0.75
_GOALS = {
    **dict.fromkeys((2, 3, 4, 5, 7, 8, 15, 16), 0.80),
    **dict.fromkeys((31, 32, 64, 128), 0.6),
}
_GPU_ROWS = 64  # the goal of the GPU holds up to there
_PLAIN_ROWS = (2, 4, 8, 16, 32, 64)  # counting bytes is slow: not beside each n


def cases(xp: Any) -> Iterator[Case]:
    """All cases of votes, counts, means and unpacking; ``xp`` is numpy or cupy."""
    for ties in ("positive", "random", "zero"):
        for n in (*_GOALS, 1024) if ties == "positive" else _GOALS:
            yield _majority(xp, n, ties)
    for n in (4, 16):
        yield _masked(xp, n)
    yield _weighted(xp, 16)
    for n, group in ((9, 3), (15, 3), (15, 5), (45, 3)):
        yield _grouped(xp, n, group)
        yield _group_distances(xp, n, group)
    for n in (4, 16):
        yield _tally(xp, n)
    yield _weighted_sum(xp, 4)
    yield _mean_of_counts(xp, 16)
    for dtype in arrays.FLOATS:
        yield _unpack(xp, dtype, masked=False)
    yield _unpack(xp, "float32", masked=True)
    yield _unpack_add(xp)
    yield _update(xp)


def _majority(xp: Any, n: int, ties: Any) -> Case:
    two = ties == "zero"

    def build(stock: Stock, length: int) -> Calls:
        stack = stock.planes(length, n)
        out = stock.planes(length, *([2] if two else []))
        ways = {}
        if n in _PLAIN_ROWS and ties == "positive":
            ways["a byte a coordinate"] = partial(plain.majority, xp, stack, length)
        return Calls(partial(planes.majority, stack, length=length, ties=ties, out=out), ways)

    return Case(
        kernel="majority",
        variant=f"ties {ties}",
        limit="read",
        read=n * _BIT,
        written=(2 if two else 1) * _BIT,
        build=build,
        n=n,
        goal=_GOALS.get(n),
        main=ties == "positive" and n in (2, 4, 16, 64),
        gpu_goal=n <= _GPU_ROWS,
    )


def _masked(xp: Any, n: int) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        stack, out = stock.planes(length, n, 2), stock.planes(length)
        return Calls(
            partial(planes.majority, stack, length=length, ties="positive", out=out),
            {"a byte a coordinate": partial(plain.majority_masked, xp, stack, length)},
        )

    return Case("majority", "masked", "read", n * 2 * _BIT, _BIT, build, n=n)


def _weighted(xp: Any, n: int) -> Case:
    weights = list(range(1, n + 1))

    def build(stock: Stock, length: int) -> Calls:
        stack, out = stock.planes(length, n), stock.planes(length)
        ours = partial(
            planes.majority, stack, length=length, weights=weights, ties="positive", out=out
        )
        ways = {
            "4 bytes a coordinate": partial(plain.majority_weighted, xp, stack, weights, length)
        }
        return Calls(ours, ways)

    return Case("majority", f"weights 1 to {n}", "read", n * _BIT, _BIT, build, n=n)


def _grouped(xp: Any, n: int, group: int) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        stack, out = stock.planes(length, n), stock.planes(length)
        ours = partial(planes.majority, stack, length=length, group=group, ties="positive", out=out)
        ways = {"a byte a coordinate": partial(plain.majority_grouped, xp, stack, group, length)}
        return Calls(ours, ways)

    return Case("majority", f"groups of {group}", "read", n * _BIT, _BIT, build, n=n)


def _group_distances(xp: Any, n: int, group: int) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        stack = stock.planes(length, n)
        ours = partial(planes.group_distances, stack, group=group, length=length)
        ways = {"a byte a coordinate": partial(plain.group_distances, xp, stack, group, length)}
        return Calls(ours, ways if n < 16 else {})

    what = f"groups of {group}"
    return Case(
        "group_distances", what, "read", n * _BIT, 0, build, n=n, main=(n, group) == (15, 3)
    )


def _tally(xp: Any, n: int) -> Case:
    k = n.bit_length()

    def build(stock: Stock, length: int) -> Calls:
        stack, out = stock.planes(length, n), stock.planes(length, k)
        return Calls(
            partial(planes.tally, stack, length=length, out=out),
            {"a byte a coordinate": partial(plain.count, xp, stack, length)},
        )

    return Case("tally", f"{k} count planes", "read", n * _BIT, k * _BIT, build, n=n, main=n == 16)


def _weighted_sum(xp: Any, n: int) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        stack, out = stock.planes(length, n), stock.floats(length)
        weights = xp.asarray(np.linspace(0.5, 1.5, n, dtype=np.float32).reshape(n, 1))
        ways = {
            "unpackbits, where, sum": partial(plain.weighted_sum, xp, stack, weights[:, 0], length)
        }
        return Calls(partial(planes.weighted_sum, stack, weights, length=length, out=out), ways)

    return Case("weighted_sum", "float32", "write", n * _BIT, 4, build, n=n, main=True)


def _mean_of_counts(xp: Any, n: int) -> Case:
    k = n.bit_length()

    def build(stock: Stock, length: int) -> Calls:
        counts, out = stock.planes(length, k), stock.floats(length)
        ways = {"unpackbits, shift, sum": partial(plain.mean_of_counts, xp, counts, n, length)}
        return Calls(partial(planes.mean_of_counts, counts, n, length=length, out=out), ways)

    return Case("mean_of_counts", f"{k} planes", "write", k * _BIT, 4, build, n=n, main=True)


def _unpack(xp: Any, dtype: str, masked: bool) -> Case:
    size = arrays.ITEM_SIZE[dtype]

    def build(stock: Stock, length: int) -> Calls:
        both = stock.planes(length, *([2] if masked else []))
        out = stock.floats(length, dtype)
        if dtype == "bfloat16":
            way = partial(plain.signs_tensor, xp, both, length, out.dtype)
        elif masked:
            way = partial(plain.signs_masked, xp, both, length, dtype)
        else:
            way = partial(plain.signs, xp, both, length, dtype)
        ways = {"unpackbits, where" if dtype != "bfloat16" else "unpackbits, torch": way}
        return Calls(partial(planes.unpack, both, out=out), ways)

    return Case(
        kernel="unpack",
        variant=dtype + (", mask" if masked else ""),
        limit="write",
        read=(2 if masked else 1) * _BIT,
        written=size,
        build=build,
        goal=_WRITE,
        main=dtype == "float32" and not masked,
        gpu_goal=dtype == "float32" and not masked,
        needs_torch=dtype == "bfloat16",
    )


def _unpack_add(xp: Any) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        plane, y = stock.planes(length), stock.floats(length)
        return Calls(
            partial(planes.unpack_add, plane, y, scale=1e-3),
            {"unpackbits, where, +=": partial(plain.add, xp, plane, y, 1e-3)},
        )

    return Case(
        "unpack_add", "float32", "copy", 4 + _BIT, 4, build, again=4, goal=_FUSED, main=True
    )


def _update(xp: Any) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        plane, p = stock.planes(length), stock.floats(length)
        ways = {}
        if torch_there():
            ways["unpackbits, torch"] = partial(
                plain.update, xp, plane, stock_tensor(p), 1e-3, 1e-2
            )
        return Calls(partial(planes.update, plane, p, rate=1e-3, weight_decay=1e-2), ways)

    return Case(
        "update",
        "float32, weight decay",
        "copy",
        4 + _BIT,
        4,
        build,
        again=4,
        goal=_FUSED,
        main=True,
    )
