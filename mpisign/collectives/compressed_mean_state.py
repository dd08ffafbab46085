"""What compressed_mean remembers from step to step, and which coordinates each rank owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign import policies
from mpisign.collectives.vote_task import Planes

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Coordinates [a, b) of one shard, whose scales are [s, t) of all shards' scales."""

    a: int
    b: int
    s: int
    t: int

    def planes(self, planes: Planes, first: int = 0) -> Planes:
        """Its bytes of ``planes`` (..., k, B), whose first coordinate is ``first``."""
        return planes[..., (self.a - first) // 8 : (self.b - first + 7) // 8]


class CompressedMeanState:
    """One rank's residuals, float32 zeros at first: what its compressions left out so far.

    Shard r is blocks, or bytes, n r // size to n (r + 1) // size of n. Each residual is kept twice
    from the first step on, so that a step that fails leaves no trace: 8 bytes a coordinate and 8 a
    coordinate of the shard. Save ``state_dict()`` on every rank.

    Args:
        length: Coordinates of the tensor.
        size, rank: Of the communicator.
        block: Coordinates that share a scale, a multiple of 256. None: all of them (the owner's:
            its shard).

    Attributes:
        residual: float32 (length,), the rank's own.
        owner_residual: float32 (its shard,), of the mean of that shard.

    Raises:
        ValueError: An argument does not fit.

    Example:
        >>> import mpisign
        >>> state = mpisign.CompressedMeanState(1000, size=4, rank=1)
        >>> state.residual.shape, state.owner_residual.shape
        ((1000,), (248,))
    """

    def __init__(self, length: int, size: int = 1, rank: int = 0, block: int | None = None) -> None:
        function = "CompressedMeanState"
        for name, value, low in (("length", length, 0), ("size", size, 1), ("rank", rank, 0)):
            if policies.whole(value, low) is None:
                raise ValueError(f"{function}: {name} must be an integer from {low}, got {value!r}")
        if rank >= size:
            raise ValueError(f"{function}: rank must be below size {size}, got {rank}")
        if block is not None and (policies.whole(block, 1) is None or block % 256):
            raise ValueError(
                f"{function}: block must be a positive multiple of 256 or None, got {block!r}"
            )
        self.length, self.size, self.rank = int(length), int(size), int(rank)
        self.block = None if block is None else int(block)
        self._unit = self.block or 8
        self._units = -(-self.length // self._unit)
        self.shard = self.piece(self.rank)
        self.residual: Floats = np.zeros(self.length, dtype=np.float32)
        self.owner_residual: Floats = np.zeros(self.shard.b - self.shard.a, dtype=np.float32)
        self._next: tuple[Floats, Floats] | None = None

    def piece(self, rank: int, i: int = 0, n: int = 1) -> Piece:
        """Part ``i`` of ``n`` of a rank's shard.

        Args:
            rank: The owner of the shard.
            i: Number of the part, from 0.
            n: Number of parts.

        Returns:
            Its ranges of coordinates and of scales.
        """
        first, last = (self._units * r // self.size for r in (rank, rank + 1))
        u, v = first + (last - first) * i // n, first + (last - first) * (i + 1) // n
        a, b = (min(self.length, w * self._unit) for w in (u, v))
        return Piece(a, b, u, v) if self.block else Piece(a, b, rank, rank + (b > a))

    @property
    def scales(self) -> int:
        """How many scales all shards have together."""
        return self._units if self.block else self.size

    def begin(self) -> tuple[Floats, Floats]:
        """Returns memory for both residuals after the step; ``commit`` makes it the state."""
        if self._next is None:
            self._next = np.empty_like(self.residual), np.empty_like(self.owner_residual)
        return self._next

    def commit(self) -> None:
        """Makes the residuals of a step that succeeded the state."""
        assert self._next is not None
        old = self.residual, self.owner_residual
        (self.residual, self.owner_residual), self._next = self._next, old

    def release(self) -> None:
        """Gives back the memory of the step that is over; the next one takes new."""
        self._next = None

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of both residuals, float32 NumPy arrays, and of the arguments."""
        return {
            "length": self.length,
            "size": self.size,
            "rank": self.rank,
            "block": self.block,
            "residual": self.residual.copy(),
            "owner_residual": self.owner_residual.copy(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Loads the residuals that ``state_dict`` returned.

        If ``size``, ``rank`` or ``block`` differ, since ranks joined or left, the rank's own
        residual is loaded and the owner's starts from zero: its shard has other bounds now. What
        the last mean left out is lost.

        Args:
            saved: The dict; its arrays may be torch tensors.

        Raises:
            ValueError: Lengths differ, or a value is not finite.
        """
        function = "load_state_dict"
        residual = _loaded(function, "residual", saved["residual"], self.length)
        same = all(saved[k] == getattr(self, k) for k in ("size", "rank", "block"))
        owners = np.zeros_like(self.owner_residual)
        if same:
            owners = _loaded(function, "owner_residual", saved["owner_residual"], owners.size)
        self.residual, self.owner_residual = residual, owners


def _loaded(function: str, name: str, values: Any, length: int) -> Floats:
    array = np.array(np.asarray(values), dtype=np.float32).reshape(-1)
    if array.size != length:
        raise ValueError(f"{function}: {name} must have {length} coordinates, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{function}: {name} must be finite")
    return array
