"""Accordion: what each parameter sends in the epochs to come, the same on every rank."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpisign.compressors.accordion import REGIME, Accordion, is_steady
from mpisign.compressors.base import State, get_or_init
from mpisign.exchange.parameter_slot import ParameterSlot

_SUM, _ABS = "accordion_sum", "accordion_abs"
_OWNERS = ("owner_residual", "owner_of")
_CHUNK = 1 << 16


class Regimes:
    """The regimes of ``slots``, which lie in their states under ``REGIME`` and are never changed.

    "high": what it sends now; "epoch": epochs that have ended; "began": the step with which the
    present one began; "rate": the learning rate then; "norm": of the last epoch that was added up;
    "voted": whether its updates were votes; "scale": the size of updates by vote.
    """

    def __init__(self, compressor: Accordion, slots: Sequence[ParameterSlot]) -> None:
        self._compressor = compressor
        self.slots = list(slots)
        self._seen: list[Any] = []
        self._digest = 0

    @property
    def steps_per_epoch(self) -> int | None:
        """The compressor's."""
        return self._compressor.steps_per_epoch

    @property
    def high(self) -> dict[str, bool]:
        """By name, whether a parameter sends the high compression."""
        return {s.name: _of(s.state).get("high", False) for s in self.slots}

    def begin(self, steps: int, rates: dict[torch.Tensor, float], warming: bool) -> None:
        """Before step ``steps``: parameters without a regime get one; an epoch may end."""
        known = [r for s in self.slots if (r := _of(s.state))]
        began = max((r["began"] for r in known), default=steps)
        epoch = max((r["epoch"] for r in known), default=0)
        if len(known) < len(self.slots):
            for s in self.slots:
                if not _of(s.state):
                    rate = rates.get(s.parameter, 1.0)
                    _write(s, _first(epoch, began, rate))
        length = self._compressor.steps_per_epoch
        if length is not None and steps - began >= length:
            self.end_epoch(steps, rates, warming)

    def end_epoch(self, steps: int, rates: dict[torch.Tensor, float], warming: bool) -> None:
        """Decides, if there was a step. ``rates``: of the epoch to come."""
        before = self.high
        for s in self.slots:
            regime = _of(s.state)
            if regime and steps > regime["began"]:
                rate = rates.get(s.parameter, 1.0)
                _write(s, self._next(s.state, regime, steps, rate, warming))
        if self.high != before:  # buckets change, and with them what owners of shards keep
            for s in self.slots:
                for state in (s.state, s.committed()):
                    for key in _OWNERS:
                        state.pop(key, None)

    def add(self, warming: bool) -> None:
        """After a step: gives votes the size of updates, and adds aggregates up."""
        c = self._compressor
        for s in self.slots:
            regime, grad = _of(s.state), s.grad
            if grad is None or not regime:
                continue
            grad = grad.detach()
            votes = c.votes and regime["high"] and not warming
            if votes:
                scale = regime["scale"] if c.vote_scale is None else c.vote_scale
                grad.mul_(scale)
                s.version = grad._version
            if regime["epoch"] % c.every == 0:
                get_or_init(s.state, _SUM, grad).add_(grad)
                if c.votes and not votes:
                    get_or_init(s.state, _ABS, grad).add_(grad.abs())

    def digest(self) -> int:
        """64 bits of all that ranks decide by; they must be equal."""
        regimes = [_of(s.state) for s in self.slots]
        same = len(regimes) == len(self._seen)
        if not same or any(a is not b for a, b in zip(regimes, self._seen, strict=True)):
            text = f"{self._compressor!r} {regimes!r}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            self._seen, self._digest = regimes, int.from_bytes(digest, "little")
        return self._digest

    def _next(
        self, state: State, regime: dict[str, Any], steps: int, rate: float, warming: bool
    ) -> dict[str, Any]:
        c = self._compressor
        new = {**regime, "epoch": regime["epoch"] + 1, "began": steps, "rate": rate}
        if regime["epoch"] % c.every == 0:
            count, voted = steps - regime["began"], c.votes and regime["high"]
            norm = norm_of([state.get(_SUM)], count)
            new["norm"], new["voted"] = norm, voted
            if regime["norm"] is None or regime["voted"] == voted:
                new["high"] = is_steady(regime["norm"], norm, c.threshold)
            if c.votes and not voted:
                size = state.get(_ABS)
                new["scale"] = (
                    0.0 if size is None else fixed_sum(size) / max(1, size.numel()) / count
                )
        if warming or rate < c.fall * regime["rate"]:
            new["high"] = False
        return new


def _first(epoch: int, began: int, rate: float) -> dict[str, Any]:
    return {
        "high": False,
        "epoch": epoch,
        "began": began,
        "rate": rate,
        "norm": None,
        "voted": False,
        "scale": 0.0,
    }


def _of(state: State) -> dict[str, Any]:
    regime: dict[str, Any] = state.get(REGIME, {})
    return regime


def _write(s: ParameterSlot, regime: dict[str, Any]) -> None:
    """Into the state, and into what an undone step would take it back to."""
    for state in (s.state, s.committed()):
        state.pop(_SUM, None)
        state.pop(_ABS, None)
        state[REGIME] = copy.copy(regime)


def norm_of(sums: Sequence[torch.Tensor | None], count: int) -> float:
    """The norm of all of what was added up in ``count`` steps, per step; the same on all ranks."""
    total = sum(fixed_sum(x, squares=True) for x in sums if x is not None)
    return math.sqrt(total) / count


def fixed_sum(x: torch.Tensor, squares: bool = False) -> float:
    """The sum of values or squares in one order, whatever the processor and the threads.

    By halves within a chunk, chunk after chunk: additions of elements alone, which IEEE 754 defines
    to the last bit. A reduction of NumPy's or torch's adds in an order of its own.
    """
    total, flat = 0.0, x.detach().cpu().reshape(-1).numpy()
    for a in range(0, flat.size, _CHUNK):
        part = flat[a : a + _CHUNK].astype(np.float64)
        terms = np.zeros(1 << (part.size - 1).bit_length())
        terms[: part.size] = part * part if squares else part
        while terms.size > 1:
            terms = terms[: terms.size // 2] + terms[terms.size // 2 :]
        total += float(terms[0])
    return total
