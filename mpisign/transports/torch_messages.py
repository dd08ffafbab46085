"""Parts in device memory as the one tensor a torch collective sends or fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Room:
    """Where a collective writes: ``memory``, and the parts that its bytes are copied to.

    ``pieces``: as many of the parts, of ``memory``; none where the parts are the memory.
    """

    def __init__(
        self,
        memory: torch.Tensor,
        pieces: Sequence[torch.Tensor] = (),
        parts: Sequence[torch.Tensor] = (),
    ) -> None:
        self.memory = memory
        self._pieces, self._parts = pieces, parts

    def hand_out(self) -> None:
        """Copies the bytes to the parts."""
        if self._parts:
            torch._foreach_copy_(list(self._parts), list(self._pieces))


def room(parts: Sequence[torch.Tensor], like: torch.Tensor) -> Room:
    """Room for the parts one behind another: in their own memory if they lie so."""
    memory = _adjacent(parts)
    if memory is not None:
        return Room(memory)
    parts = [part for part in parts if part.nbytes]
    each = [part.nbytes for part in parts]
    memory = torch.empty(sum(each), dtype=torch.uint8, device=like.device)
    pieces: Any = memory.split(each)
    return Room(memory, pieces, parts)


def padded_room(rows: Sequence[torch.Tensor], each: int, like: torch.Tensor) -> Room:
    """Room for rows of ``each`` bytes, which begin with those of ``rows``."""
    memory = torch.empty(len(rows) * each, dtype=torch.uint8, device=like.device)
    pieces = [memory[each * r : each * r + row.nbytes] for r, row in enumerate(rows)]
    return Room(memory, pieces, rows)


def joined(parts: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The bytes of the parts one behind another: their own memory if they lie so, or a copy."""
    memory = _adjacent(parts)
    if memory is not None:
        return memory
    return torch.cat([part.reshape(-1) for part in parts]) if parts else like


def padded(row: torch.Tensor, each: int) -> torch.Tensor:
    """``each`` bytes that begin with those of ``row``."""
    memory = torch.zeros(each, dtype=torch.uint8, device=row.device)
    memory[: row.nbytes].copy_(row)
    return memory


def _adjacent(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The memory of the parts as one tensor if they lie one behind another; else None."""
    parts = [part for part in parts if part.nbytes]
    if not parts or not all(part.is_contiguous() for part in parts):
        return None
    for a, b in zip(parts, parts[1:], strict=False):
        same = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        if not same or a.data_ptr() + a.nbytes != b.data_ptr():
            return None
    first, total = parts[0], sum(part.nbytes for part in parts)
    return first.as_strided((total,), (1,), first.storage_offset())
