"""DETOX in full precision: a robust rule over one row of each group of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.collectives.representatives import Representatives
from mpisign.collectives.robust_shards import Reduction
from mpisign.engine.agreement import name_ranks, refuse_nans
from mpisign.robust.base import Rule
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


def detox_rows(
    wire: TaggedTransport,
    flat: Any,
    groups: Sequence[Sequence[int]],
    rule: Rule,
    rng: np.random.Generator,
    out: Any,
    *,
    function: str,
    turn: int = 0,
    tolerance: float = 0.0,
    nan: str = "abstain",
) -> Steps[None]:
    """``rule`` of one ``flat`` of each group to ``out``, float32 (d,): DETOX after its headers.

    ``groups``: a partition of the ranks, the same on all; the rule's rows are the groups, of which
    ``rule.f`` may be hostile. ``turn``: which member speaks, such as the number of the step.
    ``tolerance``: 0 where members compute the same bits; else rows of a group are alike if their
    distance is at most that times their norm, as sketches estimate it.

    Wire: to all, 8 bytes, how many coordinates are not finite, and the 32-byte digests of this
    rank's p shards (``Shards``), to which it commits; their echo (``echo``); with a tolerance, 256
    bytes of sketch for each shard, to all, and their echo. The sketches' seed is the digest of all
    commitments, so a rank learns it after it has committed. More than half of a group's members
    that are alike are its majority; a group without one, or with one not finite, is left out. Shard
    s of it goes to rank s from rank s itself where that is of the majority, else from member (s +
    turn) mod m of its m. An owner to whom comes what was not committed to asks the next (r - 1) / 2
    of the majority, a byte to each, one of which is honest if most of the group are. Then as
    ``robust_rows``, from distances on. Receives about 4 q d / p + 4 d bytes, q groups, and (p - 1)
    (64 p + 41), with a tolerance (p - 1) (288 p) more.

    WireError, on all ranks, names ranks that told others different things. RuntimeWarning, on the
    owner, those who sent other data than they committed to: the result is right. Where no member
    sends what fits the group is left out, of this shard or, if the rule measures, of all. Members
    that are not of their group's majority are booked (``mpisign.stats().suspects``). Trusts owners
    as ``robust_rows`` does. Source: Rajput et al. 2019, DETOX, section 3.
    """
    if not flat.size:
        return
    of = Representatives(wire, flat, groups, turn, tolerance, function)
    yield from of.commit()
    if nan == "raise":
        refuse_nans(function, of.infinite.tolist())
    if tolerance:
        yield from of.compare()
    of.decide()
    rows = yield from of.fetch()
    names = [f"the group of {name_ranks(sorted(g))}" for g in groups]
    reduction = Reduction(
        wire,
        of.shards,
        rule,
        rng,
        out,
        of.lost,
        function=function,
        name=lambda g: names[g],
        told=of.unmet,
        why="no group has a majority that holds the same finite values",
    )
    own = of.shards.whole(wire.rank).start
    pieces = [of.shards.piece(wire.rank, i) for i in range(of.shards.pieces)]
    yield from reduction.steps(
        [rows[:, at.start - own : at.stop - own] for at in pieces], lambda i: None
    )
