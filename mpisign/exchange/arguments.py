"""Checks of arguments that several front ends take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from mpisign import policies
from mpisign.compressors.base import Compressor


def check_seed(function: str, seed: object) -> None:
    """Raises ValueError unless ``seed`` is an integer in [0, 2**64)."""
    if policies.whole(seed, 0, 1 << 64) is None:
        raise ValueError(f"{function}: seed must be in [0, 2**64), got {seed!r}")


def check_warmup(function: str, warmup_steps: object) -> int:
    """``warmup_steps`` as an int; ValueError unless it is a number of steps."""
    steps = policies.whole(warmup_steps, 0, 1 << 48)
    if steps is None:
        raise ValueError(
            f"{function}: warmup_steps must be a number of steps from 0, got {warmup_steps!r}"
        )
    return steps


def named_pairs(function: str, named_parameters: Iterable[Any]) -> list[tuple[str, torch.Tensor]]:
    """The (name, parameter) pairs as a list; TypeError, ValueError unless names are distinct."""
    pairs = list(named_parameters)
    for pair in pairs:
        fits = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not fits or not isinstance(pair[1], torch.Tensor):
            raise TypeError(
                f"{function}: named_parameters must hold (name, parameter) pairs as "
                f"model.named_parameters() does, got {type(pair).__name__}"
            )
    distinct = {(name, id(p)) for name, p in pairs}
    twice = sorted(name for name, n in Counter(name for name, _ in distinct).items() if n > 1)
    if twice:
        raise ValueError(
            f"{function}: named_parameters must have distinct names, got {twice} twice"
        )
    return pairs


def check_settings(
    function: str,
    compressor: Compressor,
    algorithm: object,
    byzantine_f: object,
    bucket_size: object,
) -> None:
    """Raises ValueError for settings of an exchange that are none, or do not go together."""
    policies.code(function, "algorithm", algorithm, policies.ALGORITHMS)
    if policies.whole(byzantine_f, 0, 1 << 16) is None:
        raise ValueError(f"{function}: byzantine_f must be a number from 0, got {byzantine_f!r}")
    if byzantine_f and compressor.aggregate != "vote":
        raise ValueError(
            f"{function}: byzantine_f={byzantine_f} goes with compressors that vote, "
            f"got {compressor!r}"
        )
    if bucket_size is not None and policies.whole(bucket_size, 1) is None:
        raise ValueError(
            f"{function}: bucket_size must be a positive number of coordinates or None, "
            f"got {bucket_size!r}"
        )
