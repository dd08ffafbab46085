"""What an owner says of a shard: the digest of its tally, or why, and because of whom, it has none.

Wire layout, 32 bytes: a digest, or an accusation: 19 bytes of 0xff, its reason u8, then the ranks
accused, three u32, little-endian, 0xffffffff where there are fewer. A digest that looks like one
takes 2**152 tries.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mpisign.engine.agreement import name_ranks
from mpisign.engine.echo import DIGEST
from mpisign.transports.base import Bytes

_RECORD = struct.Struct("<19sB3I")
_MARK, _NOBODY, _RANKS = b"\xff" * 19, 0xFFFFFFFF, 3
TOLD, COMMITTED, PADDING = range(3)
_REASONS = (
    "told ranks different things, or lied about what it was told",
    "sent planes other than those it committed to",
    "sent planes with padding not 0",
)
assert _RECORD.size == DIGEST


def accuse(reason: int, ranks: Sequence[int]) -> Bytes:
    """The 32 bytes of an accusation; of more than three ranks the first three."""
    named = [*ranks[:_RANKS], *[_NOBODY] * _RANKS][:_RANKS]
    return np.frombuffer(_RECORD.pack(_MARK, reason, *named), dtype=np.uint8)


def is_accusation(said: bytes) -> bool:
    """Whether an owner's 32 bytes are no digest."""
    return said.startswith(_MARK)


def summary(said: Iterable[tuple[int, bytes]], size: int) -> str:
    """The accusations among (owner, its 32 bytes) as text; "" if there are none.

    Whoever sent them may be hostile: reasons and ranks that there are not are passed over.
    """
    by: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)
    for owner, record in said:
        if is_accusation(record):
            _, reason, *named = _RECORD.unpack(record)
            accused = tuple(r for r in named if r < size)
            if reason < len(_REASONS) and accused:
                by[reason, accused].add(owner)
    return "; ".join(
        f"{name_ranks(sorted(owners))} said: {' or '.join(f'rank {r}' for r in accused)} "
        f"{_REASONS[reason]}"
        for (reason, accused), owners in sorted(by.items())
    )
