"""Checks of the rules' own arguments."""

from __future__ import annotations

import numpy as np


def check_count(rule: object, argument: str, least: int) -> None:
    """ValueError unless the field ``argument`` is an integer of at least ``least``."""
    value = getattr(rule, argument)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(
            f"{type(rule).__name__}: {argument} must be an integer from {least}, got {value!r}"
        )


def check_number(rule: object, argument: str, *, zero: bool) -> None:
    """ValueError unless the field ``argument`` is finite and positive, or 0 where ``zero``."""
    value = getattr(rule, argument)
    fits = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not fits or not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "a finite number from 0" if zero else "a finite number above 0"
        raise ValueError(f"{type(rule).__name__}: {argument} must be {least}, got {value!r}")
