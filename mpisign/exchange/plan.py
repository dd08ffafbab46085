"""Which parameters travel together, and in which order: alike on every rank."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.compressors.base import Compressor
from mpisign.exchange.buckets import Bucket
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule, variant

#: Coordinates of a bucket, unless told, where several travel at once: a quarter of a MiB a plane.
BUCKET_SIZE = 2 << 20
_WEYL = 0x9E3779B97F4A7C15  # odd: the seeds of 2^64 buckets differ


class GradientBucket:
    """Members that travel as one round, with one compressor. ``index``: its place in the plan."""

    def __init__(
        self, index: int, members: Sequence[ParameterSlot], compressor: Compressor
    ) -> None:
        self.index = index
        self.members = list(members)
        self.compressor = compressor
        self.layout = Bucket([m.parameter.numel() for m in members])
        self.tensor = self.layout.identity([f"{m.name} {m.parameter.dtype}" for m in members])
        # One byte a member, 1 = it has a gradient here: which ones to leave alone is agreed on.
        self.present: Any = np.zeros(len(self.members), dtype=np.uint8)
        self.waiting = 0  # for gradients, until it starts by itself

    def seed(self, seed: int) -> int:
        """A seed of its own: places count from 0 in every bucket, and random bits by places."""
        return (seed + self.index * _WEYL) % (1 << 64)


def cut(
    function: str,
    members: Sequence[ParameterSlot],
    compressor: Compressor,
    rule: Rule,
    bucket_size: int | None,
) -> list[GradientBucket]:
    """Buckets of up to ``bucket_size`` coordinates, or of one member that has more.

    ``bucket_size`` None: one bucket for each way of travelling. Members keep their order; those of
    one bucket share a device. Those that need no gradient now lie in buckets of their own, behind
    all others, which need not wait for them; but what is ``whole`` stays so.
    """
    if compressor.whole:
        bucket_size = None
    lanes: dict[Any, list[list[ParameterSlot]]] = {}
    order: list[tuple[Compressor, list[ParameterSlot]]] = []
    for m in members:
        c = variant(function, rule(m.name, m.parameter), compressor)
        apart = None if c.whole else (m.parameter.device, m.parameter.requires_grad)
        lane = lanes.setdefault((c, apart), [])
        full = bool(lane) and bucket_size is not None
        if full:
            held = sum(k.parameter.numel() for k in lane[-1])
            full = held + m.parameter.numel() > (bucket_size or 0)
        if not lane or full:
            lane.append([])
            order.append((c, lane[-1]))
        lane[-1].append(m)
    # In the order of their last members: with the overlap, that in which they fill up.
    place = {id(m): i for i, m in enumerate(members)}
    order.sort(key=lambda pair: (not pair[1][0].parameter.requires_grad, place[id(pair[1][-1])]))
    return [GradientBucket(i, part, c) for i, (c, part) in enumerate(order)]


def warn_of_bf16_mean(
    function: str, buckets: Sequence[GradientBucket], compressor: Compressor
) -> None:
    """Warns of a model so small that nothing of it goes through ``compressor``."""
    halves = [b.compressor.aggregate == "halves" for b in buckets]
    if halves and all(halves) and compressor.aggregate != "halves":
        warnings.warn(
            f"{function}: nothing goes through {compressor!r}: all tensors are vectors or of up to "
            "1,024 coordinates and travel in 16 bits; skip=None sends all alike",
            stacklevel=4,
        )
