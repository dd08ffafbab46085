"""Plans of a communicator by what they are for; the longest unused go where memory is short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Protocol

_MOST_NBYTES = 256 << 20
_MOST = 256  # kinds of calls


class CachedPlan(Protocol):
    """What is kept: memory and prepared exchanges, for one call at a time."""

    busy: bool

    @property
    def nbytes(self) -> int:
        """Bytes of its memory."""

    def free(self) -> None:
        """Releases what the transport keeps."""


class PlanCache:
    """Plans by key; calls of one key that are in flight at once have a plan each.

    Whether a rank has a plan is its own affair: one without sends its header, and the others answer
    with theirs.
    """

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, list[Any]] = OrderedDict()
        self.nbytes = 0  # of all plans

    def take(self, key: Hashable) -> Any:
        """A plan for one call, until ``give_back``; None if there is none, or none is free."""
        plans = self._plans.get(key)
        if plans is None:
            return None
        self._plans.move_to_end(key)
        for plan in plans:
            if not plan.busy:
                plan.busy = True
                return plan
        return None

    def give_back(self, key: Hashable, taken: CachedPlan | None, used: CachedPlan | None) -> None:
        """The call is over: ``used`` is kept in place of the plan that it had taken."""
        if used is not taken:
            if taken is not None:
                plans = self._plans.get(key, [])
                if taken in plans:
                    plans.remove(taken)
                    self._drop(taken)
            if used is not None:
                self._plans.setdefault(key, []).append(used)
                self.nbytes += used.nbytes
                self._trim()
        if used is not None:
            used.busy = False

    def of(self, key: Hashable) -> list[Any]:
        """The plans for a key."""
        return self._plans.get(key, [])

    def drop(self, key: Hashable) -> None:
        """Frees the plans for a key; none is in use."""
        for plan in self._plans.pop(key, []):
            self._drop(plan)

    def clear(self) -> None:
        """Frees all plans; none is in use."""
        for plans in self._plans.values():
            for plan in plans:
                self._drop(plan)
        self._plans.clear()

    def _trim(self) -> None:
        for key, plans in list(self._plans.items()):
            if self.nbytes <= _MOST_NBYTES and len(self._plans) <= _MOST:
                break
            for plan in [plan for plan in plans if not plan.busy]:
                plans.remove(plan)
                self._drop(plan)
            if not plans:
                del self._plans[key]

    def _drop(self, plan: CachedPlan) -> None:
        self.nbytes -= plan.nbytes
        plan.free()
