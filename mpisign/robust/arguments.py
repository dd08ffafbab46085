"""Checks of the rules' own arguments."""

from __future__ import annotations

import numpy as np

from mpisign import policies


def check_count(rule: object, argument: str, least: int) -> None:
    """ValueError unless the field ``argument`` is an integer of at least ``least``."""
    value = getattr(rule, argument)
    number = policies.whole(value, least)
    if number is None:
        raise ValueError(
            f"{type(rule).__name__}: {argument} must be an integer from {least}, got {value!r}"
        )
    object.__setattr__(rule, argument, number)


def check_number(rule: object, argument: str, *, zero: bool) -> None:
    """ValueError unless the field ``argument`` is finite and positive, or 0 where ``zero``."""
    value = getattr(rule, argument)
    fits = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not fits or not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "a finite number from 0" if zero else "a finite number above 0"
        raise ValueError(f"{type(rule).__name__}: {argument} must be {least}, got {value!r}")
