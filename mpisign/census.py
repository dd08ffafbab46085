"""How clear votes are: margins, ties and abstentions, counted on a sample of the coordinates.

Nothing is counted unless ``every`` is set: a vote's kernels find the majority without a count. Of a
vote whose step is a multiple of ``every``, the rank that tallies it looks at up to ``COORDINATES``
coordinates of each piece once more, in NumPy. That is local: no rank sends anything for it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

#: Steps from one look to the next, 0: never. Hot paths look at this alone.
every = 0
#: Coordinates of a piece that are looked at, spread evenly; fewer where there are many ranks.
COORDINATES = 4096
_VALUES = 1 << 19  # of all ranks together
_LOCK = threading.Lock()


@dataclass
class VoteCounts:
    """What was seen of votes since the start or the last ``stats().reset()``.

    Only where ``mpisign.log.TensorBoard`` or ``mpisign.log.sample_votes`` has switched it on, and
    only in what this process tallies: its own shards with alltoall-vote, everything with
    allgather-vote, of a hierarchical vote the part that it decides.

    Attributes:
        samples: pieces of votes that were looked at.
        coordinates: those looked at, of all pieces.
        votes: votes cast on them, by all ranks.
        abstentions: votes not cast: zeros under ``zeros="abstain"``, NaNs under ``nan="abstain"``.
        ties: coordinates with as many votes for + as for -, those without any included.
        unanimous: coordinates on which nobody voted against the majority, and somebody for it.
        margins: by |votes for + minus votes for -|, the number of coordinates. With weights, the
            difference of their sums, as a share of all weights times the number of ranks, rounded.
        against: by rank, how many of its votes were not the majority's. Of a hierarchical vote it
            is not known.
        cast: by rank, the votes that ``against`` is of: on coordinates without a tie.
        gradients: coordinates of this rank's own gradients that were looked at, before compression.
        zeros: how many of these were exactly zero.
    """

    samples: int = 0
    coordinates: int = 0
    votes: int = 0
    abstentions: int = 0
    ties: int = 0
    unanimous: int = 0
    margins: dict[int, int] = field(default_factory=dict)
    against: dict[int, int] = field(default_factory=dict)
    cast: dict[int, int] = field(default_factory=dict)
    gradients: int = 0
    zeros: int = 0

    def copy(self) -> VoteCounts:
        """A copy that later votes do not change."""
        with _LOCK:
            copies: dict[str, Any] = {
                k: dict(v) if isinstance(v, dict) else v for k, v in vars(self).items()
            }
            return VoteCounts(**copies)

    def add_votes(
        self,
        planes: npt.NDArray[np.uint8],
        valid: npt.NDArray[np.integer[Any]],
        weights: Sequence[float],
        voters: Sequence[float],
        ranks: Sequence[int] | None,
    ) -> None:
        """Adds one sample.

        Args:
            planes: (rows, k, b) bytes of sign planes, and of mask planes.
            valid: (b,) how many of a byte's 8 bits are coordinates.
            weights: of the rows.
            voters: the weights of all ranks.
            ranks: of the rows, None if rows are no ranks.
        """
        bits = np.unpackbits(planes, axis=-1, bitorder="little").astype(bool)
        there = (np.arange(8) < valid[:, None]).reshape(-1)
        negative = bits[:, 0][:, there]
        masked = bits.shape[1] == 2
        cast = bits[:, 1][:, there] if masked else np.ones_like(negative)
        of_rows = np.asarray(weights, dtype=float)
        plus = of_rows @ (cast & ~negative)
        minus = of_rows @ (cast & negative)
        # Without masks a row may take away the surplus that counts of votes can hold.
        votes = plus + minus if masked else np.full_like(plus, sum(voters))
        self.add_counts(plus - minus, votes, voters)
        if ranks is None:
            return
        decided = cast & (plus != minus)
        lost = decided & (negative != (minus > plus))
        with _LOCK:
            for rank, of_rank, lost_by_it in zip(ranks, decided, lost, strict=True):
                self.cast[rank] = self.cast.get(rank, 0) + int(of_rank.sum())
                self.against[rank] = self.against.get(rank, 0) + int(lost_by_it.sum())

    def add_counts(
        self,
        difference: npt.NDArray[np.floating[Any]],
        votes: npt.NDArray[np.floating[Any]],
        voters: Sequence[float],
    ) -> None:
        """Adds one sample: votes for + minus votes for -, and how many were cast, by weight."""
        size, total = len(voters), sum(voters)
        difference = np.abs(difference)
        margins = np.rint(difference * (size / total if total else 0.0)).astype(int)
        cast = round(float(votes.sum()) * (size / total if total else 0.0))
        values, counts = np.unique(margins, return_counts=True)
        with _LOCK:
            self.samples += 1
            self.coordinates += len(difference)
            self.votes += cast
            self.abstentions += len(difference) * size - cast
            self.ties += int((difference == 0).sum())
            self.unanimous += int(((difference > 0) & (difference == votes)).sum())
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                self.margins[value] = self.margins.get(value, 0) + count

    def add_gradient(self, gradient: Any) -> None:
        """Looks for zeros in a tensor of torch; ``COORDINATES`` of it, spread evenly."""
        flat = gradient.detach().reshape(-1)
        flat = flat[:: max(1, -(-len(flat) // COORDINATES))]
        zeros = int((flat == 0).sum())
        with _LOCK:
            self.gradients += len(flat)
            self.zeros += zeros


def places(nbytes: int, rows: int, step: int) -> slice:
    """Which bytes of ``nbytes`` to look at: another offset in another step."""
    most = max(1, min(COORDINATES, _VALUES // max(1, rows)) // 8)
    stride = max(1, -(-nbytes // most))
    return slice(step // max(1, every) % stride, None, stride)
