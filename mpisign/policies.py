"""What a vote does with zeros, NaNs and ties: the names, their codes, their defaults.

All ranks use one policy, and no policy depends on the rank, or replicas would diverge. The random
bits for zeros differ from rank to rank (they are votes); those for ties never do.
"""

from __future__ import annotations

from operator import index
from typing import Any, Final, Literal, get_args

Zeros = Literal["positive", "random", "abstain"]
Nan = Literal["raise", "abstain"]
Ties = Literal["positive", "random", "zero"]
Algorithm = Literal["auto", "allgather", "alltoall", "hierarchical", "vote_of_votes"]

#: One plane up, one plane down, no drift: see docs/compressors.md for the evidence.
DEFAULT_ZEROS: Final[Zeros] = "random"
DEFAULT_NAN: Final[Nan] = "raise"
DEFAULT_TIES: Final[Ties] = "random"

ZEROS: Final = get_args(Zeros)
NAN: Final = get_args(Nan)
TIES: Final = get_args(Ties)
ALGORITHMS: Final = get_args(Algorithm)

#: The random stream that all ranks share; a rank's own stream is its number.
TIE_STREAM: Final = 0x80000000


def code(function: str, argument: str, value: object, choices: tuple[str, ...]) -> int:
    """The kernel's code of a policy; ValueError that names function, argument, expected, got."""
    try:
        return choices.index(value)  # type: ignore[arg-type]
    except ValueError:
        expected = ", ".join(repr(c) for c in choices)
        message = f"{function}: {argument} must be one of {expected}, got {value!r}"
        raise ValueError(message) from None


def planes_up(zeros: Zeros, nan: Nan) -> int:
    """Planes a rank sends: two (sign and mask) as soon as a coordinate may abstain."""
    return 2 if zeros == "abstain" or nan == "abstain" else 1


def planes_down(ties: Ties) -> int:
    """Planes a result takes: two (sign and mask) if ties are zero."""
    return 2 if ties == "zero" else 1


def whole(value: Any, least: int = 0, below: int | None = None) -> int | None:
    """``value`` as an int if it is an integer of any library, from ``least`` on, else None.

    A NumPy integer would be shown, hashed and encoded in other ways on the rank that has it.
    """
    if isinstance(value, bool):
        return None
    try:
        number = index(value)
    except TypeError:
        return None
    return number if number >= least and (below is None or number < below) else None
