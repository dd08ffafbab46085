"""Checks of compressors' own arguments; each raises ValueError."""

from __future__ import annotations

from typing import Any

from mpisign import policies


def check_abstains(compressor: Any) -> None:
    """Zeros must abstain, as they do in all that is sparse."""
    if compressor.zeros != "abstain":
        raise ValueError(
            f"{type(compressor).__name__}: zeros must be 'abstain', since most coordinates do, "
            f"got {compressor.zeros!r}"
        )


def check_positive(compressor: Any, *names: str) -> None:
    """The fields must be positive numbers that float32 holds."""
    for name in names:
        value = getattr(compressor, name)
        if not isinstance(value, (int, float)) or not 1.2e-38 < value < 3.4e38:
            _refuse(compressor, name, "a positive number", value)


def check_fraction(compressor: Any, *names: str) -> None:
    """The fields must be in [0, 1)."""
    for name in names:
        value = getattr(compressor, name)
        if not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
            _refuse(compressor, name, "in [0, 1)", value)


def check_density(compressor: Any) -> bool:
    """``density`` must be in (0, 1], or None, which 1 becomes. Whether it is below 1.

    Then zeros and ties follow it: a coordinate that no one votes on is a tie, not a coin.
    """
    density = compressor.density
    if density is None or (density == 1 and not isinstance(density, bool)):
        object.__setattr__(compressor, "density", None)
        return False
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density < 1:
        _refuse(compressor, "density", "None or in (0, 1]", density)
    object.__setattr__(compressor, "density", float(density))
    follow = ("zeros", policies.DEFAULT_ZEROS, "abstain"), ("ties", policies.DEFAULT_TIES, "zero")
    for name, default, only in follow:
        given = getattr(compressor, name)
        if given not in (default, only):
            _refuse(compressor, name, f"{only!r} with a density below 1", given)
        object.__setattr__(compressor, name, only)
    return True


def check_whole(compressor: Any, name: str, least: int, wanted: str) -> None:
    """The field must be an integer from ``least``; of whichever library, it becomes an int."""
    number = policies.whole(getattr(compressor, name), least)
    if number is None:
        _refuse(compressor, name, wanted, getattr(compressor, name))
    object.__setattr__(compressor, name, number)


def check_block(compressor: Any) -> None:
    """``block`` must be a positive multiple of 256 or None."""
    if compressor.block is None:
        return
    check_whole(compressor, "block", 1, "a positive multiple of 256 or None")
    if compressor.block % 256:
        _refuse(compressor, "block", "a positive multiple of 256 or None", compressor.block)


def check_one_of(compressor: Any, name: str, choices: tuple[str, ...], listed: str) -> None:
    """The field must be one of ``choices``, which messages call ``listed``."""
    if getattr(compressor, name) not in choices:
        _refuse(compressor, name, listed, getattr(compressor, name))


def _refuse(compressor: Any, name: str, expected: str, value: Any) -> None:
    raise ValueError(f"{type(compressor).__name__}: {name} must be {expected}, got {value!r}")
