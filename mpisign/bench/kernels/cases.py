"""Every case: packing, votes, unpacking, coding of sparse planes, small calls.

``xp`` is numpy or cupy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.backend import arrays
from mpisign.bench.kernels.case import Calls, Case
from mpisign.bench.kernels.stock import Stock, stock_tensor, torch_there
from mpisign.bench.peers import expressions as plain

_BIT = 1 / 8  # of a byte
_READ, _WRITE, _FUSED, _OTHERS = 0.90, 0.80, 0.75, 0.70  # goals
_VOTE_GOALS = {
    **dict.fromkeys((2, 3, 4, 5, 7, 8, 15, 16), 0.80),
    **dict.fromkeys((31, 32, 64, 128), 0.85),
}
_MANY, _MANY_GOAL = 1024, 0.85
_GPU_ROWS = 64  # the goal of the GPU holds up to this many rows
_PLAIN_ROWS = (2, 4, 8, 16, 32, 64)  # counting bytes is slow: not beside each n
_TENSORS = 161  # of a ResNet-50
_CODED = {0.1: 0.576 / 8, 0.05: 0.339 / 8, 0.01: 0.091 / 8}  # bytes, by the share that is present
_SMALL_ROWS = 4
_BYTES = "a byte a coordinate"


def cases(xp: Any) -> Iterator[Case]:
    """All cases; coding runs on the host only."""
    yield from _packing(xp)
    yield from _voting(xp)
    yield from _unpacking(xp)
    if xp is np:
        coding = [case for share in _CODED for case in _coding(share)]
        yield from sorted(coding, key=lambda case: case.kernel, reverse=True)  # encode first


def _packing(xp: Any) -> Iterator[Case]:
    for dtype in arrays.FLOATS:
        yield _pack(xp, dtype, "positive", goal=_READ, main=dtype == "float32")
    for zeros in ("random", "abstain"):
        yield _pack(xp, "float32", zeros, goal=_READ)
        yield _pack(xp, "float32", zeros, share=0.5)
    yield _pack_many(xp)
    for dtype in ("float32", "bfloat16"):
        yield _momentum(xp, planes.pack_signum, plain.signum, dtype, beta=0.9)
    for dtype, goal in (("float32", _FUSED), ("bfloat16", _OTHERS)):
        yield _momentum(xp, planes.pack_lion, plain.lion, dtype, goal, beta1=0.9, beta2=0.99)
    for block in (256, 2048, 65_536, None):
        yield _error_feedback(xp, block)
    yield _sparsign(xp)


def _pack(xp: Any, dtype: str, zeros: Any, share: float = 0.0, main: bool = False,
          goal: float | None = None) -> Case:  # fmt: skip
    two = zeros == "abstain"

    def build(stock: Stock, length: int) -> Calls:
        x = stock.floats(length, dtype, share)
        out = stock.planes(length, *([2] if two else []))
        if two:
            beside = {"packbits twice": partial(plain.pack_abstain, xp, x)}
        elif share:
            beside = {"packbits, random zeros": partial(plain.pack_random, xp, x)}
        else:
            beside = {"packbits(x < 0)": partial(plain.pack, xp, x)}
        if torch_there() and main:
            beside["DeepSpeed's code"] = partial(plain.pack_tensor, xp, stock_tensor(x))
        # Not pack: it waits for the count of NaNs, and a GPU's clock would stand still meanwhile.
        return Calls(partial(planes.pack_census, x, zeros=zeros, out=out), beside)

    variant = f"{dtype}, zeros {zeros}" + (f", {share:.0%} zeros" if share else "")
    return Case(
        "pack", variant, "read", arrays.ITEM_SIZE[dtype], (1 + two) * _BIT, build, goal=goal,
        main=main, gpu_goal=main, needs_torch=dtype == "bfloat16",
    )  # fmt: skip


def _pack_many(xp: Any) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        count = max(1, min(_TENSORS, length // 64))
        each = length // count // 8 * 8
        xs = [stock.floats(n) for n in [each] * (count - 1) + [length - each * (count - 1)]]
        ours = partial(planes.pack_many, xs, zeros="positive", out=stock.planes(length))
        return Calls(ours, {"packbits, concatenate": partial(plain.pack_many, xp, xs)})

    variant = f"float32, up to {_TENSORS} tensors"
    return Case("pack_many", variant, "read", 4, _BIT, build, goal=_READ, main=True)


def _like_torch(stock: Stock, *lengths: int, dtype: str = "float32") -> list[Any]:
    """Gradients: torch's tensors where it is installed. The last one has ``dtype``."""
    make = stock.tensor if torch_there() else stock.floats
    return [make(n, dtype if i == len(lengths) - 1 else "float32") for i, n in enumerate(lengths)]


def _if_torch(name: str, call: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {name: call} if torch_there() else {}


def _momentum(
    xp: Any, kernel: Any, plain_rule: Any, dtype: str, goal: float = _FUSED, **rule: float
) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        g, m = _like_torch(stock, length, length, dtype=dtype)
        ours = partial(kernel, g, m, zeros="positive", out=stock.planes(length), **rule)
        return Calls(ours, _if_torch("torch, packbits", partial(plain_rule, xp, g, m)))

    size, single = arrays.ITEM_SIZE[dtype], dtype == "float32"
    return Case(
        kernel.__name__, f"float32, momentum {dtype}", "copy", 4 + size, size + _BIT, build,
        again=size, goal=goal, main=single, gpu_goal=single, needs_torch=not single,
    )  # fmt: skip


def _error_feedback(xp: Any, block: int | None) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        g, e = _like_torch(stock, length, length)
        out, scales = stock.planes(length), stock.floats(-(-length // block) if block else 1)
        ours = partial(
            planes.pack_error_feedback, g, e, block=block, zeros="positive", out=out, scales=scales
        )
        if not torch_there():
            return Calls(ours)
        return Calls(ours, {"DeepSpeed's code": partial(plain.error_feedback, xp, g, e.clone())})

    # One scale for all is known after all has been read, and then all must be read again.
    read, written, again = (8, 4 + 4 / block, 4) if block else (16, 4, 12)
    return Case(
        "pack_error_feedback", f"float32, {f'blocks of {block:,}' if block else 'one block'}",
        "copy", read, written + _BIT, build, again=again, goal=_FUSED, main=block == 2048,
        gpu_goal=block is not None,
    )  # fmt: skip


def _sparsign(xp: Any) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        (g,) = _like_torch(stock, length)
        ours = partial(planes.pack_sparsign, g, budget=0.1, out=stock.planes(length, 2))
        return Calls(ours, _if_torch("torch, packbits twice", partial(plain.sparsign, xp, g, 0.1)))

    return Case(
        "pack_sparsign", "float32, budget 0.1", "read", 4, 2 * _BIT, build, goal=_OTHERS, main=True
    )


def _voting(xp: Any) -> Iterator[Case]:
    for ties in ("positive", "random", "zero"):
        for n in (*_VOTE_GOALS, _MANY) if ties == "positive" else _VOTE_GOALS:
            shown = n in _PLAIN_ROWS and ties == "positive"
            yield _votes(
                n, f"ties {ties}", {_BYTES: partial(plain.majority, xp)} if shown else {},
                planes_out=1 + (ties == "zero"), ties=ties, goal=_VOTE_GOALS.get(n, _MANY_GOAL),
                main=ties == "positive" and n in (2, 4, 16, 64), gpu_goal=n <= _GPU_ROWS,
            )  # fmt: skip
    for n in (4, 16):
        beside = {_BYTES: partial(plain.majority_masked, xp)}
        yield _votes(n, "masked", beside, planes_in=2, goal=_OTHERS)
    w = list(range(1, 17))
    counted = {"4 bytes a coordinate": partial(plain.majority_weighted, xp, weights=w)}
    yield _votes(16, "weights 1 to 16", counted, options={"weights": w}, goal=_OTHERS)
    for n, group in ((9, 3), (15, 3), (15, 5), (45, 3)):
        what, options = f"groups of {group}", {"group": group}
        grouped = {_BYTES: partial(plain.majority_grouped, xp, **options)}
        yield _votes(n, what, grouped, options=options)
        apart = {_BYTES: partial(plain.group_distances, xp, **options)} if n < 16 else {}
        yield _stacked(
            planes.group_distances, n, what, apart, 0, options=options, main=(n, group) == (15, 3)
        )
    for n in (4, 16):
        k = n.bit_length()
        counts = {_BYTES: partial(plain.count, xp)}
        yield _stacked(planes.tally, n, f"{k} count planes", counts, k, main=n == 16)


def _votes(n: int, variant: str, beside: Any, *, planes_out: int = 1, ties: Any = "positive",
           options: Any = None, **more: Any) -> Case:  # fmt: skip
    options = {"ties": ties, **(options or {})}
    return _stacked(planes.majority, n, variant, beside, planes_out, options=options, **more)


def _stacked(kernel: Any, n: int, variant: str, beside: Any, planes_out: int, *, planes_in: int = 1,
             options: Any = None, **more: Any) -> Case:  # fmt: skip
    """A kernel of ``n`` rows of planes; ``beside``: plain calls on (stack, length), by name."""
    tally = kernel is planes.tally

    def build(stock: Stock, length: int) -> Calls:
        stack = stock.planes(length, n, *([2] if planes_in == 2 else []))
        given = dict(options or {})
        if planes_out:
            given["out"] = stock.planes(length, *([planes_out] if planes_out > 1 or tally else []))
        ours = partial(kernel, stack, length=length, **given)
        return Calls(ours, {name: partial(f, stack, length) for name, f in beside.items()})

    read = n * planes_in * _BIT
    return Case(kernel.__name__, variant, "read", read, planes_out * _BIT, build, n=n, **more)


def _unpacking(xp: Any) -> Iterator[Case]:
    yield from _sums(xp, 4, 16)
    for dtype in arrays.FLOATS:
        yield _unpack(xp, dtype, masked=False)
    yield _unpack(xp, "float32", masked=True)

    def add(stock: Stock, length: int) -> Calls:
        plane, y = stock.planes(length), stock.floats(length)
        beside = {"unpackbits, where, +=": partial(plain.add, xp, plane, y, 1e-3)}
        return Calls(partial(planes.unpack_add, plane, y, scale=1e-3), beside)

    def update(stock: Stock, length: int) -> Calls:
        plane, p = stock.planes(length), stock.floats(length)
        ours = partial(planes.update, plane, p, rate=1e-3, weight_decay=1e-2)
        if not torch_there():
            return Calls(ours)
        beside = partial(plain.update, xp, plane, stock_tensor(p), 1e-3, 1e-2)
        return Calls(ours, {"unpackbits, torch": beside})

    in_place: dict[str, Any] = {"again": 4, "goal": _FUSED, "main": True}
    yield Case("unpack_add", "float32", "copy", 4 + _BIT, 4, add, **in_place)
    yield Case("update", "float32, weight decay", "copy", 4 + _BIT, 4, update, **in_place)


def _sums(xp: Any, n: int, voters: int) -> Iterator[Case]:
    k = voters.bit_length()

    def weighted(stock: Stock, length: int) -> Calls:
        stack, out = stock.planes(length, n), stock.floats(length)
        weights = xp.asarray(np.linspace(0.5, 1.5, n, dtype=np.float32).reshape(n, 1))
        beside = partial(plain.weighted_sum, xp, stack, weights[:, 0], length)
        ours = partial(planes.weighted_sum, stack, weights, length=length, out=out)
        return Calls(ours, {"unpackbits, where, sum": beside})

    def mean(stock: Stock, length: int) -> Calls:
        counts, out = stock.planes(length, k), stock.floats(length)
        beside = partial(plain.mean_of_counts, xp, counts, voters, length)
        ours = partial(planes.mean_of_counts, counts, voters, length=length, out=out)
        return Calls(ours, {"unpackbits, shift, sum": beside})

    yield Case("weighted_sum", "float32", "write", n * _BIT, 4, weighted, n=n, main=True)
    yield Case(
        "mean_of_counts", f"{k} planes", "write", k * _BIT, 4, mean, n=voters, goal=_OTHERS,
        main=True,
    )  # fmt: skip


def _unpack(xp: Any, dtype: str, masked: bool) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        both = stock.planes(length, *([2] if masked else []))
        out = stock.floats(length, dtype)
        name, call = "unpackbits, where", partial(plain.signs, xp, both, length, dtype)
        if dtype == "bfloat16":
            name = "unpackbits, torch"
            call = partial(plain.signs_tensor, xp, both, length, out.dtype)
        elif masked:
            call = partial(plain.signs_masked, xp, both, length, dtype)
        return Calls(partial(planes.unpack, both, out=out), {name: call})

    usual = dtype == "float32" and not masked
    return Case(
        "unpack", dtype + (", mask" if masked else ""), "write", (1 + masked) * _BIT,
        arrays.ITEM_SIZE[dtype], build, goal=_WRITE, main=usual, gpu_goal=usual,
        needs_torch=dtype == "bfloat16",
    )  # fmt: skip


def _coding(share: float) -> Iterator[Case]:
    def encode(stock: Stock, length: int) -> Calls:
        both, out = stock.sparse(length, share), stock.room(planes.coded_bytes_bound(length))
        ours = partial(planes.encode, both, length=length, out=out)
        return Calls(ours, {"int32 positions": partial(plain.positions, both)})

    def decode(stock: Stock, length: int) -> Calls:
        out = stock.planes(length, 2)
        other = Stock(np, "cpu")  # the planes of which the message is made are not held
        other.reserve(out.size + 64)
        both = other.sparse(length, share)
        coded = planes.encode(both, length=length)
        message = stock.room(coded.size)
        message[:] = coded
        beside = partial(plain.planes_of_positions, *plain.positions(both), length)
        return Calls(partial(planes.decode, message, length, out), {"int32 positions": beside})

    variant, main, two, coded = f"{share:.0%} present", share == 0.1, 2 * _BIT, _CODED[share]
    yield Case("encode", variant, "copy", two, coded, encode, spare=two - coded, main=main)
    yield Case("decode", variant, "copy", coded, two, decode, main=main)


def small_cases(
    xp: Any, stock: Stock, size: int, goal_each: float | None, goal_all: float | None
) -> Iterator[tuple[str, float | None, Calls]]:
    """Names, goals in seconds and calls: pack, majority, unpack and the three together."""
    pack = planes.pack if xp is np else planes.pack_census  # pack waits for its count of NaNs
    g, stack, plane = stock.floats(size), stock.planes(size, _SMALL_ROWS), stock.planes(size)

    def vote() -> Any:
        stack[0] = planes.pack(g)
        return planes.unpack(planes.majority(stack, length=size), size)

    def plain_vote() -> Any:
        stack[0] = plain.pack(xp, g)
        return plain.signs(xp, plain.majority(xp, stack, size), size, "float32")

    beside: dict[str, Any] = {"packbits": partial(plain.pack, xp, g)}
    yield "pack", goal_each, Calls(partial(pack, g), beside)
    majority = partial(planes.majority, stack, length=size)
    beside = {_BYTES: partial(plain.majority, xp, stack, size)}
    yield f"majority of {_SMALL_ROWS}", goal_each, Calls(majority, beside)
    beside = {"unpackbits, where": partial(plain.signs, xp, plane, size, "float32")}
    yield "unpack", goal_each, Calls(partial(planes.unpack, plane, size), beside)
    yield "all three: a vote", goal_all, Calls(vote, {xp.__name__: plain_vote})
