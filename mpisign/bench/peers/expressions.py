"""What one would write without mpisign: NumPy, CuPy and torch expressions.

``xp`` is numpy or cupy; tensors are torch's, on the same device. Each function computes what one
kernel computes, by one whole-array operation after another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign.bench.kernels.stock import stock_tensor


def pack(xp: Any, x: Any) -> Any:
    """packbits over a bool temporary; bfloat16 and device tensors through torch's comparison."""
    return _packed(xp, x < 0)


def pack_abstain(xp: Any, x: Any) -> Any:
    """Sign and mask plane, where zeros do not vote."""
    return _packed(xp, x < 0), _packed(xp, x != 0)


def pack_random(xp: Any, x: Any) -> Any:
    """A sign plane, where zeros vote at random."""
    negative = x < 0
    zero = x == 0
    negative[zero] = xp.random.randint(0, 2, int(zero.sum())) == 1
    return xp.packbits(negative, bitorder="little")


def pack_tensor(xp: Any, x: Any) -> Any:
    """As DeepSpeed's compressed backends pack: sign, + 1, bool, packbits."""
    return xp.packbits(_of(xp, x.sign().add_(1).bool()))


def pack_many(xp: Any, xs: Any) -> Any:
    """One gradient after another, then one buffer."""
    return xp.concatenate([pack(xp, x) for x in xs])


def signum(xp: Any, g: Any, m: Any) -> Any:
    """Momentum by torch, then a packed bool temporary."""
    m.mul_(0.9).add_(g, alpha=0.1)
    return _packed(xp, m < 0)


def lion(xp: Any, g: Any, m: Any) -> Any:
    """As Lion's public code: the update, then the momentum."""
    update = m.mul(0.9).add_(g, alpha=0.1)
    m.mul_(0.99).add_(g, alpha=0.01)
    return _packed(xp, update < 0)


def error_feedback(xp: Any, g: Any, e: Any) -> Any:
    """As DeepSpeed's compressed_allreduce up to its first exchange (one scale a tensor)."""
    buffer = g.add(e)
    scale = buffer.norm() / buffer.numel() ** 0.5
    e.set_(buffer - scale * buffer.sign().add_(1).bool().float().add_(-0.5).mul_(2.0))
    return xp.packbits(_of(xp, buffer.sign_().add_(1).bool())), scale


def sparsign(xp: Any, g: Any, budget: float) -> Any:
    """A float of torch's generator for every coordinate."""
    import torch

    votes = torch.rand_like(g) < g.abs() * budget
    negative = (g < 0) & votes
    return _packed(xp, negative), _packed(xp, votes)


def count(xp: Any, stack: Any, length: int) -> Any:
    """A byte (two from 256 rows) for every coordinate, a row at a time."""
    counts = xp.zeros(8 * stack.shape[-1], dtype="uint8" if len(stack) < 256 else "uint16")
    for row in stack:
        counts += xp.unpackbits(row, bitorder="little")
    return counts[:length]


def majority(xp: Any, stack: Any, length: int) -> Any:
    """Byte-per-coordinate counting; ties go to +."""
    return xp.packbits(count(xp, stack, length) > len(stack) // 2, bitorder="little")


def majority_masked(xp: Any, stack: Any, length: int) -> Any:
    """Counts of negative and of positive votes."""
    negative = count(xp, stack[:, 0] & stack[:, 1], length)
    positive = count(xp, ~stack[:, 0] & stack[:, 1], length)
    return xp.packbits(negative > positive, bitorder="little")


def majority_weighted(xp: Any, stack: Any, length: int, weights: Any) -> Any:
    """A 32-bit integer for every coordinate."""
    counts = xp.zeros(8 * stack.shape[-1], dtype="int32")
    for row, weight in zip(stack, weights, strict=True):
        counts += xp.unpackbits(row, bitorder="little") * xp.int32(weight)
    return xp.packbits(counts[:length] > sum(weights) // 2, bitorder="little")


def majority_grouped(xp: Any, stack: Any, length: int, group: int) -> Any:
    """The majority of each group, then of those."""
    groups = [majority(xp, stack[at : at + group], length) for at in range(0, len(stack), group)]
    return majority(xp, xp.stack(groups), length)


def group_distances(xp: Any, stack: Any, length: int, group: int) -> Any:
    """Every row's bits beside those of its group's majority, in bytes."""
    rows = [xp.unpackbits(row, bitorder="little")[:length] for row in stack]
    votes = [sum(rows[at : at + group]) > group // 2 for at in range(0, len(rows), group)]
    return [int((row != votes[r // group]).sum()) for r, row in enumerate(rows)]


def signs(xp: Any, plane: Any, length: int, dtype: str, scale: float = 1.0) -> Any:
    """unpackbits and where."""
    one = xp.dtype(dtype).type(scale)
    return xp.where(xp.unpackbits(plane, bitorder="little")[:length], -one, one)


def signs_masked(xp: Any, both: Any, length: int, dtype: str, scale: float = 1.0) -> Any:
    """unpackbits and where, twice."""
    votes = xp.unpackbits(both[1], bitorder="little")[:length]
    return xp.where(votes, signs(xp, both[0], length, dtype, scale), xp.dtype(dtype).type(0))


def signs_tensor(xp: Any, plane: Any, length: int, dtype: Any) -> Any:
    """As DeepSpeed's compressed backends unpack: unpackbits, then torch makes floats of bytes."""
    bits = stock_tensor(xp.unpackbits(plane, bitorder="little")[:length])
    return bits.to(dtype).mul_(-2).add_(1)


def weighted_sum(xp: Any, stack: Any, weights: Any, length: int) -> Any:
    """Every row to floats, then their weighted sum."""
    total = xp.zeros(length, dtype="float32")
    for row, weight in zip(stack, weights, strict=True):
        total += signs(xp, row, length, "float32", float(weight))
    return total


def mean_of_counts(xp: Any, counts: Any, voters: int, length: int) -> Any:
    """Count planes to integers, then their mean."""
    negatives = xp.zeros(length, dtype="int32")
    for j, plane in enumerate(counts):
        negatives += xp.unpackbits(plane, bitorder="little")[:length] << xp.int32(j)
    return ((voters - 2 * negatives) / voters).astype("float32")


def add(xp: Any, plane: Any, y: Any, scale: float) -> None:
    """unpackbits, where, +=."""
    y += signs(xp, plane, y.shape[0], y.dtype.name, scale)


def update(xp: Any, plane: Any, p: Any, rate: float, decay: float) -> None:
    """Decoupled weight decay as torch writes it: two passes over the parameters."""
    vote = signs(xp, plane, p.shape[0], "float32")
    p.mul_(1 - rate * decay).add_(stock_tensor(vote).to(p.dtype), alpha=-rate)


def positions(both: Any) -> tuple[Any, Any]:
    """Where something is present, four bytes each, and the signs there: (int32 (n,), uint8)."""
    at = np.flatnonzero(np.unpackbits(both[1], bitorder="little")).astype(np.int32)
    return at, np.packbits(np.unpackbits(both[0], bitorder="little")[at], bitorder="little")


def planes_of_positions(at: Any, signs: Any, length: int) -> Any:
    """The inverse of ``positions``, through a byte for every coordinate."""
    bits = np.zeros((2, length), dtype=np.uint8)
    bits[0, at] = np.unpackbits(signs, count=len(at), bitorder="little")
    bits[1, at] = 1
    return np.packbits(bits, axis=1, bitorder="little")


def _packed(xp: Any, flags: Any) -> Any:
    """A plane of a bool array or tensor."""
    return xp.packbits(_of(xp, flags), bitorder="little")


def _of(xp: Any, flags: Any) -> Any:
    """A bool tensor as an array of ``xp``, in the same memory."""
    if not hasattr(flags, "data_ptr"):
        return flags
    return flags.numpy() if xp is np else xp.from_dlpack(flags.byte())
