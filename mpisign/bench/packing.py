"""The packing kernels: gradients to planes, alone or fused with what comes before."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from mpisign import planes
from mpisign.backend import arrays
from mpisign.bench import plain
from mpisign.bench.case import Calls, Case
from mpisign.bench.stock import Stock, torch_there

_READ = 0.90
_FUSED = 0.75
_BIT = 1 / 8  # of a byte

_TENSORS = 161  # as many as a ResNet-50 has


def cases(xp: Any) -> Iterator[Case]:
    """All cases of packing; ``xp`` is numpy or cupy."""
    for dtype in arrays.FLOATS:
        yield _pack(xp, dtype, "positive", goal=_READ, main=dtype == "float32")
    yield _pack(xp, "float32", "random", goal=_READ)
    yield _pack(xp, "float32", "random", share=0.5)
    yield _pack(xp, "float32", "abstain", goal=_READ)
    yield _pack(xp, "float32", "abstain", share=0.5)
    yield _pack_many(xp)
    for name, rule, plain_way, function in (
        ("pack_signum", {"beta": 0.9}, plain.signum, "pack_signum"),
        ("pack_lion", {"beta1": 0.9, "beta2": 0.99}, plain.lion, "pack_lion"),
    ):
        for dtype in ("float32", "bfloat16"):
            yield _momentum(xp, name, rule, plain_way, function, dtype)
    for block in (256, 2048, 65_536, None):
        yield _error_feedback(xp, block)
    yield _sparsign(xp)


def _pack(
    xp: Any,
    dtype: str,
    zeros: Any,
    share: float = 0.0,
    goal: float | None = None,
    main: bool = False,
) -> Case:
    k = 2 if zeros == "abstain" else 1

    def build(stock: Stock, length: int) -> Calls:
        x = stock.floats(length, dtype, share)
        out = stock.planes(length, *([2] if k == 2 else []))
        ways = {}
        if zeros == "abstain":
            ways["packbits twice"] = partial(plain.pack_abstain, xp, x)
        elif share:
            ways["packbits, random zeros"] = partial(plain.pack_random, xp, x)
        else:
            ways["packbits(x < 0)"] = partial(plain.pack, xp, x)
        if torch_there() and main:
            ways["DeepSpeed's way"] = partial(plain.pack_tensor, xp, stock_tensor(x))
        # Not pack: it waits for the count of NaNs, and a GPU's clock would stand still meanwhile.
        return Calls(partial(planes.pack_census, x, zeros=zeros, out=out), ways)

    variant = f"{dtype}, zeros {zeros}" + (f", {share:.0%} zeros" if share else "")
    return Case(
        kernel="pack",
        variant=variant,
        limit="read",
        read=arrays.ITEM_SIZE[dtype],
        written=k * _BIT,
        build=build,
        goal=goal,
        main=main,
        gpu_goal=main,
        needs_torch=dtype == "bfloat16",
    )


def stock_tensor(x: Any) -> Any:
    """``x`` as a torch tensor in the same memory."""
    import torch

    if arrays.is_torch(x):
        return x
    return torch.from_numpy(x) if hasattr(x, "ctypes") else torch.from_dlpack(x)


def _pack_many(xp: Any) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        count = max(1, min(_TENSORS, length // 64))
        each = length // count // 8 * 8
        lengths = [each] * (count - 1) + [length - each * (count - 1)]
        xs = [stock.floats(n) for n in lengths]
        out = stock.planes(length)
        return Calls(
            partial(planes.pack_many, xs, zeros="positive", out=out),
            {"packbits, concatenate": partial(plain.pack_many, xp, xs)},
        )

    return Case(
        kernel="pack_many",
        variant=f"float32, up to {_TENSORS} tensors",
        limit="read",
        read=4,
        written=_BIT,
        build=build,
        goal=_READ,
        main=True,
    )


def _momentum(
    xp: Any, name: str, rule: dict[str, float], plain_way: Any, function: str, dtype: str
) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        make = stock.tensor if torch_there() else stock.floats
        g, m = make(length), make(length, dtype)
        out = stock.planes(length)
        ours = partial(getattr(planes, function), g, m, zeros="positive", out=out, **rule)
        return Calls(
            ours, {"torch, packbits": partial(plain_way, xp, g, m)} if torch_there() else {}
        )

    size = arrays.ITEM_SIZE[dtype]
    return Case(
        kernel=name,
        variant=f"float32, momentum {dtype}",
        limit="copy",
        read=4 + size,
        written=size + _BIT,
        again=size,
        build=build,
        goal=_FUSED,
        main=dtype == "float32",
        gpu_goal=dtype == "float32",
        needs_torch=dtype == "bfloat16",
    )


def _error_feedback(xp: Any, block: int | None) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        make = stock.tensor if torch_there() else stock.floats
        g, e = make(length), make(length)
        out = stock.planes(length)
        scales = stock.floats(-(-length // block) if block else 1)
        ours = partial(
            planes.pack_error_feedback,
            g,
            e,
            block=block,
            zeros="positive",
            out=out,
            scales=scales,
        )
        ways = {}
        if torch_there():
            residual = e.clone()
            ways["DeepSpeed's way"] = partial(plain.error_feedback, xp, g, residual)
        return Calls(ours, ways)

    return Case(
        kernel="pack_error_feedback",
        variant=f"float32, {f'blocks of {block:,}' if block else 'one block'}",
        limit="copy",
        # One scale for all is known after all has been read, and then all must be read again.
        read=8 if block else 16,
        written=4 + _BIT + (4 / block if block else 0),
        again=4 if block else 12,
        build=build,
        goal=_FUSED,
        main=block == 2048,
        gpu_goal=block is not None,
    )


def _sparsign(xp: Any) -> Case:
    def build(stock: Stock, length: int) -> Calls:
        g = (stock.tensor if torch_there() else stock.floats)(length)
        out = stock.planes(length, 2)
        ways = {"torch, packbits twice": partial(plain.sparsign, xp, g, 0.1)}
        return Calls(
            partial(planes.pack_sparsign, g, budget=0.1, out=out), ways if torch_there() else {}
        )

    return Case(
        kernel="pack_sparsign",
        variant="float32, budget 0.1",
        limit="read",
        read=4,
        written=2 * _BIT,
        build=build,
        main=True,
    )
