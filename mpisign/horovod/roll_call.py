"""The ranks that voted and the scale of the reduction, read from the reduced words.

Horovod's compression interface gets neither the reduction's operation nor the ranks that have
called ``hvd.join``. A few words before each payload let every rank compute both.

Wire layout, float64, p ranks in w = ceil(p / 32) words: [1, clock, digest, digest squared, w words
with bit r of rank r set, w words with minus bit r set unless rank r holds NaN or is unfit]. The
digest is 16 bits of BLAKE2b over what ranks must agree on. A rank with a gradient that cannot be
voted on adds 2**40 to its clock. Received: alpha times the sums over the V voters, with alpha = 1
under Sum and 1/p under Average; ranks that joined add zeros.

Sum and Average are told apart by the first word, alpha V: above 1 it is a Sum, below 1 an Average
with ranks that joined. If it is 1, it is a Sum of one voter, whose bitmap is a power of two, or an
Average of all p, whose bitmap is (2**p - 1) / p: odd over p, so a power of two for p = 1 alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpisign.backend.arrays import FLOATS
from mpisign.engine.agreement import name_ranks
from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError

Words = npt.NDArray[np.float64]

#: Where the clocks are summed.
CLOCK = 1
#: Where the digest of what ranks must agree on is.
CONFIG = slice(2, 4)

_RANKS_PER_WORD = 32
_FIXED = 4
_UNFIT = 1 << 40  # clocks are far smaller


def n_words(size: int) -> int:
    """The number of words in a roll call of ``size`` ranks."""
    return _FIXED + 2 * (-(-size // _RANKS_PER_WORD))


@dataclass(frozen=True)
class Voters:
    """What a reduced roll call holds.

    ``voters`` and ``nans`` are positions in the process set. ``unscale`` times the received words
    are integers. ``agreed``: all ranks sent the same digest.
    """

    size: int
    voters: tuple[int, ...]
    nans: tuple[int, ...]
    unscale: float
    clock: int
    agreed: bool

    @property
    def unfit(self) -> bool:
        """Whether ranks of ``nans`` have gradients that cannot be voted on."""
        return self.clock >= _UNFIT

    @property
    def joined(self) -> tuple[int, ...]:
        """The ranks that have called ``hvd.join``."""
        return tuple(r for r in range(self.size) if r not in self.voters)


def write(
    out: Words,
    rank: int,
    size: int,
    *,
    clock: int,
    config_digest: str,
    nan: bool = False,
    unfit: bool = False,
) -> None:
    """Writes one rank's words into ``out``, float64 (n_words(size),).

    ``config_digest``: the text to digest, of everything that ranks must agree on. ``unfit``: this
    rank's gradient cannot be voted on.
    """
    digest = hashlib.blake2b(config_digest.encode(), digest_size=4).digest()
    number = int.from_bytes(digest, "little") & 0xFFFF
    width = (len(out) - _FIXED) // 2
    word, bit = divmod(rank, _RANKS_PER_WORD)
    out[:] = 0
    out[:_FIXED] = 1, clock + unfit * _UNFIT, number, number * number
    out[_FIXED + word] = 1 << bit
    out[_FIXED + width + word] = 0 if nan or unfit else -(1 << bit)


def read(words: Words, size: int, where: str) -> Voters:
    """Reads reduced words; WireError, the same on every rank, if they are no sum and no mean.

    ``where`` names the tensor in the error.
    """
    if words.shape != (n_words(size),):
        raise WireError(f"{where}: expected a roll call of {n_words(size)} words, got {len(words)}")
    full = (1 << size) - 1
    total = float(words[0])
    for unscale, lone in _scales(total, size):
        integers = _integers(words, unscale)
        if integers is None:
            continue
        width = (len(words) - _FIXED) // 2
        count, clock, digest, squares = integers[:_FIXED]
        present = _bitmap(integers[_FIXED : _FIXED + width])
        unsound = present + _bitmap(integers[_FIXED + width :])
        if not 0 < present <= full or present.bit_count() != count or (lone and count != 1):
            continue
        if unsound < 0 or unsound & ~present:
            continue
        agreed = count * squares == digest * digest
        return Voters(size, _ranks(present), _ranks(unsound), unscale, clock, agreed)
    raise WireError(
        f"{where}: the reduction was neither a Sum nor an Average of what {size} ranks sent "
        f"(the first word is {total!r}). With op=Adasum or another operation use "
        "hvd.Compression.none; for a process set give it here too: "
        "Compression.sign(process_set=...)"
    )


def check(roll: Voters, where: str, ranks: list[int]) -> None:
    """Raises on every rank what forbids the vote.

    ``ranks``: global ranks of the process set. CollectiveError: a gradient that cannot be voted on.
    DisagreementError: digests differ. NaNError: a rank holds NaN under nan="raise".
    """
    if roll.unfit:
        held = name_ranks([ranks[r] for r in roll.nans])
        raise CollectiveError(
            f"{where}: cannot go on because of {held}: "
            f"gradients must be dense and of dtype {', '.join(FLOATS)} (make a complex parameter a "
            "float parameter, and in forward() take torch.view_as_complex)"
        )
    check_config(roll, where)
    if roll.nans:
        held = name_ranks([ranks[r] for r in roll.nans])
        raise NaNError(
            f"{where}: the gradient must hold no NaN under nan='raise', but does on {held} "
            "(nan='abstain' leaves them out of the vote)"
        )


def check_config(roll: Voters, where: str) -> None:
    """Raises DisagreementError, the same on every rank, if digests differ."""
    if not roll.agreed:
        raise DisagreementError(
            f"{where}: ranks disagree on the vote's length, policies, seed, momentum, process "
            "set or learning rates; take the same arguments and options on every rank"
        )


def _scales(total: float, size: int) -> list[tuple[float, bool]]:
    """Candidates for (unscale, only one voter), the likelier one first."""
    if not 0 < total < size + 0.5:
        return []
    if abs(total - 1) < 1e-6:
        return [(float(size), False), (1.0, True)]
    return [(1.0, False)] if total > 1 else [(float(size), False)]


def _integers(words: Words, unscale: float) -> list[int] | None:
    values = words * unscale
    if not np.isfinite(values).all():
        return None
    # Strict for counts and bitmaps, where 3.75 must not pass for a power of two: these are small.
    # The squares may be large and carry a larger rounding error.
    tolerance = np.full(len(words), 2.0**-10)
    tolerance[1:_FIXED] = 0.25
    if (np.abs(values - np.rint(values)) > tolerance).any():
        return None
    return [int(v) for v in np.rint(values)]


def _bitmap(words: list[int]) -> int:
    return sum(word << (_RANKS_PER_WORD * i) for i, word in enumerate(words))


def _ranks(bitmap: int) -> tuple[int, ...]:
    return tuple(r for r in range(bitmap.bit_length()) if bitmap >> r & 1)
