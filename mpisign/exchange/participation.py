"""Which ranks take part in a step: a seeded share of them, the same on every rank."""

from __future__ import annotations

import struct

import numpy as np

from mpisign.compressors.base import Compressor

#: What ranks may compute without some of them: all that has no owner and no groups.
_POSSIBLE = ("vote", "mean_of_signs", "gathered_vote", "gathered_mean", "average", "halves")
_STREAM = 1  # of Philox's key: noise has 0


def check_participation(
    function: str, participation: object, compressor: Compressor, byzantine_f: int
) -> float:
    """``participation`` as a float; ValueError if it is no share, or all ranks are needed."""
    if not isinstance(participation, (int, float)) or not 0 < participation <= 1:
        raise ValueError(
            f"{function}: participation must be a share of the ranks in (0, 1], "
            f"got {participation!r}"
        )
    if participation == 1:
        return 1.0
    grouped = type(compressor).groups_of is not Compressor.groups_of
    if compressor.aggregate not in _POSSIBLE or grouped:
        raise ValueError(
            f"{function}: participation={participation} goes with compressors that vote or take "
            f"means of what ranks send, such as 'sparsign', 'ef_sparsign', 'signum' and 'ef_sign', "
            f"got {compressor!r}"
        )
    if byzantine_f:
        raise ValueError(
            f"{function}: participation={participation} cannot be combined with byzantine_f, "
            f"got byzantine_f={byzantine_f}: all ranks are owners"
        )
    return float(participation)


def participants(share: float, seed: int, step: int, size: int) -> list[int] | None:
    """The ranks that take part in ``step``, in order; None: all of ``size``.

    ``share`` of them, rounded half up, at least one: those with the smallest of ``size`` words of
    Philox4x64-10, key ``seed`` and 1, counter (0, step, 0, 0). Each step draws anew.
    """
    m = max(1, int(share * size + 0.5))
    if m >= size:
        return None
    words = np.random.Philox(key=seed | _STREAM << 64, counter=step << 64).random_raw(size)
    order: list[int] = np.argsort(words, kind="stable")[:m].tolist()
    return sorted(order)


def terms(share: float) -> int:
    """64 bits that stand for ``share``, by which ranks compare it; 0 for all ranks."""
    return 0 if share == 1 else int.from_bytes(struct.pack("<d", share), "little")
