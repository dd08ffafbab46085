"""Options of the functions that pack and vote: policies, keys of random bits, fp32 parameters."""

from __future__ import annotations

import math
import struct
from operator import index
from typing import Any, TypedDict

from mpisign import policies

#: Key of the random bits: (seed, step, stream, bytes of planes before these). The stream is the
#: rank, or policies.TIE_STREAM for bits that all ranks share.
Random = tuple[int, int, int, int]
FLOAT32_MAX = 3.4028234663852886e38

_U64 = 1 << 64
_FP32 = struct.Struct("f")


class TieKey(TypedDict, total=False):
    """Options that key the random bits of ties, the same on every rank."""

    seed: int
    step: int
    offset: int


class Key(TieKey, total=False):
    """Options that key a rank's own random bits."""

    rank: int


class Policy(Key, total=False):
    """What zeros and NaNs vote: options of every function that packs. See ``mpisign.pack``."""

    zeros: policies.Zeros
    nan: policies.Nan


def policy(
    function: str,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    **key: Any,
) -> tuple[int, bool, Random]:
    """(code of ``zeros``, whether there is a mask plane, key of the random bits), checked."""
    if zeros not in policies.ZEROS or nan not in policies.NAN:
        policies.code(function, "zeros", zeros, policies.ZEROS)
        policies.code(function, "nan", nan, policies.NAN)
    two = zeros == "abstain" or nan == "abstain"
    return policies.ZEROS.index(zeros), two, random(function, **key)


def random(function: str, seed: int = 0, step: int = 0, rank: int = 0, offset: int = 0) -> Random:
    """The key of this rank's random bits; ``offset``: coordinates before the planes."""
    seed, step, offset = index(seed), index(step), index(offset)
    if not (0 <= seed < _U64 and 0 <= step < _U64):
        name, value = ("step", step) if 0 <= seed < _U64 else ("seed", seed)
        raise ValueError(f"{function}: {name} must be in [0, 2**64), got {value}")
    if not 0 <= rank < policies.TIE_STREAM:
        raise ValueError(f"{function}: rank must be in [0, 2**31), got {rank}")
    if not 0 <= offset < _U64 or offset % 8:
        raise ValueError(f"{function}: offset must be a multiple of 8, from 0, got {offset}")
    return seed, step, index(rank), offset // 8


def fp32(function: str, argument: str, value: float, low: float, high: float) -> float:
    """A parameter of a kernel: ValueError unless ``low <= value <= high`` once rounded to fp32."""
    try:
        rounded = _FP32.unpack(_FP32.pack(value))[0]
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    if not low <= rounded <= high:
        raise ValueError(
            f"{function}: {argument} must be in [{low:g}, {high:g}] in float32, got {value!r}"
        )
    return float(value)
