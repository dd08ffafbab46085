"""Votes and means over ranks, from planes (n, B) or from gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.planes import TIE_STREAM, bits_to_plane, pack, plane_to_bits, random_bits


def vote(xs: Any) -> Any:
    """sign(V), V = sum over ranks of sign(x_r); 0 where V is 0.

    Source: Bernstein et al. 2019, signSGD with majority vote, Algorithm 1.
    """
    return np.sign(sum(np.sign(x.astype(np.float64)) for x in xs))


def votes_of(signs: Any, masks: Any = None, length: int | None = None) -> Any:
    """Planes (n, B) as int64 votes (n, length): +1, -1, and 0 where the mask is 0."""
    length = 8 * signs.shape[1] if length is None else length
    negative = np.stack([plane_to_bits(s, length) for s in signs])
    present = True if masks is None else np.stack([plane_to_bits(m, length) for m in masks])
    return np.where(present, np.where(negative, -1, 1), 0)


def majority(
    signs: Any,
    masks: Any = None,
    ties: str = "positive",
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    length: int | None = None,
    weights: Any = None,
    group: int = 1,
) -> tuple[Any, Any]:
    """(sign plane, mask plane) of the majority of planes (n, B).

    ``ties``: "positive", "zero" (the mask is 0), "random" (bits of ``TIE_STREAM``, equal on all
    ranks). ``weights``: (n,) integers. ``group``: so many rows in a row vote first.
    """
    votes = votes_of(signs, masks, length)
    length = votes.shape[1]
    if weights is not None:
        votes = votes * np.asarray(weights, dtype=np.int64)[:, None]
    votes = np.sign(votes.reshape(-1, group, length).sum(axis=1)) if group > 1 else votes
    total = votes.sum(axis=0)
    result, mask = total < 0, np.ones(length, dtype=bool)
    if ties == "random":
        result = np.where(total == 0, random_bits(seed, step, TIE_STREAM, offset, length), result)
    if ties == "zero":
        mask = total != 0
    return bits_to_plane(result), bits_to_plane(mask)


def majority_vote(
    xs: Sequence[Any],
    zeros: str = "random",
    ties: str = "random",
    nan: str = "raise",
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    weights: Any = None,
) -> Any:
    """The vote of all ranks' gradients, float32 of +1, -1, 0: pack, majority, unpack."""
    if nan == "raise" and any(np.isnan(x).any() for x in xs):
        raise ValueError("NaN is no vote")
    packed = [pack(x, zeros, seed, step, rank, offset) for rank, x in enumerate(xs)]
    signs, masks = (np.stack(rows) for rows in zip(*packed, strict=True))
    n = np.size(xs[0])
    sign, mask = majority(signs, masks, ties, seed, step, offset, n, weights)
    return votes_of(sign[None], mask[None], n)[0].astype(np.float32)


def grouped_vote(votes: Any, groups: Sequence[Sequence[int]]) -> Any:
    """The majority of the groups' majorities of votes (p, d); a tied group abstains.

    Source: Rajput et al. 2019, DETOX, Algorithm 1, on signs. The ranks of a node as a group: the
    vote of votes, which is not the majority of all ranks.
    """
    return np.sign(sum(np.sign(votes[list(g)].sum(axis=0)) for g in groups))


vote_of_votes = grouped_vote


def hierarchical_vote(votes: Any, nodes: Sequence[Sequence[int]]) -> Any:
    """The sign of the sum of the nodes' sums: the flat vote, as sums are exact."""
    return np.sign(sum(votes[list(ranks)].sum(axis=0) for ranks in nodes))


def group_distances(signs: Any, masks: Any = None, group: int = 1, length: Any = None) -> Any:
    """How many votes of each row differ from the majority of its group, where it has one."""
    votes = votes_of(signs, masks, length).reshape(len(signs) // group, group, -1)
    verdict = np.sign(votes.sum(axis=1, keepdims=True))
    return (votes * verdict < 0).sum(axis=2).reshape(-1)


def tally(
    signs: Any, masks: Any = None, weights: Any = None, length: Any = None, planes: int = 32
) -> tuple[Any, ...]:
    """Count planes (planes, B) of the negative and of the positive votes, lowest bit first."""
    votes = votes_of(signs, masks, length)
    w = np.ones(len(votes), dtype=np.int64) if weights is None else np.asarray(weights, np.int64)
    counts = [(w[:, None] * (votes == sign)).sum(axis=0) for sign in (-1, 1)]
    return tuple(
        np.stack([bits_to_plane((c >> j & 1).astype(bool)) for j in range(planes)]) for c in counts
    )


def mean_of_signs(votes: Any) -> Any:
    """The mean of votes (p, d), float32: an exact sum times 1/p.

    Source: Liu et al. 2024, Distributed Lion, Algorithm 1 (Avg).
    """
    return votes.sum(axis=0).astype(np.float32) * np.float32(1 / len(votes))


def mean_of_counts(counts: Any, voters: int, length: int | None = None) -> Any:
    """The mean of ``voters`` signs from the count planes (k, B) of the negative ones."""
    negative = sum(plane_to_bits(c, length).astype(np.int64) << j for j, c in enumerate(counts))
    return (voters - 2 * negative).astype(np.float32) * np.float32(1 / voters)


def weighted_sum(
    signs: Any,
    masks: Any,
    weights: Any,
    block: int | None = None,
    start: float = 0.0,
    scale: float = 1.0,
    length: int | None = None,
) -> Any:
    """scale (start + sum over rows of w_r vote_r), fp32 (length,), rows in order.

    ``weights``: (n, blocks), one for each ``block`` coordinates of a row.
    """
    votes = votes_of(signs, masks, length).astype(np.float32)
    y = np.full(votes.shape[1], np.float32(start))
    for row, w in zip(votes, np.asarray(weights, dtype=np.float32), strict=True):
        w = np.repeat(w, block or max(1, y.size))[: y.size]
        y = np.where(row == 0, y, y + w * row)
    return y * np.float32(scale)


def _bf16(x: Any) -> Any:
    """fp32 rounded to bfloat16, to the nearest, ties to even (no NaN)."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def bf16_mean(xs: Sequence[Any]) -> Any:
    """The 16-bit mean: gradients rounded to bfloat16, added up in fp32 by rank, rounded again."""
    total = np.zeros(np.shape(xs[0]), np.float32)
    for x in xs:
        total = total + _bf16(x)
    return _bf16(total / np.float32(len(xs)))


def unpack_add(sign: Any, mask: Any, out: Any, scale: float = 1.0) -> Any:
    """out + scale vote, in out's dtype; where the mask is 0, out."""
    y = out.astype(np.float64 if out.dtype == np.float64 else np.float32)
    (v,) = votes_of(sign[None], None if mask is None else mask[None], out.size).astype(y.dtype)
    return np.where(v == 0, out, (y + y.dtype.type(scale) * v).astype(out.dtype))


def update(sign: Any, mask: Any, parameter: Any, rate: float, weight_decay: float = 0.0) -> Any:
    """x - rate (V + weight_decay x), each operation rounded (Bernstein 2019, Algorithm 1)."""
    p = parameter.astype(np.float64 if parameter.dtype == np.float64 else np.float32)
    (v,) = votes_of(sign[None], None if mask is None else mask[None], p.size).astype(p.dtype)
    wide = p - p.dtype.type(rate) * (v + p.dtype.type(weight_decay) * p)
    return wide.astype(parameter.dtype)
