"""What of an exchange is saved in a checkpoint, and whose it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpisign.compressors.base import Compressor
from mpisign.engine.engine import Engine
from mpisign.exchange import checkpoint
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.pending_step import PendingStep


class SavedState:
    """The state of the compressors and the count of steps, which keys the random bits."""

    def __init__(
        self,
        slots: Sequence[ParameterSlot],
        compressor: Compressor,
        seed: int,
        pending: PendingStep,
    ) -> None:
        self.slots = list(slots)
        self.compressor, self.seed, self.pending = compressor, seed, pending
        self.engine: Engine | None = None
        self.steps = 0
        self._fresh = True  # nobody has compared this rank's parameters with the others' yet
        self._loaded: dict[str, Any] = {}  # whose state was loaded

    def state_dict(self, place: tuple[int, int] | None = None) -> dict[str, Any]:
        """This rank's state: {"steps": n, "state": {name: {key: copy}}}; every rank has its own.

        Under "of" whose it is: {"rank", "size", "seed", "compressor"}, once these are known.
        ``place``: rank and size; default: those of the last exchange.
        """
        is_open = self.pending.open
        if place is None and self.engine is not None:
            place = self.engine.transport.rank, self.engine.transport.size
        origin = {} if place is None else {checkpoint.OF: self._origin(*place)}
        return checkpoint.state_dict(self.steps - is_open, self.slots, is_open) | origin

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``; ValueError, and nothing changed, if it does not fit."""
        self.steps = checkpoint.load(state, self.slots)
        self.pending.forget()
        self._fresh = True
        self._loaded = dict(state.get(checkpoint.OF, {}))

    def _origin(self, rank: int, size: int) -> dict[str, Any]:
        return checkpoint.origin(rank, size, self.seed, repr(self.compressor))

    def _tell_origin(self) -> None:
        loaded, self._loaded = self._loaded, {}
        if loaded:
            assert self.engine is not None
            transport = self.engine.transport
            checkpoint.warn_of_origin(loaded, self._origin(transport.rank, transport.size))
